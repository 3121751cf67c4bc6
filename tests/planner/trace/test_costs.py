"""FLOPs and bytes of operations, against counting by hand and against torch's own counter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from planner.trace.contracts import OperationCost
from planner.trace.costs import attention_flops, visible_pairs
from planner.trace.recorder import Recorder


@given(tokens=st.integers(1, 40), causal=st.booleans(), window=st.none() | st.integers(1, 50))
def test_pairs_are_those_of_the_mask(tokens: int, causal: bool, window: int | None) -> None:
    seen = sum(
        (not causal) or (key <= query and (window is None or key > query - window))
        for query in range(tokens)
        for key in range(tokens)
    )
    assert visible_pairs(tokens, tokens, causal=causal, window=window) == seen


@pytest.mark.parametrize(("head_dim", "v_head_dim"), [(16, 16), (24, 16)])
def test_attention_without_a_mask_is_what_torch_counts(head_dim: int, v_head_dim: int) -> None:
    q, k, v = (2, 6, 10, head_dim), (2, 3, 14, head_dim), (2, 3, 14, v_head_dim)
    pairs = visible_pairs(10, 14, causal=False)
    assert attention_flops(q, v_head_dim, pairs, backward=False) == sdpa_flop_count(q, k, v)
    expected = sdpa_backward_flop_count((2, 6, 10, v_head_dim), q, k, v)
    assert attention_flops(q, v_head_dim, pairs, backward=True) == expected


def _recorded(run: Callable[[], object]) -> list[OperationCost]:
    recorder = Recorder()
    with recorder:
        run()
    return recorder.tape.operations


def test_causal_attention_counts_what_queries_see() -> None:
    q, k, v = (torch.zeros((1, heads, 9, 8), requires_grad=True) for heads in (4, 2, 2))

    def run() -> None:
        out = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        out.backward(torch.zeros_like(out))

    flops = [op.flops for op in _recorded(run) if op.flops]
    pairs = 9 * 10 // 2
    assert flops == [4 * pairs * 2 * 2 * 8, 4 * pairs * 5 * 2 * 8]


def test_other_matmuls_are_what_torch_counts() -> None:
    a, b, c = torch.zeros((3, 5, 7)), torch.zeros((3, 7, 2)), torch.zeros((7, 11))

    def run() -> Tensor:
        return (a @ b).sum() + torch.addmm(torch.zeros(11), a[0], c).sum()

    with FlopCounterMode(display=False) as counter:
        run()
    assert sum(op.flops for op in _recorded(run)) == counter.get_total_flops() > 0


def test_a_row_of_a_grouped_matmul_meets_one_group() -> None:
    rows, weights = torch.zeros((12, 8)).bfloat16(), torch.zeros((3, 8, 16)).bfloat16()
    ends = torch.tensor([4, 4, 12], dtype=torch.int32)
    (op,) = [
        op
        for op in _recorded(lambda: torch._grouped_mm(rows, weights, offs=ends))
        if op.name == "_grouped_mm"
    ]
    assert op.flops == 2 * 12 * 8 * 16


def test_views_and_empty_memory_move_no_bytes() -> None:
    x = torch.zeros((4, 6))
    costs = _recorded(lambda: (x.t(), x[1:], torch.empty(9), x + 1))
    assert [op.bytes for op in costs][:-1] == [0] * (len(costs) - 1)
    assert costs[-1].bytes == 2 * 4 * 6 * 4
