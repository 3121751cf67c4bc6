"""Memory and time of one training step on long sequences: memo beside what users would pick.

::

    python -m benchmarks.context                           # 4 layers, 16,384 tokens, body alone
    python -m benchmarks.context --head                    # with the head, labels and the loss
    python -m benchmarks.context --preset long             # 2 layers, 32,768 tokens
    python -m benchmarks.context --tokens 2048 4096 --json out.json --plot out.png
    python -m benchmarks.context --limit-bytes 2000000000  # the longest that each can train
    python -m benchmarks.context --tokens 4096 --profile   # where time and memory go

Run from the repository root. Every measurement is a process of its own, and cases take turns;
`child` says what is measured and how. In this file: the command line only.
"""

from __future__ import annotations

from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from benchmarks import cases, modes
from benchmarks.archive import Archive
from benchmarks.contracts import Job, Phase, Shape


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """Defaults that belong together; options given beside the preset win."""

    layers: int
    tokens: tuple[int, ...]


PRESETS = {
    "base": Preset(layers=4, tokens=(16_384,)),
    "long": Preset(layers=2, tokens=(32_768,)),
}
PIPE_COLUMNS = 150
COMPARED = (Phase.TIME.value, Phase.PEAK.value)
DTYPES = ("bfloat16", "float32", "float16")


class _Formatter(ArgumentDefaultsHelpFormatter):
    """Says nothing about a default of None, which the help text explains."""

    def _get_help_string(self, action: object) -> str | None:
        if getattr(action, "default", None) is None:
            return getattr(action, "help", None)
        return super()._get_help_string(action)  # type: ignore[arg-type]  # argparse's own action


def count(text: str) -> int:
    """An option that is a number above 0."""
    try:
        value = int(text)
    except ValueError as error:
        raise ArgumentTypeError(f"got {text!r}, takes a whole number above 0") from error
    if value < 1:
        raise ArgumentTypeError(f"got {value}, takes a whole number above 0")
    return value


def case_name(text: str) -> str:
    """An option that names a case."""
    try:
        cases.check(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from error
    return text


def parser() -> ArgumentParser:
    """The options, with the defaults of the published figures."""
    summary = (__doc__ or "").splitlines()[0]
    found = ArgumentParser("benchmarks.context", description=summary, formatter_class=_Formatter)
    found.add_argument("--preset", choices=PRESETS, default="base")
    found.add_argument("--tokens", type=count, nargs="+", help="lengths (default: the preset's)")
    found.add_argument(
        "--cases",
        type=case_name,
        nargs="+",
        default=list(cases.DEFAULT_CASES),
        help=f"{', '.join(cases.PEERS)}, or memo:PLACEMENT[/SKELETAL], see cases.py",
    )
    found.add_argument("--json", type=Path, help="write everything here, after each measurement")
    found.add_argument("--plot", type=Path, help="draw the comparison here (png, svg, pdf)")
    _add_modes(found)
    _add_model(found)
    _add_method(found)
    return found


def _add_modes(found: ArgumentParser) -> None:
    modes = found.add_argument_group("instead of the comparison")
    modes.add_argument(
        "--limit-bytes", type=count, help="find the longest sequence within this limit"
    )
    modes.add_argument("--limit-step-tokens", type=count, default=512, help="how finely to search")
    modes.add_argument("--limit-max-tokens", type=count, default=131_072, help="where to stop")
    modes.add_argument("--profile", action="store_true", help="show where time and memory go")


def _add_model(found: ArgumentParser) -> None:
    model = found.add_argument_group("model")
    model.add_argument("--layers", type=count, help="decoder layers (default: the preset's)")
    model.add_argument("--hidden", type=count, default=576)
    model.add_argument("--intermediate", type=count, default=1536)
    model.add_argument("--heads", type=count, default=9)
    model.add_argument("--kv-heads", type=count, default=3)
    model.add_argument("--vocab", type=count, default=8192)
    model.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    loss = model.add_mutually_exclusive_group()
    loss.add_argument("--head", action="store_true", help="with the head, labels and the loss")
    loss.add_argument(
        "--body", action="store_true", help="the body alone, mean square of its output (default)"
    )


def _add_method(found: ArgumentParser) -> None:
    method = found.add_argument_group("method")
    method.add_argument("--phases", nargs="+", choices=COMPARED, help="default: both")
    method.add_argument("--repeats", type=count, default=3, help="timed processes per case")
    method.add_argument("--steps", type=count, default=1, help="timed steps per process")
    method.add_argument("--tile-tokens", type=count, help="for memo (default: it chooses)")
    method.add_argument("--device", default="cpu")
    method.add_argument("--threads", type=count, help="torch's threads (default: torch's choice)")
    method.add_argument("--timeout-s", type=float, default=3600.0, help="per process")


def job_of(options: Namespace) -> Job:
    """The job that all measurements are variations of."""
    preset = PRESETS[options.preset]
    shape = Shape(
        layers=options.layers or preset.layers,
        hidden=options.hidden,
        intermediate=options.intermediate,
        heads=options.heads,
        kv_heads=options.kv_heads,
        vocab=options.vocab,
        dtype=options.dtype,
        head=options.head,
    )
    return Job(
        shape=shape,
        case=cases.PLAIN,
        tokens=(options.tokens or preset.tokens)[0],
        phase=Phase.TIME,
        steps=options.steps,
        tile_tokens=options.tile_tokens,
        device=str(torch.device(options.device)),
        threads=options.threads,
    )


def console() -> Console:
    """The terminal; in a file or a pipe, wide enough for the tables."""
    console = Console()
    return console if console.is_terminal else Console(width=PIPE_COLUMNS)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    job = job_of(options)
    run = modes.Run(
        job=job,
        cases=options.cases,
        tokens=options.tokens or PRESETS[options.preset].tokens,
        timeout_s=options.timeout_s,
        archive=Archive(job=job, path=options.json),
        console=console(),
    )
    if options.profile:
        modes.show_profiles(run)
    elif options.limit_bytes is not None:
        modes.search_longest(
            run,
            limit_bytes=options.limit_bytes,
            step_tokens=options.limit_step_tokens,
            max_tokens=options.limit_max_tokens,
        )
    else:
        phases = [Phase(name) for name in options.phases or COMPARED]
        modes.compare(run, phases, repeats=options.repeats, plot=options.plot)


if __name__ == "__main__":
    main()
