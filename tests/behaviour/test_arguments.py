"""What `wrap`, `unwrap` and `report` refuse, and the words that they do it with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, BertConfig, BertModel, PreTrainedModel

import memo
from tests.behaviour.common import batch, module_step, plain_model, wrapped_model
from tests.behaviour.state import assert_restored, state_of
from tests.families.catalogue import family_named
from tests.families.harness import train_step

TILES = "takes 'auto' or a positive number of tokens"
PLACES = "takes one of 'keep', 'host', 'ssd', 'recompute', or fractions of the tiles"
FRACTION = "takes a fraction from 0 to 1"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"tile_tokens": 0}, ["tile_tokens=0", TILES]),
        ({"tile_tokens": -5}, ["tile_tokens=-5", TILES]),
        ({"tile_tokens": 2.0}, ["tile_tokens=2.0", TILES]),
        ({"tile_tokens": True}, ["tile_tokens=True", TILES]),
        ({"tile_tokens": "many"}, ["tile_tokens='many'", TILES]),
        ({"tile_tokens": None}, ["tile_tokens=None", TILES]),
        ({"placement": "disk"}, ["placement='disk'", PLACES]),
        ({"placement": "ssd"}, ["'ssd'", "without spill_dir"]),
        ({"skeletal": "ssd"}, ["'ssd'", "without spill_dir"]),
        ({"spill_dir": "/tmp"}, ["spill_dir", "nothing goes there"]),
        ({"spill_dir": "/tmp", "placement": "host"}, ["spill_dir", "host_bytes"]),
        ({"spill_dir": 5, "skeletal": "ssd"}, ["spill_dir=5", "takes a directory"]),
        ({"spill_dir": "", "skeletal": "ssd"}, ["spill_dir=''", "takes a directory"]),
        ({"spill_dir": "/tmp", "spill_bytes": 1, "skeletal": "ssd"}, ["spill_bytes=1", "4194304"]),
        ({"spill_dir": [], "skeletal": "ssd"}, ["spill_dir=[]", "takes a directory"]),
        ({"spill_dir": ["/a", "/a"], "skeletal": "ssd"}, ["named twice"]),
        ({"spill_bytes": 1 << 30}, ["spill_bytes", "no spill_dir"]),
        ({"verify": "checksum"}, ["verify", "no spill_dir"]),
        ({"raw": True}, ["raw", "no spill_dir"]),
        ({"verify": "all"}, ["verify='all'", "takes one of 'none', 'checksum'"]),
        ({"host_bytes": 0, "skeletal": "host"}, ["host_bytes=0", "takes None or a number"]),
        ({"host_bytes": 511, "skeletal": "host"}, ["host_bytes=511", "from 512 on"]),
        ({"host_bytes": 1 << 20}, ["host_bytes", "nothing does"]),
        ({"placement": "KEEP"}, ["placement='KEEP'", PLACES]),
        ({"placement": None}, ["placement=None", PLACES]),
        ({"placement": {}}, ["placement={}", PLACES]),
        ({"placement": {"disk": 1.0}}, ["placement={'disk': 1.0}", PLACES]),
        ({"placement": {"ssd": 1.0}}, ["'ssd'", "without spill_dir"]),
        ({"placement": {"keep": 0.5}}, ["placement={'keep': 0.5}", "must sum to 1"]),
        ({"placement": {"keep": 0.5, "host": 0.6}}, ["'host': 0.6", "must sum to 1"]),
        ({"placement": {"keep": 1.5, "host": -0.5}}, ["placement['keep']=1.5", FRACTION]),
        ({"placement": {"keep": "all"}}, ["placement['keep']='all'", FRACTION]),
        ({"placement": {"keep": True}}, ["placement['keep']=True", FRACTION]),
        ({"placement": {"keep": float("nan")}}, ["placement['keep']=nan", FRACTION]),
        ({"skeletal": "recompute"}, ["skeletal='recompute'", "takes one of 'keep', 'host'"]),
        ({"skeletal": None}, ["skeletal=None", "takes one of 'keep', 'host'"]),
        ({"tiled_loss": "yes"}, ["tiled_loss='yes'", "takes True or False"]),
        ({"tiled_loss": 1}, ["tiled_loss=1", "takes True or False"]),
        ({"in_flight_bytes": -1}, ["in_flight_bytes=-1", "takes None or a number of bytes"]),
        ({"in_flight_bytes": 1.5}, ["in_flight_bytes=1.5", "takes None or a number of bytes"]),
        ({"in_flight_bytes": True}, ["in_flight_bytes=True", "takes None or a number of bytes"]),
    ],
    ids=lambda value: repr(value) if isinstance(value, dict) else "",
)
def test_bad_values_are_named(arguments: dict[str, Any], words: list[str]) -> None:
    model = plain_model()
    state = state_of(model)
    with pytest.raises(ValueError, match=r"takes|sum|spill_dir") as caught:
        memo.wrap(model, **arguments)
    assert not isinstance(caught.value, memo.MemoError)
    for word in words:
        assert word in str(caught.value)
    assert_restored(model, state)


@pytest.mark.parametrize(
    "placement",
    [{"keep": 1}, {"keep": 0, "host": 1.0}, {"keep": 1 / 3, "host": 1 / 3, "recompute": 1 / 3}],
    ids=str,
)
def test_fractions_that_sum_to_one_in_floats(placement: dict[str, float]) -> None:
    train_step(memo.wrap(plain_model(), tile_tokens=5, placement=placement), batch())


def test_options_go_by_name_only() -> None:
    with pytest.raises(TypeError):
        memo.wrap(plain_model(), 5)  # type: ignore[call-arg, arg-type]


TWICE = r"wrapped already; memo\.unwrap it first"


def test_wrapping_twice() -> None:
    wrapped = wrapped_model()
    with pytest.raises(memo.MemoError, match=TWICE):
        memo.wrap(wrapped)
    train_step(wrapped, batch())


def test_wrapping_the_body_of_a_wrapped_model() -> None:
    wrapped = wrapped_model()
    with pytest.raises(memo.MemoError, match=TWICE):
        memo.wrap(wrapped.base_model)
    train_step(memo.unwrap(wrapped), batch())


def test_wrapping_a_model_whose_body_is_wrapped() -> None:
    model = plain_model()
    memo.wrap(model.base_model)
    with pytest.raises(memo.MemoError, match=TWICE):
        memo.wrap(model)
    memo.unwrap(model.base_model)
    train_step(memo.wrap(model), batch())


def test_unwrapping_and_reporting_what_is_not_wrapped() -> None:
    model = plain_model()
    for call in (memo.unwrap, memo.report):
        with pytest.raises(memo.MemoError, match="LlamaForCausalLM is not wrapped"):
            call(model)
    memo.unwrap(memo.wrap(model))
    with pytest.raises(memo.MemoError, match="not wrapped"):
        memo.unwrap(model)


class Bare(PreTrainedModel):
    """A Hugging Face model without decoder layers."""

    config_class = type(family_named("llama").config())

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.linear = nn.Linear(3, 3)


def test_a_model_without_layers() -> None:
    model = Bare(family_named("llama").config())
    state = state_of(model)
    with pytest.raises(memo.MemoError, match="Bare has no decoder layers that memo can wrap"):
        memo.wrap(model)
    assert_restored(model, state)


@pytest.mark.parametrize("model", [nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3))], ids=str)
def test_no_hugging_face_model(model: nn.Module) -> None:
    with pytest.raises(memo.MemoError, match="memo wraps Hugging Face models"):
        memo.wrap(model)


@pytest.mark.parametrize("model", [None, "meta-llama/Llama-3.1-8B", dict])
def test_no_model_at_all(model: Any) -> None:
    with pytest.raises(memo.MemoError, match="memo wraps Hugging Face models, not a"):
        memo.wrap(model)


def test_parameters_without_memory() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(family_named("llama").config())
    state = state_of(model)
    with pytest.raises(memo.MemoError, match=r"meta device\); load its weights first"):
        memo.wrap(model)
    assert_restored(model, state)


def test_an_encoder_trains_as_before() -> None:
    config = BertConfig(
        vocab_size=101,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    plain = BertModel(config, add_pooling_layer=False).train()
    ids = {"input_ids": batch()["input_ids"]}

    def step(model: nn.Module) -> Any:
        return module_step(model, ids, lambda out: out.last_hidden_state.square().mean())

    expected = step(plain)
    memo.wrap(plain, tile_tokens=5)
    assert all(kind.tiled for kind in memo.report(plain).kinds)
    got = step(plain)
    torch.testing.assert_close(got.loss, expected.loss, rtol=1e-5, atol=0)
    for name, grad in expected.grads.items():
        torch.testing.assert_close(got.grads[name], grad, rtol=1e-4, atol=1e-6)


def test_every_refusal_is_one_of_the_two_kinds() -> None:
    assert issubclass(memo.MemoError, RuntimeError)
    assert not issubclass(memo.MemoError, ValueError)
    assert issubclass(memo.MemoWarning, UserWarning)
