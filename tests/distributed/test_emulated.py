"""One rank's work without the others: torch's fake process group, whose collectives move
nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from torch import distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from memo.attention.masks import RangeMask
from memo.parallel.contracts import SequenceGroup
from memo.parallel.wire import Wire
from tests.distributed.jobs import Case, attention
from tests.distributed.ranks import run_ranks

RANKS, RANK = 8, 3
CASE = Case(mask=RangeMask.full(61, causal=True), heads=9, kv_heads=3)


@pytest.fixture
def fake_group() -> Iterator[SequenceGroup]:
    dist.init_process_group("fake", store=FakeStore(), rank=RANK, world_size=RANKS)
    try:
        yield SequenceGroup.of()
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("case", [CASE, replace(CASE, degree=2), replace(CASE, tile_tokens=3)])
def test_a_rank_alone_sends_and_stores_what_a_rank_among_others_does(
    case: Case, fake_group: SequenceGroup, tmp_path: Path
) -> None:
    alone = attention(Wire(fake_group), case)
    real = run_ranks(attention, RANKS, tmp_path, case)[RANK]
    assert alone.sent_bytes == real.sent_bytes
    assert alone.backward_bytes == real.backward_bytes
    assert alone.calls == real.calls
    assert alone.state_bytes == real.state_bytes
    assert alone.o.shape == real.o.shape
