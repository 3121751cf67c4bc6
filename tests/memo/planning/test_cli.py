"""`memo plan` from end to end: what it prints, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from memo.planning.cli import plan
from planner.contracts import Plan
from planner.swap import solver
from tests.memo.planning.common import llama

ASKED = {
    *("fits", "binding", "step_s", "mfu", "tokens_per_s", "peak_device_bytes"),
    *("peak_host_bytes", "ssd_bytes", "ssd_written_bytes_per_step", "exposed_s"),
    *("longest_tokens",),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    llama(num_hidden_layers=3).save_pretrained(folder)
    return folder


def invoke(*arguments: object) -> Result:
    app = typer.Typer()
    app.command()(plan)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def on_l4(model: Path, *arguments: object) -> Result:
    return invoke(model, "--gpu", "l4", "--host-memory", "64GB", *arguments)


def refused(result: Result) -> str:
    """Return the one line of a refusal."""
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0].removeprefix("error: ")


def test_json_has_the_figures_and_the_plan_is_written(model: Path, tmp_path: Path) -> None:
    output = tmp_path / "plan.json"
    result = on_l4(model, "--tokens", "20k", "--json", "-o", output)
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert set(figures) >= ASKED
    assert figures["fits"] is True
    found = Plan.load(output)
    assert found.workload.tokens == 20 * 1024
    told = found.predictions
    assert figures["step_s"] == told.step_s
    assert figures["exposed_s"] == sum(told.exposed_s.values())
    assert figures["longest_tokens"] == told.longest_tokens
    assert figures["longest_tokens"] > 20 * 1024


def test_the_text_says_what_was_asked(model: Path) -> None:
    result = on_l4(model, "--tokens", "20k", "--ssd", "1TB@1GB/s")
    assert result.exit_code == 0, result.output
    for text in ("fits: ", "20K tokens", "GPU memory", "host memory", "SSD", "tokens/s", "MFU"):
        assert text in result.stdout
    for text in ("bound by", "layers 0 to 2", "layout", "longest", "PyTorch's allocator"):
        assert text in result.stdout


def test_what_does_not_fit_says_what_is_missing(model: Path) -> None:
    arguments = ("--tokens", "1M", "--gpu-memory", "256MB")
    result = on_l4(model, *arguments)
    assert result.exit_code == 1, result.output
    assert result.stdout.startswith("does not fit: ")
    assert "more on each GPU would do" in result.stdout
    assert "tokens fit" in result.stdout
    figures = json.loads(on_l4(model, *arguments, "--json").stdout)
    assert figures["fits"] is False
    assert "device" in figures["binding"]
    assert set(figures) >= ASKED
    assert 0 < figures["longest_tokens"] < 1 << 20
    assert figures["missing_bytes"]["device"] > 0


def test_a_sweep_is_a_table_and_a_list(model: Path) -> None:
    result = on_l4(model, "--sweep", "tokens=4K..16K")
    assert result.exit_code == 0, result.output
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["tokens", "4K", "8K", "16K"]
    assert "node's host" in result.stdout.splitlines()[0]
    told = json.loads(on_l4(model, "--sweep", "tokens=4K,5K", "--json").stdout)
    assert [one["workload"]["tokens"] for one in told] == [4096, 5120]


def test_a_sweep_over_gpus_has_a_row_for_each_and_the_nodes_figures(model: Path) -> None:
    sweeps = ("--sweep", "tokens=8K", "--sweep", "gpus=1..4", "--gpus", "2")
    told = json.loads(on_l4(model, *sweeps, "--offload-optimizer", "host", "--json").stdout)
    assert [one["workload"]["ranks"] for one in told] == [1, 2, 4]
    for one in told:
        ranks = one["workload"]["ranks"]
        assert one["hardware"]["gpus"] == ranks
        assert one["node_peak_host_bytes"] == ranks * one["peak_host_bytes"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tokens", "1.5M"), "tokens is '1.5M'"),
        (("--tokens", "0"), "tokens is '0'"),
        ((), "takes either --tokens or --sweep"),
        (("--tokens", "4k", "--sweep", "tokens=4K..8K"), "takes either --tokens or --sweep"),
        (("--sweep", "gpus=1..8"), "--sweep has no tokens"),
        (("--sweep", "tokens=4K", "--sweep", "gpus=1K..8K"), "--sweep is 'gpus=1K..8K'"),
        (("--sweep", "tokens=4K", "--sweep", "tokens=8K"), "--sweep is 'tokens=8K'"),
        (("--sweep", "tokens=8K..4K"), "--sweep is '8K..4K': takes two numbers"),
        (("--sweep", "lots"), "--sweep is 'lots'"),
        (("--tokens", "-5"), "tokens is '-5'"),
        (("--tokens", "4k", "--gpu-memory", "0"), "gpu_memory is '0'"),
        (("--tokens", "4k", "--endurance-tbw", "10"), "endurance_tbw is given, and no ssd"),
        (("--tokens", "4k", "--step-tolerance", "2"), "step_tolerance is 2.0"),
        (("--sweep", "tokens=4K..8K", "-o", "plan.json"), "--output takes one plan"),
        (("--tokens", "4k", "-o", "/nowhere/plan.json"), "--output is /nowhere/plan.json"),
        (("--tokens", "4k", "--host-memory", "0"), "host_memory is '0'"),
        (("--tokens", "4k", "--zero", "1"), "zero is 1: one GPU"),
    ],
)
def test_refusals(model: Path, arguments: tuple[str, ...], message: str) -> None:
    assert refused(on_l4(model, *arguments)).startswith(message)


def test_unknown_names_are_refused_with_others(model: Path) -> None:
    result = invoke(model, "--tokens", "4k", "--gpu", "h100-8gb", "--host-memory", "1TB")
    assert "did you mean" in refused(result)
    result = invoke("/nowhere/llama", "--tokens", "4k", "--gpu", "h100", "--host-memory", "1TB")
    assert "names like it: llama" in refused(result)


def test_what_is_written_and_how_long_disks_last_is_printed(model: Path) -> None:
    asked = ("--tokens", "4k", "--ssd", "1TB@1GB/s", "--endurance-tbw", "600")
    quiet = on_l4(model, *asked)
    assert "none: nothing is written" in quiet.stdout
    busy = on_l4(model, *asked, "--offload-optimizer", "ssd")
    assert "a day written by the node; its disks last" in busy.stdout
    told = json.loads(on_l4(model, *asked, "--offload-optimizer", "ssd", "--json").stdout)
    assert told["ssd_days"] == pytest.approx(600e12 / told["node_ssd_written_bytes_per_day"])


def test_a_missing_or_slow_solver_is_told_in_a_line(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(solver, "installed_solvers", lambda: ())
    assert refused(on_l4(model, "--tokens", "4k")).startswith("no solver is installed")
