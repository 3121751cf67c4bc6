"""Model states of a planned step: where they may lie, their bytes, and the optimizer's time.

Scope: weights, gradients and AdamW's states on one rank, by ZeRO stage and by the place of the
optimizer. Bytes are `planner.trace.states`'.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

from memo.planning.request import PlanRequest, Zero
from planner.contracts import Lane, OffloadOptimizer, Tier
from planner.hardware import Hardware
from planner.trace import Kind, ModelStates, ParameterCounts, StepTrace, model_states

ADAM_BYTES = 28
"""That AdamW reads and writes of the device's memory for a parameter: float32 master weight,
momentum and variance (3 x 4, read and written) and 16-bit gradient and weight (2 + 2); in float32
the gradient and weight (4 + 4 + 4) and two states (2 x 4, read and written)."""

CPU_ADAM_PER_S = 4e9
"""Parameters that a node's processors update in a second, assumed of every node: it is measured
nowhere here, and plans say so. ZeRO-Offload (arXiv 2101.06840), table 4, has 10 billion in 2.57 s
on two Xeon 8168. An older one is slower, more memory channels are faster."""


FOREACH_BYTES = 4
"""Of a parameter, what AdamW makes at the step's end where it updates all parameters at once
(`foreach`, which `torch.optim.AdamW` is on a GPU unless told otherwise): the square roots of all
variances (`_multi_tensor_adam`, torch/optim/adam.py). Fused it makes nothing: that of `memo train`,
of transformers' Trainer and of DeepSpeed is, and so the plan's is."""


@dataclass(frozen=True, slots=True)
class StateChoice:
    """How model states are divided among ranks, and where the optimizer's are."""

    zero: Zero
    offload_optimizer: OffloadOptimizer


def state_choices(request: PlanRequest) -> Iterator[list[StateChoice]]:
    """What may be chosen, the optimizer's place first on the device, then on the host, then on the
    SSD: a place is taken only if nothing fits with those before.

    Stage 0 is not chosen for several ranks: stage 1 sends as much and holds less (ZeRO, arXiv
    1910.02054, section 7.2).
    """
    stages: tuple[Zero, ...] = (0,) if request.ranks == 1 else (1, 2, 3)
    if request.zero is not None:
        stages = (request.zero,)
    places: tuple[OffloadOptimizer, ...] = ("none", "host")
    if request.node.hardware.disks is not None:
        places = (*places, "ssd")
    if request.offload_optimizer is not None:
        places = (request.offload_optimizer,)
    every = [StateChoice(zero, place) for place in places for zero in stages]
    for _, alike in groupby(every, key=lambda choice: choice.offload_optimizer):
        yield list(alike)


def states_of(request: PlanRequest, trace: StepTrace, choice: StateChoice) -> ModelStates:
    """One rank's bytes."""
    trained = trace.trainable if request.train == "lora" else 0
    counts = ParameterCounts(
        total=trace.parameters, adapter=trained, largest_layer=_largest(request, trace)
    )
    return model_states(
        counts,
        train=request.train,
        zero=choice.zero,
        ranks=request.ranks,
        offload_optimizer=choice.offload_optimizer,
        dtype=request.dtype,
    )


def resident_bytes(trace: StepTrace, states: ModelStates) -> Mapping[Tier, int]:
    """What is there throughout a step, by tier: states but gradients, buffers and inputs."""
    others = trace.base_bytes - trace.parameter_bytes
    weights = states.weight_bytes + states.gathered_bytes
    return {
        Tier.DEVICE: others + weights + states.optimizer_bytes,
        Tier.HOST: states.host_bytes,
        Tier.SSD: states.ssd_bytes,
    }


def shared_bytes(trace: StepTrace) -> int:
    """What the model makes before its layers for all of them (rotary tables), and holds through
    backward; what it lets go before the head is not counted.
    """
    gone = {a.id for a in trace.head.forward.allocations if a.freed is not None}
    made = (a for a in trace.embedding.forward.allocations if a.kind is Kind.INPUT)
    return sum(a.size_bytes for a in made if a.freed is None and a.id not in gone)


def gradient_share(trace: StepTrace, states: ModelStates, dtype_bytes: int) -> float:
    """The part of its gradients that a rank keeps on its device."""
    return min(1.0, states.gradient_bytes / max(1, trace.trainable * dtype_bytes))


@dataclass(frozen=True, slots=True)
class Optimizer:
    """One update of `trainable` parameters by `ranks` that divide them by `choice`."""

    hardware: Hardware
    choice: StateChoice
    trainable: int
    parameters: int
    ranks: int
    dtype_bytes: int

    @property
    def states(self) -> ModelStates:
        """One rank's bytes, without what stage 3 gathers. All that lies on the SSD is read and
        written in a step: gradients are written as they are made, and read by the update.
        """
        return model_states(
            ParameterCounts(total=self.parameters, adapter=self.trainable),
            train="lora",  # the adapter is what is trained, be it all
            zero=self.choice.zero,
            ranks=self.ranks,
            offload_optimizer=self.choice.offload_optimizer,
            dtype="float32" if self.dtype_bytes == 4 else "bfloat16",  # they differ by their bytes
        )

    @property
    def own(self) -> int:
        """Parameters that one rank updates."""
        return -(-self.trainable // self.ranks) if self.choice.zero else self.trainable

    @property
    def seconds(self) -> float:
        """None of it overlaps with compute; gathering the updated weights is in it."""
        if self.choice.offload_optimizer == "none":
            update_s = self.own * ADAM_BYTES / self.hardware.device_bytes_per_s
        else:
            update_s = self.own * self.ranks / CPU_ADAM_PER_S
        return update_s + sum(self.lanes_s.values()) + self._gather_s()

    @property
    def lanes_s(self) -> Mapping[Lane, float]:
        """Of these seconds, those on each lane."""
        place = self.choice.offload_optimizer
        if place == "none":
            return {}
        return {**self._copies_s(), **(self._disk_s() if place == "ssd" else {})}

    @property
    def written_bytes(self) -> int:
        """To this rank's share of the disks."""
        return self.states.ssd_bytes

    def _copies_s(self) -> dict[Lane, float]:
        """Gradients to the host, weights back."""
        size, link = self.own * self.dtype_bytes, self.hardware.efficiency.link
        return {
            Lane.D2H: size / (self.hardware.d2h_bytes_per_s * link),
            Lane.H2D: size / (self.hardware.h2d_bytes_per_s * link),
        }

    def _disk_s(self) -> dict[Lane, float]:
        disks = self.hardware.disks
        assert disks is not None, "the request was checked"
        size = self.states.ssd_bytes * self.ranks
        return {
            Lane.SSD_READ: size / disks.total_read_bytes_per_s,
            Lane.SSD_WRITE: size / disks.total_write_bytes_per_s,
        }

    def _gather_s(self) -> float:
        """Stages 1 and 2: every rank gets the weights that the others updated."""
        link = self.hardware.link_bytes_per_s
        if self.choice.zero not in (1, 2) or link is None:
            return 0.0
        size = self.trainable * self.dtype_bytes * (self.ranks - 1) / self.ranks
        return size / (link * self.hardware.efficiency.link)


def _largest(request: PlanRequest, trace: StepTrace) -> int:
    """Parameters of what stage 3 gathers at a time, at most: a layer, or the embedding."""
    text = request.config.get_text_config()
    hidden = getattr(text, "hidden_size", 0) or 0
    embedding = (getattr(text, "vocab_size", 0) or 0) * hidden
    largest = max(embedding, *(layer.parameters for layer in trace.layers))
    return int(min(largest, trace.parameters))
