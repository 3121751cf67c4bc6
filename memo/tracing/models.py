"""A model to trace: any causal LM's config, built on fake tensors.

Scope: finding a config (an object, a file, a folder, a name on the hub) and making the model of it
without memory for its weights, whole or with adapters. Nothing runs here.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.auto_mappings import CONFIG_MAPPING_NAMES
from transformers.utils import CONFIG_NAME

from offload import MemoError
from planner.contracts import Train

LORA_RANK = 16

_REFUSALS = (
    *(OSError, ValueError, KeyError, AttributeError, TypeError, ArithmeticError),
    StrictDataclassError,
)
"""Of a config: not found, not JSON, of no family; of another shape; a field of another type; and
whatever comes of computing with a field that is out of range."""


def load_config(model: str | Path | PreTrainedConfig) -> PreTrainedConfig:
    """The config of a model, given as one, as a `config.json`, as a folder with one, or by name on
    the Hugging Face hub. No weights are loaded.

    Raises:
        ValueError: when there is none, with names of families that are alike, and when there is one
            that transformers does not take, with what it says of it.
    """
    if isinstance(model, PreTrainedConfig):
        return model
    try:
        config = AutoConfig.from_pretrained(str(model))
    except _REFUSALS as error:
        raise ValueError(_refused(str(model), error)) from error
    assert isinstance(config, PreTrainedConfig)
    return config


def _refused(name: str, error: Exception) -> str:
    if not _is_there(name) and isinstance(error, OSError | HFValidationError):
        return _unknown(name)
    return f"model {name!r}: transformers does not take its config: {_told(error)}"


def _is_there(name: str) -> bool:
    path = Path(name)
    return path.is_file() or (path / CONFIG_NAME).is_file()


def _told(error: Exception) -> str:
    """In one line, without the advice that follows an empty one; errors of Python's own say little
    without their kind.
    """
    text = " ".join(str(error).partition("\n\n")[0].split())
    if isinstance(error, OSError | ValueError | StrictDataclassError):
        return text
    return f"{type(error).__name__}: {text}"


def _unknown(name: str) -> str:
    near = get_close_matches(Path(name).name.lower(), CONFIG_MAPPING_NAMES, n=3, cutoff=0.4)
    hint = f"; families with names like it: {', '.join(near)}" if near else ""
    return (
        f"model {name!r}: takes a config.json, a folder with one, or a name on the Hugging Face "
        f"hub that can be reached from here{hint}"
    )


def fake_model(config: PreTrainedConfig, dtype: torch.dtype, *, train: Train = "full") -> nn.Module:
    """The causal LM of `config` in training mode; call it within `FakeTensorMode`.

    "lora": all weights frozen, adapters of rank `LORA_RANK` at every linear layer but the head (the
    package peft makes them).

    Raises:
        MemoError: for a config that transformers has no causal LM for, or makes none of, or without
            peft.
    """
    text = copy.deepcopy(config.get_text_config())  # a model writes its dtype into its config
    with refusals_told(config):
        with without_initialising():
            model = AutoModelForCausalLM.from_config(text, dtype=dtype)
        model.tie_weights()  # is left out with the initialising
    result: nn.Module = _with_adapters(model) if train == "lora" else model
    return result.train()


@contextmanager
def refusals_told(config: PreTrainedConfig) -> Iterator[None]:
    """A model is made of `config` inside.

    Raises:
        MemoError: when transformers does not make one, or torch none of its sizes.
    """
    words = config.get_text_config().vocab_size
    try:
        if words < 1:  # transformers makes a model of none
            raise ValueError(f"vocab_size is {words}: takes 1 or more")
        yield
    except (*_REFUSALS, RuntimeError, AssertionError) as error:
        name = type(config).__name__
        raise MemoError(f"no causal LM can be made of a {name}: {_told(error)}") from error


@contextmanager
def without_initialising() -> Iterator[None]:
    """Models that are made inside have weights of any value: random numbers for them would be work
    for nothing.
    """
    from transformers.initialization import no_init_weights

    with no_init_weights():
        yield


def _with_adapters(model: nn.Module) -> nn.Module:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise MemoError("tracing LoRA needs the package peft: pip install peft") from error
    lora = LoraConfig(r=LORA_RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    # Adapters are made in float32, in which peft leaves them; moving them to where the model is
    # swaps tensors, and fake ones cannot be swapped.
    with patch.object(nn.Module, "to", lambda self, *_, **__: self):
        adapted: Any = get_peft_model(model, lora)
    adapted.enable_input_require_grads()  # what a layer after the first is given takes a gradient
    result: nn.Module = adapted
    return result
