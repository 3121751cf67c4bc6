"""Who shares a sequence: from what `memo.wrap` was given to a group of ranks.

Scope: checking `sequence_parallel`, and making process groups. Nothing is sent but by
`torch.distributed` itself, while it makes them.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from memo.parallel.contracts import SequenceGroup
from offload import MemoError

SequenceParallelLike = int | dist.ProcessGroup | DeviceMesh | None
"""How many ranks share a sequence, or who they are."""

_TAKES = (
    "takes a number of ranks, a process group that this rank is in, or a device mesh of one axis"
)


def checked_sequence_parallel(value: object) -> int | dist.ProcessGroup | None:
    """What was asked for; None when a rank has its sequences for itself.

    Raises:
        ValueError: for what is no number of ranks and no group, or a number that does not divide
            the job's ranks.
        MemoError: when `torch.distributed` has not been initialised.
    """
    match value:
        case None | 1 if not isinstance(value, bool):
            return None
        case DeviceMesh():
            return _group_of_mesh(value)
        case dist.ProcessGroup():
            return None if dist.get_world_size(value) == 1 else value
        case int() if not isinstance(value, bool) and value > 1:
            return _degree(value)
        case _:
            raise ValueError(f"sequence_parallel={value!r}: {_TAKES}")


def _group_of_mesh(mesh: DeviceMesh) -> dist.ProcessGroup | None:
    if mesh.ndim != 1:
        raise ValueError(
            f"sequence_parallel is a device mesh of shape {tuple(mesh.shape)}: {_TAKES}, such as "
            "mesh[name]"
        )
    return None if mesh.size() == 1 else mesh.get_group()


def _degree(degree: int) -> int:
    if not dist.is_initialized():
        raise MemoError(
            f"sequence_parallel={degree} needs that many processes: start with torchrun, and call "
            "torch.distributed.init_process_group before memo.wrap"
        )
    ranks = dist.get_world_size()
    if ranks % degree:
        raise ValueError(f"sequence_parallel={degree}: takes a divisor of the job's {ranks} ranks")
    return degree


def open_group(asked: int | dist.ProcessGroup) -> SequenceGroup:
    """The group of this rank; for a number, runs of so many consecutive ranks of the job, made
    now: all ranks of the job call it. They live as long as `torch.distributed`'s own.
    """
    if isinstance(asked, int):
        own, _ = dist.new_subgroups(asked, timeout=_job_timeout(), group_desc="memo sequence")
        return SequenceGroup.of(own)
    return SequenceGroup.of(asked)


def _job_timeout() -> timedelta | None:
    """What the job's own group was given, which new groups do not take over: a rank that hangs
    would hold the others for half an hour. None where a backend does not tell.
    """
    world: Any = dist.group.WORLD
    backend = world._get_backend(world._device_types[0])
    timeout = getattr(getattr(backend, "options", None), "_timeout", None)
    return timeout if isinstance(timeout, timedelta) else None
