"""The command `memo plan`: what it takes, what it prints, and how it fails.

Scope: options into a request, a plan into text or JSON. Heavy imports happen inside, so that
`memo --help` is quick. Results go to standard output, progress and errors to standard error. Exit
status 1: it does not fit, or what was asked is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from memo.cli_errors import one_line_errors

if TYPE_CHECKING:
    from memo.planning.request import PlanRequest
    from planner.contracts import NoPlan, Plan

_MACHINE = "Machine"
_TRAINING = "Training"
_FILE_WIDTH = 200
"""Of a table that goes to a file or a pipe."""


def plan(
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
            help="GPUs that share a sequence; all if not given.", rich_help_panel=_TRAINING
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
    sweep: Annotated[str | None, typer.Option(help="A table over lengths: tokens=32K..4M.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the plan, for memo.wrap.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Write a page: memory, lanes, layout, other lengths and GPUs."),
    ] = None,
) -> None:
    """Say before the run what fits, how long a step takes, and where every byte lies.

    Nothing is trained and no weights are loaded. Figures are one GPU's, but for tokens a second.
    """
    from planner.swap.solver import SolverError

    with one_line_errors(ValueError, SolverError):
        from memo.planning.node import NodeArguments
        from memo.planning.public import requested
        from memo.planning.sweep import swept_tokens

        _check_together(tokens, sweep, {"--output": output, "--report": report})
        lengths = swept_tokens(sweep, "--sweep") if sweep is not None else ()
        said = NodeArguments(
            gpus=gpus,
            gpu=gpu,
            gpu_memory=gpu_memory,
            host_memory=host_memory,
            ssd=ssd,
            pcie=pcie,
            hardware=None,
            dtype=dtype,
        )
        with Console(stderr=True).status("planning"):
            request = requested(
                model,
                said,
                tokens=max(lengths) if tokens is None else tokens,
                train=train,  # type: ignore[arg-type]
                zero=zero,  # type: ignore[arg-type]
                offload_optimizer=offload_optimizer,  # type: ignore[arg-type]
                sequence_parallel=sequence_parallel,
                batch=batch,
                tile_tokens=tile_tokens,
            )
            results = _sweep(request, lengths) if lengths else [_one(request, output, report)]
    _print(results, as_json=as_json, is_sweep=bool(lengths))
    if not lengths and not _fits(results[0]):
        raise typer.Exit(1)


def _check_together(
    tokens: str | None, sweep: str | None, files: Mapping[str, Path | None]
) -> None:
    if (tokens is None) == (sweep is None):
        raise ValueError("takes either --tokens or --sweep tokens=..., one of them")
    for name, path in files.items():
        if path is not None and sweep is not None:
            raise ValueError(f"{name} takes one plan, and --sweep makes several")
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"{name} is {path}: there is no such folder")


def _sweep(request: PlanRequest, lengths: Sequence[int]) -> list[Plan | NoPlan]:
    from memo.planning.sweep import sweep

    return list(sweep(request, lengths))


def _one(request: PlanRequest, output: Path | None, report: Path | None) -> Plan | NoPlan:
    from memo.planning.making import make
    from planner.contracts import Plan

    outcome = make(request)
    if output is not None and isinstance(outcome.result, Plan):
        outcome.result.save(output)
    if report is not None:
        from memo.planning.page import save_page
        from memo.planning.sweep import neighbours

        save_page(outcome, list(neighbours(request)), report)
    return outcome.result


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
    from planner.contracts import Plan

    return isinstance(result, Plan)
