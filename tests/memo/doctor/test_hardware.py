"""A probed machine as the planner takes it."""

from __future__ import annotations

from dataclasses import replace

import pytest

import memo
from memo.doctor import hardware_of
from planner.hardware import Disks, Efficiency
from tests.memo.doctor.machines import BF16, DISK, FP32, GB, H100, WELL


def test_a_known_gpu_keeps_its_peak_and_has_measured_shares() -> None:
    node = hardware_of(WELL)
    assert node.device == "NVIDIA H100 80GB HBM3"
    assert node.device_bytes == 84 * GB
    assert node.peak("bfloat16") == 989e12
    assert node.efficiency.matmul == pytest.approx(700 / 989)
    assert node.efficiency.attention_forward == pytest.approx(600 / 989)
    assert node.efficiency.attention_backward == pytest.approx(500 / 989)
    assert node.efficiency.link == 1
    assert (node.d2h_bytes_per_s, node.h2d_bytes_per_s) == (54e9, 55e9)
    assert node.device_bytes_per_s == 3e12
    assert node.host_bytes == 900 * GB
    assert (node.gpus, node.link_bytes_per_s) == (1, None)


def test_shares_are_those_of_the_dtype_that_is_asked() -> None:
    assert hardware_of(WELL, dtype="float32").efficiency.matmul == pytest.approx(50 / 67)


def test_a_peak_that_was_passed_is_raised() -> None:
    fast = replace(WELL, compute=(replace(BF16, matmul_flops_per_s=1100e12), FP32))
    node = hardware_of(fast)
    assert node.peak("bfloat16") == 1100e12
    assert node.efficiency.matmul == 1


def test_an_unknown_gpu_is_what_was_measured() -> None:
    node = hardware_of(replace(WELL, gpus=(replace(H100, name="Some GPU"),)))
    assert node.peak("bfloat16") == 700e12
    assert node.efficiency.matmul == 1
    assert node.efficiency.attention_backward == pytest.approx(5 / 7)


def test_peers_are_linked_as_the_table_says() -> None:
    assert hardware_of(replace(WELL, gpus=(H100, H100))).link_bytes_per_s == 450e9
    unknown = replace(H100, name="Some GPU")
    assert hardware_of(replace(WELL, gpus=(unknown, unknown))).link_bytes_per_s is None


def test_the_processor_is_a_device_that_shares_the_hosts_memory() -> None:
    node = hardware_of(replace(WELL, gpus=()))
    assert node.device == "A processor"
    assert node.device_bytes + node.host_bytes == 900 * GB
    assert node.host_bytes == 900 * GB // 8
    assert hardware_of(replace(WELL, gpus=(), disks=())).host_bytes == 1
    assert node.device_bytes_per_s == 20e9
    assert node.d2h_bytes_per_s == node.h2d_bytes_per_s == 10e9
    assert node.peak("float32") == 50e12


def test_attention_may_be_faster_than_products() -> None:
    odd = replace(BF16, attention_forward_flops_per_s=800e12)
    node = hardware_of(replace(WELL, gpus=(), compute=(odd,)))
    assert node.peak("bfloat16") == 800e12
    assert node.efficiency.matmul == pytest.approx(7 / 8)


def test_each_file_system_counts_once_and_the_slowest_for_all() -> None:
    other = replace(DISK, device=8, free_bytes=1000 * GB, write_bytes_per_s=2e9)
    broken = replace(DISK, device=9, write_bytes_per_s=None, read_bytes_per_s=None, problem="no")
    node = hardware_of(replace(WELL, disks=(DISK, replace(DISK, directory="/b"), other, broken)))
    assert node.disks == Disks(
        count=2, size_bytes=1000 * GB, write_bytes_per_s=2e9, read_bytes_per_s=6e9
    )
    assert hardware_of(replace(WELL, disks=(broken,))).disks is None


def test_without_measurements_the_table_serves() -> None:
    asked = replace(H100, d2h_bytes_per_s=None, h2d_bytes_per_s=None, memory_bytes_per_s=None)
    node = hardware_of(replace(WELL, gpus=(asked,), compute=(), disks=()))
    assert node.efficiency == Efficiency()
    assert node.d2h_bytes_per_s == 64e9
    assert node.device_bytes_per_s == 3350e9


@pytest.mark.parametrize(
    "machine",
    [
        replace(WELL, gpus=(), compute=()),
        replace(WELL, gpus=(), memory_bytes_per_s=None),
        replace(WELL, gpus=(replace(H100, name="Some GPU"),), compute=()),
        replace(WELL, gpus=(replace(H100, name="Some GPU", d2h_bytes_per_s=None),)),
        replace(WELL, gpus=(replace(H100, name="Some GPU", memory_bytes_per_s=None),)),
    ],
)
def test_what_nobody_knows_is_asked_to_be_measured(machine: object) -> None:
    with pytest.raises(memo.MemoError, match="measure=True"):
        hardware_of(machine)  # type: ignore[arg-type]


def test_a_dtype_that_was_not_measured_is_refused_with_those_that_were() -> None:
    with pytest.raises(memo.MemoError, match=r"in float16 is not known \(measured: bfloat16, fl"):
        hardware_of(replace(WELL, gpus=()), dtype="float16")
