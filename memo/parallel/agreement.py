"""Whether the ranks of a group work on the same thing: guards of every call.

Scope: checksums of a batch, and settings that must be equal. A group that disagrees would otherwise
hang in an exchange, or train on sequences put together from different batches. Two numbers of each
rank tell; only where they differ is it found out what does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from zlib import crc32

import torch
from torch import Tensor
from torch import distributed as dist

from memo.parallel.contracts import SequenceGroup
from memo.parallel.wire import Wire
from offload import MemoError

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers that see a dtype's bits, by size in bytes."""

_CHUNK = 1 << 22
"""Elements that are widened to 64 bits at a time."""

Fingerprint = tuple[object, ...]


def checksum(tensor: Tensor) -> int:
    """A number that changes when any element does, when two change places or when the dtype does.

    One pass, and one wait for the device.
    """
    return int(_bit_sum(tensor)) ^ crc32(str(tensor.dtype).encode())


def _bit_sum(tensor: Tensor) -> Tensor:
    """The sum of bits times odd weights, which wrap around at 64 bits; [], int64."""
    flat = tensor.detach().contiguous().flatten()
    if flat.is_complex():
        flat = torch.view_as_real(flat).flatten()
    total = torch.zeros((), dtype=torch.int64, device=flat.device)
    for index, chunk in enumerate(flat.view(_INTEGERS[flat.element_size()]).split(_CHUNK)):
        first = index * _CHUNK
        places = torch.arange(first, first + len(chunk), device=flat.device)
        total += (chunk.to(torch.int64) * (places * 2 + 1)).sum()
    return total


def check_same_call(
    arguments: Mapping[str, Any],
    settings: Mapping[str, object],
    wire: Wire,
    device: torch.device,
) -> None:
    """Compare the whole arguments of a model call and how it is made over the wire's group, before
    anything is exchanged; all ranks call it. It is one gather of 16 bytes a rank, from `device`.

    Contents of vectors ([batch, tokens, hidden]) are left to `check_same_batch`: they are many.

    Raises:
        MemoError: on every rank, with what differs.
    """
    tensors = {name: v for name, v in sorted(arguments.items()) if isinstance(v, Tensor)}
    plain = sorted((n, repr(v)) for n, v in arguments.items() if _is_plain(v))
    kinds = [(name, tuple(v.shape), str(v.dtype)) for name, v in tensors.items()]
    summed = torch.zeros((), dtype=torch.int64, device=device)
    for place, tensor in enumerate(tensors.values()):
        if not tensor.is_floating_point() or tensor.numel() == 1:
            summed += _bit_sum(tensor).to(device) * (2 * place + 1)
    told = crc32(repr((kinds, plain, sorted(settings.items()))).encode())
    rows = wire.gather(torch.stack([torch.full_like(summed, told), summed])).tolist()
    if any(row != rows[0] for row in rows):
        check_same_settings(settings, wire.group)
        check_same_batch(arguments, wire.group)


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def check_same_batch(arguments: Mapping[str, Any], group: SequenceGroup) -> None:
    """Compare the whole arguments of a model call over a group; all ranks call it.

    Raises:
        MemoError: on every rank, when an argument is not the same on all.
    """
    own: dict[str, Fingerprint] = {
        name: (*value.shape, checksum(value)) if isinstance(value, Tensor) else (repr(value),)
        for name, value in arguments.items()
        if isinstance(value, Tensor) or _is_plain(value)
    }
    differing = _differing(own, group)
    if differing:
        raise MemoError(
            f"ranks of one sequence group were given different batches: {', '.join(differing)} "
            f"{'is' if len(differing) == 1 else 'are'} not the same on all {group.size} ranks; a "
            "data loader must give all ranks of a group the same samples, and different ones to "
            "different groups (transformers' Trainer and accelerate do when they are given "
            "parallelism_config=memo.parallelism_config(N))"
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


def check_refusals(refusal: MemoError | None, group: SequenceGroup) -> None:
    """Refuse on every rank what one rank refuses; all ranks call it.

    Raises:
        MemoError: `refusal`, or another rank's.
    """
    own = {} if refusal is None else {"refusal": str(refusal)}
    gathered = _gathered(own, group)
    if refusal is not None:
        raise refusal
    for rank, of_rank in enumerate(gathered):
        if of_rank:
            raise MemoError(f"on rank {rank} of the sequence group: {of_rank['refusal']}")


def _differing(own: Mapping[str, Fingerprint], group: SequenceGroup) -> list[str]:
    gathered = _gathered(own, group)
    names = sorted({name for of_rank in gathered for name in of_rank})
    return [name for name in names if len({of_rank.get(name) for of_rank in gathered}) > 1]


def _gathered(own: Mapping[str, Any], group: SequenceGroup) -> list[Mapping[str, Any]]:
    gathered: list[Any] = [None] * group.size
    dist.all_gather_object(gathered, dict(own), group=group.process_group)
    return gathered
