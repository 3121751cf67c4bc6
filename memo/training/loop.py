"""One optimizer step of a causal language model on one window of tokens.

The same code trains plain, checkpointed and wrapped models: they differ in what was done to the
model before. Where windows come from, what is saved and what is shown is elsewhere.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor
from transformers import PreTrainedModel

from memo.training.contracts import StepRecord
from memo.training.optimizer import MasterAdamW


def run_step(
    model: PreTrainedModel, optimizer: MasterAdamW, input_ids: Tensor, *, step: int
) -> StepRecord:
    """Train on `input_ids`, int64, [batch, tokens]; every token but the first is predicted."""
    start_s, cpu_start_s = time.perf_counter(), time.process_time()
    device_ids = input_ids.to(model.device)
    output = model(input_ids=device_ids, labels=device_ids, use_cache=False)
    output.loss.backward()
    loss = float(output.loss.detach())
    del output  # a plain model's logits would live through the update
    grad_norm = optimizer.step()
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return StepRecord(
        step=step,
        loss=loss,
        grad_norm=grad_norm,
        seconds=time.perf_counter() - start_s,
        cpu_s=time.process_time() - cpu_start_s,
    )
