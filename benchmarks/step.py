"""A model prepared for a case, and one training step of it at any length.

Scope: building and stepping. The step is forward and backward of one sequence of random tokens: no
optimizer. What is read off it stands in `child`.
"""

from __future__ import annotations

import time
from typing import Any, cast

import torch
from transformers import AutoModel, AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from benchmarks.cases import prepare
from benchmarks.contracts import Job, Shape

SHORT_TOKENS = 1024
SEED = 0


class Step:
    """The model of a job, its gradients allocated."""

    def __init__(self, job: Job) -> None:
        torch.manual_seed(SEED)
        self.shape = job.shape
        self.device = torch.device(job.device)
        # Made where it will be: random numbers for billions of weights take a CPU minutes.
        with self.device:
            self.model = build(job.shape, max(job.tokens, SHORT_TOKENS))
        self.model.train()
        self.context = prepare(job.case, self.model, job.tile_tokens, job.spill_dir)
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)

    def run(self, tokens: int) -> float:
        """Forward and backward of `[1, tokens]`; adds to the gradients and returns the loss."""
        with self.context():
            loss = self.forward(tokens)
            loss.backward()
        return float(loss.detach())

    def forward(self, tokens: int) -> torch.Tensor:
        """The loss of `[1, tokens]`, to be run backward within the case's context."""
        ids = self._ids(tokens)
        if self.shape.head:
            loss: torch.Tensor = self.model(input_ids=ids, labels=ids).loss
            return loss
        hidden: torch.Tensor = self.model(input_ids=ids).last_hidden_state
        return hidden.square().mean()

    def timed(self, tokens: int) -> tuple[float, float]:
        """Zero the gradients, then run one step; returns its seconds and its loss."""
        self.zero_grad()
        self.synchronize()
        started_s = time.perf_counter()
        loss = self.run(tokens)
        self.synchronize()
        return time.perf_counter() - started_s, loss

    def zero_grad(self) -> None:
        self.model.zero_grad(set_to_none=False)

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _ids(self, tokens: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(SEED)
        ids = torch.randint(0, self.shape.vocab, (1, tokens), generator=generator)
        return ids.to(self.device)


def build(shape: Shape, max_tokens: int) -> PreTrainedModel:
    """A Llama of `shape` with random weights and positions for `max_tokens`."""
    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=max_tokens,
        use_cache=False,
    )
    auto: Any = AutoModelForCausalLM if shape.head else AutoModel  # its methods have no types
    model = auto.from_config(config, dtype=getattr(torch, shape.dtype), attn_implementation="sdpa")
    return cast(PreTrainedModel, model)
