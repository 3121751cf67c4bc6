"""The models that predictions are held against, with random weights: one of each family, small, and
for a GPU some of their published sizes.

Scope: configs. The small ones are as small as a step at the longest length takes some seconds on
two cores, and so wide that activations outweigh weights. Among them: shared kv heads, tied weights,
windows, layers of two kinds, a parallel MLP, experts, learned positions, and layers that run whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

VOCABULARY = 8192
MAX_TOKENS = 16_384
"""Positions that learned embeddings have."""

_SIZES: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_TOKENS,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "use_cache": False,
}
_HEADS: Mapping[str, Any] = {**_SIZES, "head_dim": 64}

LARGE: Mapping[str, Mapping[str, Any]] = {
    "llama-3.2-1b": {
        "model_type": "llama",
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 131_072,
        "tie_word_embeddings": True,
        "use_cache": False,
    },
    "qwen3-0.6b": {
        "model_type": "qwen3",
        "vocab_size": 151_936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40_960,
        "tie_word_embeddings": True,
        "use_cache": False,
    },
}
"""Published models for one GPU, with the shapes of their configs; by name."""

MODELS: Mapping[str, Mapping[str, Any]] = {
    "llama": {**_SIZES, "hidden_size": 320, "intermediate_size": 864, "num_attention_heads": 5}
    | {"num_key_value_heads": 1},
    "qwen3": {**_HEADS, "num_hidden_layers": 5, "tie_word_embeddings": True},
    "mistral": {**_HEADS, "sliding_window": 1000},
    "gemma3_text": {
        **_HEADS,
        "intermediate_size": 1024,
        "num_hidden_layers": 6,
        "layer_types": [*["sliding_attention"] * 5, "full_attention"],
        "sliding_window": 500,
    },
    "gpt2": {
        **{"vocab_size": VOCABULARY, "n_embd": 256, "n_inner": 1024, "n_layer": 4, "n_head": 4},
        **{"n_positions": MAX_TOKENS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
        "use_cache": False,
    },
    "gpt_neox": {**_SIZES, "intermediate_size": 1024},
    "phi": {**_SIZES, "num_key_value_heads": 4, "intermediate_size": 1024},
    "mixtral": {
        **_SIZES,
        "intermediate_size": 352,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "cohere2": {**_SIZES, "sliding_window": 700},
    "olmo2": {**_SIZES, "num_key_value_heads": 4},
    "lfm2": {
        **_SIZES,
        "layer_types": ["conv", "full_attention", "conv", "full_attention"],
    },
}
"""By `model_type`; all dropouts are 0."""


def config_of(model: str) -> PreTrainedConfig:
    """A new config of one of `MODELS` or `LARGE`."""
    config = AutoConfig.for_model(**{"model_type": model, **{**MODELS, **LARGE}[model]})
    for name, value in list(vars(config).items()):
        if isinstance(value, float) and ("dropout" in name or name.endswith("drop")):
            setattr(config, name, 0.0)
    return config
