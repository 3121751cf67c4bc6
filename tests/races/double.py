"""The double of a device's streams: copies run as late, and in as bad an order, as events allow.

Scope: `offload.streams` on the CPU, where "device" memory is ordinary memory and compute runs at
once, in the calling thread. Lanes only queue (`queues.py`). What a lane was given runs when compute
waits for it, or when the adversary, drawn from the seed, lets it: some seeds run nothing early,
some everything, most of them now and then. Non-scope: watching compute itself (`compute.py`).

Two things are looked for, and both end as NaN in the target and as a line in `violations`:

- memory that is freed too early. A queued copy holds neither end. Whoever frees memory must have
  made its owner wait: the stream that it was allocated for, or the host for its own;
- accesses that no event orders, whether or not this seed ran them in a bad order. A lane may touch
  what compute worked on only after an event that compute recorded after its last work on those
  bytes; a landing buffer counts as worked on until it was allocated, by whoever had it before; a
  storage that was never seen, as worked on until now.

Both are told from the order of calls alone, so on every seed. What compute does with bytes is known
where it is watched; unwatched, a landing buffer that nobody waited for holds NaN on late seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from random import Random

import torch
from torch import Tensor

from tests.races.clocks import Access, Clock, Ledger, Region
from tests.races.queues import Copy, DoubleEvent, DoubleStream, Queue, once_passed

_STEP_S = 1e-3
"""Between one event and the next, on the double's own clock."""


