"""Train a small Llama on long text, in one process or over several that share each sequence.

    python examples/finetune.py
    torchrun --nproc-per-node 2 examples/finetune.py
    accelerate launch --config_file examples/configs/fsdp2.yaml examples/finetune.py
    accelerate launch --config_file examples/configs/zero3.yaml examples/finetune.py

Each of several processes runs its share of a sequence's tokens, and prints the same loss as one
alone. Without GPUs, accelerate takes DDP whatever the configuration says. Needs accelerate:
pip install 'memo-offload[trainer]'. The model is random and reads bytes, so that nothing is
downloaded.
"""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, LlamaConfig

import memo

accelerator = Accelerator(
    cpu=not torch.cuda.is_available(),
    parallelism_config=memo.parallelism_config(),  # all processes share each sequence
)
text = Path(argparse.__file__).read_bytes()[:8_192]
dataset = [torch.tensor(list(text))] * 3
config = LlamaConfig(
    vocab_size=256,
    hidden_size=256,
    intermediate_size=768,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
)
torch.manual_seed(0)  # the same weights in every process
model = AutoModelForCausalLM.from_config(config)  # or .from_pretrained("your/model")

model = memo.wrap(model, sequence_parallel=accelerator.num_processes)

optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
trained, optimizer, loader = accelerator.prepare(
    model,
    optimizer,
    DataLoader(dataset, batch_size=1),  # type: ignore[arg-type]  # a list is one
)
trained.train()
for step, input_ids in enumerate(loader):
    loss = trained(input_ids=input_ids, labels=input_ids).loss
    accelerator.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
    accelerator.print(f"step {step + 1}: loss {loss.item():.4f}")

accelerator.print(memo.report(model))
accelerator.end_training()
