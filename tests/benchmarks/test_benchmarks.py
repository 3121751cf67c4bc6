"""The benchmark measures what it says: cases, rows, search, profile, and a small run for real."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import cases, limits, runner
from benchmarks.context import main
from benchmarks.contracts import Hotspot, Job, Outcome, Phase, Profile, Sample, Shape
from benchmarks.profiling import Allocation, group_of, held_at_peak
from benchmarks.summary import rows
from memo.measure import MIB

TINY = Shape(
    layers=1,
    hidden=32,
    intermediate=64,
    heads=2,
    kv_heads=1,
    vocab=64,
    dtype="bfloat16",
    head=False,
)


def tiny_job(**changes: object) -> Job:
    job = Job(shape=TINY, case="plain", tokens=64, phase=Phase.TIME)
    return replace(job, **changes)  # type: ignore[arg-type]  # the callers name the fields


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("memo:recompute", ("recompute", "keep")),
        ("memo:host/host", ("host", "host")),
        ("memo:host=0.25,recompute=0.75/keep", ({"host": 0.25, "recompute": 0.75}, "keep")),
    ],
)
def test_a_case_spells_the_arguments_of_wrap(case: str, expected: object) -> None:
    cases.check(case)
    assert cases.placement_and_skeletal(case) == expected


@pytest.mark.parametrize(
    "case", ["", "memo", "memo:", "memo:disk", "memo:keep/recompute", "memo:host=half", "Plain"]
)
def test_a_wrong_case_is_refused(case: str) -> None:
    with pytest.raises(ValueError, match=r"takes|is one of"):
        cases.check(case)


def test_cases_take_turns_and_peaks_come_once() -> None:
    jobs = list(
        runner.rounds(
            tiny_job(),
            cases=["a", "b"],
            tokens=[64, 128],
            repeats=2,
            phases=[Phase.TIME, Phase.PEAK],
        )
    )
    times = [(job.tokens, job.case) for job in jobs if job.phase is Phase.TIME]
    assert times == [(64, "a"), (64, "b"), (128, "a"), (128, "b")] * 2
    assert sum(job.phase is Phase.PEAK for job in jobs) == 4


def _sample(case: str, phase: Phase, **fields: object) -> Sample:
    sample = Sample(case=case, tokens=64, phase=phase, outcome=Outcome.OK)
    return replace(sample, **fields)  # type: ignore[arg-type]  # the callers name the fields


def test_rows_have_medians_ranges_and_ratios_to_plain() -> None:
    samples = [
        _sample("other", Phase.TIME, step_s=[3.0]),
        _sample("plain", Phase.TIME, step_s=[1.0]),
        _sample("other", Phase.TIME, step_s=[9.0]),
        _sample("plain", Phase.TIME, step_s=[2.0, 8.0]),
        _sample("other", Phase.TIME, step_s=[4.0]),
        _sample("plain", Phase.PEAK, growth_bytes=400),
        _sample("other", Phase.PEAK, growth_bytes=100),
        _sample("big", Phase.PEAK, outcome=Outcome.DOES_NOT_FIT, message="refused"),
    ]
    other, plain, big = rows(samples)
    assert (plain.case, plain.step_s, plain.step_range_s) == ("plain", 2.0, (1.0, 8.0))
    assert (other.step_s, other.step_ratio, other.growth_ratio) == (4.0, 2.0, 0.25)
    assert big.growth_ratio is None
    assert "does not fit" in big.note


@pytest.mark.parametrize("longest_tokens", [0, 256, 300, 1024, 1500, 4096, 9_000])
def test_the_search_finds_the_longest_that_fits(longest_tokens: int) -> None:
    tried = []

    def probe(tokens: int) -> Sample:
        tried.append(tokens)
        fits = tokens <= longest_tokens
        outcome = Outcome.OK if fits else Outcome.DOES_NOT_FIT
        return _sample("plain", Phase.FIT, outcome=outcome, step_s=[1.0] if fits else [])

    found = limits.longest("plain", probe, start_tokens=1024, step_tokens=256, max_tokens=8192)
    assert found.fits_tokens == min(longest_tokens // 256 * 256, 8192)
    assert found.fails_tokens == (found.fits_tokens + 256 if longest_tokens < 8192 else None)
    assert len(tried) == len(set(tried)) <= 8


def test_the_search_does_not_take_an_error_for_a_lack_of_memory() -> None:
    def probe(tokens: int) -> Sample:
        return _sample("plain", Phase.FIT, outcome=Outcome.FAILED, message="a bug")

    found = limits.longest("plain", probe, start_tokens=1024, step_tokens=256, max_tokens=8192)
    assert (found.fits_tokens, found.fails_tokens, found.error) == (0, None, "a bug")


def test_the_peak_is_where_most_bytes_live_and_knows_their_owners() -> None:
    events = [
        Allocation(3, 0xA, -10, "x"),
        Allocation(1, 0xA, 10, "x"),
        Allocation(2, 0xB, 5, "y"),
        Allocation(4, 0xC, 7, "z"),
        Allocation(5, 0xA, 2, "z"),  # an address that is used again
        Allocation(6, 0xD, -99, "from before the step"),
    ]
    assert held_at_peak(events) == (
        15,
        [Hotspot(name="x", calls=1, peak_bytes=10), Hotspot(name="y", calls=1, peak_bytes=5)],
    )


def test_operators_are_grouped() -> None:
    assert group_of("aten::_scaled_dot_product_flash_attention_for_cpu") == "attention forward"
    backward = "aten::_scaled_dot_product_flash_attention_for_cpu_backward"
    assert group_of(backward) == "attention backward"
    assert group_of("aten::mm") == "matrix products"
    assert group_of("aten::view") == "other"


def test_jobs_and_samples_survive_json() -> None:
    job = tiny_job(phase=Phase.FIT, limit_bytes=5)
    assert Job.from_json(json.loads(json.dumps(job.to_json()))) == job
    spot = Hotspot(name="aten::mm", calls=1, self_s=0.5)
    profile = Profile(operators=[spot], groups=[], holders=[], total_self_s=0.5, peak_bytes=3)
    sample = _sample("plain", Phase.PROFILE, profile=profile)
    assert Sample.from_json(json.loads(json.dumps(sample.to_json()))) == sample


@pytest.mark.timeout(400)
def test_a_small_run_for_real(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, picture = tmp_path / "out.json", tmp_path / "out.png"
    options = ["--tokens", "2048", "--cases", "plain", "checkpointing", "--repeats", "1"]
    shape = ["--layers", "4", "--hidden", "128", "--intermediate", "512", "--vocab", "64"]
    heads = ["--heads", "2", "--kv-heads", "1"]
    main([*options, *shape, *heads, "--json", str(out), "--plot", str(picture)])
    plain, checkpointing = json.loads(out.read_text())["rows"]
    assert plain["growth_ratio"] == 1.0
    assert 0.1 < checkpointing["growth_ratio"] < 0.7
    assert plain["loss"] == checkpointing["loss"]
    assert plain["step_s"] > 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "checkpointing" in capsys.readouterr().out


def test_a_limit_that_is_too_low_is_told_apart_from_an_error() -> None:
    job = tiny_job(phase=Phase.FIT, limit_bytes=64 * 1024 * MIB)
    assert runner.run(job, timeout_s=100).outcome is Outcome.OK
    small = replace(job, tokens=2_000_000, limit_bytes=600 * MIB)
    assert runner.run(small, timeout_s=100).outcome is Outcome.DOES_NOT_FIT
    wrong = replace(job, shape=replace(job.shape, heads=7, kv_heads=5))
    failed = runner.run(wrong, timeout_s=100)
    assert failed.outcome is Outcome.FAILED
    assert failed.message
