"""`memo plan` from end to end: what it prints, writes and refuses."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from memo.planning import cli
from memo.planning.cli import plan
from planner.plan import Plan
from planner.swap import solver
from tests.memo.planning.common import llama

ASKED = {
    *("fits", "binding", "step_s", "mfu", "tokens_per_s", "peak_device_bytes"),
    *("peak_host_bytes", "ssd_bytes", "ssd_written_bytes_per_step", "exposed_s"),
    *("longest_tokens",),
}

DEGREE_4 = ("--gpus", "4", "--sequence-parallel", "4")


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


TOO_MUCH = ("--tokens", "1M", "--gpu-memory", "256MB")


def test_what_does_not_fit_says_what_is_missing(model: Path) -> None:
    result = on_l4(model, *TOO_MUCH, "--json")
    assert result.exit_code == 1, result.output
    figures = json.loads(result.stdout)
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
        (("--tokens", "-1"), "tokens is '-1'"),
        (("--tokens=-1",), "tokens is '-1'"),
        (("--tokens", "4k", "--gpu-memory", "0"), "gpu_memory is '0'"),
        (("--tokens", "4k", "--endurance-tbw", "10"), "endurance_tbw is given, and no ssd"),
        (("--tokens", "4k", "--step-tolerance", "2"), "step_tolerance is 2.0"),
        (("--sweep", "tokens=4K..8K", "-o", "plan.json"), "--output takes one plan"),
        (("--tokens", "4k", "-o", "/nowhere/plan.json"), "--output is /nowhere/plan.json"),
        (("--tokens", "4k", "-o", "/"), "--output is /: takes a file"),
        (("--tokens", "4k", "--report", "/"), "--report is /: takes a file"),
        (("--tokens", "4k", "--trace", "/"), "--trace is /: takes a file"),
        (("--tokens", "4k", "--trace", "/nowhere/step.json"), "--trace is /nowhere/step.json"),
        (("--sweep", "tokens=4K..8K", "--trace", "step.json"), "--trace takes one plan"),
        (("--tokens", "4k", "-o", "a", "--trace", "a"), "--output and --trace are written to"),
        (
            ("--sweep", "tokens=3,4K", *DEGREE_4),
            "tokens of a sweep is 3: 4 GPUs that share",
        ),
        (
            (*("--sweep", "tokens=7,4K", "--sweep", "gpus=4,8"), *DEGREE_4),
            "tokens of a sweep is 7: 8 GPUs that share",
        ),
        (("--tokens", "4k", "--host-memory", "0"), "host_memory is '0'"),
        (("--tokens", "4k", "--zero", "1"), "zero is 1: one GPU"),
    ],
)
def test_refusals(model: Path, arguments: tuple[str, ...], message: str) -> None:
    assert refused(on_l4(model, *arguments)).startswith(message)


def test_unknown_names_are_refused_with_others(model: Path) -> None:
    result = invoke(model, "--tokens", "4k", "--gpu", "h100-8gb", "--host-memory", "1TB")
    assert "did you mean" in refused(result)
    missing = model.parent / f"{model.name}s"
    result = invoke(missing, "--tokens", "4k", "--gpu", "h100", "--host-memory", "1TB")
    assert f"no such file or folder; here is {model}" in refused(result)


def test_a_number_of_tokens_that_is_none_is_refused_before_the_model() -> None:
    assert refused(invoke("/nowhere/llama", "--tokens", "-1")).startswith("tokens is '-1'")
    emulated = invoke("/nowhere/llama", "--tokens", "-1", "--emulate-rank", "0")
    assert refused(emulated).startswith("tokens is '-1'")


@pytest.mark.parametrize(
    "given",
    [
        *(("--batch", "1"), ("--train", "full"), ("--zero", "0"), ("--offload-optimizer", "host")),
        *(("--gpu", "l4"), ("--gpus", "2"), ("--gpu-memory", "8GB"), ("--host-memory", "1GB")),
        *(("--ssd", "1TB@1GB/s"), ("--pcie", "8GB/s"), ("--endurance-tbw", "600")),
        *(("--step-tolerance", "0.1"), ("--output", "a"), ("--report", "a"), ("--trace", "a")),
    ],
)
def test_emulating_a_rank_takes_nothing_that_it_would_pass_over(
    given: tuple[str, str], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[dict[str, object]] = []
    monkeypatch.setattr(cli, "_emulate", lambda *_, **named: ran.append(named))
    taken = [*("--tokens", "4k", "--sequence-parallel", "2", "--emulate-rank", "1", "--json")]
    taken += ["--dtype", "float32", "--tile-tokens", "128"]
    message = refused(invoke(model, *taken, *given))
    assert message.startswith(f"{given[0]} is not taken by --emulate-rank")
    assert not ran
    assert invoke(model, *taken).exit_code == 0
    assert [one["rank"] for one in ran] == [1]


def test_the_step_is_written_as_a_trace(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "step.json"
    result = on_l4(model, "--tokens", "20k", "--json", "--trace", path)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    (process,) = [e["args"]["name"] for e in events if e["name"] == "process_name"]
    assert process.endswith(", 20K tokens")
    spans = [e for e in events if e["ph"] == "X"]
    assert max(e["ts"] + e["dur"] for e in spans) == pytest.approx(told["step_s"] * 1e6)
    memory = [e["args"]["bytes"] for e in events if e["ph"] == "C" and e["name"] == "device"]
    assert max(memory) == told["peak_device_bytes"]


def test_what_does_not_fit_is_not_written_and_said(model: Path, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("plan.json", "step.json")]
    result = on_l4(model, *TOO_MUCH, "-o", files[0], "--trace", files[1])
    assert result.exit_code == 1, result.output
    assert result.stdout.startswith("does not fit: ")
    assert "more on each GPU would do" in result.stdout
    assert "tokens fit, by simulated steps" in " ".join(result.stdout.split())
    for path in files:
        assert f"{path} is not written: nothing fits" in result.stderr
        assert not path.exists()


@pytest.mark.long
def test_what_does_not_fit_has_a_page(model: Path, tmp_path: Path) -> None:
    result = on_l4(model, *TOO_MUCH, "--report", tmp_path / "page.html")
    assert result.exit_code == 1, result.output
    assert (tmp_path / "page.html").exists()


def test_a_plan_is_printed_when_its_file_cannot_be_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Plan, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Plan, "save", full)
    result = on_l4(model, "--tokens", "4k", "-o", tmp_path / "plan.json")
    assert result.exit_code == 1
    assert result.stdout.startswith("fits: ")
    assert "plan.json: No space left on device" in result.stderr


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
