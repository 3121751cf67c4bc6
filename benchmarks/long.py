"""A million tokens over eight ranks on this machine: one training step, as the plan says.

::

    python -m benchmarks.long                     # 1,048,576 tokens, 8 processes
    python -m benchmarks.long --tokens 65536      # the same, shorter
    python -m benchmarks.long --json long.json

Run from the repository root. The memory of every rank is predicted, then measured. Exit status 1
when a rank's lies further than 5% from the prediction. In this file: the command line, and the
order of the work.
"""

from __future__ import annotations

import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.context import count
from benchmarks.long_case import LayerDone, LongCase, RankResult
from benchmarks.long_plan import predicted
from benchmarks.long_rank import run_rank
from benchmarks.long_show import LongResult, save, table
from benchmarks.ulysses_ranks import listen

PIPE_COLUMNS = 120


def parser() -> ArgumentParser:
    """The options, with the defaults of the published run."""
    summary = (__doc__ or "").splitlines()[0]
    found = ArgumentParser(
        "benchmarks.long", description=summary, formatter_class=ArgumentDefaultsHelpFormatter
    )
    found.add_argument("--tokens", type=count, default=1 << 20, help="of the whole sequence")
    found.add_argument("--ranks", type=count, default=8, help="processes that share it")
    found.add_argument("--layers", type=count, default=2)
    found.add_argument("--hidden", type=count, default=256)
    found.add_argument("--intermediate", type=count, default=768)
    found.add_argument("--heads", type=count, default=8)
    found.add_argument("--kv-heads", type=count, default=4)
    found.add_argument("--vocab", type=count, default=4096)
    found.add_argument("--window", type=count, default=4096, help="keys that a token sees")
    found.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    found.add_argument("--json", type=Path, help="write the result here")
    found.add_argument("--timeout-s", type=float, default=3600.0, help="for the ranks")
    return found


def case_of(options: Namespace) -> LongCase:
    """What the options say.

    Raises:
        ValueError: for fewer tokens than ranks.
    """
    if options.tokens < options.ranks:
        raise ValueError(
            f"tokens is {options.tokens}: takes {options.ranks}, one for each rank, or more"
        )
    names = LongCase.__dataclass_fields__
    return LongCase(**{name: getattr(options, name) for name in names})


def run(case: LongCase, console: Console, timeout_s: float) -> LongResult:
    """Predict, then run on all ranks, showing the layers that are done.

    Raises:
        RankError: when a rank fails.
        TimeoutError: when ranks are not done in time.
    """
    started_s = time.monotonic()
    with _progress(console) as progress:
        task = progress.add_task("planning", total=None)
        prediction = predicted(case)
        progress.update(task, description="loading")
        ranks: list[RankResult] = []
        for word in listen(run_rank, case.ranks, case, limit_s=timeout_s):
            match word.value:
                case LayerDone(done=done, total=total):
                    half = "forward" if done <= total // 2 else "backward"
                    progress.update(task, description=half, completed=done, total=total)
                case RankResult() as result:
                    ranks.append(result)
    ranks.sort(key=lambda result: result.rank)
    return LongResult(
        case=case, prediction=prediction, ranks=ranks, wall_s=time.monotonic() - started_s
    )


def _progress(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("layers"),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console)


def main(arguments: Sequence[str] | None = None) -> None:
    found = parser()
    options = found.parse_args(arguments)
    try:
        case = case_of(options)
    except ValueError as error:
        found.error(str(error))
    console = Console()
    console = console if console.is_terminal else Console(width=PIPE_COLUMNS)
    result = run(case, console, options.timeout_s)
    console.print(table(result))
    if options.json is not None:
        save(result, options.json)
    if not result.is_predicted:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
