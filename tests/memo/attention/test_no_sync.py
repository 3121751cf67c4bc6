"""Attention asks no tensor for a value: on a GPU, the host would wait for the device.

On the CPU nobody waits, so what would wait is found by what is called. The seed of dropout is read
from a CPU tensor on any device, and is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from memo.attention.blocks import Block
from memo.attention.contracts import AttentionOptions, BlockInputs
from memo.attention.core import AttentionCore
from memo.attention.flex import FlexKernel
from memo.attention.masks import RangeMask
from memo.attention.varlen import VarlenKernel
from offload import CoreCall, CoreEnd, TensorStore, Tier
from tests.memo.attention.calls import MASKS, random_call
from tests.memo.attention.flash_cuda import FlashCuda

WAITING = {
    "aten::_local_scalar_dense",
    "aten::equal",
    "aten::is_nonzero",
    "aten::masked_select",
    "aten::nonzero",
    "aten::unique_dim",
    "aten::_unique2",
}
"""Operations whose result, or its size, the host must know."""

INDEXING = {"aten::index", "aten::index_put", "aten::index_put_"}
"""Operations of which the same is true when an index is of booleans."""


class _NoValues(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.name().partition(".")[0]
        picks = name in INDEXING and any(t is not None and t.dtype is torch.bool for t in args[1])
        if picks or name in WAITING:
            raise AssertionError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def no_values(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Asking a tensor for a value fails."""

    def refuse(*_: Any) -> None:
        raise AssertionError("a tensor is read by the host")

    for name in ("tolist", "cpu"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    with _NoValues():  # type: ignore[no-untyped-call]
        yield


def _run(core: AttentionCore, call: CoreCall) -> None:
    detached = CoreCall(
        heads=tuple(h.detach() for h in call.heads),
        extras=tuple(e.detach() for e in call.extras),
        options=call.options,
    )
    o, state = core.forward(detached, Tier.DEVICE)
    assert state is not None
    core.backward(detached, CoreEnd(o=o, grad_o=torch.ones_like(o), state=state))


@pytest.mark.usefixtures("no_values")
@pytest.mark.parametrize("features", [{}, {"softcap": 2.0}, {"softcap": 2.0, "sinks": True}])
@pytest.mark.parametrize("mask", MASKS)
def test_kernels_of_blocks(mask: str, features: dict[str, Any]) -> None:
    _run(AttentionCore(TensorStore()), random_call(MASKS[mask], **features))


@pytest.mark.usefixtures("no_values")
@pytest.mark.parametrize("mask", MASKS)
def test_the_kernel_of_a_whole_mask(mask: str, monkeypatch: pytest.MonkeyPatch) -> None:
    varlen = pytest.importorskip("torch.nn.attention.varlen", reason="torch has it since 2.10")
    FlashCuda().install(monkeypatch)
    store = TensorStore()
    core = AttentionCore(store, varlen=VarlenKernel(store, varlen.varlen_attn))
    _run(core, random_call(MASKS[mask]))


@pytest.mark.usefixtures("no_values")
def test_masks_of_flex_attention() -> None:
    q = torch.randn(2, 4, 31, 8)
    k = torch.randn(2, 4, 36, 8)
    options = AttentionOptions(mask=RangeMask.full(40, causal=True), scale=1.0)
    band = BlockInputs(q, k, k, None, Block((0, 2), (9, 40), (4, 40), True, 6), options)
    assert FlexKernel(TensorStore())._mask(band) is not None


def test_what_waits_is_found(no_values: None) -> None:
    ones = torch.ones(3)
    reads: tuple[Callable[[Tensor], object], ...] = (
        lambda t: t.tolist(),
        lambda t: t.cpu(),
        lambda t: t[0].item(),
        lambda t: bool(t.any()),
        lambda t: t[t > 0],
        lambda t: t.nonzero(),
        lambda t: torch.equal(t, t),
    )
    for read in reads:
        with pytest.raises(AssertionError, match=r"waits for the device|read by the host"):
            read(ones)
