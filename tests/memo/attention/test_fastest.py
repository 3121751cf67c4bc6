"""Choosing the fastest kernel: by a clock of the test's, among kernels that note what they ran."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from memo.attention import core as core_module
from memo.attention.contracts import BlockInputs, HeadGradients
from memo.attention.core import AttentionCore
from memo.attention.fastest import Fastest, MakeKernel, candidates_for
from memo.attention.masks import RangeMask
from memo.attention.sdpa import SdpaKernel
from memo.attention.shapes import Choice
from offload import CoreCall, CoreEnd, CoreState, MemoError, TensorStore, Tier
from tests.memo.attention.calls import MASKS, check_dense, random_call

Runs = list[tuple[str, str, tuple[int, ...]]]


class Noting(SdpaKernel):
    """SDPA that notes its runs: (name, direction, shape of q)."""

    def __init__(self, store: TensorStore, name: str, runs: Runs) -> None:
        super().__init__(store)
        self.name, self._runs = name, runs

    def forward(self, inputs: BlockInputs, tier: Tier | None) -> tuple[Tensor, Any]:
        self._runs.append((self.name, "forward", tuple(inputs.q.shape)))
        return super().forward(inputs, tier)

    def backward(
        self, grad_o: Tensor, inputs: BlockInputs, o: Tensor, state: CoreState
    ) -> HeadGradients:
        self._runs.append((self.name, "backward", tuple(inputs.q.shape)))
        return super().backward(grad_o, inputs, o, state)


class Refusing(Noting):
    """A kernel that fails in forward."""

    def forward(self, inputs: BlockInputs, tier: Tier | None) -> tuple[Tensor, Any]:
        raise MemoError("no such heads\nand more")


@dataclass(slots=True)
class Clock:
    """Takes the seconds that it is set to for each kernel, in the order of candidates."""

    seconds: list[float]
    asked: list[torch.device] = field(default_factory=list)

    def __call__(self, run: Callable[[], None], device: torch.device) -> float:
        run()
        self.asked.append(device)
        return self.seconds[(len(self.asked) - 1) % len(self.seconds)]


def _fastest(runs: Runs, clock: Clock, *, refusing: tuple[str, ...] = ()) -> Fastest:
    def candidates(q: Tensor) -> Mapping[str, MakeKernel]:
        names = [f"kernel {letter}" for letter in "abc"]
        kinds = {name: Refusing if name[-1] in refusing else Noting for name in names}
        return {name: partial(kinds[name], name=name, runs=runs) for name in names}

    return Fastest(candidates, clock)


def _one(core: AttentionCore) -> Choice:
    (choice,) = core.chosen.values()
    return choice


def test_the_fastest_runs_and_is_told() -> None:
    runs: Runs = []
    clock = Clock([3.0, 1.0, 2.0])
    core, call = AttentionCore(TensorStore(), fastest=_fastest(runs, clock)), _full()
    check_dense(call, core)
    times_s = {"kernel a": 3.0, "kernel b": 1.0, "kernel c": 2.0}
    assert _one(core) == Choice("kernel b", times_s)
    tried = [(name, way) for name, way, _ in runs[:6]]
    assert tried == [(name, way) for name in times_s for way in ("forward", "backward")]
    assert {name for name, _, _ in runs[6:]} == {"kernel b"}


def _full() -> CoreCall:
    return random_call(MASKS["full"])


def test_it_is_measured_once_for_a_shape() -> None:
    clock = Clock([1.0, 2.0, 3.0])
    core = AttentionCore(TensorStore(), fastest=_fastest([], clock))
    for tokens in (143, 143, 128, 255):
        core.kernel_for(random_call(RangeMask.full(tokens, causal=True)))
    assert len(clock.asked) == 3
    core.kernel_for(random_call(RangeMask.full(256, causal=True)))
    assert len(clock.asked) == 6
    core.kernel_for(random_call(MASKS["both ways"]))
    assert len(clock.asked) == 9
    assert [shape.tokens for shape in core.chosen] == [128, 256, 128]
    assert [shape.sight for shape in core.chosen] == ["causal", "causal", "full"]


def test_only_whole_documents_are_measured() -> None:
    clock = Clock([1.0])
    core = AttentionCore(TensorStore(), fastest=_fastest([], clock))
    calls = [random_call(mask) for name, mask in MASKS.items() if name not in ("full", "both ways")]
    calls.append(random_call(MASKS["full"], softcap=2.0))
    calls.append(random_call(MASKS["full"], v_dim=5))
    for call in calls:
        core.kernel_for(call)
    assert clock.asked == []
    kernels = [choice.kernel for choice in core.chosen.values()]
    assert kernels == ["sdpa", "blockwise", "blockwise"]


def test_trying_is_with_a_part_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memo.attention.fastest.MAX_TOKENS", 100)
    runs: Runs = []
    store = TensorStore()
    core = AttentionCore(store, fastest=_fastest(runs, Clock([1.0])))
    core.kernel_for(_full())
    assert {shape for _, _, shape in runs} == {(1, 9, 100, 4)}
    assert all(count.moved_bytes == 0 for count in store.counts.values())
    runs.clear()
    core.kernel_for(random_call(RangeMask.full(40, causal=True)))
    assert {shape for _, _, shape in runs} == {(2, 9, 40, 4)}


def test_one_that_fails_is_out() -> None:
    runs: Runs = []
    core = AttentionCore(
        TensorStore(), fastest=_fastest(runs, Clock([1.0, 2.0]), refusing=("a", "c"))
    )
    check_dense(_full(), core)
    failure = "MemoError: no such heads"
    assert _one(core) == Choice(
        "kernel b", {"kernel b": 1.0}, {"kernel a": failure, "kernel c": failure}
    )


def test_if_all_fail_the_call_says_why() -> None:
    core = AttentionCore(
        TensorStore(), fastest=_fastest([], Clock([1.0]), refusing=("a", "b", "c"))
    )
    with pytest.raises(MemoError, match="no such heads"):
        core.forward(_full(), Tier.DEVICE)
    assert len(_one(core).failures) == 3


def test_backward_is_of_the_kernel_that_ran_forward() -> None:
    runs: Runs = []
    core = AttentionCore(TensorStore(), fastest=_fastest(runs, Clock([1.0, 2.0, 3.0])))
    call = _full()
    o, state = core.forward(call, Tier.DEVICE)
    assert state is not None
    core._chosen.clear()  # as when many other shapes came meanwhile
    core._fastest.timer.seconds.reverse()  # type: ignore[attr-defined]
    assert core.kernel_for(call).name == "kernel c"
    runs.clear()
    core.backward(call, CoreEnd(o=o, grad_o=torch.ones_like(o), state=state))
    assert {(name, way) for name, way, _ in runs} == {("kernel a", "backward")}


def test_backward_takes_the_pieces_of_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    core, call = AttentionCore(TensorStore()), _full()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    o, state = core.forward(call, Tier.DEVICE)
    assert state is not None
    assert len(state.pieces) == 2
    grad_o = torch.randn_like(o)
    expected = torch.autograd.grad(core_module.attend(core, call), call.heads, grad_o)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    found, _ = core.backward(call, CoreEnd(o=o, grad_o=grad_o, state=state))
    assert all(map(torch.equal, found, expected))


def test_choices_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_module, "_MAX_CHOICES", 2)
    core = AttentionCore(TensorStore())
    for tokens in (8, 16, 32):
        core.kernel_for(random_call(RangeMask.full(tokens, causal=True)))
    assert [shape.tokens for shape in core.chosen] == [16, 32]


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Ask torch for algorithms that give the same each time."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic")
def test_nothing_depends_on_the_clock_where_results_must_not() -> None:
    clock = Clock([1.0])
    core = AttentionCore(TensorStore(), fastest=_fastest([], clock))
    assert core.kernel_for(_full()).name == "sdpa"
    assert clock.asked == []
    torch.use_deterministic_algorithms(False)
    assert core.kernel_for(_full()).name == "sdpa"  # what was chosen stays


def _on_cuda(dtype: torch.dtype = torch.bfloat16, tokens: int = 4096) -> Tensor:
    """As much of a CUDA tensor as choosing candidates looks at."""
    return cast(Tensor, SimpleNamespace(is_cuda=True, dtype=dtype, shape=(1, 8, tokens, 64)))


def test_candidates() -> None:
    assert list(candidates_for(_full().heads[0])) == ["sdpa"]
    several = candidates_for(_on_cuda())
    assert [name for name in several if name != "flash-attn"] == [
        "sdpa",
        "sdpa flash",
        "sdpa cudnn",
    ]
    for name, make in several.items():
        assert make(TensorStore()).name == name
    assert list(candidates_for(_on_cuda(torch.float32))) == ["sdpa"]
    assert list(candidates_for(_on_cuda(tokens=1023))) == ["sdpa"]


def test_flash_attn_is_a_candidate_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memo.attention.flash.find_spec", lambda name: name)
    assert list(candidates_for(_on_cuda()))[-1] == "flash-attn"


def test_a_cpu_measures_nothing() -> None:
    clock = Clock([1.0])
    core = AttentionCore(TensorStore(), fastest=Fastest(timer=clock))
    check_dense(_full(), core)
    assert _one(core) == Choice("sdpa")
    assert clock.asked == []


def test_a_copied_core_chooses_by_itself() -> None:
    core = AttentionCore(TensorStore())
    core.kernel_for(_full())
    copied = copy.deepcopy(core)
    assert copied.chosen == core.chosen
    check_dense(_full(), copied)
