"""A training step with its activations on a disk: memo beside what users would pick.

::

    python -m benchmarks.offload --spill-dir /nvme                # 4 layers; 4K, 8K and 16K tokens
    python -m benchmarks.offload --tokens 32768 --layers 2 --json out.json --plot out.png
    python -m benchmarks.offload --tokens 8192 --grow-layers 4 16 # the peak beside the layers

Run from the repository root. It measures as `context` does, and takes its options; what is added is
what the lanes did: bytes moved, the bandwidth of the disk while it worked, and exposed time.
In this file: the command line only.
"""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import cases, context, modes, offload_tables
from benchmarks.archive import Archive
from benchmarks.contracts import Outcome, Phase, Sample

CASES = (
    cases.PLAIN,
    cases.CHECKPOINTING,
    "save_on_cpu",
    offload_tables.KEPT,
    "memo:recompute/ssd",
    "memo:ssd/ssd",
)
TOKENS = (4096, 8192, 16_384)


def directory(text: str) -> Path:
    """An option that names a directory."""
    if not Path(text).is_dir():
        raise ArgumentTypeError(f"{text}: there is no such directory")
    return Path(text)


def parser() -> ArgumentParser:
    """`context`'s options, and the disk's."""
    found = context.parser()
    found.prog, found.description = "benchmarks.offload", (__doc__ or "").splitlines()[0]
    found.set_defaults(cases=list(CASES), tokens=list(TOKENS))
    disk = found.add_argument_group("disk")
    disk.add_argument(
        "--spill-dir", type=directory, help="(default: the system's for temporary files)"
    )
    disk.add_argument(
        "--grow-layers",
        type=context.count,
        nargs="+",
        default=[],
        help="instead: the activation peak of the wrapped cases at these numbers of layers",
    )
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print tables.

    Raises:
        SystemExit: with a line of what failed, when something did.
    """
    options = parser().parse_args(arguments)
    spill_dir = None if options.spill_dir is None else str(options.spill_dir)
    job = replace(context.job_of(options), spill_dir=spill_dir)
    run = modes.Run(
        job=job,
        cases=options.cases,
        tokens=options.tokens,
        timeout_s=options.timeout_s,
        archive=Archive(job=job, path=options.json, as_rows=offload_tables.rows),
        console=context.console(),
    )
    if options.grow_layers:
        modes.grow_layers(run, options.grow_layers)
        run.console.print(offload_tables.growth(job.shape, run.archive.samples))
    else:
        phases = [Phase(name) for name in options.phases or context.COMPARED]
        modes.compare(run, phases, repeats=options.repeats, plot=options.plot)
        run.console.print(offload_tables.lanes(job.shape, run.archive.samples))
    if failure := failed(run.archive.samples):
        raise SystemExit(f"error: {failure}")


def failed(samples: Sequence[Sample]) -> str | None:
    """How many measurements failed, and why the first one did. Lack of memory is a result."""
    found = [sample for sample in samples if sample.outcome is Outcome.FAILED]
    if not found:
        return None
    first = found[0]
    reason = (first.message.strip().splitlines() or ["no reason was given"])[-1]
    what = f"{first.case}, {first.tokens:,} tokens, {first.phase}"
    return f"{len(found)} of {len(samples)} measurements failed; the first, {what}: {reason}"


if __name__ == "__main__":
    main()
