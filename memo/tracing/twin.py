"""Which layers can run tile by tile, told from a config alone.

Scope: the self-check of `memo.wrap` on a twin of the model, of the same classes and layers but a
few heads and channels wide, with random weights. Where a config cannot be made narrow, or its twin
does not run, nothing is told, and the trace finds out what fake tensors show.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.utils import logging

from memo.attention.interface import register
from memo.check import check_layers
from memo.contracts import LayerMode
from memo.kinds import find_layers
from memo.runtime import WrappedLayer

_WIDTHS: Mapping[str, int] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), 101),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "intermediate_size_mlp"), 48),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 24),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_heads"), 4),
    **dict.fromkeys(("head_dim", "qk_rope_head_dim", "qk_nope_head_dim", "rotary_dim"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "qk_head_dim"), 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "n_group", "topk_group"), 2),
    **dict.fromkeys(("v_head_dim",), 12),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_num_value_heads"), 8),
    **dict.fromkeys(("linear_num_key_heads", "mamba_d_state", "mamba_dt_rank"), 4),
    **dict.fromkeys(("mamba_n_heads", "hidden_size_per_layer_input"), 4),
    **dict.fromkeys(("mamba_d_head", "mamba_chunk_size"), 16),
    **dict.fromkeys(("mamba_d_ssm",), 64),
    **dict.fromkeys(("sliding_window", "attention_chunk_size", "window_size"), 9),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 128),
}
"""The largest that each size of a config may be in its twin."""

_MAX_PARAMETERS = 20_000_000
"""A twin that is larger has a size that is not in the table, and would take long to run."""


def layer_modes(
    config: PreTrainedConfig, layers: Sequence[WrappedLayer]
) -> dict[str, LayerMode] | None:
    """How each kind of `layers`, those of the model of `config`, can run; None: not to be told."""
    try:
        with _quiet(), torch.random.fork_rng([]):
            return _checked(narrow(config), layers)
    except Exception:  # noqa: BLE001 - a model's own code may fail in any way on sizes nobody meant
        return None


def narrow(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config with all widths small; layers and their kinds stay."""
    twin = copy.deepcopy(config.get_text_config())
    shares_heads = _is_less(twin, "num_key_value_heads", "num_attention_heads")
    for name, width in _WIDTHS.items():
        value = getattr(twin, name, None)
        if isinstance(value, int) and value > width:
            setattr(twin, name, width)
    if isinstance(getattr(twin, "num_key_value_heads", None), int):
        twin.num_key_value_heads = 2 if shares_heads else 4
    if isinstance(getattr(twin, "pad_token_id", None), int):
        twin.pad_token_id = 0
    return twin


def _is_less(config: PreTrainedConfig, first: str, second: str) -> bool:
    a, b = getattr(config, first, None), getattr(config, second, None)
    return isinstance(a, int) and isinstance(b, int) and a < b


def _checked(twin: PreTrainedConfig, layers: Sequence[WrappedLayer]) -> dict[str, LayerMode] | None:
    register()
    with torch.device("meta"):
        params = AutoModelForCausalLM.from_config(twin).parameters()
    if sum(param.numel() for param in params) > _MAX_PARAMETERS:
        return None
    model = AutoModelForCausalLM.from_config(twin, dtype=torch.float32).train()
    own = find_layers(model)
    if len(own) != len(layers):
        return None
    samples = {layer.kind: layer.module for layer in reversed(own)}
    modes = check_layers(model, dict(reversed(samples.items())))
    return {layer.kind: modes[like.kind] for layer, like in zip(layers, own, strict=True)}


@contextmanager
def _quiet() -> Iterator[None]:
    """What is said about a model of odd sizes is not for the user."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
