"""The syntax of `PYTORCH_CUDA_ALLOC_CONF`: `key:value,key:[a:b,c:d]`, with spaces anywhere.

Scope: text into keys and values, no meaning but for which keys there are.
"""

from __future__ import annotations

import difflib
import re

Value = str | tuple[str, ...]
"""A word, or the parts of a list in brackets."""

_MEANT = (
    "expandable_segments",
    "large_segment_size_mb",
    "max_split_size_mb",
    "max_non_split_rounding_mb",
    "roundup_power2_divisions",
    "garbage_collection_threshold",
    "per_process_memory_fraction",
    "backend",
)
_IDLE = (
    "pinned_use_background_threads",
    "pinned_max_round_threshold_mb",
    "pinned_max_cached_size_mb",
    "pinned_use_cuda_host_register",
    "pinned_num_register_threads",
    "pinned_reserve_segment_size_mb",
    "pinned_free_catch_all",
    "release_lock_on_cudamalloc",
    "graph_capture_record_stream_reuse",
    "throw_on_cudamalloc_oom",
)
"""torch 2.13's, of `c10/core/AllocatorConfig.h` and `c10/cuda/CUDAAllocatorConfig.h`; the latter
don't change what is reserved.
"""

_SETTING = re.compile(r"([^:,\[\]]+):([^:,\[\]]+|\[[^\[\]]*\])(?:,|$)")


def settings(text: str) -> list[tuple[str, Value]]:
    """The settings in order.

    Raises:
        ValueError: where the text stops being of this syntax.
    """
    packed, found, position = "".join(text.split()), list[tuple[str, Value]](), 0
    while position < len(packed):
        match = _SETTING.match(packed, position)
        if match is None:
            raise ValueError(
                f"allocator settings go wrong at {packed[position:]!r}: they take key:value, "
                "separated by commas"
            )
        found.append((match[1], _value(match[2])))
        position = match.end()
    return found


def check_key(key: str) -> None:
    """Raise `ValueError`, with the nearest names, for a setting that torch doesn't have."""
    if key in _MEANT or key in _IDLE:
        return
    nearest = difflib.get_close_matches(key, _MEANT + _IDLE, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"it has {', '.join(_MEANT)}"
    raise ValueError(f"{key!r} is no setting of the allocator: {hint}")


def one_word(key: str, value: Value) -> str:
    """Raise `ValueError` for a list."""
    if not isinstance(value, str):
        raise ValueError(f"{key} is [{','.join(value)}]: takes one value")
    return value


def pairs(key: str, value: tuple[str, ...]) -> list[tuple[str, str]]:
    """The parts of a list, each as what stands before and after its colon.

    Raises:
        ValueError: for a part without one.
    """
    split = [part.partition(":") for part in value]
    for (left, _, right), part in zip(split, value, strict=True):
        if not left or not right:
            raise ValueError(f"{key} has {part!r}: takes bucket:divisions, as in [256:1,>:4]")
    return [(left, right) for left, _, right in split]


def _value(text: str) -> Value:
    if not text.startswith("["):
        return text
    return tuple(text[1:-1].split(",")) if text != "[]" else ()
