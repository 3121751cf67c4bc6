"""GPUs by name, with the figures of their vendors' data sheets.

Scope: a table. Rates are dense: where a sheet states a rate "with sparsity", half of it stands
here. Memory is the sheet's, in decimal gigabytes: less than what CUDA reports (an "80 GB" card has
79 to 80 GiB), by about as much as the context, the libraries' workspaces and NCCL take. Links are
per direction, half of what sheets add up over both.

Sources name the vendor's sheet. The sheets themselves were not at hand when the table was checked:
it was held against what others copied from them, which `source` says in brackets; "unconfirmed" is
what was found nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

_GB = 10**9
_TERA = 1e12

_GEN3_BYTES_PER_S = 16e9
_GEN4_BYTES_PER_S = 32e9
_GEN5_BYTES_PER_S = 64e9
"""PCI Express with 16 lanes, in one direction."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One device; see `Hardware` for the fields. `aliases`: other names, as people and as CUDA give
    them.
    """

    name: str
    aliases: tuple[str, ...] = ()
    memory_bytes: int
    memory_bytes_per_s: float
    peak_flops_per_s: Mapping[str, float]
    pcie_bytes_per_s: float
    link_bytes_per_s: float | None = None
    source: str


def _tensor(half: float, single: float) -> Mapping[str, float]:
    """Dense TFLOP/s of tensor cores in bf16 and fp16, and of fp32 without TF32."""
    rates = {"bfloat16": half * _TERA, "float16": half * _TERA, "float32": single * _TERA}
    return MappingProxyType(rates)


_KLOCKWOOD = "glennklockwood.com/garden/processors"
_SCRIPTS = "get_peak_flops of several training scripts on GitHub"

_A100 = _tensor(312, 19.5)
_H100_SXM = _tensor(989, 67)

GPUS: tuple[Gpu, ...] = (
    Gpu(
        name="v100-32gb",
        aliases=("v100", "Tesla V100-SXM2-32GB", "Tesla V100-SXM3-32GB"),
        memory_bytes=32 * _GB,
        memory_bytes_per_s=900e9,
        # Its tensor cores know no bf16.
        peak_flops_per_s=MappingProxyType({"float16": 125 * _TERA, "float32": 15.7 * _TERA}),
        pcie_bytes_per_s=_GEN3_BYTES_PER_S,
        link_bytes_per_s=150e9,
        source="NVIDIA V100 Tensor Core GPU data sheet (January 2020), SXM2 "
        "[huggingface.co/RajBhope/gpu-runtime-predictor, gpu_catalog.json; links unconfirmed]",
    ),
    Gpu(
        name="a100-40gb",
        aliases=("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB"),
        memory_bytes=40 * _GB,
        memory_bytes_per_s=1555e9,
        peak_flops_per_s=_A100,
        pcie_bytes_per_s=_GEN4_BYTES_PER_S,
        link_bytes_per_s=300e9,
        source=f"NVIDIA A100 Tensor Core GPU data sheet, SXM [{_KLOCKWOOD}/A100]",
    ),
    Gpu(
        name="a100-80gb",
        aliases=("a100", "NVIDIA A100-SXM4-80GB"),
        memory_bytes=80 * _GB,
        memory_bytes_per_s=2039e9,
        peak_flops_per_s=_A100,
        pcie_bytes_per_s=_GEN4_BYTES_PER_S,
        link_bytes_per_s=300e9,
        source=f"NVIDIA A100 Tensor Core GPU data sheet, SXM [{_KLOCKWOOD}/A100]",
    ),
    Gpu(
        name="a100-pcie",
        aliases=("a100-pcie-80gb", "NVIDIA A100 80GB PCIe"),
        memory_bytes=80 * _GB,
        memory_bytes_per_s=1935e9,
        peak_flops_per_s=_A100,
        pcie_bytes_per_s=_GEN4_BYTES_PER_S,
        # NVLink by bridge joins pairs; more cards talk over PCIe.
        source="NVIDIA A100 Tensor Core GPU data sheet, PCIe "
        "[thundercompute.com/blog/nvidia-a100-specs-full-guide]",
    ),
    Gpu(
        name="a800-80gb",
        aliases=("a800", "NVIDIA A800-SXM4-80GB", "NVIDIA A800 80GB PCIe"),
        memory_bytes=80 * _GB,
        memory_bytes_per_s=2039e9,
        peak_flops_per_s=_A100,
        pcie_bytes_per_s=_GEN4_BYTES_PER_S,
        link_bytes_per_s=200e9,
        source="NVIDIA A800 Tensor Core GPU data sheet, SXM: an A100 with 400 GB/s of NVLink "
        "[rate: MEMO, arXiv 2407.12117; links unconfirmed]",
    ),
    Gpu(
        name="h100-80gb",
        aliases=("h100", "h100-sxm", "NVIDIA H100 80GB HBM3"),
        memory_bytes=80 * _GB,
        memory_bytes_per_s=3350e9,
        peak_flops_per_s=_H100_SXM,
        pcie_bytes_per_s=_GEN5_BYTES_PER_S,
        link_bytes_per_s=450e9,
        source=f"NVIDIA H100 Tensor Core GPU data sheet, SXM [{_KLOCKWOOD}/h100]",
    ),
    Gpu(
        name="h100-pcie",
        aliases=("h100-pcie-80gb", "NVIDIA H100 PCIe"),
        memory_bytes=80 * _GB,
        memory_bytes_per_s=2000e9,
        peak_flops_per_s=_tensor(756, 51),
        pcie_bytes_per_s=_GEN5_BYTES_PER_S,
        # NVLink by bridge joins pairs; more cards talk over PCIe.
        source="NVIDIA H100 Tensor Core GPU data sheet (2022), PCIe [memory: NVIDIA's product "
        f"brief PB-11133; bf16: {_SCRIPTS}; float32 unconfirmed]",
    ),
    Gpu(
        name="h200",
        aliases=("h200-141gb", "h200-sxm", "NVIDIA H200"),
        memory_bytes=141 * _GB,
        memory_bytes_per_s=4800e9,
        peak_flops_per_s=_H100_SXM,
        pcie_bytes_per_s=_GEN5_BYTES_PER_S,
        link_bytes_per_s=450e9,
        source="NVIDIA H200 Tensor Core GPU data sheet, SXM [memory and links: MLPerf Inference "
        f"4.1, system H200-SXM-141GBx8; bf16: {_SCRIPTS}; float32 unconfirmed]",
    ),
    Gpu(
        name="b200",
        aliases=("b200-180gb", "NVIDIA B200"),
        memory_bytes=180 * _GB,
        memory_bytes_per_s=8000e9,
        peak_flops_per_s=_tensor(2250, 75),
        pcie_bytes_per_s=_GEN5_BYTES_PER_S,
        link_bytes_per_s=900e9,
        source="NVIDIA DGX B200 and HGX B200 data sheets, an eighth of each "
        f"[rates: {_KLOCKWOOD}/B200, but 80 TFLOP/s of float32; memory: MLPerf Inference 6.0, "
        "system nebius_b200_n1]",
    ),
    Gpu(
        name="l40s",
        aliases=("l40s-48gb", "NVIDIA L40S"),
        memory_bytes=48 * _GB,
        memory_bytes_per_s=864e9,
        peak_flops_per_s=_tensor(362.05, 91.6),
        pcie_bytes_per_s=_GEN4_BYTES_PER_S,
        source=f"NVIDIA L40S GPU data sheet [bf16: {_SCRIPTS}]",
    ),
    Gpu(
        name="l4",
        aliases=("l4-24gb", "NVIDIA L4"),
        memory_bytes=24 * _GB,
        memory_bytes_per_s=300e9,
        peak_flops_per_s=_tensor(121, 30.3),
        pcie_bytes_per_s=_GEN4_BYTES_PER_S,
        source=f"NVIDIA L4 Tensor Core GPU data sheet [bf16: {_SCRIPTS}]",
    ),
    Gpu(
        name="a10g",
        aliases=("a10g-24gb", "NVIDIA A10G"),
        memory_bytes=24 * _GB,
        memory_bytes_per_s=600e9,
        peak_flops_per_s=_tensor(70, 35),
        pcie_bytes_per_s=_GEN4_BYTES_PER_S,
        source="NVIDIA A10G data sheet for AWS (February 2022) [memory: "
        "baseten.co/blog/nvidia-a10-vs-a10g-for-ml-model-inference; rates unconfirmed]",
    ),
    Gpu(
        name="rtx-3090",
        aliases=("3090", "NVIDIA GeForce RTX 3090"),
        memory_bytes=24 * _GB,
        memory_bytes_per_s=936e9,
        peak_flops_per_s=_tensor(71, 35.6),
        pcie_bytes_per_s=_GEN4_BYTES_PER_S,
        source="NVIDIA Ampere GA102 GPU architecture whitepaper, appendix A; fp32 accumulation "
        f"[bf16: {_SCRIPTS}]",
    ),
    Gpu(
        name="rtx-4090",
        aliases=("4090", "NVIDIA GeForce RTX 4090"),
        memory_bytes=24 * _GB,
        memory_bytes_per_s=1008e9,
        peak_flops_per_s=_tensor(165.2, 82.6),
        pcie_bytes_per_s=_GEN4_BYTES_PER_S,
        source="NVIDIA Ada GPU architecture whitepaper, appendix A; fp32 accumulation "
        f"[bf16: {_SCRIPTS}]",
    ),
    Gpu(
        name="rtx-5090",
        aliases=("5090", "NVIDIA GeForce RTX 5090"),
        memory_bytes=32 * _GB,
        memory_bytes_per_s=1792e9,
        peak_flops_per_s=_tensor(209.5, 104.8),
        pcie_bytes_per_s=_GEN5_BYTES_PER_S,
        source="NVIDIA RTX Blackwell GPU architecture whitepaper, appendix A; fp32 accumulation "
        f"[bf16: {_SCRIPTS}; memory: spheron.network/blog/nvidia-rtx-5090-specs]",
    ),
    Gpu(
        name="mi300x",
        aliases=("mi300x-192gb", "AMD Instinct MI300X"),
        memory_bytes=192 * _GB,
        memory_bytes_per_s=5300e9,
        peak_flops_per_s=_tensor(1307.4, 163.4),
        pcie_bytes_per_s=_GEN5_BYTES_PER_S,
        # Seven links of 128 GB/s both ways, one to each peer.
        link_bytes_per_s=448e9,
        source=f"AMD Instinct MI300X accelerator data sheet [bf16: {_SCRIPTS}; memory and links: "
        "emergentmind.com/topics/amd-mi300x-gpu; float32 unconfirmed]",
    ),
)
"""V100, three A100, A800, H100, H200, B200, L40S, L4, A10G, three GeForce cards, MI300X."""
