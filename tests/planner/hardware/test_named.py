"""Hardware put together: the table's figures, one's own over them, and what is refused."""

from __future__ import annotations

import dataclasses
import json

import pytest

from planner.codec import decode, encode
from planner.hardware import Disks, Efficiency, Hardware, find_gpu, named_hardware, parse_disks

TB = 10**12


def test_the_table_fills_what_is_not_given() -> None:
    node = named_hardware("h100-80gb", gpus=8, host_bytes=2 * TB)
    gpu = find_gpu("h100")
    assert node.device == "h100-80gb"
    assert node.device_bytes == 80 * 10**9
    assert node.peak("bfloat16") == gpu.peak_flops_per_s["bfloat16"]
    assert node.d2h_bytes_per_s == node.h2d_bytes_per_s == gpu.pcie_bytes_per_s
    assert node.link_bytes_per_s == 450e9
    assert node.disks is None
    assert node.source == gpu.source


def test_what_is_given_stands() -> None:
    node = named_hardware(
        "a800",
        gpus=2,
        host_bytes=TB,
        disks=parse_disks("8x7TB@6GB/s"),
        device_bytes=70 * 10**9,
        d2h_bytes_per_s=25e9,
        h2d_bytes_per_s=24e9,
        link_bytes_per_s=100e9,
        peak_flops_per_s={"bfloat16": 300e12},
        efficiency=Efficiency(matmul=0.5),
    )
    assert (node.device_bytes, node.d2h_bytes_per_s, node.h2d_bytes_per_s) == (70e9, 25e9, 24e9)
    assert node.link_bytes_per_s == 100e9
    assert node.peak("bfloat16") == 300e12
    assert node.peak("float32") == 19.5e12
    assert node.efficiency == Efficiency(matmul=0.5)
    assert node.disks is not None
    assert node.disks.total_bytes == 56 * TB


def test_peers_without_links_talk_over_pcie_and_a_single_device_has_none() -> None:
    assert named_hardware("l4", gpus=2, host_bytes=TB).link_bytes_per_s == 32e9
    assert named_hardware("h100", gpus=1, host_bytes=TB).link_bytes_per_s is None


def test_an_unknown_dtype_is_refused_with_those_that_are_known() -> None:
    node = named_hardware("v100", host_bytes=TB)
    with pytest.raises(ValueError, match=r"'bfloat16': v100-32gb has a rate for float16, float32"):
        node.peak("bfloat16")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("gpus", 0),
        ("host_bytes", 0),
        ("device_bytes", -1),
        ("d2h_bytes_per_s", 0.0),
        ("h2d_bytes_per_s", float("nan")),
        ("link_bytes_per_s", float("inf")),
        ("peak_flops_per_s", {}),
        ("peak_flops_per_s", {"bfloat16": 0.0}),
    ],
)
def test_a_figure_that_cannot_be_is_refused_by_name(field: str, value: object) -> None:
    node = named_hardware("h100", gpus=2, host_bytes=TB)
    with pytest.raises(ValueError, match=f"^{field}.* takes "):
        dataclasses.replace(node, **{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, float("nan")])
def test_a_share_is_a_share(share: float) -> None:
    with pytest.raises(ValueError, match=r"^link is "):
        Efficiency(link=share)


def test_it_goes_through_json_and_back() -> None:
    node = named_hardware("h100", gpus=8, host_bytes=TB, disks=parse_disks("2x1TB@3GB/s:5GB/s"))
    assert decode(Hardware, json.loads(json.dumps(encode(node))), "hardware") == node


def test_disks_are_read() -> None:
    assert parse_disks("8x7TB@6GB/s") == Disks(
        count=8, size_bytes=7 * TB, write_bytes_per_s=6e9, read_bytes_per_s=6e9
    )
    one = parse_disks(" 1.92TB @ 1.5GB/s : 3GB/s ")
    assert one == Disks(size_bytes=1_920 * 10**9, write_bytes_per_s=1.5e9, read_bytes_per_s=3e9)
    assert parse_disks("8x7TB@6GB/s").total_write_bytes_per_s == 48e9
    assert parse_disks("2x7TB@6GB/s:7GB/s").total_read_bytes_per_s == 14e9


@pytest.mark.parametrize(
    "text", ["", "8x7TB", "7TB@", "0x7TB@6GB/s", "8x7@6", "8x7TB@6G/s", "8x0TB@6GB/s", "x7TB@6GB/s"]
)
def test_disks_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^--ssd is .*takes COUNTxSIZE@RATE") as caught:
        parse_disks(text, "--ssd")
    assert repr(text) in str(caught.value)


def test_endurance_is_above_zero() -> None:
    with pytest.raises(ValueError, match=r"^endurance_bytes is 0"):
        Disks(size_bytes=1, write_bytes_per_s=1.0, read_bytes_per_s=1.0, endurance_bytes=0)
