"""Carrying a plan out: every job in a process of its own, within the time, results as they come.

Scope: the order of things between the plan (`gpu_plan`) and the archive. The rate of the card comes
first, for layers and estimates depend on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from benchmarks import accounting, limits, runner
from benchmarks.archive import Archive
from benchmarks.budget import Task, run_within
from benchmarks.contracts import Job, Outcome, Sample
from benchmarks.gpu_plan import Estimates, Setting
from benchmarks.limits import Longest

_PROBE_TOKENS = 262_144
"""A probe's length, about, before any is known."""


@dataclass(kw_only=True, slots=True)
class Measuring:
    """One run. `say` shows a line; `ends_s` is the time (`time.monotonic`) by which it is over."""

    setting: Setting
    archive: Archive
    say: Callable[[str], None]
    ends_s: float
    run_job: Callable[[Job, float], Sample] = runner.run
    estimates: Estimates = field(init=False)

    def run(self) -> None:
        """Measure the card's rate, then everything that there is time for."""
        rate = self.measure(self.setting.rate_job()).matmul_flops_per_s
        if rate is None:
            return
        setting = self.setting
        self.estimates = Estimates(start_s=setting.start_s, flops_per_s=0.3 * rate)
        timed = [
            self._timed(setting.timed(case, tokens, rate))
            for tokens in setting.tokens
            for case in setting.cases
        ]
        run_within([*timed, *map(self._search, setting.search_cases)], self.left_s)

    def left_s(self) -> float:
        return self.ends_s - time.monotonic()

    def measure(self, job: Job) -> Sample:
        sample = self.run_job(job, max(1.0, self.left_s()))
        self.archive.add(sample)
        self.say(_line(sample))
        return sample

    # ---- timed steps ----

    def _timed(self, job: Job) -> Task:
        return Task(
            rank=self.setting.rank(job.case, job.tokens),
            estimate_s=lambda: self.estimates.job_s(self.estimates.with_steps(job)),
            run=lambda: self._time(self.estimates.with_steps(job)),
            skip=lambda why: self._skip(job, why),
        )

    def _time(self, job: Job) -> None:
        shorter = [s for s in self.archive.samples if self._is_told_by(s, job)]
        if shorter:
            self._skip(job, f"did not fit at {shorter[0].tokens:,} tokens")
            return
        self.estimates.learn(job, self.measure(job))

    def _is_told_by(self, sample: Sample, job: Job) -> bool:
        """Whether a sample tells that the job won't fit: fewer tokens in no more layers didn't."""
        same = (sample.case, sample.phase) == (job.case, job.phase)
        smaller = sample.tokens <= job.tokens and (sample.layers or 0) <= job.shape.layers
        return same and smaller and sample.outcome is Outcome.DOES_NOT_FIT

    def _skip(self, job: Job, why: str) -> None:
        sample = runner.ended_as(job, Outcome.SKIPPED, why)
        self.archive.add(sample)
        self.say(_line(sample))

    # ---- the longest sequence ----

    def _search(self, case: str) -> Task:
        pattern = self.setting.probe(case, min(_PROBE_TOKENS, self.setting.search_max_tokens))
        return Task(
            rank=self.setting.search_rank(case),
            estimate_s=lambda: self.setting.probes * self.estimates.job_s(pattern),
            run=lambda: self._find_longest(case),
            skip=lambda why: self._found(_not_searched(case, why)),
        )

    def _find_longest(self, case: str) -> None:
        fitting: list[Sample] = []

        def probe(tokens: int) -> Sample:
            job = self.setting.probe(case, tokens)
            needed_s = self.estimates.job_s(job)
            if needed_s > self.left_s():
                why = f"{tokens:,} tokens would have taken about {needed_s:.0f} s"
                return runner.ended_as(job, Outcome.SKIPPED, f"the time was up: {why}")
            sample = self.measure(job)
            if sample.outcome is Outcome.OK:
                fitting.append(sample)
            return sample

        setting = self.setting
        found = limits.longest(
            case,
            probe,
            start_tokens=setting.search_start_tokens,
            step_tokens=setting.search_step_tokens,
            max_tokens=setting.search_max_tokens,
            guess=limits.guess_from,
        )
        self._found(self._within_host(found, fitting))

    def _within_host(self, found: Longest, fitting: list[Sample]) -> Longest:
        if not fitting:
            return found
        available_bytes = accounting.available_host_bytes()
        layers = self.setting.shape.layers
        return replace(
            found, host_tokens=accounting.host_tokens(fitting[-1], layers, available_bytes)
        )

    def _found(self, found: Longest) -> None:
        self.archive.add_longest(found)
        ended = f" ({found.error})" if found.error else ""
        self.say(f"{found.case}: longest {found.trains_tokens:,} tokens, {found.bound}{ended}")


def _not_searched(case: str, why: str) -> Longest:
    return Longest(case=case, fits_tokens=0, fails_tokens=None, step_s=None, error=why)


def _line(sample: Sample) -> str:
    took = ", ".join(f"{seconds:.3f} s" for seconds in sample.step_s)
    said = took if sample.outcome is Outcome.OK else f"{sample.outcome}: {sample.message}"
    size = f", {sample.tokens:,} tokens, {sample.layers} layers" if sample.tokens else ""
    return f"{sample.phase}: {sample.case}{size}: {said or 'done'}"
