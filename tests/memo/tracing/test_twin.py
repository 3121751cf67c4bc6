"""A narrow twin tells how layers run, as `memo.wrap` finds on the model itself."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from memo.kinds import find_layers
from memo.tracing.twin import layer_modes, narrow
from tests.families.catalogue import family_named


@pytest.mark.parametrize(
    "name", ["llama", "gemma3_text", "deepseek_v3", "gpt_oss", "jamba", "lfm2", "bloom", "mamba"]
)
def test_modes_are_those_of_the_catalogue(name: str) -> None:
    family = family_named(name)
    config = family.config()
    with torch.device("meta"):
        layers = find_layers(AutoModelForCausalLM.from_config(config))
    modes = layer_modes(config, layers)
    assert modes is not None
    assert {"tiled" if mode.is_tiled else "whole" for mode in modes.values()} == set(family.modes)
    assert list(modes) == list(dict.fromkeys(layer.kind for layer in layers))


def test_widths_shrink_and_layers_stay() -> None:
    config = AutoConfig.for_model("gemma3_text", num_hidden_layers=26)
    twin = narrow(config)
    assert twin.layer_types == config.layer_types
    assert (twin.hidden_size, twin.vocab_size) == (32, 101)
    assert config.hidden_size > 32, "the config itself is not touched"


def test_what_cannot_be_run_tells_nothing() -> None:
    config = AutoConfig.for_model("llama", hidden_size=32, head_dim=8, num_attention_heads=4)
    config.head_dim = 7  # rotary embedding needs an even one
    with torch.device("meta"):
        layers = find_layers(AutoModelForCausalLM.from_config(AutoConfig.for_model("llama")))
    assert layer_modes(config, layers) is None
