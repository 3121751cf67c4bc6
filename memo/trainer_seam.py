"""Hugging Face's `Trainer` and accelerate told that ranks share each sequence: one argument, and
their data loaders give all ranks of a group the same samples.

Scope: the argument. What it does to an accelerator stands in `accelerated.py`, which needs
accelerate; nothing here does until it is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from offload import MemoError

if TYPE_CHECKING:
    from accelerate import ParallelismConfig


def parallelism_config(sequence_parallel: int | None = None) -> ParallelismConfig:
    """What `transformers.TrainingArguments` and `accelerate.Accelerator` take as
    `parallelism_config` when the model is wrapped with `sequence_parallel`:

        arguments = TrainingArguments(..., parallelism_config=memo.parallelism_config(8))
        model = memo.wrap(model, sequence_parallel=8)
        Trainer(model, arguments, ...).train()

    Runs of `sequence_parallel` consecutive ranks (None: all ranks of the job) are given the same
    samples, and different runs different ones: in training with shuffling, after a resume, and in
    evaluation, whose metrics count each sample once (`compute_metrics` wants logits, and so a model
    wrapped with `tiled_loss=False`). Steps per epoch and learning rates count
    groups, not ranks. The engine (DDP, FSDP2, DeepSpeed's ZeRO) goes on averaging over all ranks,
    as `memo.wrap` asks for. What the config changes are methods of the accelerators made with it.

    What `Trainer` tells of its throughput counts every rank, and is `sequence_parallel` times too
    large: the total batch size, samples per second of training, `num_input_tokens_seen`,
    `total_flos`.

    Raises:
        ValueError: for what is no number of ranks.
        MemoError: without an accelerate that has `ParallelismConfig`.
    """
    if sequence_parallel is not None:
        _check_number(sequence_parallel)
    try:
        from memo.accelerated import SequenceParallelism
    except ImportError as error:
        raise MemoError(
            f"parallelism_config needs accelerate 1.12 or later, and it is not there ({error}): "
            "pip install 'memo-offload[trainer]'"
        ) from error
    return SequenceParallelism(sequence_parallel)


def _check_number(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"sequence_parallel={value!r}: takes a number of ranks")
    if value < 1:
        raise ValueError(f"sequence_parallel={value}: takes 1 or more")
