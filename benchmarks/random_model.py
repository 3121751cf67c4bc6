"""A model with random weights, the same in every process.

Scope: building; configs are the benchmarks' own.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

SEED = 0


def random_model(config: PreTrainedConfig, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    """In training mode; `attention` as transformers names it."""
    torch.manual_seed(SEED)
    auto: Any = AutoModelForCausalLM  # its methods have no types
    model = cast(
        PreTrainedModel, auto.from_config(config, dtype=dtype, attn_implementation=attention)
    )
    model.train()
    return model
