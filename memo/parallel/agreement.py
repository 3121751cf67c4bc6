"""Whether the ranks of a group work on the same thing: guards for the first step.

Scope: checksums of a batch, and settings that must be equal. A group that disagrees would otherwise
hang in an exchange, or train on sequences put together from different batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from zlib import crc32

import torch
from torch import Tensor
from torch import distributed as dist

from memo.parallel.contracts import SequenceGroup
from offload import MemoError

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers that see a dtype's bits, by size in bytes."""

Fingerprint = tuple[object, ...]


def checksum(tensor: Tensor) -> int:
    """A number that changes when any element does, when two change places or when the dtype does.

    The sum of bits times odd weights, which wrap around at 64 bits; one pass, and one wait for the
    device.
    """
    flat = tensor.detach().contiguous().flatten()
    if flat.is_complex():
        flat = torch.view_as_real(flat).flatten()
    bits = flat.view(_INTEGERS[flat.element_size()]).to(torch.int64)
    weights = torch.arange(bits.numel(), device=bits.device) * 2 + 1
    return int((bits * weights).sum()) ^ crc32(str(tensor.dtype).encode())


def check_same_batch(arguments: Mapping[str, Any], group: SequenceGroup) -> None:
    """Compare the whole arguments of a model call over a group; all ranks call it.

    Raises:
        MemoError: on every rank, when an argument is not the same on all.
    """
    own: dict[str, Fingerprint] = {
        name: (*value.shape, checksum(value))
        for name, value in arguments.items()
        if isinstance(value, Tensor)
    }
    differing = _differing(own, group)
    if differing:
        raise MemoError(
            f"ranks of one sequence group were given different batches: {', '.join(differing)} "
            f"{'is' if len(differing) == 1 else 'are'} not the same on all {group.size} ranks; a "
            "data loader must give all ranks of a group the same samples, and different ones to "
            "different groups"
        )


def check_same_settings(settings: Mapping[str, object], group: SequenceGroup) -> None:
    """Compare settings that ranks of a group must have in common, such as the tokens of a tile;
    all ranks call it.

    Raises:
        MemoError: on every rank, with what each has.
    """
    gathered = _gathered(dict(settings), group)
    for name in sorted({name for of_rank in gathered for name in of_rank}):
        values = [of_rank.get(name) for of_rank in gathered]
        if any(value != values[0] for value in values):
            raise MemoError(
                f"ranks of one sequence group disagree on {name}: "
                f"{', '.join(map(repr, values))} on ranks 0 to {group.size - 1}"
            )


def _differing(own: Mapping[str, Fingerprint], group: SequenceGroup) -> list[str]:
    gathered = _gathered(own, group)
    names = sorted({name for of_rank in gathered for name in of_rank})
    return [name for name in names if len({of_rank.get(name) for of_rank in gathered}) > 1]


def _gathered(own: Mapping[str, Any], group: SequenceGroup) -> list[Mapping[str, Any]]:
    gathered: list[Any] = [None] * group.size
    dist.all_gather_object(gathered, dict(own), group=group.process_group)
    return gathered
