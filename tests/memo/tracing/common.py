"""Small models of several families, one real step of each, and what its tensors needed."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

import memo
from planner.trace import StepTrace
from planner.trace.recorder import Recorder, Tape

_SIZES: Mapping[str, Any] = {
    "vocab_size": 1003,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

_HEADS: Mapping[str, Any] = {**_SIZES, "head_dim": 32}

CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "llama": _SIZES,
    "qwen3": {**_HEADS, "num_hidden_layers": 3, "tie_word_embeddings": True},
    "gemma3_text": {
        **_HEADS,
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "sliding_window": 200,
    },
    "gpt2": {
        **{"vocab_size": 1003, "n_embd": 128, "n_inner": 384, "n_layer": 2, "n_head": 4},
        **{"n_positions": 2048, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    },
    "mixtral": {**_SIZES, "num_local_experts": 4, "num_experts_per_tok": 2},
    "phi": {**_SIZES, "num_key_value_heads": 8},
    "lfm2": {**_SIZES, "layer_types": ["conv", "full_attention"]},
}
"""By `model_type`. Among them: windows, experts, tied weights, a parallel MLP, a whole layer."""


def config_of(family: str, **changes: Any) -> PreTrainedConfig:
    """The family's config, with all of its dropouts 0."""
    config = AutoConfig.for_model(family, **{**CONFIGS[family], **changes})
    for name, value in list(vars(config).items()):
        if isinstance(value, float) and ("dropout" in name or name.endswith("drop")):
            setattr(config, name, 0.0)
    return config


def measured(
    config: PreTrainedConfig,
    *,
    tokens: int,
    batch: int = 1,
    dtype: torch.dtype,
    **wrapping: Any,
) -> Tape:
    """One real step, forward and backward, of the wrapped model of `config`."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", memo.MemoWarning)
        memo.wrap(model, **wrapping)
    ids = torch.randint(3, 1000, (batch, tokens))
    labels = ids.clone()
    recorder = Recorder(with_costs=False)
    with recorder:
        recorder.know((*model.parameters(), *model.buffers(), ids, labels))
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        del loss
    return recorder.tape


def all_tiles(step: StepTrace) -> list[int]:
    """Every tile of every layer stored."""
    tiles = {layer.name: layer.tiles for layer in step.layers}
    return [tiles[name] for name in step.order]


def no_tiles(step: StepTrace) -> list[int]:
    """Every tile recomputed."""
    return [0] * len(step.order)
