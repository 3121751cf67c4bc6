"""Models as published: the sizes in their `config.json`, as configs of transformers.

Scope: sizes that decide a step's shapes. What doesn't (tokens' ids, initial weights) is left to
transformers' defaults. Sources: the config.json of meta-llama/Llama-3.1-8B and -70B,
Qwen/Qwen3-0.6B to -32B, mistralai/Mixtral-8x7B-v0.1, google/gemma-3-1b-pt to -27b-pt (their text
models), openai-community/gpt2 and gpt2-xl on the Hugging Face hub.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

from transformers import (
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    PreTrainedConfig,
    Qwen3Config,
)


class Build(Protocol):
    """Makes a new config, since models write into theirs."""

    def __call__(self) -> PreTrainedConfig: ...


def _decoder(
    kind: Callable[..., PreTrainedConfig], *sizes: int, vocab: int, **more: Any
) -> PreTrainedConfig:
    """`sizes`: hidden, intermediate, layers, heads, key-value heads."""
    names = (
        *("hidden_size", "intermediate_size", "num_hidden_layers"),
        *("num_attention_heads", "num_key_value_heads"),
    )
    return kind(vocab_size=vocab, **dict(zip(names, sizes, strict=True)), **more)


def _gpt2(hidden: int, layers: int, heads: int, *, positions: int = 1 << 22) -> PreTrainedConfig:
    """With more positions than GPT-2 was trained on, since lengths here are beyond its 1,024; no
    dropout, which masks of attention would be needed for.
    """
    return GPT2Config(
        n_embd=hidden,
        n_layer=layers,
        n_head=heads,
        n_positions=positions,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
    )


_llama = partial(_decoder, LlamaConfig, vocab=128_256)
_qwen3 = partial(_decoder, Qwen3Config, vocab=151_936, head_dim=128)
_gemma3 = partial(_decoder, Gemma3TextConfig, vocab=262_208)

PUBLISHED: Mapping[str, Build] = {
    "llama-3.1-8b": partial(_llama, 4096, 14_336, 32, 32, 8),
    "llama-3.1-70b": partial(_llama, 8192, 28_672, 80, 64, 8),
    "qwen3-0.6b": partial(_qwen3, 1024, 3072, 28, 16, 8, tie_word_embeddings=True),
    "qwen3-1.7b": partial(_qwen3, 2048, 6144, 28, 16, 8, tie_word_embeddings=True),
    "qwen3-4b": partial(_qwen3, 2560, 9728, 36, 32, 8, tie_word_embeddings=True),
    "qwen3-8b": partial(_qwen3, 4096, 12_288, 36, 32, 8),
    "qwen3-14b": partial(_qwen3, 5120, 17_408, 40, 40, 8),
    "qwen3-32b": partial(_qwen3, 5120, 25_600, 64, 64, 8),
    "mixtral-8x7b": partial(_decoder, MixtralConfig, 4096, 14_336, 32, 32, 8, vocab=32_000),
    "gemma-3-1b": partial(_gemma3, 1152, 6912, 26, 4, 1, head_dim=256, sliding_window=512),
    "gemma-3-4b": partial(_gemma3, 2560, 10_240, 34, 8, 4, head_dim=256, sliding_window=1024),
    "gemma-3-12b": partial(_gemma3, 3840, 15_360, 48, 16, 8, head_dim=256, sliding_window=1024),
    "gemma-3-27b": partial(_gemma3, 5376, 21_504, 62, 32, 16, head_dim=128, sliding_window=1024),
    "gpt2": partial(_gpt2, 768, 12, 12),
    "gpt2-xl": partial(_gpt2, 1600, 48, 25),
}
