"""Small models, and machines on which they are tight."""

from __future__ import annotations

from typing import Any

from transformers import GPT2Config, LlamaConfig, PreTrainedConfig

from memo.planning.making import Outcome, make
from memo.planning.node import Node
from memo.planning.request import PlanRequest
from planner.hardware import Disks, Efficiency, Hardware

MIB, GB = 1 << 20, 10**9

HIDDEN, FFN, LAYERS, HEADS, SHARED, VOCABULARY = 256, 700, 6, 8, 2, 1003


def llama(**changes: Any) -> PreTrainedConfig:
    """A Llama of 6 layers, whose sizes are no powers of two where they need not be."""
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": SHARED,
        "pad_token_id": 0,
        **changes,
    }
    return LlamaConfig(**sizes)


def headline_model() -> PreTrainedConfig:
    """The 7B GPT of MEMO (SIGMOD 2025, arXiv 2407.12117, table 2)."""
    sizes: dict[str, Any] = {
        **{"vocab_size": 50257, "n_embd": 4096, "n_inner": 16384, "n_layer": 32, "n_head": 32},
        **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0),
    }
    return GPT2Config(**sizes)


def machine(**changes: Any) -> Hardware:
    """One device with 64 MB, a slow host, and no disk; every rate is reached."""
    figures: dict[str, Any] = {
        "device": "a test's",
        "device_bytes": 64 * 10**6,
        "peak_flops_per_s": {"bfloat16": 1e12, "float32": 5e11},
        "device_bytes_per_s": 1e15,
        "d2h_bytes_per_s": 2e9,
        "h2d_bytes_per_s": 2e9,
        "host_bytes": GB,
        "efficiency": Efficiency(matmul=1, attention_forward=1, attention_backward=1, link=1),
        **changes,
    }
    return Hardware(**figures)


def disks(**changes: Any) -> Disks:
    """One disk of 1 GB that does 1 GB/s."""
    figures: dict[str, Any] = {
        "size_bytes": GB,
        "write_bytes_per_s": 1e9,
        "read_bytes_per_s": 1e9,
        **changes,
    }
    return Disks(**figures)


def request(hardware: Hardware, **changes: Any) -> PlanRequest:
    """The Llama's step of 3,000 tokens in tiles of 256, neither laid out nor sought longer."""
    figures: dict[str, Any] = {
        "name": "llama",
        "config": llama(),
        "tokens": 3000,
        "node": Node(hardware, "cuda"),
        "tile_tokens": 256,
        "find_longest": False,
        "lay_out": False,
        **changes,
    }
    return PlanRequest(**figures)


def planned(hardware: Hardware, **changes: Any) -> Outcome:
    """What comes of `request`."""
    return make(request(hardware, **changes))
