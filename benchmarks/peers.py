"""The peers that offload: checkpointing with layer inputs on the host, and ALST's tiles.

Scope: preparing a Llama in place. `offload_layer_inputs` is transformers' own
`activation_checkpointing_enable(offload=True)`; where that is missing, or the device is the CPU, on
which it fails, the same is built of the parts that it is made of: torch's `save_on_cpu` around each
layer's checkpoint. ALST (Arctic Long Sequence Training, arXiv 2506.13996) adds a tiled MLP and a
tiled loss; they are written here in plain torch, a checkpoint around each tile, as its own
implementation needs DeepSpeed's engine around the model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaMLP

LOGITS_BYTES = 1 << 30
"""Float32 logits of one tile of the loss, as ALST sets it."""


def offload_layer_inputs(model: PreTrainedModel) -> None:
    """Checkpoint every decoder layer, with the layer's input on the host until backward."""
    enable: Any = getattr(model, "activation_checkpointing_enable", None)
    on_cuda = next(model.parameters()).is_cuda
    if on_cuda and enable is not None and "offload" in inspect.signature(enable).parameters:
        enable(offload=True)
        return
    run = partial(_checkpoint_from_host, save_on_cpu(pin_memory=on_cuda))
    model._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=run)


def _checkpoint_from_host(
    hooks: save_on_cpu, function: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    with hooks:
        return checkpoint(function, *args, use_reentrant=False, **kwargs)


def tile_mlps(model: PreTrainedModel) -> None:
    """Run every MLP on as many tokens at a time as the model is wide, which is ALST's choice."""
    for module in model.modules():
        if isinstance(module, LlamaMLP):
            module.forward = partial(_in_tiles, module.forward, model.config.hidden_size)  # type: ignore[method-assign]


def _in_tiles(forward: Callable[[Tensor], Tensor], tokens: int, x: Tensor) -> Tensor:
    parts = [checkpoint(forward, part, use_reentrant=False) for part in x.split(tokens, dim=1)]
    return torch.cat(parts, dim=1)


def tile_loss(model: PreTrainedModel) -> None:
    """Let a model with a head compute it and the loss tile by tile; a body has neither."""
    head = model.get_output_embeddings()
    if head is not None:
        model.forward = partial(_forward, model, head)


def _forward(
    model: PreTrainedModel, head: nn.Module, input_ids: Tensor, labels: Tensor
) -> SimpleNamespace:
    hidden = model.base_model(input_ids=input_ids).last_hidden_state.flatten(0, 1)
    targets = functional.pad(labels, (0, 1), value=-100)[:, 1:].flatten()
    tokens = max(1, LOGITS_BYTES // (4 * model.config.vocab_size))
    losses = [
        checkpoint(_loss_sum, head, *part, use_reentrant=False)
        for part in zip(hidden.split(tokens), targets.split(tokens), strict=True)
    ]
    return SimpleNamespace(loss=torch.stack(losses).sum() / (targets != -100).sum())


def _loss_sum(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(head(hidden).float(), targets, reduction="sum")
