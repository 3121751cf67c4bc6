"""The GPU benchmark, as far as a CPU goes: FLOPs, scheduling, the search, claims, the small run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from benchmarks import cases, flops, gpu, gpu_tests, limits, runner
from benchmarks.archive import Archive
from benchmarks.budget import Task, run_within
from benchmarks.contracts import Job, Outcome, Phase, Sample, Shape
from benchmarks.gpu_plan import CARD, LLAMA_8B, OURS, SMALL, Estimates, Setting
from benchmarks.gpu_rows import claims, gpu_rows
from benchmarks.gpu_run import Measuring
from benchmarks.limits import Longest
from benchmarks.step import build

SHAPE = Shape(
    layers=2,
    hidden=32,
    intermediate=48,
    heads=4,
    kv_heads=2,
    vocab=101,
    dtype="float32",
    head=True,
)
PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm)


def sample_of(job: Job, **fields: Any) -> Sample:
    found = runner.ended_as(job, Outcome.OK, "")
    return replace(found, **fields)


# ---- FLOPs ----


@pytest.mark.parametrize("head", [True, False])
def test_flops_are_those_that_torch_counts(head: bool) -> None:
    shape, tokens = replace(SHAPE, head=head), 24
    model, ids = build(shape, tokens), torch.arange(tokens)[None]
    with FlopCounterMode(display=False) as forward:
        output = model(input_ids=ids)
        loss = (output.logits if head else output.last_hidden_state).sum()
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    attention = shape.layers * flops.attention_flops(shape, tokens)
    expected = flops.forward_flops(shape, tokens) - attention
    assert products(forward) == expected
    assert products(forward) + products(backward) == 3 * expected
    assert flops.step_flops(shape, tokens) == 3 * (expected + attention)


def products(counter: FlopCounterMode) -> int:
    counts = counter.get_flop_counts()["Global"]
    return sum(counts.get(operation, 0) for operation in PRODUCTS)


def test_causal_attention_is_half_of_what_torch_counts_for_all_pairs() -> None:
    heads = (1, SHAPE.heads, 24, SHAPE.hidden // SHAPE.heads)
    assert flops.attention_flops(SHAPE, 24) == sdpa_flop_count(heads, heads, heads) / 2


def test_a_layer_of_llama_8b_has_its_parameters() -> None:
    assert flops.layer_parameters(LLAMA_8B) == 218_103_808
    norms, embeddings = (2 * 32 + 1) * 4096, 2 * 128_256 * 4096
    assert 32 * flops.layer_parameters(LLAMA_8B) + norms + embeddings == 8_030_261_248


def test_attention_in_pieces_counts_its_pieces_only() -> None:
    whole, cut = (flops.forward_flops(SHAPE, 64, attention_tokens=n) for n in (None, 16))
    assert whole - cut == SHAPE.layers * 3 / 4 * flops.attention_flops(SHAPE, 64)


@pytest.mark.parametrize(("budget", "layers"), [(0.0, 4), (5.5, 5), (100.0, 8)])
def test_layers_follow_the_time(budget: float, layers: int) -> None:
    one = flops.step_flops(replace(SHAPE, layers=1, head=False), 64)
    assert flops.layers_within(SHAPE, 64, budget * one, least=4, most=8) == layers


def test_only_cards_of_the_table_have_a_peak() -> None:
    assert flops.peak_flops_per_s("NVIDIA H200") == 989e12
    assert flops.peak_flops_per_s("NVIDIA H100 PCIe") is None


# ---- time ----


@dataclass
class Clock:
    """Time that passes when tasks run."""

    left_s: float
    ran: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def task(self, name: str, rank: int, *estimates_s: float, takes_s: float) -> Task:
        """Each estimate holds for as many choices as have been made."""

        def run() -> None:
            self.left_s -= takes_s
            self.ran.append(name)

        return Task(
            rank=(rank,),
            estimate_s=lambda: estimates_s[min(len(self.ran), len(estimates_s) - 1)],
            run=run,
            skip=lambda why: self.skipped.update({name: why}),
        )


def test_the_longest_comes_last_and_what_matters_less_is_left_out() -> None:
    clock = Clock(left_s=100.0)
    tasks = [
        clock.task("long", 0, 60.0, takes_s=60.0),
        clock.task("short", 1, 10.0, takes_s=10.0),
        clock.task("least", 3, 40.0, takes_s=40.0),
        clock.task("middle", 2, 30.0, takes_s=29.0),
    ]
    run_within(tasks, lambda: clock.left_s)
    assert clock.ran == ["short", "middle", "long"]
    assert clock.skipped == {"least": "takes about 40 s, and 1 s are left"}


def test_what_turns_out_shorter_than_thought_is_done_after_all() -> None:
    clock = Clock(left_s=100.0)
    tasks = [
        clock.task("first", 0, 50.0, takes_s=20.0),
        clock.task("second", 1, 90.0, 60.0, takes_s=60.0),
    ]
    run_within(tasks, lambda: clock.left_s)
    assert (clock.ran, clock.skipped) == (["first", "second"], {})


def test_estimates_grow_with_the_square_of_the_tokens_at_the_cases_own_rate() -> None:
    estimates = Estimates(start_s=20.0, flops_per_s=1.0, margin=1.0)
    job = CARD.timed(OURS, 16_384, 7e14)
    far = replace(job, tokens=2**20)
    estimates.learn(job, sample_of(job, step_s=[2.0, 1.0, 3.0], wall_s=14.0))
    assert estimates.step_s(job) == 2.0
    ratio = flops.step_flops(job.shape, far.tokens) / flops.step_flops(job.shape, job.tokens)
    assert 64 * 8 < ratio < 64**2
    assert estimates.step_s(far) == pytest.approx(2.0 * ratio)
    assert estimates.start_s == 10.0  # half of what was thought: 14 s less four steps is less
    assert estimates.job_s(job) == 10.0 + 2 * 2.0
    assert [estimates.with_steps(j).steps for j in (job, far)] == [3, 1]


# ---- the search ----


@pytest.mark.parametrize("limit", [20_000, 150_000, 1_200_000])
def test_a_guess_from_peaks_finds_the_longest_in_a_few_probes(limit: int) -> None:
    tried: list[int] = []

    def probe(tokens: int) -> Sample:
        tried.append(tokens)
        fits = tokens <= limit
        job = CARD.probe(OURS, tokens)
        if not fits:
            return runner.ended_as(job, Outcome.DOES_NOT_FIT, "")
        used_bytes = 30 * 10**9 + 50_000 * tokens
        capacity_bytes = 30 * 10**9 + 50_000 * limit
        return sample_of(
            job, step_s=[1.0], allocated_bytes=used_bytes, capacity_bytes=capacity_bytes
        )

    found = limits.longest(
        OURS,
        probe,
        start_tokens=16_384,
        step_tokens=2048,
        max_tokens=2**23,
        guess=limits.guess_from,
    )
    assert found.fits_tokens <= limit < (found.fails_tokens or 0)
    assert found.fits_tokens > 0.9 * limit - 2048
    assert len(tried) <= 6, tried


def test_a_skipped_probe_ends_the_search_and_is_named() -> None:
    job = CARD.probe(OURS, 1)
    skipped = runner.ended_as(job, Outcome.SKIPPED, "the time was up")
    found = limits.longest(
        OURS, lambda _: skipped, start_tokens=1024, step_tokens=256, max_tokens=8192
    )
    assert (found.fits_tokens, found.error) == (0, "the time was up")


def test_the_host_may_be_what_ends_first() -> None:
    found = Longest(case=OURS, fits_tokens=900, fails_tokens=1000, step_s=1.0)
    assert (found.trains_tokens, found.bound) == (900, "device")
    bound = replace(found, host_tokens=500)
    assert (bound.trains_tokens, bound.bound) == (500, "host")


# ---- the plan and the run ----


@pytest.mark.parametrize("setting", [CARD, SMALL])
def test_all_cases_of_a_setting_are_cases(setting: Setting) -> None:
    for case in (*setting.cases, *setting.search_cases):
        cases.check(case)
    assert setting.search_step_tokens % setting.attention_tokens == 0


def test_what_the_claims_rest_on_comes_first() -> None:
    pairs = [(case, tokens) for case in CARD.cases for tokens in CARD.tokens]
    first = sorted(pairs, key=lambda pair: CARD.rank(*pair))[:2]
    assert set(first) == {("offload", 131_072), (OURS, 131_072)}


def fake_run(answer: Callable[[Job], Sample], done: list[Job]) -> Callable[[Job, float], Sample]:
    def run(job: Job, timeout_s: float) -> Sample:
        assert timeout_s > 0
        done.append(job)
        if job.phase is Phase.RATE:
            return sample_of(job, matmul_flops_per_s=7e14, wall_s=1.0)
        return answer(job)

    return run


def measured(answer: Callable[[Job], Sample], ends_s: float) -> tuple[list[Job], Archive]:
    """A whole run of the card's plan with measurements that are given."""
    done: list[Job] = []
    archive = Archive(job=CARD.rate_job(), path=None)
    Measuring(
        setting=CARD,
        archive=archive,
        say=lambda _: None,
        ends_s=ends_s,
        run_job=fake_run(answer, done),
    ).run()
    return done, archive


