"""The long run's model and what ranks report of it.

Scope: plain data, and the config.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import MistralConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class LongCase:
    """A Mistral-like model (arXiv 2310.06825: grouped kv heads and a sliding window) and one
    sequence of `tokens` that `ranks` share.
    """

    tokens: int
    ranks: int
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int
    window: int
    dtype: str

    def config(self) -> MistralConfig:
        """As transformers has it, without special tokens."""
        return MistralConfig(
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            sliding_window=self.window,
            max_position_embeddings=self.tokens,
            use_cache=False,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerDone:
    """A layer's forward or backward is over: `done` of `total`."""

    done: int
    total: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RankResult:
    """One rank's step. `base_bytes`: weights, gradients' buffers and optimizer states, counted
    tensor by tensor; `growth_bytes`: of tensors, above what they were when the step began, at most;
    `resident_bytes`: how far the process's resident memory rose, by `method`, with the record of
    tensors. `sent_bytes` by transport; `cpu_s` of this process during the step.
    """

    rank: int
    tokens: int
    base_bytes: int
    growth_bytes: int
    resident_bytes: int
    method: str
    step_s: float
    cpu_s: float
    loss: float
    sent_bytes: dict[str, int]

    @property
    def peak_bytes(self) -> int:
        """What the prediction is held against."""
        return self.base_bytes + self.growth_bytes
