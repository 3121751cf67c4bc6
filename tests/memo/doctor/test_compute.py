"""Calibration: FLOPs against torch's own counter, and rates that are FLOPs over seconds."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from memo.doctor import compute
from memo.doctor.compute import LayerShape, default_shape, measure_compute
from memo.doctor.gpu import memory_rate, probe_gpus

CPU = torch.device("cpu")
TINY = LayerShape(
    hidden=48,
    intermediate=112,
    heads=6,
    kv_heads=2,
    head_dim=8,
    tokens=33,
    attention_tokens=65,
)


def test_products_are_those_of_a_llama_layer() -> None:
    config = LlamaConfig(
        hidden_size=TINY.hidden,
        intermediate_size=TINY.intermediate,
        num_attention_heads=TINY.heads,
        num_key_value_heads=TINY.kv_heads,
        head_dim=TINY.head_dim,
    )
    modules = LlamaDecoderLayer(config, 0).modules()
    linears = [(m.in_features, m.out_features) for m in modules if isinstance(m, torch.nn.Linear)]
    assert sorted(TINY.products) == sorted(linears)


def test_matmul_flops_are_those_that_torch_counts() -> None:
    with FlopCounterMode(display=False) as counter:
        compute._matmuls(CPU, torch.float32, TINY)()
    assert counter.get_total_flops() == TINY.matmul_flops


def test_attention_flops_are_half_of_those_that_torch_counts() -> None:
    """Its counter takes all scores; the causal half of them is run."""
    q, k, v = compute._heads(CPU, torch.float32, TINY)
    with FlopCounterMode(display=False) as counter:
        torch.softmax(q @ k.mT, -1) @ v
    assert counter.get_total_flops() == 2 * TINY.attention_flops


def test_rates_are_flops_over_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "_once", lambda device, work: 0.5)
    (rate,) = measure_compute(CPU, [torch.float32], shape=TINY, budget_s=0.01)
    assert rate.dtype == "float32"
    assert rate.matmul_flops_per_s == TINY.matmul_flops / 0.5
    assert rate.attention_forward_flops_per_s == TINY.attention_flops / 0.5
    assert rate.attention_backward_flops_per_s == 2.5 * TINY.attention_flops / 0.5


def test_the_median_counts_and_the_first_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([100.0, 1.0, 9.0, 2.0])
    monkeypatch.setattr(compute, "_once", lambda device, work: next(seconds))
    assert compute._seconds(CPU, lambda: None, budget_s=5.0) == 2.0


def test_it_runs() -> None:
    rates = measure_compute(CPU, shape=TINY, budget_s=0.001)
    assert [rate.dtype for rate in rates] == ["bfloat16", "float32"]
    for rate in rates:
        assert 0 < rate.matmul_flops_per_s < 1e15
        assert 0 < rate.attention_forward_flops_per_s < 1e15
        assert 0 < rate.attention_backward_flops_per_s < 1e15


def test_a_gpu_without_bfloat16_is_measured_in_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    for is_known, dtype in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda known=is_known, **_: known)
        assert compute.default_dtypes(torch.device("cuda")) == (dtype, torch.float32)
        assert compute.default_dtypes(CPU) == (torch.bfloat16, torch.float32)


def test_a_budget_is_above_zero() -> None:
    with pytest.raises(ValueError, match="budget_s is 0"):
        measure_compute(CPU, budget_s=0)


def test_a_gpu_is_measured_at_a_larger_layer() -> None:
    large, small = default_shape(torch.device("cuda")), default_shape(CPU)
    assert large.matmul_flops > 100 * small.matmul_flops


def test_memory_is_copied() -> None:
    assert 1e7 < memory_rate(CPU, 1 << 20) < 1e13


def test_there_are_as_many_gpus_as_torch_sees() -> None:
    assert len(probe_gpus(measure=False)) == torch.cuda.device_count()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_copies_of_a_gpu_are_timed() -> None:
    gpu = probe_gpus()[0]
    assert gpu.name == torch.cuda.get_device_name(0)
    assert gpu.d2h_bytes_per_s is not None
    assert gpu.h2d_bytes_per_s is not None
    assert gpu.memory_bytes_per_s is not None
    # PCIe Gen3 x4 and Gen6 x16 are the ends of what there is; its own memory is faster.
    assert 1e9 < gpu.d2h_bytes_per_s < 500e9
    assert 1e9 < gpu.h2d_bytes_per_s < 500e9
    assert gpu.memory_bytes_per_s > 100e9
