"""Sequence parallelism: memo beside DeepSpeed's ALST, on the same gloo ranks, model and engine.

::

    python -m benchmarks.ulysses                          # 4 ranks, 16,384 tokens, ZeRO 0, 1, 3
    python -m benchmarks.ulysses --tokens 32768 --zero 0  # longer, one stage
    python -m benchmarks.ulysses --heads-only             # bytes on the wire alone
    python -m benchmarks.ulysses --json ulysses.json

Run from the repository root. Peers take turns, each measurement in processes of its own; gradients
of both are held against one process's. Exit status 1 when memo is not as fast, as small and as
right as `ulysses_rows` says. In this file: the command line, and the order of the work.
"""

from __future__ import annotations

import json
import tempfile
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import ulysses_heads, ulysses_tables
from benchmarks.context import count
from benchmarks.ulysses_case import Peer, Phase, UlyssesCase, UlyssesJob, UlyssesSample
from benchmarks.ulysses_rank import measure, reference_gradients
from benchmarks.ulysses_ranks import results
from benchmarks.ulysses_rows import StageRow, peer_row

PIPE_COLUMNS = 170
STAGES = (0, 1, 3)


@dataclass(kw_only=True, slots=True)
class UlyssesRun:
    """What was measured: samples by ZeRO stage, and bytes by number of heads."""

    case: UlyssesCase
    samples: dict[int, list[UlyssesSample]] = field(default_factory=dict)
    heads: list[ulysses_heads.HeadsRow] = field(default_factory=list)

    def rows(self) -> list[StageRow]:
        return [
            StageRow(
                zero=zero,
                memo=peer_row(self.case, ours, samples),
                alst=peer_row(self.case, Peer.ALST, samples),
            )
            for zero, samples in self.samples.items()
            for ours in (Peer.MEMO, Peer.MEMO_SSD)
        ]

    @property
    def is_met(self) -> bool:
        """By one of memo's ways at each stage, and right by every one."""
        exact = all(row.counted_bytes == row.formula_bytes for row in self.heads)
        rows = self.rows()
        met = {zero: any(row.is_met for row in rows if row.zero == zero) for zero in self.samples}
        return exact and all(row.is_right for row in rows) and all(met.values())

    def save(self, path: Path) -> None:
        """Write everything as JSON."""
        document = {
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            "case": asdict(self.case),
            "rows": [asdict(row) for row in self.rows()],
            "heads": [asdict(row) for row in self.heads],
            "samples": {str(z): [asdict(s) for s in found] for z, found in self.samples.items()},
        }
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def parser() -> ArgumentParser:
    """The options, with the defaults of the published figures."""
    summary = (__doc__ or "").splitlines()[0]
    found = ArgumentParser(
        "benchmarks.ulysses", description=summary, formatter_class=ArgumentDefaultsHelpFormatter
    )
    found.add_argument("--tokens", type=count, default=16_384, help="of the whole sequence")
    found.add_argument("--ranks", type=count, default=4)
    found.add_argument("--zero", type=int, nargs="+", choices=(0, 1, 2, 3), default=list(STAGES))
    found.add_argument("--layers", type=count, default=6)
    found.add_argument("--hidden", type=count, default=256)
    found.add_argument("--intermediate", type=count, default=704)
    found.add_argument("--heads", type=count, default=8)
    found.add_argument("--kv-heads", type=count, default=4)
    found.add_argument("--vocab", type=count, default=2048)
    found.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    found.add_argument("--repeats", type=count, default=2, help="timed sets of processes per peer")
    found.add_argument("--steps", type=count, default=1, help="timed steps per set")
    found.add_argument("--spill-dir", type=Path, default=Path(), help="for x and o on a disk")
    found.add_argument("--heads-only", action="store_true", help="count bytes, and nothing else")
    found.add_argument("--json", type=Path, help="write everything here, after each measurement")
    found.add_argument("--timeout-s", type=float, default=3600.0, help="per measurement")
    return found


def case_of(options: Namespace) -> UlyssesCase:
    """What the options say, at the first stage."""
    names = [name for name in UlyssesCase.__dataclass_fields__ if name != "zero"]
    return UlyssesCase(zero=options.zero[0], **{name: getattr(options, name) for name in names})


def jobs_of(
    case: UlyssesCase, gradients: Path, spill_dir: Path, *, repeats: int, steps: int
) -> Iterator[UlyssesJob]:
    """Peaks once, then times, peers in turns."""
    for phase in (Phase.PEAK, *[Phase.TIME] * repeats):
        for peer in Peer:
            yield UlyssesJob(
                case=case,
                peer=peer,
                phase=phase,
                steps=steps,
                gradients=gradients,
                spill_dir=spill_dir if peer is Peer.MEMO_SSD else None,
            )


def run(options: Namespace, console: Console) -> UlyssesRun:
    """Measure everything.

    Raises:
        RankError: when a rank fails.
        TimeoutError: when ranks are not done in time.
    """
    found, limit_s = UlyssesRun(case=case_of(options)), options.timeout_s
    found.heads = ulysses_heads.measured(found.case.ranks, limit_s=limit_s)
    stages = () if options.heads_only else options.zero
    with _progress(console) as progress, tempfile.TemporaryDirectory() as folder:
        gradients = Path(folder, "gradients.pt")
        task = progress.add_task("reference", total=len(stages) * len(Peer) * (1 + options.repeats))
        if stages:
            results(reference_gradients, 1, found.case, str(gradients), limit_s=limit_s)
        for zero in stages:
            case = replace(found.case, zero=zero)
            samples: list[UlyssesSample] = []
            for job in jobs_of(
                case,
                gradients,
                options.spill_dir,
                repeats=options.repeats,
                steps=options.steps,
            ):
                progress.update(task, description=f"ZeRO {zero}, {job.peer}, {job.phase}")
                samples += results(measure, case.ranks, job, limit_s=limit_s)
                progress.advance(task)
            found.samples[zero] = samples
            if options.json is not None:
                found.save(options.json)
    return found


def _progress(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    console = Console()
    console = console if console.is_terminal else Console(width=PIPE_COLUMNS)
    found = run(options, console)
    console.print(ulysses_heads.table(found.heads))
    if found.samples:
        rows = found.rows()
        console.print(ulysses_tables.wire(found.case, rows))
        console.print(ulysses_tables.comparison(found.case, rows))
    if options.json is not None:
        found.save(options.json)
    if not found.is_met:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
