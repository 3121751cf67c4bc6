"""What attention over ranks is held against: attention written out in one process, on whole
sequences.

Scope: the comparison. The formula is `tests.memo.attention.reference`'s, which shares no code with
masks, blocks, kernels or exchanges.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tests.distributed.jobs import Case, Outcome
from tests.memo.attention.reference import dense_attention, dense_mask

RTOL = 1e-5
"""Of the largest element; what the issue asks for in float32. In float64 errors are near 1e-15."""


def check(case: Case, outcomes: list[Outcome]) -> None:
    """Output and every gradient of all ranks together are those of attention written out.

    Raises:
        AssertionError: that names the case.
    """
    try:
        _check(case, outcomes)
    except AssertionError as error:
        raise AssertionError(f"{error} in {case}") from error


def _check(case: Case, outcomes: list[Outcome]) -> None:
    o, grads, sink_grads = written_out(case)
    tolerance = RTOL if case.dtype == torch.float32 else 1e-11
    assert_close(torch.cat([outcome.o for outcome in outcomes], dim=1), o, tolerance)
    for index, want in enumerate(grads):
        found = torch.cat([outcome.grads[index] for outcome in outcomes], dim=2)
        assert_close(found, want, tolerance)
    for index, want in enumerate(sink_grads):
        parts = [outcome.sink_grads[index] for outcome in outcomes]
        assert all(part is not None for part in parts)
        found = torch.stack([part for part in parts if part is not None]).sum(0)
        assert_close(found, want, tolerance)


def written_out(case: Case) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """o as [batch, tokens, heads, size], and gradients of q, k, v and of the sinks; in float64."""
    heads, sinks, grad_o = case.tensors()
    heads, sinks = ([t.double().requires_grad_() for t in ts] for ts in (heads, sinks))
    o = dense_attention(
        heads,
        dense_mask(case.mask, case.batch),
        scale=0.4,
        softcap=case.softcap,
        sinks=sinks[0] if sinks else None,
    ).transpose(1, 2)
    grads = torch.autograd.grad(o, [*heads, *sinks], grad_o.double())
    return o.detach(), list(grads[:3]), list(grads[3:])


def assert_close(found: Tensor, want: Tensor, tolerance: float) -> None:
    """Equal in shape, and in value up to a share of the largest element."""
    assert found.shape == want.shape, f"{tuple(found.shape)}, not {tuple(want.shape)}"
    scale = want.double().abs().max().clamp(min=1e-3)  # some gradients are zero by nature
    error = (found.double() - want.double()).abs().max() / scale
    assert error <= tolerance, f"relative error {error:.1e}"
