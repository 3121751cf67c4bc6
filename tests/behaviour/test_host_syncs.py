"""No host synchronisation of ours in a train step: what would make the host wait beside a GPU is
counted on the CPU, and attributed.

Scope: operations whose result, or its shape, the host needs (`SYNCING`), as dispatch and Python
calls show them, in one step of Llama without padding and packing, once warm. What random numbers
are kept with lives on the CPU beside a GPU too, and counts nothing. `tests/gpu/test_host_syncs.py`
asks CUDA itself.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

import memo
import offload
from tests.behaviour.common import batch, models

aten = torch.ops.aten

SYNCING = frozenset(
    {
        aten._local_scalar_dense,
        aten.equal,
        aten.is_nonzero,
        aten.nonzero,
        aten.masked_select,
        aten.unique_consecutive,
        aten.unique_dim,
        aten._unique,
        aten._unique2,
        aten.bincount,
        aten.histc,
        aten.multinomial,
    }
)
"""Operations that copy to the host, or size their output by values."""

READS = frozenset({"tolist", "numpy", "cpu", "__array__"})
"""Methods that dispatch shows as nothing on a CPU, whose tensors they find there."""

_OURS = tuple(Path(str(package.__file__)).parent for package in (memo, offload))

_TORCH = Path(str(torch.__file__)).parent

_ON_THE_CPU = frozenset({"replay.py"})
"""Files that look at the state of generators: bytes on the CPU, whatever the device."""

OPTIONS: tuple[dict[str, Any], ...] = (
    {"placement": "keep"},
    {"placement": "recompute"},
    {"placement": "host"},
    {"placement": "recompute", "skeletal": "host"},
    {"placement": "host", "skeletal": "host", "in_flight_bytes": 1},
)


class _Operations(TorchDispatchMode):
    def __init__(self, saw: Callable[[str], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._saw = saw

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func.overloadpacket in SYNCING or _sizes_by_values(func, args):
            self._saw(str(func.overloadpacket))
        return func(*args, **(kwargs or {}))


def _sizes_by_values(func: Any, args: Sequence[Any]) -> bool:
    """Indexing with booleans, and repeats that stand in a tensor."""
    if func.overloadpacket in (aten.index, aten.index_put, aten.index_put_):
        return any(isinstance(i, Tensor) and i.dtype is torch.bool for i in args[1])
    return func is aten.repeat_interleave.Tensor


class _Reads(TorchFunctionMode):
    def __init__(self, saw: Callable[[str], None]) -> None:
        super().__init__()
        self._saw = saw

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if getattr(func, "__name__", "") in READS:
            self._saw(func.__name__)
        return func(*args, **(kwargs or {}))


def synchronisations(step: Callable[[], object]) -> Counter[str]:
    """What a step does that would make the host wait, by operation and by the line of ours that
    does it (`elsewhere` for other code).
    """
    counts: Counter[str] = Counter()

    def saw(operation: str) -> None:
        place = _place(sys._getframe(1))
        if place is not None:
            counts[f"{operation} at {place}"] += 1

    with _Reads(saw), _Operations(saw):
        step()
    return counts


def _place(frame: FrameType | None) -> str | None:
    """The innermost line that is not torch's or this file's, if it is ours."""
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path != Path(__file__) and _TORCH not in path.parents:
            break
        frame = frame.f_back
    if frame is None or not any(folder in path.parents for folder in _OURS):
        return "elsewhere"
    return None if path.name in _ON_THE_CPU else f"{path.name}:{frame.f_lineno}"


def train(model: PreTrainedModel) -> None:
    model(**batch(), use_cache=False).loss.backward()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_no_more_than_in_the_unwrapped_model(options: dict[str, Any]) -> None:
    plain, wrapped = models(**options)
    train(wrapped)  # the first step may choose and allocate
    ours = synchronisations(lambda: train(wrapped))
    assert all(place.endswith("elsewhere") for place in ours), ours
    assert ours <= synchronisations(lambda: train(plain))


@pytest.mark.parametrize(
    "read",
    [
        lambda t: t.sum().item(),
        lambda t: bool(t.sum() > 0),
        lambda t: t.tolist(),
        lambda t: t.cpu(),
        lambda t: torch.equal(t, t),
        lambda t: t[t > 0],
        lambda t: t.nonzero(),
    ],
)
def test_reads_are_counted(read: Callable[[Tensor], object]) -> None:
    assert synchronisations(lambda: read(torch.randn(3))).total() >= 1


def test_reads_of_ours_are_attributed(monkeypatch: pytest.MonkeyPatch) -> None:
    _, wrapped = models(placement="recompute")
    policy = type(wrapped.__dict__["_memo_runtime"]).policy

    def reading(runtime: Any, x: Tensor, *args: Any) -> Any:
        x.sum().item()
        return policy(runtime, x, *args)

    monkeypatch.setattr(type(wrapped.__dict__["_memo_runtime"]), "policy", reading)
    found = synchronisations(lambda: train(wrapped))
    assert any("runtime.py" in place for place in found), found
