"""What traced operations take on hardware, and how far from that a machine was found to be.

Scope: seconds of operations, of phases and of exchanges.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from planner.hardware.contracts import Hardware
from planner.trace.contracts import Block, OperationCost, Pass, Phase, Segment, StepTrace


@dataclass(frozen=True, slots=True)
class Clock:
    """What operations take on one device: as long as its matmul units or its memory are busy,
    whichever is longer (the roofline, Williams et al. 2009), times the `slowness` of their phase.
    """

    hardware: Hardware
    dtype: str
    slowness: Mapping[Phase, float] = field(default_factory=dict)

    def seconds(self, operation: OperationCost) -> float:
        """Of one operation."""
        compute_s = operation.flops / (self.hardware.peak(self.dtype) * self._share(operation))
        return max(compute_s, operation.bytes / self.hardware.device_bytes_per_s)

    def by_phase(self, part: str, block: Block) -> dict[tuple[Segment, Pass], float]:
        """Of a part's block, repeats included."""
        sums: dict[tuple[Segment, Pass], float] = defaultdict(float)
        for operation, times in repeated(block):
            sums[operation.segment, operation.direction] += times * self.seconds(operation)
        return {
            (segment, direction): seconds * self.slowness.get((part, segment, direction), 1.0)
            for (segment, direction), seconds in sums.items()
        }

    def exchange_s(self, size_bytes: int) -> float:
        """Of bytes that go to peers.

        Raises:
            ValueError: when there are some, and no link.
        """
        if not size_bytes:
            return 0.0
        link = self.hardware.link_bytes_per_s
        if link is None:
            raise ValueError(f"link_bytes_per_s is None: {self.hardware.device} has no peers")
        return size_bytes / (link * self.hardware.efficiency.link)

    def _share(self, operation: OperationCost) -> float:
        efficiency = self.hardware.efficiency
        if operation.segment is not Segment.CORE:
            return efficiency.matmul
        if operation.direction is Pass.BACKWARD:
            return efficiency.attention_backward
        return efficiency.attention_forward


def slowness_of(
    trace: StepTrace, measured_s: Mapping[Phase, float], hardware: Hardware
) -> dict[Phase, float]:
    """What `Extras.slowness` takes, from the seconds that each phase of the traced step took, all
    tiles recomputed. Phases that the hardware's rates give no time are left out.
    """
    clock, found = Clock(hardware, trace.dtype), dict[Phase, float]()
    parts = {layer.name: layer.recomputed for layer in trace.layers}
    for name, part in {**parts, "embedding": trace.embedding, "head": trace.head}.items():
        sums: dict[tuple[Segment, Pass], float] = defaultdict(float)
        for block in (part.forward, part.backward):
            for phase, seconds in clock.by_phase(name, block).items():
                sums[phase] += seconds
        for (segment, direction), seconds in sums.items():
            took_s = measured_s.get((name, segment, direction))
            if seconds and took_s is not None:
                found[name, segment, direction] = took_s / seconds
    return found


def repeated(block: Block) -> Iterator[tuple[OperationCost, int]]:
    """Every traced operation, and how many it stands for."""
    times = [1] * len(block.operations)
    for repeat in block.repeats:
        for index in range(repeat.start, repeat.stop):
            times[index] += repeat.times
    yield from zip(block.operations, times, strict=True)
