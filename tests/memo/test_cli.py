"""The command line from end to end on a tiny model: what it writes, prints and refuses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner, Result

from memo.cli import app
from memo.training.checkpoint import CHECKPOINT_NAME
from memo.training.finetune import STEPS_NAME

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def invoke(arguments: Sequence[object]) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def losses(folder: Path) -> list[float]:
    lines = (folder / STEPS_NAME).read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["step"] for record in records] == list(range(len(records)))
    return [record["loss"] for record in records]


class Train:
    """`memo train` on the tiny model, with options that make it quick."""

    def __init__(self, model: Path, data: Path) -> None:
        self.options: list[object] = ["train", "--model", model, "--data", data]
        self.options += ["--tokens", 300, "--tile-tokens", 128, "--lr", 0.01]

    def __call__(self, output: Path, *more: object) -> Result:
        # The last of two equal options counts, so a test can change any of them.
        return invoke([*self.options, "--output", output, *more])


@pytest.fixture
def train(tiny_model: Path, long_text: Path) -> Train:
    return Train(tiny_model, long_text)


def refused(result: Result) -> str:
    """Return the one line of a refusal, after the checks that hold for all of them."""
    assert result.exit_code == 1, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def test_train_writes_a_model_that_learned_and_loads(
    train: Train, tiny_model: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    result = train(output, "--steps", 12)
    assert result.exit_code == 0, result.output
    assert "LlamaDecoderLayer" in result.stdout  # the runtime's report
    found = losses(output)
    assert len(found) == 12
    assert sum(found[-3:]) < sum(found[:3])
    trained = AutoModelForCausalLM.from_pretrained(output)
    first = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert trained.state_dict().keys() == first.state_dict().keys()
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(trained.state_dict()[name], first.state_dict()[name])
    assert AutoTokenizer.from_pretrained(output).eos_token_id == trained.config.eos_token_id


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_two_steps_and_two_resumed_are_four(train: Train, tmp_path: Path, dtype: str) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert train(whole, "--steps", 4, "--dtype", dtype).exit_code == 0
    assert train(halves, "--steps", 2, "--dtype", dtype).exit_code == 0
    assert losses(halves) == losses(whole)[:2]
    resumed = train(halves, "--steps", 4, "--dtype", dtype, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert "resumed after step 2" in resumed.stdout
    assert losses(halves) == losses(whole)
    ours, theirs = (
        AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (halves, whole)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_resumed_run_keeps_the_dtype_that_was_chosen(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for faster in (torch.bfloat16, torch.float32):
        output = tmp_path / str(faster)
        monkeypatch.setattr("memo.training.models._matmul_s", lambda d, _, f=faster: d != f)
        assert train(output, "--steps", 1).exit_code == 0
        monkeypatch.setattr("memo.training.models._matmul_s", lambda d, _, f=faster: d == f)
        assert train(output, "--steps", 2, "--resume").exit_code == 0
        assert AutoModelForCausalLM.from_pretrained(output).dtype == faster


def test_resuming_with_fewer_steps_than_there_are_is_refused(train: Train, tmp_path: Path) -> None:
    assert train(tmp_path / "out", "--steps", 2).exit_code == 0
    assert "has 2 steps already" in refused(train(tmp_path / "out", "--steps", 1, "--resume"))


def test_resuming_a_run_that_is_done_says_so(train: Train, tmp_path: Path) -> None:
    assert train(tmp_path / "out", "--steps", 2).exit_code == 0
    written = losses(tmp_path / "out")
    again = train(tmp_path / "out", "--steps", 2, "--resume")
    assert again.exit_code == 0, again.output
    assert "had all its steps already: nothing was trained" in again.stdout
    assert "?" not in again.stdout
    assert losses(tmp_path / "out") == written


def test_an_interrupted_run_goes_on_from_its_checkpoint(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train(whole, "--steps", 5).exit_code == 0
    monkeypatch.setattr("memo.training.finetune.run_step", _interrupted_at(3))
    stopped = train(cut, "--steps", 5, "--save-every", 2)
    assert stopped.exit_code == 130
    assert "--resume" in stopped.stderr
    monkeypatch.undo()
    assert len(losses(cut)) == 3  # the third step was done, and is lost with the rest
    assert train(cut, "--steps", 5, "--resume").exit_code == 0
    assert losses(cut) == losses(whole)


def _interrupted_at(last: int) -> object:
    from memo.training.loop import run_step

    def run(*arguments: object, step: int) -> object:
        if step == last:
            raise KeyboardInterrupt
        return run_step(*arguments, step=step)  # type: ignore[arg-type]

    return run


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--data", "absent.txt"], "absent.txt: there is no such file or folder"),
        (
            ["--model", "/absent/model"],
            "cannot load the model /absent/model: there is no such file",
        ),
        (["--tokens", "100000"], "one sequence takes 100,000"),
        (["--placement", "moon"], "moon"),
        (["--placement", "host=some"], "--placement"),
        (["--skeletal", "moon"], "moon"),
        (["--tile-tokens", "few"], "--tile-tokens"),
        (["--tile-tokens", "0"], "tile_tokens"),
        (["--device", "abacus"], "no such device"),
        (["--resume"], "cannot resume"),
    ],
)
def test_what_it_cannot_use_is_refused_in_one_line(
    train: Train, tmp_path: Path, options: list[str], reason: str
) -> None:
    output = tmp_path / "out"
    assert reason in refused(train(output, *options))
    assert not output.exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--placement", "moon"], "placement='moon'"),
        (["--skeletal", "ssd"], "without spill_dir"),
        (["--placement", "ssd", "--spill-dir", "/absent/disk"], "--spill-dir is /absent/disk"),
        (["--verify", "checksum"], "there is no spill_dir"),
    ],
)
def test_options_are_refused_before_anything_is_read(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], reason: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("read")

    for name in ("find_model", "load_tokenizer", "read_documents", "load_model"):
        monkeypatch.setattr(f"memo.training.finetune.{name}", refuse)
        monkeypatch.setattr(f"memo.training.demo.{name}", refuse)
    assert reason in refused(train(tmp_path / "out", *options))
    assert reason in refused(invoke(["demo", "--output", tmp_path / "out", *options]))
    assert not (tmp_path / "out").exists()


def test_unreadable_data_is_refused_by_name(train: Train, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(PNG_SIGNATURE)
    assert str(path) in refused(train(tmp_path / "out", "--data", path))


def test_a_folder_in_use_is_left_alone(train: Train, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"precious")
    assert "not empty" in refused(train(tmp_path))
    assert (tmp_path / "model.safetensors").read_bytes() == b"precious"
    assert "it is a file" in refused(train(tmp_path / "model.safetensors"))


def test_resuming_another_run_is_refused(train: Train, tmp_path: Path) -> None:
    assert train(tmp_path / "out", "--steps", 1).exit_code == 0
    line = refused(train(tmp_path / "out", "--resume", "--seed", 5))
    assert "with seed 0, not 5" in line


def test_a_loss_that_is_no_number_stops_before_saving(train: Train, tmp_path: Path) -> None:
    output = tmp_path / "out"
    line = refused(train(output, "--steps", 40, "--lr", 1e30, "--save-every", 1))
    assert "has a loss of" in line
    assert not (output / "model.safetensors").exists()
    state = torch.load(output / CHECKPOINT_NAME, weights_only=True)
    assert state["step"] == len(losses(output))


def test_help_names_the_commands() -> None:
    result = invoke(["--help"])
    assert result.exit_code == 0
    assert "train" in result.stdout
    assert "demo" in result.stdout


def test_usage_errors_have_their_own_status() -> None:
    assert invoke(["train", "--tokens", "none"]).exit_code == 2
