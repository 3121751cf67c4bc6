"""Calls of attention that the tests of the core and of kernels share: masks of every sort, random
heads, and holding a core against attention written out.

Scope: what is held against what; the tests say for which core.
"""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from memo.attention.contracts import AttentionOptions
from memo.attention.core import AttentionCore, attend
from memo.attention.masks import RangeMask, Row
from offload import CoreCall, CoreEnd, Tier
from tests.memo.attention.reference import dense_attention, dense_mask

BATCH, HEADS, KV_HEADS, TOKENS = 3, 9, 3, 143
WHOLE = Row((0, TOKENS), (0,))
ROWS = (WHOLE, Row((0, 60), (0, 31)), Row((17, TOKENS), (17, 18, 100)))
MASKS = {
    "full": RangeMask.full(TOKENS, causal=True),
    "both ways": RangeMask.full(TOKENS, causal=False),
    "packed": RangeMask(TOKENS, (Row((0, TOKENS), (0, 1, 64, 142)),)),
    "padded and packed": RangeMask(TOKENS, ROWS),
    "window": RangeMask(TOKENS, ROWS, window=23),
    "wide window": RangeMask(TOKENS, ROWS, window=200),
    "chunks": RangeMask(TOKENS, ROWS, chunk=50),
    "an empty row": RangeMask(TOKENS, (WHOLE, WHOLE, Row((0, 0), (0,)))),
}


@st.composite
def row(draw: st.DrawFn, tokens: int) -> Row:
    """Any row of so many tokens."""
    first, stop = sorted(draw(st.tuples(st.integers(0, tokens), st.integers(0, tokens))))
    inner = draw(st.sets(st.integers(first + 1, stop - 1), max_size=4)) if stop > first + 1 else ()
    return Row((first, stop), (first, *sorted(inner)))


@st.composite
def mask(draw: st.DrawFn) -> tuple[RangeMask, int]:
    """Any mask, and how many rows there are."""
    tokens, batch = draw(st.integers(1, 420)), draw(st.integers(1, 4))
    one_for_all = draw(st.booleans())
    rows = [draw(row(tokens)) for _ in range(1 if one_for_all else batch)]
    some = st.none() | st.integers(1, 500)
    return RangeMask(tokens, tuple(rows), draw(st.booleans()), draw(some), draw(some)), batch


def random_call(
    mask: RangeMask,
    *,
    softcap: float | None = None,
    sinks: bool = False,
    v_dim: int = 4,
    dropout: float = 0.0,
) -> CoreCall:
    """A call in float64 whose tensors take gradients; heads lie as projections write them."""
    sizes = (HEADS, 4), (KV_HEADS, 4), (KV_HEADS, v_dim)
    heads = tuple(
        torch.randn(BATCH, mask.tokens, *size, dtype=torch.float64).transpose(1, 2).requires_grad_()
        for size in sizes
    )
    extras = (torch.randn(HEADS, dtype=torch.float64).requires_grad_(),) if sinks else ()
    options = AttentionOptions(mask=mask, scale=0.7, softcap=softcap, dropout=dropout)
    return CoreCall(heads=heads, extras=extras, options=options)


def dense_output(call: CoreCall) -> Tensor:
    """What a call must give, [batch, tokens, heads, head_dim]."""
    options = call.options
    assert isinstance(options, AttentionOptions)
    return dense_attention(
        call.heads,
        dense_mask(options.mask, BATCH),
        scale=options.scale,
        softcap=options.softcap,
        sinks=call.extras[0] if call.extras else None,
    ).transpose(1, 2)


def check_dense(call: CoreCall, core: AttentionCore) -> None:
    """Output and every gradient of a core are those of attention written out."""
    tensors = [*call.heads, *call.extras]
    want, out = dense_output(call), attend(core, call)
    assert torch.allclose(out, want, rtol=1e-11, atol=1e-12)
    grad = torch.randn_like(want)
    expected = torch.autograd.grad(want, tensors, grad)
    for found, tensor in zip(torch.autograd.grad(out, tensors, grad), expected, strict=True):
        assert torch.allclose(found, tensor, rtol=1e-10, atol=1e-11)


def check_over(call: CoreCall, core: AttentionCore, *, over: bool) -> None:
    """Gradients are those of attention written out when the core owns the heads, and they are
    written over the heads or not, as said.
    """
    want = dense_output(call)
    grad = torch.randn_like(want)
    expected = torch.autograd.grad(want, call.heads, grad)
    heads = tuple(h.detach().transpose(1, 2).clone().transpose(1, 2) for h in call.heads)
    own = CoreCall(heads=heads, options=call.options, is_own=True)
    with torch.no_grad():
        o, state = core.forward(own, Tier.HOST)
        assert state is not None
        found, _ = core.backward(own, CoreEnd(o=o, grad_o=grad.clone(), state=state))
    for mine, theirs, head in zip(found, expected, heads, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-10, atol=1e-11)
        assert (mine is head) is over
