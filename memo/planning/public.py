"""`memo.plan`: what a user says, checked and planned.

Scope: the arguments and their documentation. The work is `making.py`'s.
"""

from __future__ import annotations

from memo.planning.making import make
from memo.planning.measured import measured_here
from memo.planning.node import NodeArguments, Size, find_node
from memo.planning.request import (
    STEP_TOLERANCE,
    Model,
    PlanRequest,
    Zero,
    check_plain,
    check_sizes,
    named_config,
    tokens_of,
)
from planner.contracts import OffloadOptimizer, Train
from planner.hardware import Disks, Hardware
from planner.plan import NoPlan, Plan


def plan(
    model: Model,
    *,
    tokens: int | str,
    gpus: int = 1,
    gpu: str | None = None,
    gpu_memory: Size | None = None,
    host_memory: Size | None = None,
    ssd: str | Disks | None = None,
    pcie: float | str | None = None,
    endurance_tbw: float | None = None,
    train: Train = "full",
    zero: Zero | None = None,
    offload_optimizer: OffloadOptimizer | None = None,
    sequence_parallel: int | None = None,
    batch: int = 1,
    dtype: str = "bfloat16",
    tile_tokens: int | None = None,
    step_tolerance: float = STEP_TOLERANCE,
    hardware: Hardware | None = None,
    find_longest: bool = True,
    lay_out: bool = True,
) -> Plan | NoPlan:
    """What a training step of a model needs and how long it takes, before anything is run; no
    weights are loaded, and no GPU is needed.

    Args:
        model: a config of transformers, a `config.json`, a folder with one, or a name on the hub.
        tokens: of one sequence, over all GPUs that share it: a number, or "64k" or "1M" (of 1024).
        gpus: of the node. Model states are divided among them.
        gpu: its name, such as "h100-80gb"; None: this machine is planned for, and measured.
        gpu_memory: what may be taken of each GPU, where that is not its data sheet's.
        host_memory: what may be taken of the node's: bytes, or "1TB".
        ssd: the node's disks, as "8x7TB@6GB/s".
        pcie: bytes a second to the host and back, or "32GB/s", where that is not the data sheet's.
        endurance_tbw: terabytes that may be written to all disks together, by their data sheets;
            None: not known, and no plan tells how long they last.
        train: "full", or "lora" (adapters at all linear layers).
        zero: ZeRO's stage; None: the fastest that fits.
        offload_optimizer: "none", "host" or "ssd"; None: the first of these with which it fits.
        sequence_parallel: GPUs that share a sequence, while others train on other sequences; None:
            the divisor of `gpus` with the most tokens a second.
        batch: sequences that GPUs sharing them train on in one step.
        dtype: "bfloat16", "float16" or "float32", of weights and activations.
        tile_tokens: None: chosen as `memo.wrap` does; smaller where nothing fits with that.
        step_tolerance: of plans whose steps are at most so much longer than the shortest,
            relatively, the one that writes least to the SSD is taken, and of these one that moves
            least; 0: the shortest, whatever it writes.
        hardware: the machine, in place of all that describes it here.
        find_longest: tell the longest sequence that fits, too.
        lay_out: tell what an arena with every tensor's address takes, and PyTorch's allocator.

    Returns:
        A `Plan`, whose step was simulated within all budgets, or a `NoPlan`, which says what is
        missing. Figures are one GPU's, but for tokens a second.

    Raises:
        ValueError: for an argument that is not understood, or contradicts another.
        MemoError: for a model that cannot be traced, or a machine whose speed is not known.
        SolverError: when no solver is installed, or it failed.
    """
    node = NodeArguments(
        gpus=gpus,
        gpu=gpu,
        gpu_memory=gpu_memory,
        host_memory=host_memory,
        ssd=ssd,
        pcie=pcie,
        hardware=hardware,
        dtype=dtype,
        endurance_tbw=endurance_tbw,
    )
    request = requested(
        model,
        node,
        tokens=tokens,
        train=train,
        zero=zero,
        offload_optimizer=offload_optimizer,
        sequence_parallel=sequence_parallel,
        batch=batch,
        tile_tokens=tile_tokens,
        step_tolerance=step_tolerance,
        find_longest=find_longest,
        lay_out=lay_out,
    )
    return make(request).result


def requested(
    model: Model,
    said: NodeArguments,
    *,
    tokens: int | str,
    sequence_parallel: int | None = None,
    train: Train = "full",
    zero: Zero | None = None,
    offload_optimizer: OffloadOptimizer | None = None,
    batch: int = 1,
    tile_tokens: int | None = None,
    step_tolerance: float = STEP_TOLERANCE,
    find_longest: bool = True,
    lay_out: bool = True,
) -> PlanRequest:
    """`plan`'s arguments, checked: the plain ones first, then the model, the machine last."""
    count = tokens_of(tokens)
    check_plain(
        tokens=count,
        train=train,
        zero=zero,
        offload_optimizer=offload_optimizer,
        sequence_parallel=sequence_parallel,
        batch=batch,
        dtype=said.dtype,
        tile_tokens=tile_tokens,
        step_tolerance=step_tolerance,
    )
    name, config = named_config(model)
    node = find_node(said)
    request = PlanRequest(
        name=name,
        config=config,
        tokens=count,
        node=node,
        train=train,
        zero=zero,
        offload_optimizer=offload_optimizer,
        sequence_parallel=_degree(node.hardware.gpus, count, sequence_parallel),
        compare_degrees=sequence_parallel is None,
        batch=batch,
        dtype=said.dtype,
        tile_tokens=tile_tokens,
        step_tolerance=step_tolerance,
        find_longest=find_longest,
        lay_out=lay_out,
    )
    check_sizes(request)
    return measured_here(request)


def _degree(gpus: int, tokens: int, asked: int | None) -> int:
    """What was asked, or the largest that there are tokens for."""
    if asked is not None:
        return asked
    return next(n for n in range(min(gpus, tokens), 0, -1) if gpus % n == 0)
