"""Hugging Face's `Trainer`: wrap the model, and train as ever, in one process or over several.

    python examples/trainer.py
    torchrun --nproc-per-node 2 examples/trainer.py
    torchrun --nproc-per-node 8 examples/trainer.py --deepspeed examples/configs/zero3.json
    torchrun --nproc-per-node 8 examples/trainer.py --fsdp true --fsdp_config \
        examples/configs/fsdp2.json

All processes share each sequence; any other argument of `TrainingArguments` may follow. Needs
accelerate, as `Trainer` itself does: pip install 'memo-offload[trainer]'. DeepSpeed (zero2.json
and zero3.json) and FSDP are for GPUs: accelerate has neither on CPUs. Leave
`gradient_checkpointing` off: memo takes its place.
"""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import (
    AutoModelForCausalLM,
    HfArgumentParser,
    LlamaConfig,
    Trainer,
    TrainingArguments,
)

import memo

TOKENS = 4_096

parser = HfArgumentParser(TrainingArguments)  # type: ignore[arg-type]  # a dataclass, it is
parser.set_defaults(
    per_device_train_batch_size=1,
    gradient_accumulation_steps=2,
    max_steps=3,
    learning_rate=1e-3,
    logging_steps=1,
    save_strategy="no",
    report_to="none",
    use_cpu=not torch.cuda.is_available(),
    parallelism_config=memo.parallelism_config(),  # all processes share each sequence
)
text = Path(argparse.__file__).read_bytes()
windows = [list(text[start : start + TOKENS]) for start in range(0, 4 * TOKENS, TOKENS)]
dataset = [{"input_ids": window, "labels": window} for window in windows]
config = LlamaConfig(
    vocab_size=256,
    hidden_size=256,
    intermediate_size=768,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
)

with TemporaryDirectory() as output:
    (arguments,) = parser.parse_args_into_dataclasses(["--output_dir", output, *sys.argv[1:]])
    torch.manual_seed(0)  # the same weights in every process
    model = AutoModelForCausalLM.from_config(config)  # or .from_pretrained("your/model")
    memo.wrap(model, sequence_parallel=arguments.world_size)
    trainer = Trainer(model=model, args=arguments, train_dataset=dataset)
    trainer.train()
    trainer.save_model(str(Path(output, "model")))
    if trainer.is_world_process_zero():
        print(memo.report(model))
