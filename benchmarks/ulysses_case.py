"""Sequence parallelism compared: what is measured, and what a measurement is.

Scope: plain data.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from transformers import LlamaConfig


class Peer(StrEnum):
    """Who shares a sequence among the ranks. `ALST`: DeepSpeed's Ulysses for transformers with all
    that Arctic Long Sequence Training (arXiv 2506.13996) adds on top.
    """

    MEMO = "memo"
    MEMO_SSD = "memo, x and o on a disk"
    ALST = "alst"


class Phase(StrEnum):
    """Times are taken without `exact_malloc`, which makes steps slower; peaks with it."""

    TIME = "time"
    PEAK = "peak"


@dataclass(frozen=True, kw_only=True, slots=True)
class UlyssesCase:
    """A Llama-like model, and one sequence of `tokens` that `ranks` share under DeepSpeed's engine
    at ZeRO's `zero` stage.
    """

    tokens: int
    ranks: int
    zero: int
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int
    dtype: str

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    def config(self) -> LlamaConfig:
        """As transformers has it."""
        return LlamaConfig(
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=self.tokens,
            use_cache=False,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class UlyssesJob:
    """One measurement by processes of its own. `gradients`: a file with those of the
    single-process reference, for `Phase.PEAK`; `spill_dir`: for `Peer.MEMO_SSD`.
    """

    case: UlyssesCase
    peer: Peer
    phase: Phase
    steps: int = 1
    gradients: Path | None = None
    spill_dir: Path | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class UlyssesSample:
    """What one rank measured. `step_s`, `cpu_s`: of every timed step (forward, backward, update).
    `growth_bytes`: how far resident memory rose in a step above what weights and the engine held;
    `sent_bytes`: to other ranks in the `exchanges` (all-to-alls) of a forward and backward.
    `gradient_error`: the largest of all elements, relative to its parameter's largest (`worst`);
    `gradient_scale`: the least-squares factor by which all gradients are too large, and
    `gradient_error_rescaled` the error that is left when they are divided by it.
    """

    rank: int
    peer: Peer
    phase: Phase
    loss: float
    step_s: tuple[float, ...] = ()
    cpu_s: tuple[float, ...] = ()
    base_bytes: int = 0
    growth_bytes: int = 0
    sent_bytes: int = 0
    exchanges: int = 0
    gradient_error: float | None = None
    gradient_worst: str = ""
    gradient_scale: float | None = None
    gradient_error_rescaled: float | None = None
