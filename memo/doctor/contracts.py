"""What was found on a machine, and what is said about it.

Scope: plain data. None stands for what is not there, or was not asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, kw_only=True, slots=True)
class ComputeRate:
    """FLOP/s in one dtype, at a layer's shapes: its matrix products, and causal attention, whose
    upper half counts as not computed (FlashAttention's way).
    """

    dtype: str
    matmul_flops_per_s: float
    attention_forward_flops_per_s: float
    attention_backward_flops_per_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuProbe:
    """A CUDA device. `free_bytes` of `memory_bytes` were free when it was looked at; rates are of
    copies from and to pinned memory, and of its own memory (read and written both count).
    """

    name: str
    memory_bytes: int
    free_bytes: int
    d2h_bytes_per_s: float | None = None
    h2d_bytes_per_s: float | None = None
    memory_bytes_per_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class HostMemory:
    """`installed_bytes` are the machine's, `limit_bytes` what a control group leaves of them;
    `available_bytes` can be taken now without swapping, or being killed.
    """

    installed_bytes: int
    available_bytes: int
    limit_bytes: int | None = None
    limited_by: str | None = None

    @property
    def usable_bytes(self) -> int:
        """The smaller of the two."""
        limit = self.installed_bytes if self.limit_bytes is None else self.limit_bytes
        return min(self.installed_bytes, limit)


@dataclass(frozen=True, kw_only=True, slots=True)
class DiskProbe:
    """A directory that a spool may lie in. `engine` and rates None: `problem` says why. `notes` are
    what the spool warned of. `io_uring`: why it is refused, "" when it works; `fixed_bytes` that
    were tried to be registered with it, `is_fixed` whether they were. `device`: the file system's
    number, the same for directories on one.
    """

    directory: str
    device: int = 0
    size_bytes: int
    free_bytes: int
    engine: str | None = None
    io_uring: str | None = None
    fixed_bytes: int = 0
    is_fixed: bool | None = None
    is_direct: bool | None = None
    write_bytes_per_s: float | None = None
    read_bytes_per_s: float | None = None
    problem: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """`memlock_bytes` None: no limit. `huge_pages`: the kernel's setting of transparent ones, None
    where it has none. `versions` have None for what is not installed. `memory_bytes_per_s` of the
    host (read and written both count) and `compute` None and empty: not measured.
    """

    processor: str
    cores: int
    host: HostMemory
    memlock_bytes: int | None
    huge_pages: str | None
    versions: Mapping[str, str | None]
    memory_bytes_per_s: float | None = None
    gpus: tuple[GpuProbe, ...] = ()
    disks: tuple[DiskProbe, ...] = ()
    compute: tuple[ComputeRate, ...] = ()


class Verdict(StrEnum):
    """`NOTE`: worth knowing. `WARNING`: something will be refused, or slow."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One line of the report: what was looked at, what it is, and what to do."""

    name: str
    value: str
    verdict: Verdict = Verdict.OK
    advice: str = ""
