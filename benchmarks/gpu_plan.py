"""What `benchmarks.gpu` measures, on a card and in its small version for a CPU, and in which order.

Scope: plain data, and what each measurement would take. Carrying it out is `gpu_run`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from statistics import median

from benchmarks import flops
from benchmarks.cases import ALST, CHECKPOINTING, OFFLOAD, PLAIN
from benchmarks.contracts import Job, Phase, Sample, Shape
from memo.measure import MIB

OURS = "memo:recompute/host"
"""x and o on the host, the rest rebuilt: the case that is held against the ALST way."""

LLAMA_8B = Shape(
    layers=32,
    hidden=4096,
    intermediate=14336,
    heads=32,
    kv_heads=8,
    vocab=128_256,
    dtype="bfloat16",
    head=False,
)
"""Llama-3.1-8B."""

K = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """A run. `shape` is the whole model's; timed steps have `least` to `most` of its layers, as
    many as make a step of `step_s`; the search has two, and accounts for the others.
    `claim_tokens` is the length from which the claims on speed count. `start_s` is what a process's
    start takes, about, until the first has been seen: libraries, the card's context, a model; and
    `probes` is how many a search takes, about.
    """

    device: str
    shape: Shape
    cases: tuple[str, ...]
    tokens: tuple[int, ...]
    claim_tokens: int
    search_cases: tuple[str, ...]
    search_start_tokens: int
    search_step_tokens: int
    search_max_tokens: int
    attention_tokens: int
    minutes: float
    start_s: float
    probes: int
    limit_bytes: int | None = None
    least: int = 4
    most: int = 8
    step_s: float = 2.5

    def timed(self, case: str, tokens: int, rate: float) -> Job:
        """A job of as many layers as take about `step_s` at half of the card's `rate`: the same
        for all cases, whatever they need.
        """
        layers = flops.layers_within(
            self.shape, tokens, 0.5 * rate * self.step_s, least=self.least, most=self.most
        )
        shape = replace(self.shape, layers=layers)
        return Job(shape=shape, case=case, tokens=tokens, phase=Phase.TIME, device=self.device)

    def probe(self, case: str, tokens: int) -> Job:
        """One step of two layers with head and loss, the rest accounted for."""
        return Job(
            shape=replace(self.shape, layers=2, head=True),
            case=case,
            tokens=tokens,
            phase=Phase.FIT,
            device=self.device,
            limit_bytes=self.limit_bytes,
            account_layers=self.shape.layers - 2,
            attention_tokens=self.attention_tokens,
        )

    def rate_job(self) -> Job:
        return Job(shape=self.shape, case=PLAIN, tokens=0, phase=Phase.RATE, device=self.device)

    def rank(self, case: str, tokens: int) -> tuple[int, ...]:
        """What the claims rest on comes first, then all cases at the least length, then the rest
        by length.
        """
        if case in (OFFLOAD, OURS) and tokens == self.claim_tokens:
            return (0,)
        return (2,) if tokens == min(self.tokens) else (3, case not in (OFFLOAD, OURS), tokens)

    def search_rank(self, case: str) -> tuple[int, ...]:
        return (1,) if case in (OFFLOAD, ALST, OURS) else (4,)


CARD = Setting(
    device="cuda",
    shape=LLAMA_8B,
    cases=(
        PLAIN,
        CHECKPOINTING,
        OFFLOAD,
        "memo:recompute",
        "memo:keep",
        "memo:host",
        "memo:host=0.5,recompute=0.5",
        OURS,
    ),
    tokens=(16 * K, 64 * K, 128 * K, 256 * K),
    claim_tokens=128 * K,
    search_cases=(OFFLOAD, ALST, OURS, CHECKPOINTING, PLAIN, "memo:recompute", "memo:host/host"),
    search_start_tokens=16 * K,
    search_step_tokens=2 * K,
    search_max_tokens=8 * K * K,
    attention_tokens=2 * K,
    minutes=9.0,
    start_s=20.0,
    probes=6,
)

SMALL = Setting(
    device="cpu",
    shape=replace(
        LLAMA_8B,
        layers=3,
        hidden=64,
        intermediate=128,
        heads=4,
        kv_heads=2,
        vocab=512,
        dtype="float32",
    ),
    cases=(OFFLOAD, OURS),
    tokens=(512,),
    claim_tokens=512,
    search_cases=(ALST, OURS),
    search_start_tokens=1024,
    search_step_tokens=1024,
    search_max_tokens=2048,
    attention_tokens=512,
    minutes=0.9,
    start_s=6.0,
    probes=2,
    limit_bytes=8 * 1024 * MIB,
    least=2,
    most=2,
)


@dataclass(slots=True)
class Estimates:
    """Seconds that a job will take, from those that others took: a step goes by its FLOPs, which
    grow with the square of the tokens, at the rate of the case's longest step so far. `margin` is
    for what is not known yet.
    """

    start_s: float
    flops_per_s: float
    margin: float = 1.25
    rates: dict[str, tuple[int, float]] = field(default_factory=dict)

    def learn(self, job: Job, sample: Sample) -> None:
        """Take a sample into account; one without a step tells nothing."""
        if not sample.step_s or sample.wall_s is None:
            return
        step_s = median(sample.step_s)
        known_tokens = self.rates.get(job.case, (0, 0.0))[0]
        if job.phase is Phase.TIME and job.tokens >= known_tokens:
            self.rates[job.case] = (job.tokens, _flops(job) / step_s)
        if job.phase is Phase.TIME:
            steps = len(sample.step_s) + 1
            self.start_s = max(0.5 * self.start_s, sample.wall_s - steps * step_s)

    def step_s(self, job: Job) -> float:
        rate = self.rates.get(job.case, (0, self.flops_per_s))[1]
        return _flops(job) / rate

    def job_s(self, job: Job) -> float:
        """With its process's start, and one step before those that count."""
        return self.margin * (self.start_s + (job.steps + 1) * self.step_s(job))

    def with_steps(self, job: Job) -> Job:
        """The more steps the shorter they are: medians of three, where there is time."""
        step_s = self.step_s(job)
        return replace(job, steps=3 if step_s < 3 else 2 if step_s < 10 else 1)


def _flops(job: Job) -> float:
    return flops.step_flops(job.shape, job.tokens, job.attention_tokens)
