"""The allocator's settings, as data, and how `PYTORCH_CUDA_ALLOC_CONF` spells them.

Scope: the settings that change what is reserved, and their checks. Where torch checks a value, so
does this (`c10/core/AllocatorConfig.cpp`); where torch overlooks a misspelt text, this refuses it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from planner.allocator.spelling import Value, check_key, one_word, pairs, settings

MIB = 1 << 20
UNLIMITED = (1 << 64) - 1
"""torch's default for `max_split_size`: the largest size_t."""

ROUNDUP_BUCKETS = 16
"""Powers of two from 1 MiB to 32 GiB; smaller and larger sizes belong to the first and the last."""

_LEAST_LARGE_SEGMENT_BYTES = 10 * MIB
"""A larger request has a segment of its own size (kMinLargeAlloc)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AllocatorConfig:
    """torch's defaults. `roundup_power2_divisions` has a number for each bucket, 0 and 1 for none;
    `max_non_split_rounding_bytes` None: `large_segment_bytes`; `memory_fraction` is that of
    `torch.cuda.set_per_process_memory_fraction`, 1 for no limit of its own.
    """

    expandable_segments: bool = False
    max_split_bytes: int = UNLIMITED
    max_non_split_rounding_bytes: int | None = None
    large_segment_bytes: int = 20 * MIB
    roundup_power2_divisions: tuple[int, ...] = (0,) * ROUNDUP_BUCKETS
    garbage_collection_threshold: float = 0.0
    memory_fraction: float = 1.0

    def __post_init__(self) -> None:
        _check_more("large_segment_bytes", self.large_segment_bytes, _LEAST_LARGE_SEGMENT_BYTES)
        for name in ("max_split_bytes", "max_non_split_rounding_bytes"):
            value = getattr(self, name)
            if value is not None and value < self.large_segment_bytes:
                raise ValueError(
                    f"{name} is {value}: takes {self.large_segment_bytes} (large_segment_bytes) "
                    "or more"
                )
        _check_divisions(self.roundup_power2_divisions)
        if not 0 <= self.garbage_collection_threshold < 1:
            value = self.garbage_collection_threshold
            raise ValueError(f"garbage_collection_threshold is {value}: takes 0 to 1, not 1 itself")
        if not 0 < self.memory_fraction <= 1:
            value = self.memory_fraction
            raise ValueError(f"memory_fraction is {value}: takes a share above 0 and at most 1")

    @property
    def non_split_rounding_bytes(self) -> int:
        if self.max_non_split_rounding_bytes is None:
            return self.large_segment_bytes
        return self.max_non_split_rounding_bytes

    @property
    def collects_garbage(self) -> bool:
        """Only a process with a fraction of its own has garbage collected."""
        return self.memory_fraction < 1 and self.garbage_collection_threshold > 0

    @classmethod
    def parse(cls, text: str) -> AllocatorConfig:
        """Read `expandable_segments:True,max_split_size_mb:512`: torch's own syntax, with True and
        False in capitals, and lists in brackets. Settings of pinned memory, locks and graphs, and
        `backend:native`, are read and change nothing here.

        Raises:
            ValueError: for an unknown setting (names the nearest), a value that torch refuses, or
                another backend.
        """
        config = cls()
        found = settings(text)
        # As torch does it: the others are checked against this one.
        for key, value in sorted(found, key=lambda item: item[0] != "large_segment_size_mb"):
            check_key(key)
            config = _with(config, key, value)
        return config


def _with(config: AllocatorConfig, key: str, value: Value) -> AllocatorConfig:
    match key:
        case "expandable_segments":
            return replace(config, expandable_segments=_truth(key, value))
        case "large_segment_size_mb":
            return replace(config, large_segment_bytes=_mib(key, value))
        case "max_split_size_mb":
            return replace(config, max_split_bytes=min(_mib(key, value), UNLIMITED))
        case "max_non_split_rounding_mb":
            return replace(config, max_non_split_rounding_bytes=_mib(key, value))
        case "roundup_power2_divisions":
            return replace(config, roundup_power2_divisions=_divisions(key, value))
        case "garbage_collection_threshold":
            return replace(config, garbage_collection_threshold=_share(key, value))
        case "per_process_memory_fraction":
            return replace(config, memory_fraction=_share(key, value))
        case "backend" if value != "native":
            raise ValueError(f"backend is {value!r}: native is the one that is simulated")
    return config


def _divisions(key: str, value: Value) -> tuple[int, ...]:
    """`8`, or `[256:1,512:2,>:4]` by bucket in MiB: the first entry holds for the buckets below it
    too, `>` for those above the last before it.
    """
    if isinstance(value, str):
        divisions = _whole(key, value)
        if divisions == 0:
            raise ValueError(f"{key} is '0': takes a power of two (in a list, 0 too)")
        return (divisions,) * ROUNDUP_BUCKETS
    result, last, is_first = [0] * ROUNDUP_BUCKETS, 0, True
    for bucket, text in pairs(key, value):
        divisions = _whole(key, text)
        if bucket == ">":
            result[last + 1 :] = [divisions] * (ROUNDUP_BUCKETS - last - 1)
            continue
        last = min(_log2(key, bucket), ROUNDUP_BUCKETS - 1)
        if is_first:
            result[:last], is_first = [divisions] * last, False
        result[last] = divisions
    return tuple(result)


def _check_more(name: str, value: int, least: int) -> None:
    if value <= least:
        raise ValueError(f"{name} is {value}: takes more than {least}")


def _check_divisions(divisions: tuple[int, ...]) -> None:
    if len(divisions) != ROUNDUP_BUCKETS:
        raise ValueError(
            f"roundup_power2_divisions has {len(divisions)} numbers: takes {ROUNDUP_BUCKETS}"
        )
    for number in divisions:
        if number < 0 or number & (number - 1):
            raise ValueError(f"roundup_power2_divisions has {number}: takes 0 or powers of two")


def _truth(key: str, value: Value) -> bool:
    word = one_word(key, value)
    if word not in ("True", "False"):
        raise ValueError(f"{key} is {word!r}: takes True or False")
    return word == "True"


def _whole(key: str, value: Value) -> int:
    word = one_word(key, value)
    if not word.isdecimal():
        raise ValueError(f"{key} is {word!r}: takes a whole number")
    return int(word)


def _mib(key: str, value: Value) -> int:
    return _whole(key, value) * MIB


def _share(key: str, value: Value) -> float:
    word = one_word(key, value)
    try:
        share = float(word)
    except ValueError as error:
        raise ValueError(f"{key} is {word!r}: takes a number between 0 and 1") from error
    if not (math.isfinite(share) and share > 0):
        raise ValueError(f"{key} is {word!r}: takes a number between 0 and 1")
    return share


def _log2(key: str, text: str) -> int:
    number = _whole(key, text)
    if number == 0 or number & (number - 1):
        raise ValueError(f"{key} has a bucket {text!r}: takes a power of two of MiB, or >")
    return number.bit_length() - 1
