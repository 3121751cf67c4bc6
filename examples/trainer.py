"""The quickstart with Hugging Face's `Trainer`: wrap the model, and train as ever.

Needs accelerate, as `Trainer` itself does: pip install 'memo-offload[trainer]'. Leave
`gradient_checkpointing` off: memo takes its place.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import AutoModelForCausalLM, LlamaConfig, Trainer, TrainingArguments

import memo

TOKENS = 4_096

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
model = memo.wrap(AutoModelForCausalLM.from_config(config))

with TemporaryDirectory() as output:
    arguments = TrainingArguments(
        output_dir=output,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        max_steps=3,
        learning_rate=1e-3,
        logging_steps=1,
        report_to="none",
    )
    Trainer(model=model, args=arguments, train_dataset=dataset).train()
    model.save_pretrained(Path(output, "model"))

print(memo.report(model))
