"""The kernel for a whole mask: torch's `varlen_attn` over flash kernels written out, in one call,
with nothing of q, k, v and o held meanwhile.
"""

from __future__ import annotations

import gc
import weakref
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from memo.attention.blocks import right_padding_of
from memo.attention.contracts import AttentionOptions
from memo.attention.core import AttentionCore
from memo.attention.masks import RangeMask, Row
from memo.attention.sdpa import SdpaKernel
from memo.attention.varlen import Segments, VarlenKernel
from offload import CoreCall, TensorStore, Tier
from tests.memo.attention.calls import (
    BATCH,
    HEADS,
    MASKS,
    TOKENS,
    check_dense,
    check_over,
    random_call,
)
from tests.memo.attention.calls import mask as masks
from tests.memo.attention.flash_cuda import FlashCuda
from tests.memo.attention.reference import dense_mask
from tests.offload.disks import disk_store

varlen = pytest.importorskip("torch.nn.attention.varlen", reason="torch has it since 2.10")

RANGES = {name: mask for name, mask in MASKS.items() if name not in ("full", "both ways")}
"""Masks that are no single document."""


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> FlashCuda:
    """Flash kernels that stand where `varlen_attn` looks for CUDA's."""
    kernels = FlashCuda()
    kernels.install(monkeypatch)
    return kernels


def _core(store: TensorStore) -> AttentionCore:
    return AttentionCore(store, varlen=VarlenKernel(store, varlen.varlen_attn))


@settings(deadline=None, max_examples=120)
@given(masks())
def test_segments_and_right_padding_are_the_mask(case: tuple[RangeMask, int]) -> None:
    mask, batch = case
    total = batch * mask.tokens
    segments = Segments.of(mask, batch)
    covered = torch.zeros(total, total, dtype=torch.int32)
    assert (segments.q[0], segments.q[-1]) == (segments.k[0], segments.k[-1]) == (0, total)
    for (q0, q1), (k0, k1) in zip(pairwise(segments.q), pairwise(segments.k), strict=True):
        assert q0 <= q1
        assert k0 <= k1
        assert max(q1 - q0, k1 - k0) <= segments.longest
        behind = torch.arange(q0, q1)[:, None] - torch.arange(k0, k1)[None]
        seen = behind >= 0 if mask.causal else torch.ones_like(behind).bool()
        covered[q0:q1, k0:k1] += (seen & (behind < (mask.window or total))).int()
    by_row = covered.view(batch, mask.tokens, batch, mask.tokens)
    within = torch.stack([by_row[row, :, row] for row in range(batch)])
    assert within.sum() == covered.sum()
    for block in right_padding_of(mask, batch):
        allowed = block.allowed(torch.device("cpu"))
        within[slice(*block.rows), slice(*block.q), slice(*block.k)] += allowed.int()
    assert torch.equal(within, dense_mask(mask, batch).int())


@pytest.mark.parametrize("name", RANGES)
def test_any_mask_is_dense_attention_in_one_call(name: str, flash: FlashCuda) -> None:
    call, core = random_call(RANGES[name]), _core(disk_store())
    assert isinstance(core.kernel_for(call), VarlenKernel)
    check_dense(call, core)
    assert len(flash.calls) == 1


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 50, 86, 87, 88, 200])
def test_windows(window: int | None, causal: bool, flash: FlashCuda) -> None:
    mask = RangeMask(TOKENS, (Row((0, TOKENS), (0, 40, 56)),), causal, window)
    check_dense(random_call(mask), _core(disk_store()))
    bites = window is not None and window < TOKENS - 56
    assert flash.calls == [((window or 0) - 1 if bites else -1, 0 if causal else -1)]


@pytest.mark.usefixtures("flash")
def test_queries_that_see_nothing_give_zero() -> None:
    mask = RangeMask(
        TOKENS, (Row((17, TOKENS), (17, 18)), Row((0, 0), (0,)), MASKS["full"].rows[0])
    )
    o, _ = _core(disk_store()).forward(random_call(mask), None)
    assert not o[0, :17].any()
    assert not o[1].any()


@pytest.mark.usefixtures("flash")
@pytest.mark.parametrize("name", RANGES)
def test_gradients_may_be_written_over_the_heads(name: str) -> None:
    padded = any(right_padding_of(RANGES[name], BATCH))
    check_over(random_call(RANGES[name]), _core(disk_store()), over=not padded)


