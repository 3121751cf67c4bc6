"""What a node is made of, in bytes and in rates.

Scope: frozen dataclasses and their checks. Rates are peaks as data sheets state them, or what was
measured; `Efficiency` says which part of the former is counted on, and is 1 for the latter. Links
are stated per direction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from planner.sizes import MOST


@dataclass(frozen=True, kw_only=True, slots=True)
class Efficiency:
    """Shares of the peak rates that work reaches, each above 0 and at most 1.

    The defaults are FlashAttention-2's on an A100 (arXiv 2307.08691): `matmul` from its whole
    training step (225 TFLOP/s a GPU, 72%), which its products can only exceed; attention at its
    best, 73% forward and 63% backward. `link` has no source but experience: copies from pinned
    memory reach some four fifths of what PCIe is rated. Measure where you can.
    """

    matmul: float = 0.72
    attention_forward: float = 0.73
    attention_backward: float = 0.63
    link: float = 0.8

    def __post_init__(self) -> None:
        for name in ("matmul", "attention_forward", "attention_backward", "link"):
            value = getattr(self, name)
            if not 0 < value <= 1:
                raise ValueError(f"{name} is {value}: takes a share above 0 and at most 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Disks:
    """`count` disks of one kind; sizes and rates are each one's. `endurance_bytes`: what may be
    written to one in its life (its TBW), None when not known.
    """

    count: int = 1
    size_bytes: int
    write_bytes_per_s: float
    read_bytes_per_s: float
    endurance_bytes: int | None = None

    def __post_init__(self) -> None:
        _check_positive(self, "count", "size_bytes", "write_bytes_per_s", "read_bytes_per_s")
        if self.endurance_bytes is not None:
            _check_positive(self, "endurance_bytes")

    @property
    def total_bytes(self) -> int:
        return self.count * self.size_bytes

    @property
    def total_write_bytes_per_s(self) -> float:
        return self.count * self.write_bytes_per_s

    @property
    def total_read_bytes_per_s(self) -> float:
        return self.count * self.read_bytes_per_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """One node of `gpus` equal devices, which share its `host_bytes` and `disks`.

    Of each device: `device_bytes` that allocations may take, `peak_flops_per_s` by dtype name
    ("bfloat16", "float16", "float32"; dense), `device_bytes_per_s` of its own memory, copies to
    the host and back (`d2h_bytes_per_s`, `h2d_bytes_per_s`), and `link_bytes_per_s` to its peers
    in one direction, None when there are none. `source`: where the figures are from.
    """

    device: str
    gpus: int = 1
    device_bytes: int
    peak_flops_per_s: Mapping[str, float]
    device_bytes_per_s: float
    d2h_bytes_per_s: float
    h2d_bytes_per_s: float
    link_bytes_per_s: float | None = None
    host_bytes: int
    disks: Disks | None = None
    efficiency: Efficiency = field(default_factory=Efficiency)
    source: str = ""

    def __post_init__(self) -> None:
        _check_positive(self, "gpus", "device_bytes", "device_bytes_per_s", "host_bytes")
        _check_positive(self, "d2h_bytes_per_s", "h2d_bytes_per_s")
        if self.link_bytes_per_s is not None:
            _check_positive(self, "link_bytes_per_s")
        if not self.peak_flops_per_s:
            raise ValueError("peak_flops_per_s is empty: takes a rate for one dtype or more")
        for dtype, rate in self.peak_flops_per_s.items():
            _check_figure(f"peak_flops_per_s.{dtype}", rate)

    def peak(self, dtype: str) -> float:
        """Dense FLOP/s of one device.

        Raises:
            ValueError: for a dtype whose rate is not known here; names those that are.
        """
        if dtype not in self.peak_flops_per_s:
            known = ", ".join(self.peak_flops_per_s)
            raise ValueError(f"dtype is {dtype!r}: {self.device} has a rate for {known}")
        return self.peak_flops_per_s[dtype]


def _check_positive(owner: object, *names: str) -> None:
    for name in names:
        _check_figure(name, getattr(owner, name))


def _check_figure(name: str, value: float) -> None:
    if not 0 < value <= MOST:  # NaN is not; no isfinite, which takes no int beyond a double
        raise ValueError(f"{name} is {value}: takes a number above 0, {MOST:.0e} at most")
