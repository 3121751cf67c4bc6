"""`memo doctor` from the command line, on this machine."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner, Result

from memo.doctor import probe
from memo.doctor.cli import doctor
from memo.doctor.compute import measure_compute
from memo.doctor.gpu import memory_rate
from tests.memo.doctor.test_compute import TINY


def invoke(*arguments: object) -> Result:
    app = typer.Typer()
    app.command()(doctor)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real measurements, of small things."""

    def measure(device: torch.device, **options: object) -> object:
        return measure_compute(device, shape=TINY, budget_s=0.001)

    monkeypatch.setattr(probe, "measure_compute", measure)
    monkeypatch.setattr(probe, "memory_rate", partial(memory_rate, size_bytes=1 << 20))


@pytest.mark.usefixtures("quick")
def test_it_measures_and_prints_a_table(tmp_path: Path) -> None:
    result = invoke(tmp_path, "--size", "1MiB")
    assert result.exit_code == 0, result.output
    for word in ("memo doctor", "compute", "writes", "memlock", "versions"):
        assert word in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick")
def test_json_has_what_was_measured(tmp_path: Path) -> None:
    result = invoke(tmp_path, "--size", "1MiB", "--json")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    (disk,) = data["machine"]["disks"]
    assert disk["directory"] == str(tmp_path)
    assert disk["write_bytes_per_s"] > 0
    assert [rate["dtype"] for rate in data["machine"]["compute"]] == ["bfloat16", "float32"]
    assert data["machine"]["host"]["installed_bytes"] > 0
    assert {"name", "value", "verdict", "advice"} == set(data["findings"][0])


def test_asking_writes_and_times_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("measured")

    for name in ("measure_compute", "memory_rate", "probe_disk"):
        monkeypatch.setattr(probe, name, refuse)
    result = invoke(tmp_path, "--no-measure", "--json")
    assert result.exit_code == 0, result.output
    machine = json.loads(result.stdout)["machine"]
    (disk,) = machine["disks"]
    assert disk["free_bytes"] > 0
    assert disk["write_bytes_per_s"] is None
    assert machine["compute"] == []
    assert machine["memory_bytes_per_s"] is None


@pytest.mark.parametrize("options", [(), ("--no-measure",), ("--no-measure", "--json")])
@pytest.mark.usefixtures("quick")
def test_a_directory_that_is_missing_is_told_at_the_end(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    missing = tmp_path / "missing"
    result = invoke(tmp_path, missing, "--size", "1MiB", *options)
    assert result.exit_code == 1
    assert "versions" in result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert line == f"error: {missing}: No such file or directory: name a directory that is there"


@pytest.mark.parametrize("size", ["0", "3Q", "lots", "-1GB"])
def test_a_bad_size_is_one_line(size: str) -> None:
    result = invoke(f"--size={size}")
    assert result.exit_code == 1
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith(f"error: --size is '{size}'")
