"""The command `memo plan`: what it takes, what it prints, and how it fails.

Scope: options into a request, a plan into text or JSON. Heavy imports happen inside, so that
`memo --help` is quick. Results go to standard output, progress and errors to standard error. Exit
status 1: it does not fit, what was asked is refused, or a file cannot be written; a plan is printed
before its files are.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from memo.cli_errors import one_line_errors
from memo.planning.cli_checks import check_emulation, check_together

if TYPE_CHECKING:
    from memo.planning.request import PlanRequest
    from memo.planning.sweep import Swept
    from planner.plan import NoPlan, Plan

_MACHINE = "Machine"
_TRAINING = "Training"
_FILE_WIDTH = 200
"""Of a table that goes to a file or a pipe."""

_COLLECT_AFTER = 200_000
"""Objects; Python's default is 700."""


def plan(
    ctx: typer.Context,
    model: Annotated[
        str, typer.Argument(help="A config.json, a folder with one, or a name on the hub.")
    ],
    tokens: Annotated[
        str | None,
        typer.Option(help="Of one sequence: a number, or 64k or 1M (powers of 1024)."),
    ] = None,
    gpus: Annotated[int, typer.Option(help="GPUs of the node.", rich_help_panel=_MACHINE)] = 1,
    gpu: Annotated[
        str | None,
        typer.Option(
            help="Such as h100-80gb; if not given, this machine is planned for, and measured.",
            rich_help_panel=_MACHINE,
        ),
    ] = None,
    gpu_memory: Annotated[
        str | None,
        typer.Option(
            help="Of each GPU, such as 76GB, if not its data sheet's.", rich_help_panel=_MACHINE
        ),
    ] = None,
    host_memory: Annotated[
        str | None,
        typer.Option(help="Of the node, such as 1TB or 512GiB.", rich_help_panel=_MACHINE),
    ] = None,
    ssd: Annotated[
        str | None,
        typer.Option(
            help="Of the node, such as 8x7TB@6GB/s; @3GB/s:5GB/s to write and to read.",
            rich_help_panel=_MACHINE,
        ),
    ] = None,
    pcie: Annotated[
        str | None,
        typer.Option(
            help="To the host and back, such as 32GB/s, if not the data sheet's.",
            rich_help_panel=_MACHINE,
        ),
    ] = None,
    endurance_tbw: Annotated[
        float | None,
        typer.Option(
            help="Terabytes that may be written to all disks together: tells how long they last.",
            rich_help_panel=_MACHINE,
        ),
    ] = None,
    train: Annotated[
        str, typer.Option(help="full, or lora (all linear layers).", rich_help_panel=_TRAINING)
    ] = "full",
    zero: Annotated[
        int | None,
        typer.Option(
            help="Stage 0 to 3; the fastest that fits if not given.", rich_help_panel=_TRAINING
        ),
    ] = None,
    offload_optimizer: Annotated[
        str | None,
        typer.Option(
            help="none, host or ssd; the first that fits if not given.", rich_help_panel=_TRAINING
        ),
    ] = None,
    sequence_parallel: Annotated[
        int | None,
        typer.Option(
            help="GPUs that share a sequence; what gives most tokens a second if not given.",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    batch: Annotated[
        int, typer.Option(help="Sequences a step and group of GPUs.", rich_help_panel=_TRAINING)
    ] = 1,
    dtype: Annotated[
        str, typer.Option(help="bfloat16, float16 or float32.", rich_help_panel=_TRAINING)
    ] = "bfloat16",
    tile_tokens: Annotated[
        int | None,
        typer.Option(help="As memo.wrap chooses if not given.", rich_help_panel=_TRAINING),
    ] = None,
    step_tolerance: Annotated[
        float,
        typer.Option(
            help="Share of the shortest step that may be added to it to write less to the SSD, "
            "and then to move less; 0 for the shortest step.",
            rich_help_panel=_TRAINING,
        ),
    ] = 0.01,
    emulate_rank: Annotated[
        int | None,
        typer.Option(
            help="Run the work of this rank of --sequence-parallel here, with random weights and "
            "nobody to talk to, and print what was predicted beside what was measured.",
        ),
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            help="A table: tokens=32K..4M (doubled from one to the other), or tokens=32K,100K; "
            "and, given as well, gpus=1..8."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the plan, for memo.wrap.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Write a page: memory, lanes, layout, other lengths and GPUs."),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="Write the planned step for chrome://tracing or ui.perfetto.dev, as memo.trace "
            "writes a measured one."
        ),
    ] = None,
) -> None:
    """Say before the run what fits, how long a step takes, and where every byte lies.

    Nothing is trained and no weights are loaded. Figures are one GPU's, but for tokens a second.
    """
    from planner.swap.solver import SolverError

    with one_line_errors(ValueError, SolverError), _seldom_collecting():
        files = {"--output": output, "--report": report, "--trace": trace}
        check_together(tokens, sweep, files)
        if emulate_rank is not None:
            check_emulation(ctx)

        from memo.planning.files import save_files
        from memo.planning.making import make
        from memo.planning.node import NodeArguments
        from memo.planning.public import requested
        from memo.planning.sweep import parse_sweeps

        if emulate_rank is not None:
            _emulate(
                model,
                tokens=str(tokens),
                ranks=sequence_parallel,
                rank=emulate_rank,
                dtype=dtype,
                tile_tokens=tile_tokens,
                as_json=as_json,
            )
            return
        swept = parse_sweeps(sweep, "--sweep") if sweep else None
        said = NodeArguments(
            gpus=gpus,
            gpu=gpu,
            gpu_memory=gpu_memory,
            host_memory=host_memory,
            ssd=ssd,
            pcie=pcie,
            dtype=dtype,
            endurance_tbw=endurance_tbw,
        )
        with Console(stderr=True).status("planning"):
            request = requested(
                model,
                said,
                tokens=max(swept.tokens) if swept is not None else str(tokens),
                train=train,  # type: ignore[arg-type]
                zero=zero,  # type: ignore[arg-type]
                offload_optimizer=offload_optimizer,  # type: ignore[arg-type]
                sequence_parallel=sequence_parallel,
                batch=batch,
                tile_tokens=tile_tokens,
                step_tolerance=step_tolerance,
            )
            outcome = None if swept else make(request)
            results = _sweep(request, swept) if swept else []
        if outcome is None:
            _print(results, as_json=as_json, is_sweep=True)
            return
        _print([outcome.result], as_json=as_json, is_sweep=False)
        save_files(outcome, request, output=output, trace=trace, report=report)
    if not _fits(outcome.result):
        raise typer.Exit(1)


@contextmanager
def _seldom_collecting() -> Iterator[None]:
    """Imports and traces make many objects that stay: looking through them again and again took a
    sixth of a plan's time.
    """
    before = gc.get_threshold()
    gc.set_threshold(_COLLECT_AFTER, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _emulate(
    model: str,
    *,
    tokens: str,
    ranks: int | None,
    rank: int,
    dtype: str,
    tile_tokens: int | None,
    as_json: bool,
) -> None:
    from memo.planning.emulated import emulated, emulated_table

    with Console(stderr=True).status(f"running rank {rank}"):
        found = emulated(
            model, tokens=tokens, ranks=ranks, rank=rank, dtype=dtype, tile_tokens=tile_tokens
        )
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
    else:
        Console(highlight=False).print(emulated_table(found))


def _sweep(request: PlanRequest, swept: Swept) -> list[Plan | NoPlan]:
    from memo.planning.sweep import sweep

    return list(sweep(request, swept.tokens, swept.gpus))


def _print(results: Sequence[Plan | NoPlan], *, as_json: bool, is_sweep: bool) -> None:
    from memo.planning.figures import figures
    from memo.planning.show import shown
    from memo.planning.sweep import sweep_table

    if as_json:
        told = [figures(result) for result in results]
        typer.echo(json.dumps(told if is_sweep else told[0], indent=2, allow_nan=False))
        return
    console = Console(highlight=False)
    if is_sweep and not console.is_terminal:
        console = Console(highlight=False, width=_FILE_WIDTH)
    console.print(sweep_table(results) if is_sweep else shown(results[0], console))


def _fits(result: Plan | NoPlan) -> bool:
    from planner.plan import Plan

    return isinstance(result, Plan)
