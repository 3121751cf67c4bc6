"""Recording a step: every operation with its cost, every storage with its birth and death.

Scope: `Recorder`, a dispatch mode over real or fake tensors, and the `Tape` that it fills. What
kernels allocate and free inside is not seen. Which part of a model is running is told from outside
by marks; cutting the tape into blocks is `blocks.py`'s business.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from planner.trace.contracts import OperationCost, Pass, Repeat, Segment
from planner.trace.costs import bytes_of, flops_of

T = TypeVar("T")


@dataclass(slots=True)
class Storage:
    """A storage's life: it is there while operations `born`, ..., `freed` - 1 run. `born` -1: it
    was there before the recording; `freed` None: it is there after it.
    """

    id: int
    size_bytes: int
    born: int
    segment: Segment
    freed: int | None = None


@dataclass(slots=True)
class Tape:
    """What was recorded, in order."""

    operations: list[OperationCost] = field(default_factory=list)
    storages: list[Storage] = field(default_factory=list)
    repeats: list[Repeat] = field(default_factory=list)

    @property
    def now(self) -> int:
        """The index of the next operation."""
        return len(self.operations)


class Recorder(TorchDispatchMode):
    """Records what runs inside `with recorder:`; on fake tensors, enter it after their mode.

    Args:
        with_costs: tell FLOPs and bytes of operations; without, only storages are followed.
    """

    def __init__(self, *, with_costs: bool = True) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tape = Tape()
        self.segment, self.direction = Segment.EMBEDDING, Pass.FORWARD
        self._with_costs = with_costs
        self._live: dict[int, tuple[Storage, weakref.ref[Any]]] = {}
        self._is_over = False

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        self._is_over = True  # what is freed from here on is there after the recording
        super().__exit__(kind, error, traceback)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace == "prim":  # a question (which device?), answered without work
            return result
        outputs = _tensors(result)
        now = self.tape.now
        for tensor in outputs:
            self._follow(tensor, now)
        flops = moved = 0
        if self._with_costs:
            flops = flops_of(func, args, kwargs or {}, result)
            moved = bytes_of(func, _tensors(args), outputs)
        name = func.overloadpacket.__name__
        self.tape.operations.append(
            OperationCost(now, name, flops, moved, self.segment, self.direction)
        )
        return result

    def know(self, tensors: Iterable[Tensor]) -> None:
        """Follow tensors that are there before the recording (parameters, inputs)."""
        for tensor in tensors:
            self._follow(tensor, -1)

    def storage_of(self, tensor: Tensor) -> Storage | None:
        """The storage of a live tensor that the recording has seen."""
        found = self._live.get(_key(tensor))
        return None if found is None else found[0]

    @contextmanager
    def within(self, segment: Segment, direction: Pass) -> Iterator[None]:
        """What runs inside is of `segment` in `direction`."""
        before = self.segment, self.direction
        self.segment, self.direction = segment, direction
        try:
            yield
        finally:
            self.segment, self.direction = before

    def repeating(self, items: Sequence[T], times: int, *, index: int) -> Iterator[T]:
        """Iterate over `items`, of which the one at `index` stands for `times` more after it. Of so
        few that it is the last but one, or the last, its place is told with 0, too.
        """
        for position, item in enumerate(items):
            start = self.tape.now
            yield item
            is_told = times or len(items) <= index + 2  # with more, all are traced
            if position == index and is_told and self.tape.now > start:
                self.tape.repeats.append(Repeat(start, self.tape.now, times))

    def _follow(self, tensor: Tensor, born: int) -> None:
        storage = tensor.untyped_storage()
        key = int(storage._cdata)
        if key in self._live or not storage.nbytes():
            return
        record = Storage(len(self.tape.storages), storage.nbytes(), born, self.segment)
        self.tape.storages.append(record)
        self._live[key] = record, weakref.ref(storage, lambda _: self._forget(key))

    def _forget(self, key: int) -> None:
        record, _ = self._live.pop(key)
        if not self._is_over:
            record.freed = self.tape.now


def _tensors(tree: Any) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def peak_bytes(tape: Tape) -> int:
    """Most bytes that live at a time, of all storages followed."""
    changes = [0] * (tape.now + 2)
    for storage in tape.storages:
        changes[max(storage.born, 0)] += storage.size_bytes
        if storage.freed is not None:
            changes[storage.freed] -= storage.size_bytes
    live = peak = 0
    for change in changes:
        live += change
        peak = max(peak, live)
    return peak
