"""The table of GPUs: how they are found, and that its figures hang together."""

from __future__ import annotations

import pytest

from planner.hardware import GPUS, find_gpu


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("h100-80gb", "h100-80gb"),
        ("H100 80GB", "h100-80gb"),
        ("h100", "h100-80gb"),
        ("NVIDIA H100 80GB HBM3", "h100-80gb"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("a100", "a100-80gb"),
        ("NVIDIA A100-PCIE-40GB", "a100-40gb"),
        ("NVIDIA A800-SXM4-80GB", "a800-80gb"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("RTX4090", "rtx-4090"),
        ("Tesla V100-SXM2-32GB", "v100-32gb"),
        ("mi300x", "mi300x"),
    ],
)
def test_a_gpu_is_found_as_people_and_cuda_call_it(name: str, found: str) -> None:
    assert find_gpu(name).name == found


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("h100-96gb", "h100-80gb"), ("a100-80g", "a100-80gb"), ("rtx-4080", "rtx-4090")],
)
def test_an_unknown_gpu_is_refused_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=r"did you mean .*\?") as caught:
        find_gpu(name)
    suggested = str(caught.value).split("did you mean ")[1].split("?")[0]
    assert nearest in suggested
    assert repr(name) in str(caught.value)


def test_a_name_like_no_other_is_refused_with_all() -> None:
    with pytest.raises(ValueError, match=r"known are .*mi300x") as caught:
        find_gpu("zzz")
    assert "did you mean" not in str(caught.value)


def test_no_two_gpus_share_a_name() -> None:
    names = [
        n.lower().replace("-", "").replace(" ", "") for g in GPUS for n in (g.name, *g.aliases)
    ]
    assert len(names) == len(set(names))


def test_every_entry_says_where_it_is_from() -> None:
    assert all(gpu.source.startswith(("NVIDIA ", "AMD ")) for gpu in GPUS)


def test_rates_are_dense_and_not_sparse() -> None:
    """Sheets state twice these with sparsity: 624, 1979, 1979, 4500, 733, 242, 140, 330.3."""
    dense = {
        "a100-80gb": 312,
        "h100-80gb": 989,
        "h200": 989,
        "b200": 2250,
        "l40s": 362.05,
        "l4": 121,
        "a10g": 70,
        "rtx-4090": 165.2,
    }
    for name, tflops in dense.items():
        assert find_gpu(name).peak_flops_per_s["bfloat16"] == pytest.approx(tflops * 1e12)


def test_tensor_cores_beat_the_others_and_v100_has_no_bfloat16() -> None:
    for gpu in GPUS:
        rates = gpu.peak_flops_per_s
        assert rates["float16"] > rates["float32"]
        assert ("bfloat16" in rates) == (gpu.name != "v100-32gb")
