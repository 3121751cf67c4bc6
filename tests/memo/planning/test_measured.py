"""Plans for this machine are made with the speed of the model's own layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from memo.kinds import find_layers
from memo.planning import measured
from memo.planning.choosing import Case, choose
from memo.planning.making import make
from memo.planning.measured import measured_here
from memo.planning.node import Node
from memo.planning.request import PlanRequest
from memo.tracing.sampled import SampledModel
from planner.plan import Plan
from planner.trace import Phase
from tests.memo.planning.common import llama, machine, request
from tests.memo.tracing.common import config_of


def _here(**changes: Any) -> PlanRequest:
    hardware = machine(device_bytes=10**9, **changes)
    return request(hardware, tokens=600, node=Node(hardware, "cpu", is_here=True))


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2", "mixtral", "lfm2"])
def test_one_layer_of_each_class_has_weights(family: str) -> None:
    config = config_of(family)
    sample = SampledModel.of(config, torch.float32)
    whole = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    before = torch.random.get_rng_state()
    model = sample.fill(torch.device("cpu"))
    torch.random.set_rng_state(before)
    kinds = set[str]()
    for layer in find_layers(model.base_model):  # type: ignore[arg-type]
        is_first = layer.kind not in kinds
        kinds.add(layer.kind)
        assert {p.is_meta for p in layer.module.parameters()} == {not is_first}
    assert [p.shape for p in model.parameters()] == [p.shape for p in whole.parameters()]
    for (name, buffer), other in zip(model.named_buffers(), whole.buffers(), strict=True):
        assert torch.equal(buffer, other), name
    _assert_random(model)


def _assert_random(model: nn.Module) -> None:
    for name, param in model.named_parameters():
        if not param.is_meta and param.ndim > 1:
            assert 0.01 < param.std() < 0.03, name


def test_a_plan_for_this_machine_takes_as_long_as_its_layers_do() -> None:
    """Whatever rates the machine is said to have."""
    rng = torch.random.get_rng_state()
    asked = measured_here(_here())
    assert torch.equal(torch.random.get_rng_state(), rng)
    fast = measured_here(_here(peak_flops_per_s={"bfloat16": 1e15}))
    assert min(asked.slowness.values()) > 0
    core = next(phase for phase in asked.slowness if phase[1].value == "core")
    assert fast.slowness[core] > 50 * asked.slowness[core]
    found = make(asked).result
    assert isinstance(found, Plan)
    assert "speeds were measured on this machine" in found.notes[0]
    chosen, plain = choose(Case(asked)), choose(Case(_here()))
    assert chosen is not None
    assert plain is not None
    forward_s, at_rates_s = (one.found.cost.layers[0].forward for one in (chosen, plain))
    assert forward_s.core_s == pytest.approx(asked.slowness[core] * at_rates_s.core_s)


def test_a_large_vocabulary_is_timed_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = list[int]()

    def calibrated(asked: PlanRequest, *_: object, **__: object) -> dict[Phase, float]:
        timed.append(asked.config.vocab_size)
        return {}

    monkeypatch.setattr(measured, "calibrated", calibrated)
    asked = replace(_here(), config=llama(vocab_size=9001, pad_token_id=9000))
    assert measured_here(asked).config.vocab_size == 9001
    assert timed == [measured.MOST_WORDS]


def test_other_machines_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "calibrated", None)
    there = replace(_here(), node=Node(machine(), "cpu"))
    assert measured_here(there) is there


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"device_bytes": 10**6}, "with gradients they take"),
        ({"peak_flops_per_s": {"bfloat16": 1e6}}, "take more than some seconds"),
    ],
)
def test_what_would_take_too_much_is_not_measured_and_said(
    changes: dict[str, Any], reason: str
) -> None:
    hardware = replace(machine(), **changes)
    found = measured_here(replace(_here(), node=Node(hardware, "cpu", is_here=True)))
    assert not found.slowness
    assert reason in found.notes[0]
