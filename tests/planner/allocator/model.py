"""The caching allocator a second time, slowly and in another shape.

Scope: the reference of the property tests. There are no blocks that know each other and no sets:
each segment is a list of cells that is searched from end to end, and neighbours are merged by going
over the whole list. Written from torch's source and not from `planner.allocator`, of which it uses
the events and the settings alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from planner.allocator import (
    AllocatorConfig,
    EmptyCache,
    Event,
    Free,
    Malloc,
    RecordStream,
    StreamDone,
)

MIB = 2**20
NEVER = 2**64 - 1


@dataclass(eq=False)
class Cell:
    """`state`: used, waiting (freed, a stream uses it), free, or hole (unmapped)."""

    size: int
    state: str
    born: int = 0
    id: int = -1
    asked: int = 0
    uses: set[int] = field(default_factory=set)


@dataclass(eq=False)
class Row:
    """One segment, or the addresses of an expandable one."""

    stream: int
    small: bool
    cells: list[Cell]
    grows: bool = False

    def mapped(self) -> int:
        return sum(cell.size for cell in self.cells if cell.state != "hole")


class Model:
    """Runs events; `run` tells whether memory sufficed."""

    def __init__(self, config: AllocatorConfig, capacity: int | None) -> None:
        self.config, self.capacity = config, capacity
        self.rows: list[Row] = []
        self.searches = {True: 0, False: 0}
        self.done: set[int] = set()
        self.peaks = [0, 0, 0, 0]

    # ---- figures ----

    def cells(self) -> list[tuple[Row, Cell]]:
        return [(row, cell) for row in self.rows for cell in row.cells]

    def figures(self) -> list[int]:
        """Reserved, allocated, active, requested."""
        held = [cell for _, cell in self.cells() if cell.state in ("used", "waiting")]
        return [
            sum(row.mapped() for row in self.rows),
            sum(cell.size for cell in held if cell.state == "used"),
            sum(cell.size for cell in held),
            sum(cell.asked for cell in held),
        ]

    def stretches(self) -> list[list[tuple[int, str]]]:
        """Sizes and states of every mapped stretch, in order."""
        result: list[list[tuple[int, str]]] = []
        for row in self.rows:
            stretch: list[tuple[int, str]] = []
            for cell in [*row.cells, Cell(0, "hole")]:
                if cell.state == "hole":
                    result += [stretch] if stretch else []
                    stretch = []
                else:
                    stretch.append((cell.size, cell.state))
        return result

    # ---- events ----

    def run(self, event: Event) -> bool:
        fits = True
        match event:
            case Malloc():
                fits = event.size_bytes == 0 or self.malloc(event)
            case Free():
                self.free(event.id)
            case RecordStream():
                for row, cell in self.cells():
                    if cell.state == "used" and cell.id == event.id and row.stream != event.stream:
                        cell.uses.add(event.stream)
            case StreamDone():
                self.done.add(event.stream)
            case EmptyCache():
                self.release_all()
        self.peaks = [max(pair) for pair in zip(self.peaks, self.figures(), strict=True)]
        return fits

    def free(self, id: int) -> None:
        for row, cell in self.cells():
            if cell.state == "used" and cell.id == id:
                for _, other in self.cells():
                    if other.state == "waiting":
                        other.uses -= self.done
                self.done = set()
                cell.state = "waiting"
                if not cell.uses:
                    self.let_go(row, cell)

    def let_go(self, row: Row, cell: Cell) -> None:
        cell.state, cell.id, cell.asked = "free", -1, 0
        cell.born = self.searches[row.small]
        self.tidy(row)

    def settle(self, streams: set[int]) -> None:
        for row, cell in self.cells():
            if cell.state == "waiting":
                cell.uses -= streams
                if not cell.uses:
                    self.let_go(row, cell)

    def tidy(self, row: Row) -> None:
        """Neighbours that are both free, or both holes, are one; the newer birth holds."""
        cells: list[Cell] = []
        for cell in row.cells:
            if cells and cell.state in ("free", "hole") and cells[-1].state == cell.state:
                cells[-1].size += cell.size
                cells[-1].born = max(cells[-1].born, cell.born)
            else:
                cells.append(cell)
        row.cells = cells

    # ---- malloc ----

    def malloc(self, event: Malloc) -> bool:
        self.settle(self.done)
        self.done = set()
        size = self.rounded(event.size_bytes)
        small = size <= MIB
        found = self.cached(event.stream, small, size)
        if found is None:
            self.collect(small)
            found = self.fresh(event.stream, small, size)
        if found is None and self.release_big(event.stream, small, size):
            found = self.fresh(event.stream, small, size)
        if found is None:
            self.release_all()
            found = self.fresh(event.stream, small, size)
        if found is None:
            return False
        row, cell = found
        self.use(row, cell, size, event)
        return True

    def use(self, row: Row, cell: Cell, size: int, event: Malloc) -> None:
        rest = cell.size - size
        if small_rest(row, self.config):
            cut = rest >= 512
        else:
            cut = rest > MIB and size < self.config.max_split_bytes
        if cut:
            where = row.cells.index(cell)
            row.cells.insert(where + 1, Cell(rest, "free", self.searches[row.small]))
            cell.size = size
        cell.state, cell.id, cell.asked, cell.uses = "used", event.id, event.size_bytes, set()

    def rounded(self, size: int) -> int:
        bucket = 0
        while 2 ** (bucket + 21) <= size and bucket < 15:
            bucket += 1
        parts = self.config.roundup_power2_divisions[bucket]
        if parts > 1 and size > 512 * parts:
            low = 1
            while low * 2 <= size:
                low *= 2
            step, result = low // parts, low
            while result < size:
                result += step
            return result
        return max(512, (size + 511) // 512 * 512)

    def cached(self, stream: int, small: bool, size: int) -> tuple[Row, Cell] | None:
        if self.config.collects_garbage:
            self.searches[small] += 1
        fitting = [
            (row, cell)
            for row, cell in self.cells()
            if row.small == small and row.stream == stream
            if cell.state == "free" and cell.size >= size
        ]
        # Stable: rows are in order of address, and so are cells in them.
        fitting.sort(key=lambda pair: pair[1].size)
        if not fitting:
            return None
        best = fitting[0]
        for other in fitting[1:] if self.config.expandable_segments else []:
            if reach(*other) >= reach(*best):
                break
            best = other
        limit, found = self.config.max_split_bytes, best[1].size
        if size < limit and found >= limit:
            return None
        if size >= limit and found >= size + self.config.non_split_rounding_bytes:
            return None
        return best

    def fresh(self, stream: int, small: bool, size: int) -> tuple[Row, Cell] | None:
        whole = 2 * MIB if small else self.config.large_segment_bytes
        if size >= 10 * MIB:
            whole = (size + 2 * MIB - 1) // (2 * MIB) * (2 * MIB)
        if self.config.memory_fraction < 1:
            assert self.capacity is not None
            if self.figures()[0] + whole > int(self.config.memory_fraction * self.capacity):
                return None
        if self.config.expandable_segments:
            return self.stretch(stream, small, size)
        if not self.has_room(whole):
            return None
        self.rows.append(Row(stream, small, [Cell(whole, "free")]))
        return self.rows[-1], self.rows[-1].cells[0]

    def has_room(self, size: int) -> bool:
        return self.capacity is None or self.figures()[0] + size <= self.capacity

    def stretch(self, stream: int, small: bool, size: int) -> tuple[Row, Cell] | None:
        """Map, hole by hole, from the lowest place on where free cells and holes suffice."""
        granule = 2 * MIB if small else self.config.large_segment_bytes
        row, start = self.place(stream, small, size, granule)
        while True:
            cell = row.cells[start]
            if cell.state == "free" and cell.size >= size:
                return row, cell
            hole = start if cell.state == "hole" else start + 1
            missing = size if cell.state == "hole" else size - cell.size
            missing = min(missing, row.cells[hole].size)
            mapped = (missing + granule - 1) // granule * granule
            if not self.has_room(mapped):
                return None
            born = self.searches[row.small]
            row.cells[hole].size -= mapped
            row.cells.insert(hole, Cell(mapped, "free", born))
            row.cells = [cell for cell in row.cells if cell.size]
            self.tidy(row)

    def place(self, stream: int, small: bool, size: int, granule: int) -> tuple[Row, int]:
        for row in self.rows:
            if row.grows and row.small == small and row.stream == stream:
                for start, cell in enumerate(row.cells):
                    idle, stop = 0, start
                    while stop < len(row.cells) and row.cells[stop].state in ("free", "hole"):
                        idle += row.cells[stop].size
                        stop += 1
                    after = row.cells[start + 1].state if start + 1 < len(row.cells) else ""
                    touches = cell.state == "hole" or (cell.state == "free" and after == "hole")
                    if touches and idle >= size:
                        return row, start
        room = 2**48 if self.capacity is None else self.capacity + self.capacity // 8
        room = (room + granule - 1) // granule * granule
        self.rows.append(Row(stream, small, [Cell(room, "hole")], grows=True))
        return self.rows[-1], 0

    # ---- releasing ----

    def collect(self, small: bool) -> None:
        config = self.config
        if not config.collects_garbage:
            return
        assert self.capacity is not None
        limit = int(
            config.garbage_collection_threshold * int(config.memory_fraction * self.capacity)
        )
        target, gained = self.figures()[0] - limit, 0
        while gained < target:
            whole = [r for r in self.rows if not r.small and [c.state for c in r.cells] == ["free"]]
            ages = [self.searches[False] - row.cells[0].born for row in whole]
            old = [r for r, age in zip(whole, ages, strict=True) if age * len(ages) >= sum(ages)]
            old = [row for row in old if not row.grows]
            if not old:
                return
            gained += sum(row.mapped() for row in old)
            self.rows = [row for row in self.rows if row not in old]

    def release_big(self, stream: int, small: bool, size: int) -> bool:
        limit = self.config.max_split_bytes
        if limit == NEVER or self.config.expandable_segments:
            return False
        wanted = max(size, limit)
        big = [
            row
            for row in self.rows
            if row.small == small and row.stream == stream
            if [c.state for c in row.cells] == ["free"] and row.mapped() >= limit
        ]
        enough = [row for row in big if row.mapped() >= wanted]
        if enough:
            self.rows.remove(min(enough, key=Row.mapped))
            return True
        # The largest first, and of equal ones the one with the highest address.
        big.reverse()
        big.sort(key=Row.mapped, reverse=True)
        gained = 0
        for row in big:
            if gained < wanted:
                gained += row.mapped()
                self.rows.remove(row)
        return gained >= wanted

    def release_all(self) -> None:
        self.settle({stream for _, cell in self.cells() for stream in cell.uses})
        for row in self.rows:
            if row.grows:
                self.unmap(row)
        self.rows = [r for r in self.rows if [c.state for c in r.cells] not in (["free"], ["hole"])]

    def unmap(self, row: Row) -> None:
        granule = 2 * MIB if row.small else self.config.large_segment_bytes
        cells, at = [], 0
        for cell in row.cells:
            start = (at + granule - 1) // granule * granule
            stop = (at + cell.size) // granule * granule
            if cell.state == "free" and start < stop:
                parts = [
                    (start - at, "free"),
                    (stop - start, "hole"),
                    (at + cell.size - stop, "free"),
                ]
                cells += [Cell(size, state, cell.born) for size, state in parts if size]
            else:
                cells.append(cell)
            at += cell.size
        row.cells = cells
        self.tidy(row)


def small_rest(row: Row, config: AllocatorConfig) -> bool:
    return row.small or config.expandable_segments


def reach(row: Row, cell: Cell) -> int:
    """A free cell, and the hole after it."""
    where = row.cells.index(cell) + 1
    after = row.cells[where] if where < len(row.cells) else None
    return cell.size + (after.size if after is not None and after.state == "hole" else 0)
