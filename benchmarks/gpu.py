"""One command for a machine with a GPU: its tests, then speed, memory and reach beside the peers.

::

    make gpu                                           # the same, with the Python that is there
    python -m benchmarks.gpu                           # tests, then 9 minutes' worth of measuring
    python -m benchmarks.gpu --minutes 20 --no-tests
    python -m benchmarks.gpu --tokens 131072 262144 --cases offload memo:recompute/host --no-search

Run from the repository root, which needs no installation. It needs these packages, in any recent
version: torch (with CUDA), transformers (5 or later), numpy, psutil, rich, and pytest for the
tests. No network is used, and no weights: layers of Llama-3.1-8B's shapes, random, in bf16.

What is measured, in this order of importance, each case in a process of its own: (a) timed steps of
as many layers as the time allows, body alone, at 16K to 256K tokens; (b) the longest sequence that
the card trains, of all 32 layers with head and loss, see `accounting`. `offload` is Hugging Face's
checkpointing with layer inputs in host memory, `alst` the same with ALST's tiled MLP and loss, see
`peers`. Results are written after every measurement; what there is no time for is skipped and said.
Without a GPU a small version runs on the CPU, whose figures mean nothing.

In this file: the command line only. The exit status is 1 if a test or a measurement failed.
"""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import accounting, card, flops, gpu_tables, gpu_tests
from benchmarks.archive import Archive
from benchmarks.context import PIPE_COLUMNS, case_name, count
from benchmarks.contracts import Outcome
from benchmarks.gpu_plan import CARD, SMALL, Setting
from benchmarks.gpu_rows import claims, gpu_rows, matmul_rate
from benchmarks.gpu_run import Measuring
from benchmarks.runner import ROOT

_TESTS_SHARE = 0.4
"""Of the minutes, at most."""


def parser() -> ArgumentParser:
    """The options; what is not given is the setting's."""
    found = ArgumentParser(
        "benchmarks.gpu", description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    found.add_argument("--minutes", type=float, help="for everything (default: 9; 0.9 on a CPU)")
    found.add_argument("--tokens", type=count, nargs="+", help="lengths of timed steps")
    found.add_argument("--cases", type=case_name, nargs="+", help="see cases.py")
    found.add_argument("--no-tests", action="store_true", help="measure only")
    found.add_argument("--no-search", action="store_true", help="timed steps only")
    found.add_argument("--json", type=Path, help="default: benchmarks/results/DATE-gpu-CARD.json")
    found.add_argument("--small", action="store_true", help="the CPU's version, GPU or not")
    return found


def setting_of(options: Namespace) -> Setting:
    """A card's if there is one."""
    setting = CARD if torch.cuda.is_available() and not options.small else SMALL
    changes: dict[str, Any] = {}
    if options.minutes is not None:
        changes["minutes"] = options.minutes
    if options.tokens:
        changes["tokens"] = tuple(options.tokens)
    if options.cases:
        changes["cases"] = changes["search_cases"] = tuple(options.cases)
    if options.no_search:
        changes["search_cases"] = ()
    return replace(setting, **changes)


def main(arguments: Sequence[str] | None = None) -> int:
    started_s = time.monotonic()
    options = parser().parse_args(arguments)
    setting = setting_of(options)
    console = Console()
    console = console if console.is_terminal else Console(width=PIPE_COLUMNS)
    archive = _archive(setting, options.json)
    tests_hold = options.no_tests or _run_tests(setting, archive, console)
    measuring = Measuring(
        setting=setting,
        archive=archive,
        say=lambda line: console.print(line, markup=False, highlight=False),
        ends_s=started_s + 60 * setting.minutes,
    )
    measuring.run()
    _show(setting, archive, console)
    failed = any(sample.outcome is Outcome.FAILED for sample in archive.samples)
    return 0 if tests_hold and not failed else 1


def _archive(setting: Setting, path: Path | None) -> Archive:
    name = card.name(setting.device)
    if path is None and setting.device != "cpu":
        day = datetime.now(UTC).date().isoformat()
        slug = "-".join(name.lower().split())
        path = ROOT / "benchmarks" / "results" / f"{day}-gpu-{slug}.json"
    return Archive(
        job=setting.rate_job(),
        path=path,
        as_rows=lambda samples: gpu_rows(samples, name),
        device_name=name,
    )


def _run_tests(setting: Setting, archive: Archive, console: Console) -> bool:
    """Whether no test failed."""
    ended = gpu_tests.run(timeout_s=60 * setting.minutes * _TESTS_SHARE)
    archive.note(tests=ended.summary)
    if not ended.hold:
        console.print(ended.output, markup=False, highlight=False)
    console.print(f"tests/gpu: {ended.summary}", markup=False, highlight=False)
    return ended.hold


def _show(setting: Setting, archive: Archive, console: Console) -> None:
    name = str(archive.device_name)
    rate, peak = matmul_rate(archive.samples), flops.peak_flops_per_s(name)
    host_bytes = accounting.available_host_bytes()
    rows = gpu_rows(archive.samples, name)
    archive.note(
        matmul_flops_per_s=rate,
        data_sheet_flops_per_s=peak,
        available_host_bytes=host_bytes,
        attention_tokens=setting.attention_tokens,
    )
    console.print(f"{name}, torch {torch.__version__}", markup=False, highlight=False)
    console.print(gpu_tables.steps(setting, rows, rate, peak))
    if archive.longest:
        console.print(gpu_tables.longest(setting, archive.longest, host_bytes))
    if setting.device != "cpu":
        console.print(gpu_tables.claims(claims(rows, archive.longest, setting.claim_tokens)))
        console.print(f"written to {archive.path}", markup=False, highlight=False)


if __name__ == "__main__":
    raise SystemExit(main())
