"""Machines that are none: one on which all is well, to be changed in a test.

Scope: data.
"""

from __future__ import annotations

from memo.doctor.contracts import ComputeRate, DiskProbe, GpuProbe, HostMemory, Machine

GB = 10**9
BF16 = ComputeRate(
    dtype="bfloat16",
    matmul_flops_per_s=700e12,
    attention_forward_flops_per_s=600e12,
    attention_backward_flops_per_s=500e12,
)
FP32 = ComputeRate(
    dtype="float32",
    matmul_flops_per_s=50e12,
    attention_forward_flops_per_s=40e12,
    attention_backward_flops_per_s=30e12,
)
H100 = GpuProbe(
    name="NVIDIA H100 80GB HBM3",
    memory_bytes=85 * GB,
    free_bytes=84 * GB,
    d2h_bytes_per_s=54e9,
    h2d_bytes_per_s=55e9,
    memory_bytes_per_s=3e12,
)
DISK = DiskProbe(
    directory="/scratch",
    device=7,
    size_bytes=7000 * GB,
    free_bytes=6000 * GB,
    engine="io_uring",
    io_uring="",
    fixed_bytes=64 << 20,
    is_fixed=True,
    is_direct=True,
    write_bytes_per_s=5e9,
    read_bytes_per_s=6e9,
)
WELL = Machine(
    processor="A processor",
    cores=16,
    host=HostMemory(installed_bytes=1000 * GB, available_bytes=900 * GB),
    memlock_bytes=None,
    huge_pages="madvise",
    versions={"python": "3.12.0", "torch": "2.13.0"},
    memory_bytes_per_s=20e9,
    gpus=(H100,),
    disks=(DISK,),
    compute=(BF16, FP32),
)