class DoubleStreams:
    """See `offload.streams.Streams`, and the module's docstring.

    `eagerness` is the chance that the adversary runs one more piece of work, asked at each call and
    after each piece; None draws it from the seed. `violations`: what was found. `ran`: the lanes of
    the copies that ran, in order. `host_syncs`: how often the host stopped for the device by
    `synchronize`; `operation_syncs`: by an operation whose result it must know to go on; `polls`:
    how often it asked whether an event is done.
    """

    def __init__(self, seed: int, *, eagerness: float | None = None) -> None:
        self._random = Random(seed)
        drawn = self._random.choice((0.0, self._random.random(), self._random.random(), 1.0))
        self.eagerness = drawn if eagerness is None else eagerness
        self.d2h = DoubleStream(self, "d2h", is_lane=True)
        self.h2d = DoubleStream(self, "h2d", is_lane=True)
        self.compute = DoubleStream(self, "compute", is_lane=False)
        self.side = DoubleStream(self, "side", is_lane=False)
        self.violations: list[str] = []
        self.ran: list[str] = []
        self.host_syncs = self.operation_syncs = self.polls = 0
        self.host, self._ledger, self._steps = Clock("host"), Ledger(), 0
        self._active = [self.compute]
        self._queues: list[Queue] = []
        self._favour: dict[str, float] = {}
        self.add(self.d2h, self.h2d, self.compute, self.side)
        self._faults: dict[int, Exception] = {}

    # ---- the protocol ----

    def current(self) -> DoubleStream:
        return self.running

    def landing(self, size_bytes: int) -> Tensor:
        self.turn()
        memory = torch.empty(size_bytes, dtype=torch.uint8)
        self.region(memory).poison()
        return memory

    def share(self, memory: Tensor) -> None:
        self.turn()
        self.region(memory).memory.owners.append(self.running.clock)

    def host_memory(self, size_bytes: int) -> Tensor:
        memory = torch.empty(size_bytes, dtype=torch.uint8)
        self._ledger.adopt(memory, self.host)
        self.region(memory).poison()
        return memory

    def synchronize(self) -> None:
        self.turn()
        self.host_syncs += 1
        while self._step():
            pass
        for queue in self._queues:
            self.host_learns(queue.clock.known)

    # ---- what the harness says ----

    @contextmanager
    def user_stream(self, *, is_joined: bool = True) -> Iterator[DoubleStream]:
        """Compute on another stream inside. A careful user has it wait for the one outside, and
        that one for it at the end; with `is_joined`, this does.
        """
        outer = self.running
        if is_joined:
            self.side.wait(outer.record())
        with self.on(self.side):
            yield self.side
        if is_joined:
            outer.wait(self.side.record())

    def fail_copy(self, number: int, error: Exception) -> None:
        """Let the `number`-th copy that runs from here on (1: the next one) fail."""
        if number < 1:
            raise ValueError(f"number={number}: copies are counted from 1")
        self._faults[len(self.ran) + number] = error

    def compute_works(self, reads: Iterable[Tensor] = (), writes: Iterable[Tensor] = ()) -> None:
        """Compute is about to run an operation on the current stream, be it a lane's."""
        stream = self.running
        if stream.is_lane:
            stream.drain()
        stream.clock.tick()
        for tensor in reads:
            self.touch(self.region(tensor), stream.clock, is_write=False)
        self.compute_wrote(writes)

    def compute_wrote(self, writes: Iterable[Tensor]) -> None:
        """What the same operation has written."""
        for tensor in writes:
            self.touch(self.region(tensor), self.running.clock, is_write=True)

    # ---- what streams, and whoever stands beside them, ask for ----

    def add(self, *queues: Queue) -> None:
        """Let the adversary run them, too. Some seeds starve one, some another."""
        for queue in queues:
            self._queues.append(queue)
            self._favour[queue.name] = 0.01 + self._random.random() ** 2

    @property
    def running(self) -> DoubleStream:
        """What is current in truth, whatever a planted fault makes of `current`."""
        return self._active[-1]

    def turn(self) -> None:
        """The adversary's."""
        for access in self._ledger.freed():
            self.found(f"memory was freed while {access}", access)
        while self._random.random() < self.eagerness:
            if not self._step():
                return

    @contextmanager
    def on(self, stream: DoubleStream) -> Iterator[None]:
        """Make a stream current inside."""
        self._active.append(stream)
        self._catch_up()
        try:
            yield
        finally:
            self._active.pop()
            self._catch_up()

    def ask(self, event: DoubleEvent) -> bool:
        """Whether it is done, and the host knows if it is."""
        self.turn()
        self.polls += 1
        if event.passed_s is None:
            return False
        self.host_saw(event.known)
        return True

    def wait_for(self, event: DoubleEvent) -> None:
        """The host stops for it."""
        self.turn()
        self.host_syncs += 1
        event.force()
        self.host_learns(event.known)

    def host_saw(self, known: Mapping[str, int]) -> None:
        """The host found that to be over, and what it submits later comes after; but what it knows
        of compute is luck, and no lane may count on it.
        """
        computes = (self.compute.name, self.side.name)
        self.host_learns({name: work for name, work in known.items() if name not in computes})

    def host_learns(self, known: Mapping[str, int]) -> None:
        """The host has waited for that."""
        for clock in (self.host, *(queue.clock for queue in self._queues)):
            clock.learn(known)

    def gave_back(self, memory: Tensor, events: Sequence[DoubleEvent]) -> None:
        """Host memory is another's once `events` have passed, and holds NaN from then on. Who used
        it must be over by what the host knows, or by the events.
        """
        self.turn()
        next_user, region = Clock("next user"), self.region(memory)
        for known in (self.host.known, *(event.known for event in events)):
            next_user.learn(known)
        for access in region.unknown_to(next_user):
            self.found(f"host memory was given back while {access}", access)
        once_passed(events, region.poison)

    def step_s(self) -> float:
        """The time, which goes on."""
        self._steps += 1
        return self._steps * _STEP_S

    def begin_copy(self, lane: DoubleStream) -> None:
        """Count it; raises the fault that was planted for it."""
        self.ran.append(lane.name)
        fault = self._faults.pop(len(self.ran), None)
        if fault is not None:
            raise fault

    def hold(self, event: DoubleEvent, owner: Clock) -> None:
        """`owner`'s stream, which does not run now, will wait for the event."""
        for lane in (self.d2h, self.h2d):
            lane.hold(event.known.get(lane.name, 0), owner)

    def region(self, tensor: Tensor) -> Region:
        return self._ledger.region(tensor, self.running.clock)

    def touch(
        self, region: Region, clock: Clock, *, is_write: bool, copy: Copy | None = None
    ) -> None:
        """Note an access, and what it races with."""
        self.note(region, region.access(clock, is_write=is_write, copy=copy), clock)

    def note(self, region: Region, access: Access, clock: Clock) -> None:
        """The same, for one that is made."""
        if access.copy is not None:
            self._ledger.lanes_were_in[region.memory] = None
        for old in region.memory.touch(access, clock):
            self.found(f"{access}, which no event orders after: {old}", access, old)

    def found(self, violation: str, *accesses: Access) -> None:
        """Tell a violation, and spoil the copies that have part in it."""
        self.violations.append(violation)
        for access in accesses:
            if access.copy is not None:
                access.copy.spoil()

    # ---- within ----

    def _step(self) -> bool:
        """Let a stream run one piece of its work, if any has some."""
        busy = [queue for queue in self._queues if not queue.is_idle]
        if busy:
            weights = [self._favour[queue.name] for queue in busy]
            self._random.choices(busy, weights)[0].step()
        return bool(busy)

    def _catch_up(self) -> None:
        # Compute runs at once: by now it must have waited for what it was told to wait for.
        if not self.running.is_lane:
            self.running.drain()
