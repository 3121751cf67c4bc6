"""What the tests on a GPU share: families in sizes that its kernels take, batches, and steps.

Scope: building. Families and comparisons are those of `tests.families`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

import memo
from tests.families.catalogue import Family, family_named
from tests.families.harness import Step, build, random_batch, train_step

NAMES = ("llama", "qwen3", "mistral", "gemma2", "gpt_oss", "mixtral")
"""Grouped heads, norms of heads, a window, a soft cap, sinks, experts."""

_SIZES: Mapping[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "head_dim": 32,
    "sliding_window": 48,
    "query_pre_attn_scalar": 32,
    "max_position_embeddings": 1024,
    "initializer_range": 0.05,
}
"""In place of the catalogue's, where a family has them: kernels want heads of 16 at least."""

TOKENS = 237
TILE_TOKENS = 50


def family(name: str) -> Family:
    """One of the catalogue, of a GPU's sizes. Experts run one by one: grouped products are not
    there for every dtype.
    """
    found = family_named(name)
    sizes = {key: _SIZES.get(key, value) for key, value in found.sizes.items()}
    return replace(found, sizes={**sizes, "experts_implementation": "eager"})


def on(device: torch.device, model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The model there, in this dtype."""
    torch.nn.Module.to(model, device=device, dtype=dtype)
    return model


def batch_on(
    device: torch.device, rows: int = 2, tokens: int = TOKENS, *, seed: int = 1
) -> dict[str, torch.Tensor]:
    """Ids and labels, [rows, tokens]."""
    made = random_batch(rows, tokens, seed=seed)
    return {name: tensor.to(device) for name, tensor in made.items()}


def models(
    name: str, device: torch.device, dtype: torch.dtype, *, seed: int = 0, **options: Any
) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The same model twice: unwrapped and wrapped."""
    plain = on(device, build(family(name), seed=seed), dtype)
    return plain, memo.wrap(copy.deepcopy(plain), **{"tile_tokens": TILE_TOKENS, **options})


def reference_step(
    plain: PreTrainedModel, batch: dict[str, torch.Tensor], dtype: torch.dtype
) -> Step:
    """The step of the same weights, unwrapped, in a wider dtype."""
    wide = copy.deepcopy(plain)
    torch.nn.Module.to(wide, dtype=dtype)
    return train_step(wide, batch)


def llama(device: torch.device, *, layers: int = 3, hidden: int = 256) -> PreTrainedModel:
    """A Llama in bf16 whose copies take as long as its compute."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=101,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 128,
        max_position_embeddings=4096,
        use_cache=False,
    )
    return on(device, LlamaForCausalLM(config).train(), torch.bfloat16)
