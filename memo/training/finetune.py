"""`memo train`: fine-tune a wrapped model on long text, save it, resume it.

The order is: refuse what can be refused before anything slow, read, load, wrap, train, save. What
the user sees meanwhile is in `show.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

import torch
from transformers import PreTrainedTokenizerBase

import memo
from memo.training.checkpoint import (
    CHECKPOINT_NAME,
    Identity,
    load_checkpoint,
    save_checkpoint,
    saved_dtype,
)
from memo.training.contracts import (
    Dtype,
    OnStep,
    RefusedInputError,
    StepRecord,
    TrainSettings,
)
from memo.training.data import Windows, encode, find_files, read_documents
from memo.training.loop import run_step
from memo.training.models import (
    check_fit,
    check_wrap_options,
    choose_device,
    choose_dtype,
    find_model,
    load_model,
    load_tokenizer,
    wrap_model,
)
from memo.training.optimizer import MasterAdamW

STEPS_NAME = "steps.jsonl"

OnNote = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a finished run leaves: where the model is, how many steps were trained now, and the
    runtime's own account of them.
    """

    output: Path
    steps: int
    report: str


class Run:
    """A training run that is ready to go: everything read, loaded, wrapped and, perhaps, resumed.

    Raises: RefusedInputError on what can't be read or used, `memo.MemoError` from `memo.wrap`.
    """

    def __init__(self, settings: TrainSettings, *, on_note: OnNote) -> None:
        self.settings = settings
        _check_output(settings)
        check_wrap_options(settings.wrap)
        find_files(settings.data, glob=settings.glob)
        device = choose_device(settings.device)
        dtype = choose_dtype(_wanted_dtype(settings), device)
        source = find_model(settings.model)
        self.tokenizer = load_tokenizer(source)
        self.windows = _read_windows(settings, self.tokenizer, on_note)
        torch.manual_seed(settings.seed)
        self.model = load_model(source, dtype=getattr(torch, dtype), device=device)
        note = check_fit(self.model.config, self.tokenizer, tokens=settings.tokens)
        if note is not None:
            on_note(note)
        wrap_model(self.model, settings.wrap)
        self.model.train()
        self.optimizer = MasterAdamW(
            self.model, lr=settings.lr, max_grad_norm=settings.max_grad_norm
        )
        self._identity = Identity(
            model=settings.model,
            data=self.windows.fingerprint(),
            tokens=settings.tokens,
            seed=settings.seed,
            dtype=dtype,
        )
        self.first_step = self._resume() if settings.resume else 0
        self.last_step = len(self.windows) if settings.steps is None else settings.steps
        if self.first_step > self.last_step:
            raise RefusedInputError(
                f"the run in {settings.output} has {self.first_step:,} steps already: "
                f"give more --steps than {self.first_step:,}"
            )

    def train(self, *, on_step: OnStep) -> Outcome:
        """Run the steps that are left, save the model, and return where it is.

        Raises: RefusedInputError if the loss is no longer a number: nothing more is saved then.
        """
        settings = self.settings
        settings.output.mkdir(parents=True, exist_ok=True)
        with _step_log(settings.output, first_step=self.first_step) as log:
            for step in range(self.first_step, self.last_step):
                record = run_step(self.model, self.optimizer, self.windows.at_step(step), step=step)
                _check_finite(record)
                log.write(json.dumps(asdict(record)) + "\n")
                on_step(record)
                if settings.save_every and (step + 1) % settings.save_every == 0:
                    self._save_checkpoint(step + 1)
        return self._finish()

    def how_to_go_on(self) -> str:
        """Return a line for the user of an interrupted run."""
        if not (self.settings.output / CHECKPOINT_NAME).exists():
            return "no checkpoint had been saved (--save-every N saves one each N steps)"
        return f"go on from the last checkpoint in {self.settings.output} with --resume"

    def _finish(self) -> Outcome:
        report = str(memo.report(self.model, endurance_tbw=self.settings.wrap.endurance_tbw))
        memo.unwrap(self.model)
        output = self.settings.output
        self._save_checkpoint(self.last_step)
        self.model.save_pretrained(output)
        self.tokenizer.save_pretrained(output)
        return Outcome(output=output, steps=self.last_step - self.first_step, report=report)

    def _resume(self) -> int:
        return load_checkpoint(
            self.settings.output, self.model, self.optimizer, identity=self._identity
        )

    def _save_checkpoint(self, step: int) -> None:
        save_checkpoint(
            self.settings.output, self.model, self.optimizer, identity=self._identity, step=step
        )


def _check_output(settings: TrainSettings) -> None:
    output = settings.output
    if output.exists() and not output.is_dir():
        raise RefusedInputError(f"cannot write to {output}: it is a file; name a folder")
    if settings.resume and not (output / CHECKPOINT_NAME).exists():
        raise RefusedInputError(
            f"cannot resume: there is no {CHECKPOINT_NAME} in {output}; start without --resume"
        )
    if settings.resume or not output.exists():
        return
    # A run that was stopped before its first checkpoint leaves its step log, and nothing to lose.
    if any(path.name != STEPS_NAME for path in output.iterdir()):
        raise RefusedInputError(
            f"{output} is not empty: go on with a run in it with --resume, or name another --output"
        )


def _wanted_dtype(settings: TrainSettings) -> Dtype:
    """Return what the user asked for; a resumed run goes on with its own rather than try again."""
    if settings.dtype != "auto" or not settings.resume:
        return settings.dtype
    return "bfloat16" if saved_dtype(settings.output) == "bfloat16" else "float32"


def _read_windows(
    settings: TrainSettings, tokenizer: PreTrainedTokenizerBase, on_note: OnNote
) -> Windows:
    ids = encode(read_documents(settings.data, glob=settings.glob), tokenizer)
    windows = Windows(ids, tokens=settings.tokens, seed=settings.seed)
    on_note(
        f"{len(ids):,} tokens of text: {len(windows):,} sequences of {settings.tokens:,}, "
        f"{windows.dropped_tokens:,} tokens left over"
    )
    return windows


def _step_log(output: Path, *, first_step: int) -> TextIO:
    """Open the log of steps for writing, with the lines of the steps that a resumed run keeps."""
    path = output / STEPS_NAME
    lines = path.read_text(encoding="utf-8").splitlines() if first_step else []
    log = path.open("w", encoding="utf-8", buffering=1)  # whole lines, also when it breaks off
    log.writelines(line + "\n" for line in lines[:first_step])
    return log


def _check_finite(record: StepRecord) -> None:
    if not (math.isfinite(record.loss) and math.isfinite(record.grad_norm)):
        raise RefusedInputError(
            f"step {record.step + 1} has a loss of {record.loss} and a gradient norm of "
            f"{record.grad_norm}: stopped; the last checkpoint, if any, is of before; "
            "try a smaller --lr, or --dtype float32"
        )
