"""Everything that a run measured, written to a JSON file after each sample.

A run that is stopped leaves what it had. The file has the setting, the machine and library
versions that the figures belong to, every sample, the rows that the table shows, and notes.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.contracts import Job, Sample
from benchmarks.limits import Longest
from benchmarks.summary import Row, rows


@dataclass(kw_only=True, slots=True)
class Archive:
    """Samples of one run; `path` None keeps them in memory only. `as_rows` makes the rows of the
    samples, each a dataclass; `device_name` is looked up unless it is given.
    """

    job: Job
    path: Path | None
    as_rows: Callable[[Sequence[Sample]], Sequence[Any]] = rows
    device_name: str | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    longest: list[Longest] = field(default_factory=list)
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def add(self, sample: Sample) -> None:
        self.samples.append(sample)
        self.write()

    def add_longest(self, found: Longest) -> None:
        self.longest.append(found)
        self.write()

    def note(self, **notes: Any) -> None:
        self.notes.update(notes)
        self.write()

    def rows(self) -> list[Row]:
        return rows(self.samples)

    def write(self) -> None:
        """Replace the file as a whole, so that a reader never sees half of it."""
        if self.path is None:
            return
        beside = self.path.with_name(f".{self.path.name}.part")
        beside.write_text(json.dumps(self._document(), indent=1))
        beside.replace(self.path)

    def _document(self) -> dict[str, Any]:
        return {
            "started": self.started,
            "environment": environment(self.job, self.device_name),
            "job": self.job.to_json(),
            "notes": self.notes,
            "rows": [asdict(row) for row in self.as_rows(self.samples)],
            "longest": [
                {**asdict(found), "trains_tokens": found.trains_tokens, "bound": found.bound}
                for found in self.longest
            ],
            "samples": [sample.to_json() for sample in self.samples],
        }


def environment(job: Job, device_name: str | None = None) -> dict[str, str | int]:
    """What the figures depend on besides the code."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": platform.machine(),
        "kernel": platform.release(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": job.threads or torch.get_num_threads(),
        "device": device_name or _device_name(job.device),
    }


def _device_name(device: str) -> str:
    return device if device == "cpu" else torch.cuda.get_device_name(device)
