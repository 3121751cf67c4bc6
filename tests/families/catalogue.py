"""The causal-LM families that memo is tested on, each as a tiny random config, and how each must
run.

Scope: data. What is done with a family stands in `harness.py` and in the tests. Sizes are the
smallest that leave nothing out: two layers, several heads, fewer kv heads where the family has
them, windows and chunks shorter than the sequences of the tests, experts that tokens choose among.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.gptj import modeling_gptj

Mode = Literal["tiled", "whole"]

VOCABULARY = 101
"""Odd, and no multiple of anything."""

WINDOW_TOKENS = 7
CHUNK_TOKENS = 9


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """One `model_type` of transformers.

    `modes`: how each kind of layer must run, in the order in which the kinds appear in the model:
    a quiet slide from tiled to whole fails the tests. `reference`: the attention of the unwrapped
    model that memo is compared with; where it is "eager", `reference_reason` says why SDPA cannot
    be the judge. `blind_mean`: there, a query that sees nothing (padding) gets the mean of all
    values, later ones too, where SDPA and memo give zero. `routes`: the model takes
    `output_router_logits` and adds a router loss.
    """

    name: str
    sizes: Mapping[str, Any]
    modes: tuple[Mode, ...] = ("tiled",)
    reference: Literal["sdpa", "eager"] = "sdpa"
    reference_reason: str = ""
    blind_mean: bool = False
    routes: bool = False

    @property
    def is_tiled(self) -> bool:
        """Whether all of its layers are."""
        return set(self.modes) == {"tiled"}

    def config(self) -> PreTrainedConfig:
        """A new config, all of its dropouts 0."""
        config = AutoConfig.for_model(self.name, **self.sizes)
        for name, value in list(vars(config).items()):
            if isinstance(value, float) and ("dropout" in name or name.endswith(("_drop", "drop"))):
                setattr(config, name, 0.0)
        return config


_COMMON: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

_GPT2: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_inner": 48,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

_HEADS: Mapping[str, Any] = {"head_dim": 8}
_EXPERTS: Mapping[str, Any] = {"num_experts_per_tok": 2, "router_aux_loss_coef": 0.1}
_SLIDING: Mapping[str, Any] = {"sliding_window": WINDOW_TOKENS}
_SLIDING_AND_FULL: Mapping[str, Any] = {
    **_SLIDING,
    "layer_types": ["sliding_attention", "full_attention"],
}


def _sizes(*more: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    merged = dict(_COMMON)
    for mapping in (*more, changes):
        merged.update(mapping)
    return merged


_TILED = (
    Family(name="llama", sizes=_sizes()),
    Family(name="qwen2", sizes=_sizes()),
    Family(name="qwen3", sizes=_sizes(_HEADS)),
    Family(name="mistral", sizes=_sizes(_HEADS, _SLIDING)),
    Family(name="gpt2", sizes=_GPT2),
    Family(name="gpt_bigcode", sizes=_GPT2),
    Family(name="phi", sizes=_sizes()),
    Family(name="phi3", sizes=_sizes()),
    Family(name="gpt_neox", sizes=_sizes()),
    Family(name="opt", sizes=_sizes(ffn_dim=48, word_embed_proj_dim=32)),
    Family(name="cohere", sizes=_sizes()),
    Family(name="cohere2", sizes=_sizes(_SLIDING_AND_FULL)),
    Family(name="gemma", sizes=_sizes(_HEADS)),
    Family(
        name="gemma2",
        sizes=_sizes(
            _HEADS, _SLIDING_AND_FULL, query_pre_attn_scalar=8, attn_logit_softcapping=2.0
        ),
        modes=("tiled", "tiled"),
        reference="eager",
        reference_reason="SDPA leaves the soft cap on attention scores out",
        blind_mean=True,
    ),
    Family(
        name="gemma3_text",
        sizes=_sizes(_HEADS, _SLIDING_AND_FULL, query_pre_attn_scalar=8),
        modes=("tiled", "tiled"),
    ),
    Family(name="olmo2", sizes=_sizes()),
    Family(name="olmo3", sizes=_sizes(_SLIDING_AND_FULL), modes=("tiled", "tiled")),
    Family(name="glm", sizes=_sizes(_HEADS)),
    Family(name="glm4", sizes=_sizes(_HEADS)),
    Family(name="granite", sizes=_sizes(logits_scaling=1.5, residual_multiplier=0.7)),
    Family(name="starcoder2", sizes=_sizes(_SLIDING)),
    Family(name="stablelm", sizes=_sizes()),
    Family(name="smollm3", sizes=_sizes()),
    Family(name="exaone4", sizes=_sizes(_SLIDING_AND_FULL), modes=("tiled", "tiled")),
    Family(name="nemotron", sizes=_sizes()),
    Family(name="apertus", sizes=_sizes()),
)

_EXPERT_FAMILIES = (
    Family(name="mixtral", sizes=_sizes(_EXPERTS, num_local_experts=4), routes=True),
    Family(
        name="qwen2_moe",
        sizes=_sizes(
            _EXPERTS,
            num_experts=4,
            moe_intermediate_size=24,
            shared_expert_intermediate_size=24,
        ),
        routes=True,
    ),
    Family(
        name="qwen3_moe",
        sizes=_sizes(_HEADS, _EXPERTS, num_experts=4, moe_intermediate_size=24),
        routes=True,
    ),
    Family(name="olmoe", sizes=_sizes(_EXPERTS, num_experts=4), routes=True),
    Family(
        name="gpt_oss",
        sizes=_sizes(_HEADS, _EXPERTS, _SLIDING_AND_FULL, num_local_experts=4),
        modes=("tiled", "tiled"),
        reference="eager",
        reference_reason="SDPA drops attention sinks",
        routes=True,
    ),
    Family(
        name="deepseek_v3",
        sizes=_sizes(
            num_key_value_heads=4,
            q_lora_rank=16,
            kv_lora_rank=16,
            qk_rope_head_dim=8,
            qk_nope_head_dim=8,
            v_head_dim=12,
            n_routed_experts=4,
            n_shared_experts=1,
            num_experts_per_tok=2,
            moe_intermediate_size=24,
            first_k_dense_replace=1,
            n_group=2,
            topk_group=1,
        ),
        modes=("tiled", "tiled"),
    ),
    Family(
        name="llama4_text",
        sizes=_sizes(
            _HEADS,
            intermediate_size_mlp=48,
            num_local_experts=2,
            attention_chunk_size=CHUNK_TOKENS,
            interleave_moe_layer_step=2,
            layer_types=["chunked_attention", "full_attention"],
            no_rope_layers=[1, 0],
            attn_temperature_tuning=False,  # it counts positions in a row, whatever documents
        ),
        modes=("tiled", "tiled"),
    ),
)

_HYBRIDS = (
    Family(
        name="jamba",
        sizes=_sizes(
            num_experts=2,
            num_experts_per_tok=1,
            attn_layer_period=2,
            attn_layer_offset=1,
            expert_layer_period=2,
            expert_layer_offset=1,
            mamba_d_state=4,
            mamba_dt_rank=4,
        ),
        modes=("whole", "tiled"),
    ),
    Family(
        name="qwen3_next",
        sizes=_sizes(
            _HEADS,
            _EXPERTS,
            num_experts=4,
            moe_intermediate_size=24,
            shared_expert_intermediate_size=24,
            layer_types=["linear_attention", "full_attention"],
            linear_num_value_heads=4,
            linear_num_key_heads=2,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            linear_conv_kernel_dim=3,
        ),
        modes=("whole", "tiled"),
        routes=True,
    ),
    Family(
        name="lfm2",
        sizes=_sizes(layer_types=["conv", "full_attention"]),
        modes=("whole", "tiled"),
    ),
)

_WHOLE = (
    Family(
        name="bloom",
        sizes=_sizes(n_layer=2, n_head=4),
        modes=("whole",),
        reference="eager",
        reference_reason="the only attention that BLOOM has",
    ),
    Family(name="falcon", sizes=_sizes(), modes=("whole",)),
    Family(
        name="gpt_neo",
        sizes=_sizes(
            num_layers=2,
            num_heads=4,
            attention_types=[[["global", "local"], 1]],
            window_size=WINDOW_TOKENS,
        ),
        modes=("whole", "whole"),
        reference="eager",
        reference_reason="the only attention that GPT-Neo has without the flash-attn package",
    ),
    Family(
        name="gptj",
        sizes={**_GPT2, "rotary_dim": 4},
        # It calls the attention interface from transformers 5.24 on.
        modes=("tiled",) if hasattr(modeling_gptj, "ALL_ATTENTION_FUNCTIONS") else ("whole",),
        reference="sdpa" if hasattr(modeling_gptj, "ALL_ATTENTION_FUNCTIONS") else "eager",
        reference_reason="before transformers 5.24 the only attention that GPT-J has",
    ),
    Family(
        name="mamba",
        sizes=_sizes(state_size=4),
        modes=("whole",),
        reference="eager",
        reference_reason="Mamba has no attention to choose",
    ),
)

FAMILIES = (*_TILED, *_EXPERT_FAMILIES, *_HYBRIDS, *_WHOLE)
TILED_FAMILIES = tuple(family for family in FAMILIES if family.is_tiled)
ROUTING_FAMILIES = tuple(family for family in FAMILIES if family.routes)


def family_named(name: str) -> Family:
    """The family of this `model_type`."""
    return next(family for family in FAMILIES if family.name == name)
