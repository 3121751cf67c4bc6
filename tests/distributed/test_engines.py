"""Weight updates under plain SGD over ranks are those of one process with the same global batch:
gradients have the right scale under every engine."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.distributed.engines import Training, Updates, several, train_alone
from tests.distributed.ranks import run_ranks
from tests.families.catalogue import family_named
from tests.families.harness import FLOOR, TOLERANCE, build

TORCH = ("ddp", "fsdp2")
ZERO = tuple(f"zero{stage}" for stage in range(4))
CLIP = 0.5
"""Less than the norm of any step's gradient."""

needs_deepspeed = pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="pip install 'memo-offload[deepspeed]'"
)


def _kinds(engine: str, degree: int) -> list[Training]:
    plain = Training(engine=engine, degree=degree)
    return [
        plain,
        replace(plain, accumulation=3),
        replace(plain, clip=CLIP),
        replace(plain, accumulation=2, clip=CLIP, counted=True),
    ]


def _check(trainings: list[Training], ranks: int, folder: Path, limit_s: float = 110.0) -> None:
    by_rank: list[list[Updates]] = run_ranks(several, ranks, folder, trainings, limit_s=limit_s)
    for index, training in enumerate(trainings):
        expected = train_alone(training, ranks)
        for updates in by_rank:
            wrong = _wrong(updates[index], expected, training)
            assert not wrong, f"updates are off: {wrong} in {training}"


def _wrong(found: Updates, expected: Updates, training: Training) -> dict[str, float]:
    """Relative errors of updates, by name, beyond 1e-5 and what float32 weights are rounded to."""
    weights = dict(build(family_named(training.family)).named_parameters())
    largest = max(float(update.norm()) for update in expected.values())
    wrong = {}
    for name, want in expected.items():
        scale = max(float(want.norm()), FLOOR * largest)
        rounding = 2 * training.steps * 2**-24 * float(weights[name].detach().norm())
        error = float((found[name] - want).norm())
        if not error <= TOLERANCE * scale + rounding:
            wrong[name] = error / scale
    return wrong


@pytest.mark.parametrize(("ranks", "degree"), [(2, 2), (4, 2)])
@pytest.mark.parametrize("engine", TORCH)
def test_torch(engine: str, ranks: int, degree: int, tmp_path: Path) -> None:
    _check(_kinds(engine, degree), ranks, tmp_path)


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.timeout(300)  # deepspeed compiles an operator when it is first used
@pytest.mark.parametrize(("ranks", "degree"), [(2, 2), (4, 2)])
@pytest.mark.parametrize("engine", ZERO)
def test_zero(engine: str, ranks: int, degree: int, tmp_path: Path) -> None:
    _check(_kinds(engine, degree), ranks, tmp_path, limit_s=240.0)


@pytest.mark.parametrize("engine", TORCH)
def test_families(engine: str, tmp_path: Path) -> None:
    names = ("qwen3", "mistral", "gemma2", "mixtral", "cohere2", "olmo2")
    trainings = [Training(engine=engine, family=name, steps=1) for name in names]
    _check(trainings, 2, tmp_path)


def test_clipping_and_counting_matter() -> None:
    plain = Training(engine="ddp")
    base = train_alone(plain, 4)
    for other in (replace(plain, clip=CLIP), replace(plain, counted=True)):
        changed = train_alone(other, 4)
        assert any((changed[name] - base[name]).norm() > 1e-3 for name in base)
