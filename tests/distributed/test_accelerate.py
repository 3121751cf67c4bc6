"""A loop of one's own with accelerate, over ranks that share sequences, does what it does in one
process: weights, learning rates, and what is gathered for metrics.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.accelerated import (
    SAMPLES,
    Trained,
    refusals,
    train_alone,
    train_over_ranks,
)
from tests.distributed.ranks import run_ranks
from tests.distributed.updates import wrong_updates
from tests.families.catalogue import family_named
from tests.families.harness import build


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_loop(ranks: int, tmp_path: Path) -> None:
    start = {n: p.detach() for n, p in build(family_named("llama")).named_parameters()}
    expected = train_alone(ranks // 2)
    outcomes: list[Trained] = run_ranks(train_over_ranks, ranks, tmp_path, 2, limit_s=110.0)
    for found in outcomes:
        wrong = wrong_updates(found.weights, expected.weights, start, len(expected.rates))
        assert not wrong, f"updates are off: {wrong}"
        assert found.rates == expected.rates
        assert found.gathered == list(range(SAMPLES))
        assert found.titles == [f"row {index}" for index in range(SAMPLES)]
    # Each step is counted as often as there are groups.
    assert expected.rates[0] == pytest.approx(0.1 / (1 + ranks // 2))


def test_what_is_refused(tmp_path: Path) -> None:
    for rank, errors in enumerate(run_ranks(refusals, 4, tmp_path, limit_s=110.0)):
        plain, other, alone, dummy, loader, dispatched = errors
        pair = [0, 1] if rank < 2 else [2, 3]
        assert "is not wrapped" in plain
        assert f"gives ranks {pair} the same samples" in other
        assert "among ranks [0, 1, 2, 3]: takes a model wrapped with sequence_parallel=2" in other
        assert "with no other rank: takes a model wrapped with sequence_parallel=2" in alone
        assert "DummyScheduler with total_num_steps" in dummy
        assert loader == ""
        assert "dispatch_batches=True has one process read" in dispatched
