"""DeepSpeed's Ulysses for transformers, with everything that ALST documents.

Scope: preparing a Llama, and one rank's loss, as DeepSpeed's tutorial and the docstrings of
`deepspeed.runtime.sequence_parallel.ulysses_sp` (0.19) have them:

- `UlyssesSPAttentionHF` around torch's SDPA;
- `TiledMLP`, as many tokens at a time as the model is wide;
- `TiledFusedLogitsLoss` over tiles of `LOGITS_BYTES` (theirs are of 1 GiB, which would be no tiling
  at a length that fits here);
- checkpointing of every decoder layer, reentrant, which its offload to the host needs; on a
  processor that offload moves nothing, as a layer's input is in the host's memory already;
- the loss as a mean over ranks' losses weighted by their tokens, by a differentiable all-gather.

Ranks are handed their shares by slicing, which spares ALST its loader's all-gather of batches.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

LOGITS_BYTES = 64 << 20
"""Float32 logits of a tile of the loss: as many as memo has at a time on a processor."""

IGNORED = -100


def prepare(model: PreTrainedModel, ranks: int) -> Any:
    """Set a Llama up, in place; returns what `deepspeed.initialize` takes as `mpu`."""
    from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF

    groups = UlyssesSPAttentionHF.register_with_transformers(
        model_name_or_path=model,
        core_attn_implementation="sdpa",
        sequence_parallel_size=ranks,
        micro_batch_size=1,
        seq_length_is_variable=True,
    )
    # Its new name since transformers 5.24.
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": True})
    for layer in model.get_submodule("model.layers").children():
        mlp: Any = layer.get_submodule("mlp")
        mlp.forward = partial(_tiled_mlp, mlp)
    model.forward = partial(_forward, model)
    return groups


def _tiled_mlp(mlp: Any, x: Tensor) -> Tensor:
    from deepspeed.runtime.sequence_parallel.ulysses_sp import TiledMLP

    # Ranks have as many tokens each, so that the all-reduce that agrees on shards is spared.
    shards = math.ceil(x.shape[1] / x.shape[2])
    weights = [mlp.down_proj.weight, mlp.gate_proj.weight, mlp.up_proj.weight]
    result: Tensor = TiledMLP.apply(_mlp, mlp, x, shards, weights)
    return result


def _mlp(mlp: Any, x: Tensor) -> Tensor:
    result: Tensor = mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x))
    return result


def _forward(model: Any, input_ids: Tensor, labels: Tensor) -> CausalLMOutput:
    """The loss of a whole sequence ([1, tokens]), of which each rank runs its share."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    positions = torch.arange(input_ids.shape[1]).unsqueeze(0)
    shifted = functional.pad(labels, (0, 1), value=IGNORED)[..., 1:]
    own_ids, own_positions, own_labels = (
        tensor.chunk(ranks, dim=1)[rank].contiguous() for tensor in (input_ids, positions, shifted)
    )
    hidden = model.model(input_ids=own_ids, position_ids=own_positions, use_cache=False)
    own = _tiled_loss(model, hidden.last_hidden_state, own_labels)
    return CausalLMOutput(loss=_mean_over_ranks(own, own_labels, ranks))


def _tiled_loss(model: Any, hidden: Tensor, labels: Tensor) -> Tensor:
    from deepspeed.runtime.sequence_parallel.ulysses_sp import TiledFusedLogitsLoss

    shards = math.ceil(4 * model.config.vocab_size * labels.numel() / LOGITS_BYTES)
    result: Tensor = TiledFusedLogitsLoss.apply(
        _loss, model, hidden, labels, None, shards, [model.lm_head.weight], "mean"
    )
    return result


def _loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    logits: Tensor = model.get_submodule("lm_head")(x)
    return functional.cross_entropy(logits.float(), y, ignore_index=IGNORED)


def _mean_over_ranks(loss: Tensor, labels: Tensor, ranks: int) -> Tensor:
    from torch.distributed.nn.functional import all_gather

    losses: Any = all_gather(loss)
    counts: Any = all_gather((labels != IGNORED).sum())
    total: Tensor = sum(losses[rank] * counts[rank] for rank in range(ranks))
    return total / max(int(sum(counts)), 1)