def test_a_run_with_time_enough_measures_everything_shortest_first() -> None:
    def answer(job: Job) -> Sample:
        if job.phase is Phase.FIT and job.tokens > 100_000:
            return runner.ended_as(job, Outcome.DOES_NOT_FIT, "")
        return sample_of(job, step_s=[1.0], wall_s=5.0, layer_host_bytes=job.tokens)

    done, archive = measured(answer, ends_s=1e12)
    timed = [job for job in done if job.phase is Phase.TIME]
    assert len(timed) == len(CARD.cases) * len(CARD.tokens)
    assert [job.tokens for job in timed[:8]] == [16_384] * 8
    assert {found.case for found in archive.longest} == set(CARD.search_cases)
    assert all(90_000 < found.fits_tokens <= 100_000 for found in archive.longest)
    assert all(found.host_tokens for found in archive.longest)
    layers = {job.tokens: job.shape.layers for job in timed}
    assert layers == {16_384: 8, 65_536: 4, 131_072: 4, 262_144: 4}
    assert all(job.account_layers == 30 for job in done if job.phase is Phase.FIT)


def test_what_did_not_fit_is_not_tried_at_greater_lengths() -> None:
    def answer(job: Job) -> Sample:
        if job.case == "plain" and job.tokens > 16_384:
            return runner.ended_as(job, Outcome.DOES_NOT_FIT, "")
        return sample_of(job, step_s=[1.0], wall_s=5.0)

    done, archive = measured(answer, ends_s=1e12)
    plain = [job.tokens for job in done if job.case == "plain" and job.phase is Phase.TIME]
    assert plain == [16_384, 65_536]
    skipped = [s.message for s in archive.samples if s.outcome is Outcome.SKIPPED]
    assert skipped == ["did not fit at 65,536 tokens"] * 2


