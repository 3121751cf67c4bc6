"""Every attention kernel on a GPU, forced in turn, against attention written out in float64.

Scope: outputs and gradients of one call of the core: causal, packed, windows, padding, soft caps
and sinks. A kernel that this machine lacks is skipped and named.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from memo.attention.blockwise import BlockwiseKernel
from memo.attention.contracts import AttentionOptions, Kernel
from memo.attention.core import AttentionCore, attend
from memo.attention.flash import FlashKernel
from memo.attention.flex import FlexKernel
from memo.attention.masks import RangeMask, Row
from memo.attention.sdpa import SdpaKernel
from memo.attention.varlen import VarlenKernel
from offload import CoreCall, TensorStore
from tests.memo.attention.reference import dense_attention, dense_mask

BATCH, HEADS, KV_HEADS, TOKENS, DIM = 2, 8, 2, 390, 64
WHOLE = Row((0, TOKENS), (0,))
ROWS = (Row((0, 300), (0, 31)), Row((17, TOKENS), (17, 18, 200)))
MASKS = {
    "causal": RangeMask.full(TOKENS, causal=True),
    "both ways": RangeMask.full(TOKENS, causal=False),
    "packed": RangeMask(TOKENS, (Row((0, TOKENS), (0, 1, 64, 389)),)),
    "padded and packed": RangeMask(TOKENS, ROWS),
    "window": RangeMask(TOKENS, (WHOLE,), window=70),
    "packed window": RangeMask(TOKENS, ROWS, window=70),
}
SQUARE = ("causal", "both ways", "packed", "padded and packed")
"""Masks whose blocks need no band, which flash and cuDNN take none of."""

Make = Callable[[TensorStore], Kernel]


def sdpa(backend: SDPBackend | None) -> Make:
    return lambda store: SdpaKernel(store, backend=backend)


KERNELS: dict[str, Make] = {
    "sdpa": sdpa(None),
    "sdpa flash": sdpa(SDPBackend.FLASH_ATTENTION),
    "sdpa cudnn": sdpa(SDPBackend.CUDNN_ATTENTION),
    "sdpa efficient": sdpa(SDPBackend.EFFICIENT_ATTENTION),
    "flash": FlashKernel,
    "flex": FlexKernel,
    "blockwise": BlockwiseKernel,
}


def call_of(
    mask: RangeMask,
    device: torch.device,
    dtype: torch.dtype,
    *,
    softcap: float | None = None,
    sinks: bool = False,
) -> CoreCall:
    """Random heads that lie as projections write them."""
    heads = tuple(
        torch.randn(BATCH, TOKENS, count, DIM, device=device, dtype=dtype)
        .transpose(1, 2)
        .requires_grad_()
        for count in (HEADS, KV_HEADS, KV_HEADS)
    )
    extras = (torch.randn(HEADS, device=device, dtype=dtype).requires_grad_(),) if sinks else ()
    options = AttentionOptions(mask=mask, scale=DIM**-0.5, softcap=softcap)
    return CoreCall(heads=heads, extras=extras, options=options)


def check(call: CoreCall, core: AttentionCore) -> None:
    """Output and gradients, each relative to its norm: within a few ulps of the dtype."""
    options, tensors = call.options, [*call.heads, *call.extras]
    assert isinstance(options, AttentionOptions)
    wide = [tensor.detach().double().requires_grad_() for tensor in tensors]
    seen = dense_mask(options.mask, BATCH).to(tensors[0].device)
    want = dense_attention(
        wide[:3],
        seen,
        scale=options.scale,
        softcap=options.softcap,
        sinks=wide[3] if call.extras else None,
    ).transpose(1, 2)
    out = attended(core, call)
    grad = torch.randn_like(out)
    found = torch.autograd.grad(out, tensors, grad)
    expected = torch.autograd.grad(want, wide, grad.double())
    allowed = {torch.float32: 2e-5, torch.bfloat16: 2e-2}[out.dtype]
    for got, value in zip((out, *found), (want, *expected), strict=True):
        assert relative_error(got, value) <= allowed


def attended(core: AttentionCore, call: CoreCall) -> Tensor:
    try:
        return attend(core, call)
    except RuntimeError as error:
        if "No available kernel" not in str(error):
            raise
        pytest.skip(f"torch refuses this backend here: {error}")


def relative_error(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).norm() / want.norm())


def forced(monkeypatch: pytest.MonkeyPatch, make: Make) -> AttentionCore:
    """A core all of whose calls go to one kernel."""
    store = TensorStore()
    kernel = make(store)
    monkeypatch.setattr(AttentionCore, "kernel_for", lambda *_: kernel)
    return AttentionCore(store)


def is_asked_of(name: str, mask: str, dtype: torch.dtype) -> bool:
    """Flash and cuDNN take half precision only. What is compiled takes seconds for each shape, so
    of that a few must do.
    """
    if name == "flex":
        return mask == "window" or (mask == "causal" and dtype is torch.bfloat16)
    if name in ("sdpa flash", "sdpa cudnn"):
        return mask in SQUARE and dtype is torch.bfloat16
    return name != "flash" or dtype is torch.bfloat16


CALLS = [
    pytest.param(name, mask, dtype, id=f"{name}, {mask}, {dtype}")
    for name in KERNELS
    for mask in MASKS
    for dtype in (torch.float32, torch.bfloat16)
    if is_asked_of(name, mask, dtype)
]


@pytest.mark.parametrize(("name", "mask", "dtype"), CALLS)
def test_a_kernel_is_dense_attention(
    name: str, mask: str, dtype: torch.dtype, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "flash" and find_spec("flash_attn") is None:
        pytest.skip("flash-attn is not installed")
    core = forced(monkeypatch, KERNELS[name])
    check(call_of(MASKS[mask], device, dtype), core)


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("name", ["flex", "blockwise"])
def test_soft_caps_and_sinks(
    name: str,
    softcap: float | None,
    sinks: bool,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    core = forced(monkeypatch, KERNELS[name])
    call = call_of(MASKS["window"], device, torch.bfloat16, softcap=softcap, sinks=sinks)
    check(call, core)


@pytest.mark.parametrize("mask", ["packed", "padded and packed", "window", "packed window"])
def test_varlen_is_dense_attention(mask: str, device: torch.device) -> None:
    store = TensorStore()
    core = AttentionCore(store, varlen=(varlen := VarlenKernel(store)))
    call = call_of(MASKS[mask], device, torch.bfloat16)
    if not varlen.takes(call):
        pytest.skip("torch has no varlen_attn with windows here")
    check(call, core)
    assert [choice.kernel for choice in core.chosen.values()] == ["varlen"]


def test_the_fastest_of_several_is_chosen_by_trying(device: torch.device) -> None:
    core = AttentionCore(TensorStore())
    heads = tuple(
        torch.randn(1, 2048, count, DIM, device=device, dtype=torch.bfloat16)
        .transpose(1, 2)
        .requires_grad_()
        for count in (HEADS, KV_HEADS, KV_HEADS)
    )
    options = AttentionOptions(mask=RangeMask.full(2048, causal=True), scale=DIM**-0.5)
    attend(core, CoreCall(heads=heads, options=options)).sum().backward()
    (choice,) = core.chosen.values()
    assert len(choice.times_s) >= 2, choice.failures
    assert choice.kernel == min(choice.times_s, key=lambda name: choice.times_s[name])
