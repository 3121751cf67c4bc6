"""Train a small Llama on 8,192 tokens of text with `memo.wrap`. Runs on a CPU in under a minute.

The model is random and reads bytes, so that nothing is downloaded. With a model of yours the lines
between `wrap` and `unwrap` stay the same.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import memo

text = Path(argparse.__file__).read_bytes()[:8_192]
input_ids = torch.tensor([list(text)])  # [batch, tokens]
config = LlamaConfig(
    vocab_size=256,
    hidden_size=256,
    intermediate_size=768,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
)
model = AutoModelForCausalLM.from_config(config)  # or .from_pretrained("your/model")

model = memo.wrap(model)  # the same object, still a Hugging Face model

model.train()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for step in range(3):
    loss = model(input_ids=input_ids, labels=input_ids).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"step {step + 1}: loss {loss.item():.4f}")

print(memo.report(model))  # what was kept, moved and recomputed, and what fell back and why
memo.unwrap(model)  # exactly as it was; save_pretrained works before as well as after
