"""The measurements agree with what is known to be allocated, and the limit is the kernel's.

What is measured runs in a child process in which `exact_malloc` holds, so that the malloc of the
process that runs the tests stays as it was. The CUDA branch is tested where there is a GPU.
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

import pytest
import torch
from torch import nn

from memo import measure
from memo.measure import (
    MIB,
    MeasureError,
    MemoryTimeline,
    PeakMemory,
    exact_malloc,
    is_out_of_memory,
    limit_memory,
    release_unused_memory,
    resident_bytes,
)

T = TypeVar("T")


class InChild(Protocol):
    """Call a function of this file in the child and hand back what it returns."""

    def __call__(self, function: Callable[..., T], *args: object) -> T: ...


def warm() -> None:
    """Load the code that the measured functions use, so that no file page counts as growth."""
    exact_malloc()
    torch.set_num_threads(2)
    _ones(8 * MIB)
    with PeakMemory():
        pass


@pytest.fixture(scope="module")
def in_child() -> Iterator[InChild]:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=warm) as pool:

        def call(function: Callable[..., T], *args: object) -> T:
            return pool.submit(function, *args).result()

        yield call


def _ones(size_bytes: int) -> torch.Tensor:
    return torch.ones(size_bytes, dtype=torch.uint8)


def _growth_while_alive(size_bytes: int) -> int:
    with PeakMemory() as peak:
        held = _ones(size_bytes)
    assert peak.method == "kernel high-water mark"
    del held
    return peak.growth_bytes


def _growth_of_freed_and_allocated_again(size_bytes: int) -> int:
    with PeakMemory() as peak:
        for _ in range(5):
            held = _ones(size_bytes)
            del held
    return peak.growth_bytes


def _growth_of_a_short_peak(size_bytes: int) -> int:
    with PeakMemory() as peak:
        _ones(size_bytes)
        held = _ones(size_bytes // 10)
    del held
    return peak.growth_bytes


def _growth_after_a_higher_peak() -> int:
    with PeakMemory():
        _ones(400 * MIB)
    return _growth_while_alive(50 * MIB)


def _base_and_growth_beside_old_tensor(size_bytes: int) -> tuple[int, int]:
    with PeakMemory() as before:
        pass
    old = _ones(size_bytes)
    with PeakMemory() as peak:
        new = _ones(size_bytes)
    del old, new
    return peak.base_bytes - before.base_bytes, peak.growth_bytes


@pytest.mark.parametrize("size_mib", [20, 200])
@pytest.mark.parametrize(
    "growth",
    [_growth_while_alive, _growth_of_freed_and_allocated_again, _growth_of_a_short_peak],
)
def test_growth_is_what_was_alive_at_the_peak(
    in_child: InChild, growth: Callable[[int], int], size_mib: int
) -> None:
    # 2 MiB: pages that the process itself touches (code, stacks, small objects).
    assert in_child(growth, size_mib * MIB) == pytest.approx(size_mib * MIB, abs=2 * MIB)


def test_a_former_peak_is_forgotten(in_child: InChild) -> None:
    assert in_child(_growth_after_a_higher_peak) == pytest.approx(50 * MIB, abs=2 * MIB)


def test_what_was_there_before_is_base_not_growth(in_child: InChild) -> None:
    base_bytes, growth_bytes = in_child(_base_and_growth_beside_old_tensor, 100 * MIB)
    assert base_bytes == pytest.approx(100 * MIB, abs=2 * MIB)
    assert growth_bytes == pytest.approx(100 * MIB, abs=2 * MIB)


def _divide_beside(size_bytes: int, peak: PeakMemory) -> None:
    with peak:
        held = _ones(size_bytes)
        raise ZeroDivisionError(len(held))


def _peak_of_a_failing_block() -> int:
    peak = PeakMemory()
    with pytest.raises(ZeroDivisionError):
        _divide_beside(60 * MIB, peak)
    return peak.growth_bytes


def test_the_peak_is_there_after_an_exception(in_child: InChild) -> None:
    assert in_child(_peak_of_a_failing_block) == pytest.approx(60 * MIB, abs=2 * MIB)


def _training_step_measured_twice() -> tuple[int, int]:
    """One forward and backward: growth by the kernel's mark, and by torch's own accounting."""
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Sequential(nn.Linear(512, 512), nn.GELU()) for _ in range(6)])
    tokens = torch.randn(16_384, 512)

    def step() -> None:
        model(tokens).square().mean().backward()

    step()
    model.zero_grad(set_to_none=False)
    with torch.profiler.profile(profile_memory=True) as profile:
        step()
    model.zero_grad(set_to_none=False)
    with PeakMemory() as peak:
        step()
    return peak.growth_bytes, _profiled_growth_bytes(profile)


def _profiled_growth_bytes(profile: torch.profiler.profile) -> int:
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    memory = sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"])
    live_bytes = peak_bytes = 0
    for event in memory:
        live_bytes += event["args"]["Bytes"]
        peak_bytes = max(peak_bytes, live_bytes)
    return peak_bytes


def test_a_training_step_grows_by_what_torch_allocates(in_child: InChild) -> None:
    measured_bytes, profiled_bytes = in_child(_training_step_measured_twice)
    assert profiled_bytes > 300 * MIB  # 12 activations of 32 MiB live at the end of forward
    assert measured_bytes == pytest.approx(profiled_bytes, rel=0.03)


def _left_after_freeing_below_a_live_block() -> int:
    _ones(16 * MIB)  # freeing it raises the mmap threshold where that is dynamic
    before_bytes = resident_bytes()
    blocks = [_ones(4 * MIB) for _ in range(40)]
    del blocks[:-1]
    return resident_bytes() - before_bytes


def test_exact_malloc_gives_back_blocks_below_a_live_one(in_child: InChild) -> None:
    assert in_child(_left_after_freeing_below_a_live_block) < 8 * MIB
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as untuned:  # what the docstring claims
        left = untuned.submit(_left_after_freeing_below_a_live_block).result()
    assert left > 100 * MIB


def test_where_the_mark_cannot_be_reset_it_samples(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(measure, "_CLEAR_REFS", tmp_path / "absent" / "clear_refs")
    with PeakMemory() as peak:
        held = _ones(100 * MIB)
        time.sleep(0.1)
        del held
    assert peak.method == "sampled"
    assert peak.growth_bytes == pytest.approx(100 * MIB, rel=0.1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_it_is_the_allocators_peak() -> None:
    old = torch.ones(10 * MIB, dtype=torch.uint8, device="cuda")
    with PeakMemory("cuda") as peak:
        torch.ones(50 * MIB, dtype=torch.uint8, device="cuda")
        torch.ones(20 * MIB, dtype=torch.uint8, device="cuda")
    assert peak.method == "cuda allocator"
    assert peak.base_bytes >= old.nbytes
    assert peak.growth_bytes == 50 * MIB


def test_timeline_sees_a_tensor_come_and_go() -> None:
    release_unused_memory()
    with MemoryTimeline(interval_s=0.005) as timeline:
        time.sleep(0.05)
        held = _ones(100 * MIB)
        time.sleep(0.05)
        del held
        time.sleep(0.05)
    seconds, sizes = zip(*timeline.samples, strict=True)
    assert list(seconds) == sorted(seconds)
    assert 0.15 <= seconds[-1] < 5
    assert max(sizes) - sizes[0] == pytest.approx(100 * MIB, rel=0.1)
    assert max(sizes) - sizes[-1] > 50 * MIB


@pytest.mark.parametrize("interval_s", [0, -1.0])
def test_timeline_refuses_a_bad_interval(interval_s: float) -> None:
    with pytest.raises(ValueError, match=r"interval_s: got .*, takes"):
        MemoryTimeline(interval_s)


def _limited(limit_bytes: int, size_bytes: int) -> str:
    with limit_memory(limit_bytes) as limit:
        assert limit.kind == "RLIMIT_DATA"
        assert limit.limit_bytes == limit_bytes
        try:
            _ones(size_bytes)
        except RuntimeError as error:
            return "refused" if is_out_of_memory(error) else repr(error)
    return "fits"


def test_limit_refuses_what_passes_it_and_nothing_else(in_child: InChild) -> None:
    limit_bytes = 2048 * MIB
    assert in_child(_limited, limit_bytes, 2100 * MIB) == "refused"
    assert in_child(_limited, limit_bytes, 200 * MIB) == "fits"
    assert in_child(_limited, 4096 * MIB, 2100 * MIB) == "fits"  # the former limit is gone


def test_limit_counts_what_is_there_already(in_child: InChild) -> None:
    used_bytes = in_child(_used_bytes)
    assert in_child(_limited, used_bytes + 100 * MIB, 200 * MIB) == "refused"
    assert in_child(_limited, used_bytes + 300 * MIB, 200 * MIB) == "fits"


def _used_bytes() -> int:
    with limit_memory(64 * 1024 * MIB) as limit:
        return limit.used_bytes


@pytest.mark.parametrize("limit_bytes", [0, -5])
def test_limit_refuses_a_bad_number(limit_bytes: int) -> None:
    with pytest.raises(ValueError, match="limit_bytes: got"), limit_memory(limit_bytes):
        pass


def test_limit_says_where_it_has_no_means(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    with pytest.raises(MeasureError, match="RLIMIT_DATA"), limit_memory(MIB):
        pass


def _raised_from(cause: BaseException) -> BaseException:
    error = ValueError("the step failed")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("std::bad_alloc"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (_raised_from(MemoryError()), True),
        (_raised_from(KeyError("x")), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("not enough memory"), False),
    ],
)
def test_is_out_of_memory(error: BaseException, expected: bool) -> None:
    assert is_out_of_memory(error) is expected