def test_without_time_everything_is_skipped_and_said() -> None:
    done, archive = measured(lambda job: sample_of(job, step_s=[1.0]), ends_s=0.0)
    assert [job.phase for job in done] == [Phase.RATE]
    skipped = [s for s in archive.samples if s.outcome is Outcome.SKIPPED]
    assert len(skipped) == len(CARD.cases) * len(CARD.tokens)
    assert all("takes about" in s.message for s in skipped)
    assert all("takes about" in found.error for found in archive.longest)


# ---- rows and claims ----


def timed_samples() -> list[Sample]:
    rate = sample_of(CARD.rate_job(), matmul_flops_per_s=8e14)
    job = Job(shape=LLAMA_8B, case="offload", tokens=131_072, phase=Phase.TIME)
    peer = sample_of(job, step_s=[15.0, 14.0, 30.0], step_flops=6e15)
    ours = sample_of(replace(job, case=OURS), step_s=[10.0], step_flops=6e15, exposed_s=0.2)
    return [rate, peer, ours]


def test_rows_are_in_terms_of_the_card() -> None:
    peer, ours = gpu_rows(timed_samples(), "NVIDIA H200")
    assert (peer.step_s, peer.speedup, ours.speedup) == (15.0, 1.0, 1.5)
    assert ours.mfu == 6e14 / 8e14
    assert ours.data_sheet_mfu == 6e14 / 989e12
    assert (ours.exposed, peer.exposed) == (0.02, None)


