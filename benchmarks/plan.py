"""What `memo plan` takes: seconds and memory of the cases that we make claims about, each from end
to end in a process of its own, imports included.

Scope: running the command, and a table. `python -m benchmarks.plan [--json]`; exit status 1 when a
limit is broken. Wall time means something only on a machine that does nothing else; CPU time of one
thread is told beside it.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import GPT2Config, LlamaConfig, PreTrainedConfig

MOST_WALL_S = 20.0
MOST_MEMORY_BYTES = 2 * 10**9
"""Asked of an 80-layer model with 70 billion parameters at a million tokens, on two cores."""

_LLAMA_8B: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
}
_LLAMA_70B: dict[str, Any] = {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
}
_SHARED: dict[str, Any] = {
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
}
_GPT_7B: dict[str, Any] = {
    **{"vocab_size": 50257, "n_embd": 4096, "n_inner": 16384, "n_layer": 32, "n_head": 32},
    **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0),
}

_HEADLINE = ("--gpus", "8", "--gpu", "h100-80gb", "--host-memory", "1TB", "--ssd", "8x7TB@6GB/s")
_MEMO = ("--gpus", "8", "--gpu", "a800-80gb", "--host-memory", "2TB", "--pcie", "32GB/s")
"""MEMO's machine (SIGMOD 2025, arXiv 2407.12117, section 5)."""


@dataclass(frozen=True, slots=True)
class Case:
    """A model, and `memo plan`'s options."""

    name: str
    config: PreTrainedConfig
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """What one command took, all of its process, and what it answered."""

    case: str
    wall_s: float
    cpu_s: float
    peak_bytes: int
    fits: bool
    step_s: float | None
    mfu: float | None
    ssd_written_bytes_per_step: int | None
    longest_tokens: int | None


def cases() -> list[Case]:
    """Llama's 8B and 70B at a million tokens, and MEMO's 7B at one million and two."""
    eight = LlamaConfig(**{**_LLAMA_8B, **_SHARED, "num_attention_heads": 32})
    seventy = LlamaConfig(**{**_LLAMA_70B, **_SHARED, "num_attention_heads": 64})
    gpt = GPT2Config(**_GPT_7B)
    return [
        Case("llama-8b 1M", eight, ("--tokens", "1M", *_HEADLINE)),
        Case("llama-70b 1M", seventy, ("--tokens", "1M", *_HEADLINE[:-4], *_LARGE_HOST)),
        Case("memo-7b 1M", gpt, ("--tokens", "1M", *_MEMO)),
        Case("memo-7b 2M", gpt, ("--tokens", "2M", *_MEMO)),
    ]


_LARGE_HOST = ("--host-memory", "2TB", "--ssd", "8x7TB@6GB/s")


def measure(case: Case, folder: Path) -> Row:
    """Run the command once."""
    case.config.save_pretrained(folder)
    command = [sys.executable, "-c", _TELL, "plan", str(folder), *case.options, "--json"]
    start_s, before = time.perf_counter(), _children_s()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wall_s, cpu_s = time.perf_counter() - start_s, _children_s() - before
    if not done.stdout:
        raise RuntimeError(f"{case.name}: {done.stderr}")
    figures = json.loads(done.stdout)
    peak_kib = int(done.stderr.rsplit("peak_kib=", 1)[1].split()[0])
    return Row(
        case=case.name,
        wall_s=wall_s,
        cpu_s=cpu_s,
        peak_bytes=peak_kib * 1024,
        fits=figures["fits"],
        step_s=figures["step_s"],
        mfu=figures["mfu"],
        ssd_written_bytes_per_step=figures["ssd_written_bytes_per_step"],
        longest_tokens=figures["longest_tokens"],
    )


_TELL = """
import resource, runpy, sys
sys.argv[0] = "memo"
try:
    runpy.run_module("memo.cli", run_name="__main__")
finally:
    print(f"peak_kib={resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}", file=sys.stderr)
"""
"""The command, in an interpreter that tells its own peak at the end."""


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def broken(rows: Sequence[Row]) -> list[str]:
    """The limits that rows break, in words."""
    return [
        f"{row.case}: {row.wall_s:.1f} s and {row.peak_bytes / 1e9:.2f} GB, asked are "
        f"{MOST_WALL_S:.0f} s and {MOST_MEMORY_BYTES / 1e9:.0f} GB"
        for row in rows
        if row.wall_s > MOST_WALL_S or row.peak_bytes > MOST_MEMORY_BYTES
    ]


def main() -> int:
    """Measure, print, and say what is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print rows as JSON")
    parser.add_argument("--case", help="only the cases whose name has this in it", default="")
    arguments = parser.parse_args()
    rows = []
    for case in cases():
        if arguments.case in case.name:
            with tempfile.TemporaryDirectory() as folder:
                rows.append(measure(case, Path(folder)))
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        for row in rows:
            print(_line(row))
    failures = broken(rows)
    print(*failures, sep="\n", file=sys.stderr)
    return 1 if failures else 0


def _line(row: Row) -> str:
    answer = "does not fit"
    if row.fits:
        answer = f"step {row.step_s:,.1f} s, MFU {row.mfu:.1%}, longest {row.longest_tokens:,}"
    took = f"{row.wall_s:6.1f} s wall {row.cpu_s:6.1f} s CPU {row.peak_bytes / 1e9:5.2f} GB"
    return f"{row.case:14} {took}  {answer}"


if __name__ == "__main__":
    sys.exit(main())