@pytest.mark.usefixtures("flash")
@pytest.mark.parametrize("tier", list(Tier))
@pytest.mark.parametrize("name", ["packed", "chunks"])
def test_nothing_of_q_k_v_and_o_is_held(name: str, tier: Tier) -> None:
    store = disk_store()
    core, call = _core(store), _detached(random_call(RANGES[name]))
    o, state = core.forward(call, tier)
    assert state is not None
    held_bytes = sum(count.held_bytes for count in store.counts.values())
    assert state.nbytes == held_bytes
    lse_bytes, seed_bytes = BATCH * HEADS * TOKENS * 8, 16
    padding = list(right_padding_of(RANGES[name], BATCH))
    if padding:  # a block of its own has its log-sum-exp again
        assert lse_bytes < held_bytes < 1.3 * lse_bytes
    else:
        assert held_bytes == lse_bytes + seed_bytes
    storages = [weakref.ref(t.untyped_storage()) for t in (*call.heads, o)]
    del call, o
    gc.collect()
    assert [storage() for storage in storages] == [None] * 4


def _detached(call: CoreCall) -> CoreCall:
    return CoreCall(heads=tuple(h.detach() for h in call.heads), options=call.options)


def _lengths(kernel: VarlenKernel, mask: RangeMask, batch: int = 2) -> tuple[Tensor, ...]:
    q = torch.randn(batch, mask.tokens, 2, 4).transpose(1, 2)
    core = AttentionCore(disk_store(), varlen=kernel)
    call = CoreCall(heads=(q, q, q), options=AttentionOptions(mask=mask, scale=1.0))
    ((_, piece), *_) = core._pieces(call)
    return kernel.constants(piece.inputs_of(call))


def test_lengths_are_made_once_for_a_mask() -> None:
    kernel = VarlenKernel(disk_store(), varlen.varlen_attn)
    packed, padded = RangeMask(9, (Row((0, 9), (0, 4)),)), RangeMask(9, (Row((2, 9), (2, 4)),))
    first_q, first_k = _lengths(kernel, packed)
    assert first_q is first_k
    again = RangeMask(9, (Row((0, 9), (0, 4)),))  # the next step makes an equal mask
    assert _lengths(kernel, again)[0] is first_q
    assert first_q.tolist() == [0, 4, 9, 13, 18]
    assert _lengths(kernel, packed, batch=3)[0].tolist() == [0, 4, 9, 13, 18, 22, 27]
    padded_q, padded_k = _lengths(kernel, padded, batch=1)
    assert padded_q.tolist() == [0, 2, 2, 4, 9]
    assert padded_k.tolist() == [0, 0, 2, 4, 9]


def test_lengths_of_few_masks_are_held() -> None:
    kernel = VarlenKernel(disk_store(), varlen.varlen_attn)
    masks = [RangeMask(30, (Row((0, 30), (0, start)),)) for start in range(1, 29)]
    first = _lengths(kernel, masks[0])[0]
    held = weakref.ref(first)
    del first
    for mask in masks[1:]:
        _lengths(kernel, mask)
    gc.collect()
    assert held() is None


def test_it_takes_what_it_can_see_without_a_copy() -> None:
    store = disk_store()
    core, call = _core(store), random_call(MASKS["packed"])
    q, k, v = call.heads
    assert isinstance(core.kernel_for(call), VarlenKernel)
    apart = CoreCall(heads=(q.contiguous(), k, v), options=call.options)
    assert isinstance(core.kernel_for(apart), SdpaKernel)
    one_row = CoreCall(
        heads=tuple(h[:1].contiguous() for h in (q, k, v)),
        options=call.options,
    )
    assert isinstance(core.kernel_for(one_row), VarlenKernel)
    fused = torch.randn(BATCH, TOKENS, HEADS, 12, dtype=torch.float64).transpose(1, 2)
    split = CoreCall(heads=fused.split(4, dim=-1), options=call.options)
    assert isinstance(core.kernel_for(split), VarlenKernel)
    other_v = random_call(MASKS["packed"], v_dim=3)
    assert isinstance(core.kernel_for(other_v), SdpaKernel)


@pytest.mark.usefixtures("flash")
def test_parts_of_a_fused_projection_are_told_apart() -> None:
    fused = torch.randn(BATCH, TOKENS, HEADS, 12, dtype=torch.float64).requires_grad_()
    call = CoreCall(
        heads=fused.transpose(1, 2).split(4, dim=-1),
        options=random_call(MASKS["padded and packed"]).options,
    )
    check_dense(call, _core(disk_store()))


def test_a_cpu_has_none() -> None:
    store = disk_store()
    call = random_call(MASKS["packed"])
    assert not VarlenKernel(store).takes(call)
    assert isinstance(AttentionCore(store).kernel_for(call), SdpaKernel)
