"""Train a small Llama on long text, in one process or over several that share each sequence.

    python examples/finetune.py
    torchrun --nproc-per-node 2 examples/finetune.py

Under torchrun every process is given the same sequences, runs its share of their tokens, and prints
the same loss as one process. The model is random and reads bytes, so that nothing is downloaded.
"""

import argparse
from pathlib import Path

import torch
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, LlamaConfig

import memo

if dist.is_torchelastic_launched():
    dist.init_process_group()  # nccl beside GPUs, gloo on CPUs
ranks, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
device = torch.device("cpu")
if torch.cuda.is_available():
    device = torch.device("cuda", dist.get_node_local_rank(fallback_rank=0))
    torch.cuda.set_device(device)

text = Path(argparse.__file__).read_bytes()[:8_192]
input_ids = torch.tensor([list(text)], device=device)  # [batch, tokens], whole on every rank
config = LlamaConfig(
    vocab_size=256,
    hidden_size=256,
    intermediate_size=768,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
)
torch.manual_seed(0)  # the same weights on every rank; DDP sees to it, too
model = AutoModelForCausalLM.from_config(config).to(device)  # or .from_pretrained("your/model")

model = memo.wrap(model, sequence_parallel=ranks)  # all ranks share each sequence
trained = DistributedDataParallel(model) if ranks > 1 else model

model.train()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for step in range(3):
    loss = trained(input_ids=input_ids, labels=input_ids).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if rank == 0:
        print(f"step {step + 1}: loss {loss.item():.4f}")

if rank == 0:
    print(memo.report(model))
if ranks > 1:
    dist.destroy_process_group()
