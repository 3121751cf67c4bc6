"""Verdicts: nothing is said of a machine that is well, and each ill has its advice."""

from __future__ import annotations

from dataclasses import replace

import pytest

from memo.doctor.contracts import DiskProbe, Finding, HostMemory, Machine, Verdict
from memo.doctor.show import findings_table, summary
from memo.doctor.verdicts import findings
from tests.memo.doctor.machines import BF16, DISK, FP32, GB, H100, WELL


def find(machine: Machine, name: str) -> Finding:
    (found,) = [finding for finding in findings(machine) if finding.name == name]
    return found


def ills(machine: Machine) -> list[str]:
    return [finding.name for finding in findings(machine) if finding.verdict is not Verdict.OK]


def test_a_machine_that_is_well_has_no_ills() -> None:
    assert ills(WELL) == []
    assert summary(findings(WELL)) == "nothing stands in the way"


def test_without_a_gpu_the_processor_is_named() -> None:
    found = find(replace(WELL, gpus=()), "device")
    assert found.value == "A processor, 16 cores"
    assert found.verdict is Verdict.NOTE


def test_others_on_the_device_are_noticed() -> None:
    crowded = replace(WELL, gpus=(replace(H100, free_bytes=40 * GB),))
    assert ills(crowded) == ["device 0"]
    assert "nvidia-smi" in find(crowded, "device 0").advice


@pytest.mark.parametrize("direction", ["d2h_bytes_per_s", "h2d_bytes_per_s"])
def test_a_slow_slot_is_noticed(direction: str) -> None:
    slow = replace(WELL, gpus=(replace(H100, **{direction: 25e9}),))  # type: ignore[arg-type]
    assert ills(slow) == ["copies 0"]
    assert "rated 64GB/s" in find(slow, "copies 0").advice


def test_the_slot_of_an_unknown_device_is_not_judged() -> None:
    unknown = replace(H100, name="Some GPU", d2h_bytes_per_s=1e9)
    assert ills(replace(WELL, gpus=(unknown,))) == []


def test_what_was_not_measured_has_no_line() -> None:
    asked = replace(H100, d2h_bytes_per_s=None, h2d_bytes_per_s=None)
    names = [f.name for f in findings(replace(WELL, gpus=(asked,), compute=(), disks=()))]
    assert names == ["device 0", "host memory", "memlock", "huge pages", "versions"]


def test_bfloat16_may_be_slower() -> None:
    slow = replace(WELL, compute=(replace(BF16, matmul_flops_per_s=1e12), FP32))
    assert ills(slow) == ["compute bfloat16"]
    assert find(WELL, "compute bfloat16").value == (
        "matmul 700 TFLOP/s, attention 600 forward, 500 backward"
    )


def test_a_limit_of_the_host_is_named() -> None:
    host = HostMemory(
        installed_bytes=1000 * GB, available_bytes=60 * GB, limit_bytes=64 * GB, limited_by="/x/job"
    )
    found = find(replace(WELL, host=host), "host memory")
    assert found.verdict is Verdict.NOTE
    assert found.value == "60GB available of 64GB; copies move 20GB/s"
    assert "/x/job" in found.advice


def test_memlock_warns_unless_a_trial_went_well() -> None:
    limited = replace(WELL, memlock_bytes=8 << 20)
    assert ills(limited) == []
    for disks in ((), (replace(DISK, is_fixed=None),)):
        untried = find(replace(limited, disks=disks), "memlock")
        assert (untried.verdict, untried.value) == (Verdict.NOTE, "8.39MB, which was not tried")
    failed = replace(limited, disks=(DISK, replace(DISK, directory="/b", is_fixed=False)))
    assert ills(failed) == ["registered buffers /b", "memlock"]
    assert "ulimit -l unlimited" in find(failed, "memlock").advice


def test_huge_pages_that_are_off_are_noticed() -> None:
    assert ills(replace(WELL, huge_pages="never")) == ["huge pages"]
    assert ills(replace(WELL, huge_pages="always")) == []
    assert ills(replace(WELL, huge_pages=None)) == []


@pytest.mark.parametrize(
    ("disk", "ill", "advice"),
    [
        (
            DiskProbe(directory="/x", size_bytes=1, free_bytes=1, problem="no room"),
            "disk /x",
            "no room",
        ),
        (replace(DISK, is_direct=False, notes=("no direct I/O",)), "disk /scratch", "no direct"),
        (replace(DISK, free_bytes=600 * GB), "disk /scratch", "nearly full"),
        (replace(DISK, io_uring="Operation not permitted"), "io_uring /scratch", "seccomp"),
        (replace(DISK, is_fixed=False), "registered buffers /scratch", "memlock=-1"),
    ],
)
def test_each_ill_of_a_disk_has_its_advice(disk: DiskProbe, ill: str, advice: str) -> None:
    machine = replace(WELL, disks=(disk,))
    assert ills(machine) == [ill]
    assert advice in find(machine, ill).advice


def test_a_disk_that_was_only_asked_has_its_space() -> None:
    asked = DiskProbe(directory="/x", size_bytes=1000 * GB, free_bytes=500 * GB)
    found = find(replace(WELL, disks=(asked,)), "disk /x")
    assert (found.value, found.verdict) == ("500GB free of 1TB", Verdict.OK)


def test_versions_say_what_is_missing() -> None:
    found = find(replace(WELL, versions={"torch": "2.13.0", "deepspeed": None}), "versions")
    assert (found.value, found.advice) == ("torch 2.13.0", "not installed: deepspeed")
    assert found.verdict is Verdict.OK


def test_the_table_shows_all_and_takes_brackets_as_text() -> None:
    line = Finding(name="a [b]", value="[red]c", verdict=Verdict.NOTE, advice="[d]")
    table = findings_table([line, line])
    assert table.row_count == 2
    assert list(table.columns[0].cells) == ["a \\[b]"] * 2


def test_the_summary_counts() -> None:
    ok = Finding(name="a", value="")
    note, warning = (replace(ok, verdict=v) for v in (Verdict.NOTE, Verdict.WARNING))
    assert summary([ok, note]) == "nothing stands in the way; 1 note"
    assert summary([warning, warning, note, note]) == "2 warnings, 2 notes"
    assert summary([warning]) == "1 warning"
