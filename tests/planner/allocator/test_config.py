"""Settings: how they are spelt, held against torch's own parser, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from planner.allocator import AllocatorConfig
from planner.allocator.config import ROUNDUP_BUCKETS, UNLIMITED

MIB = 2**20

TAKEN = [
    "",
    "expandable_segments:True",
    " expandable_segments : False , max_split_size_mb : 512 ",
    "expandable_segments:True,",
    "max_split_size_mb:20",
    "max_split_size_mb:30,large_segment_size_mb:24",
    "large_segment_size_mb:11",
    "max_split_size_mb:15,large_segment_size_mb:11",
    "max_non_split_rounding_mb:40",
    "garbage_collection_threshold:0.8",
    "roundup_power2_divisions:4",
    "roundup_power2_divisions:1",
    "roundup_power2_divisions:[256:1,512:2,1024:4,>:8]",
    "roundup_power2_divisions:[64:8,128:2,256:4,512:2,1024:4,>:1]",
    "roundup_power2_divisions:[>:2]",
    "roundup_power2_divisions:[1:4]",
    "roundup_power2_divisions:[4:0,16:8]",
    "roundup_power2_divisions:[65536:2]",
    "roundup_power2_divisions:[8:2,>:4,32:16]",
    "roundup_power2_divisions:[]",
    "pinned_use_background_threads:True,backend:native",
]
REFUSED = [
    "expandable_segments:true",
    "expandable_segments",
    "max_split_size_mb:19",
    "max_split_size_mb:many",
    "max_split_size_mb:23,large_segment_size_mb:24",
    "large_segment_size_mb:10",
    "max_non_split_rounding_mb:19",
    "garbage_collection_threshold:0",
    "garbage_collection_threshold:1",
    "roundup_power2_divisions:3",
    "roundup_power2_divisions:0",
    "roundup_power2_divisions:[3:2]",
    "roundup_power2_divisions:[0:2]",
    "roundup_power2_divisions:[4:3]",
    "roundup_power2_divisions:[4:2",
    ",",
]
OVERLOOKED = [
    # torch takes these, and does nothing or something else.
    "max_split_size_mb:-5",
    "max_split_size_mb:30.5",
    "roundup_power2_divisions:[4]",
    "max_split_size_mb:[30:1]",
    "expandable_segments:[True]",
    "expandable_segments:True;max_split_size_mb:30",
    "max_split_size_mb:30 expandable_segments:True",
    "no_such_setting:1",
    "backend:cudaMallocAsync",
]

ASK_TORCH = """
import ctypes, json, sys
from pathlib import Path
import torch
library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
asked = "_ZN3c1016CachingAllocator26AcceleratorAllocatorConfig24roundup_power2_divisionsEm"
divisions = getattr(library, asked)
divisions.argtypes, divisions.restype = [ctypes.c_size_t], ctypes.c_size_t
answers = []
for text in json.load(sys.stdin):
    try:
        torch._C._accelerator_setAllocatorSettings("large_segment_size_mb:20")
        torch._C._accelerator_setAllocatorSettings(text)
        answers.append([divisions(3 << 19 << bucket) for bucket in range(18)])
    except (ValueError, RuntimeError):
        answers.append(None)
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def torch_says() -> dict[str, list[int] | None]:
    """For each text the divisions of sizes between 1.5 MiB and 192 GiB; None: refused. Skips where
    this torch can't be asked.
    """
    texts = TAKEN + REFUSED
    command = [sys.executable, "-c", ASK_TORCH]
    done = subprocess.run(
        command, input=json.dumps(texts), capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"this torch can't be asked: {done.stderr.strip().splitlines()[-1]}")
    return dict(zip(texts, json.loads(done.stdout), strict=True))


def test_torch_takes_what_is_taken_and_means_the_same(
    torch_says: dict[str, list[int] | None],
) -> None:
    """Sizes above the last bucket (96 GiB and more) belong to it."""
    for text in TAKEN:
        mine = list(AllocatorConfig.parse(text).roundup_power2_divisions)
        assert torch_says[text] == mine + mine[-1:] * 2, text


@pytest.mark.parametrize("text", REFUSED)
def test_what_torch_refuses_is_refused(torch_says: dict[str, list[int] | None], text: str) -> None:
    assert torch_says[text] is None
    with pytest.raises(ValueError, match="take"):
        AllocatorConfig.parse(text)


@pytest.mark.parametrize("text", OVERLOOKED)
def test_what_torch_overlooks_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"takes|take|no setting|simulated"):
        AllocatorConfig.parse(text)


def test_values_arrive() -> None:
    config = AllocatorConfig.parse(
        "expandable_segments:True,max_split_size_mb:512,max_non_split_rounding_mb:40,"
        "large_segment_size_mb:30,garbage_collection_threshold:0.6,"
        "per_process_memory_fraction:0.5,roundup_power2_divisions:8"
    )
    assert config == AllocatorConfig(
        expandable_segments=True,
        max_split_bytes=512 * MIB,
        max_non_split_rounding_bytes=40 * MIB,
        large_segment_bytes=30 * MIB,
        garbage_collection_threshold=0.6,
        memory_fraction=0.5,
        roundup_power2_divisions=(8,) * ROUNDUP_BUCKETS,
    )


def test_the_defaults_are_those_of_torch() -> None:
    """`large_segment_size_{20971520}` and so on in `c10/core/AllocatorConfig.h`."""
    config = AllocatorConfig()
    assert config == AllocatorConfig.parse("")
    assert config.large_segment_bytes == 20_971_520
    assert config.max_split_bytes == UNLIMITED == 2**64 - 1
    assert config.non_split_rounding_bytes == config.large_segment_bytes
    assert not config.collects_garbage


def test_rounding_follows_the_large_segment() -> None:
    assert AllocatorConfig.parse("large_segment_size_mb:30").non_split_rounding_bytes == 30 * MIB


def test_garbage_is_collected_with_a_fraction_and_a_threshold() -> None:
    both = "garbage_collection_threshold:0.8,per_process_memory_fraction:0.9"
    assert AllocatorConfig.parse(both).collects_garbage
    assert not AllocatorConfig.parse("garbage_collection_threshold:0.8").collects_garbage
    assert not AllocatorConfig.parse("per_process_memory_fraction:0.9").collects_garbage


def test_a_misspelt_setting_is_told_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"did you mean expandable_segments\?"):
        AllocatorConfig.parse("expandable_segment:True")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("large_segment_bytes", 10 * MIB),
        ("max_split_bytes", 20 * MIB - 1),
        ("max_non_split_rounding_bytes", 20 * MIB - 1),
        ("roundup_power2_divisions", (4,)),
        ("roundup_power2_divisions", (3,) * 16),
        ("garbage_collection_threshold", 1.0),
        ("memory_fraction", 0.0),
        ("memory_fraction", 1.5),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{field} .*takes"):
        AllocatorConfig(**{field: value})  # type: ignore[arg-type]