def test_claims_say_what_was_measured_and_nothing_else() -> None:
    rows = gpu_rows(timed_samples(), "NVIDIA H200")
    found = [Longest(case="offload", fits_tokens=100, fails_tokens=110, step_s=1.0)]
    speed, mfu, exposed, longer, longer_than_alst = claims(rows, found, 131_072)
    assert (speed.measured, speed.holds) == (1.5, True)
    assert (mfu.holds, exposed.holds) == (True, True)
    assert (longer.measured, longer.holds, longer_than_alst.holds) == (None, None, None)
    found.append(Longest(case=OURS, fits_tokens=150, fails_tokens=160, step_s=1.0))
    assert claims(rows, found, 131_072)[3].holds is False


# ---- for real ----


def test_without_pytest_the_tests_are_not_run_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpu_tests, "find_spec", lambda _: None)
    ended = gpu_tests.run(timeout_s=1.0)
    assert ended.hold
    assert "pytest is not installed" in ended.summary


@pytest.mark.parametrize("workers", [[], ["-n", "2", "--dist", "worksteal"]], ids=["one", "two"])
def test_tests_that_take_too_long_tell_what_failed_until_then(
    workers: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = """
import time, pytest
@pytest.mark.parametrize("n", range(6))
def test_quick(n): assert n, "none is bad"
def test_slow(): time.sleep(100)
"""
    (tmp_path / "test_some.py").write_text(source)
    monkeypatch.setattr(gpu_tests, "_workers", lambda: workers)
    ended = gpu_tests.run(timeout_s=8.0, folder=tmp_path)
    assert not ended.hold
    assert ended.summary.startswith("not done after 8 s: ")
    assert "1 failed" in ended.summary
    assert "none is bad" in ended.output
    assert "PASSED" not in ended.output


def test_tests_that_end_are_summed_up(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text("def test_it(): pass\ndef test_bad(): assert 0")
    ended = gpu_tests.run(timeout_s=60.0, folder=tmp_path)
    assert not ended.hold
    assert ended.summary.startswith("1 failed, 1 passed in ")
    (tmp_path / "test_some.py").write_text("def test_it(): pass")
    assert gpu_tests.run(timeout_s=60.0, folder=tmp_path).hold


def test_nothing_is_imported_that_the_help_does_not_name() -> None:
    others = "typer pulp liburing gguf accelerate peft deepspeed matplotlib hypothesis scipy"
    hidden = f"import sys; sys.modules.update(dict.fromkeys({others.split()!r}))"
    script = f"{hidden}; import benchmarks.gpu, benchmarks.child, tests.gpu.common"
    subprocess.run([sys.executable, "-c", script], cwd=runner.ROOT, check=True)


def test_options_change_the_setting(tmp_path: Path) -> None:
    given = ["--small", "--minutes", "3", "--tokens", "64", "--cases", "plain", "--no-search"]
    setting = gpu.setting_of(gpu.parser().parse_args(given))
    assert (setting.minutes, setting.tokens, setting.cases) == (3.0, (64,), ("plain",))
    assert setting.search_cases == ()


@pytest.mark.long
@pytest.mark.timeout(400)
def test_the_small_run_from_end_to_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # With time enough for a machine that is busy: nothing may be left out here.
    out = tmp_path / "out.json"
    assert gpu.main(["--small", "--minutes", "6", "--json", str(out)]) == 0
    written = json.loads(out.read_text())
    assert [row["case"] for row in written["rows"]] == list(SMALL.cases)
    assert all(row["step_s"] > 0 and row["mfu"] > 0 for row in written["rows"])
    ours = next(row for row in written["rows"] if row["case"] == OURS)
    x_and_o_bytes = 2 * 2 * 512 * SMALL.shape.hidden * 4
    assert x_and_o_bytes <= ours["host_bytes"] < 1.2 * x_and_o_bytes
    assert ours["exposed"] is not None
    longest = {found["case"]: found for found in written["longest"]}
    assert set(longest) == set(SMALL.search_cases)
    assert all(found["fits_tokens"] == 2048 for found in longest.values())
    assert longest[OURS]["host_tokens"] > longest[OURS]["trains_tokens"] == 2048
    assert "skipped" in written["notes"]["tests"] or "passed" in written["notes"]["tests"]
    assert "Longest sequence" in capsys.readouterr().out
