"""DeepSpeed on a CPU, as ranks in tests have it.

Scope: helpers. Its operators are C++ that it compiles when they are first used: tests use none that
is not there, for that takes minutes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import nn


def set_up_deepspeed() -> None:
    """In a rank's process, which is ours, before DeepSpeed starts."""
    os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": str(dist.get_rank())}
    os.environ["XDG_CACHE_HOME"] = str(_user_cache())
    import deepspeed.ops

    # An all-reduce that only inference calls, and that every start would compile.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def is_compiled(operator: str) -> bool:
    """Whether the user of this machine has it."""
    return any(_user_cache().glob(f"torch_extensions/*/{operator}/{operator}.so"))


def _user_cache() -> Path:
    """Tests are at no home; operators stay in the user's."""
    import pwd

    return Path(pwd.getpwuid(os.getuid()).pw_dir, ".cache")


def under_deepspeed(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    zero: Mapping[str, Any],
    *,
    accumulation: int = 1,
    clip: float | None = None,
) -> Any:
    """The engine of a model; `zero` is `zero_optimization` of DeepSpeed's configuration."""
    set_up_deepspeed()
    import deepspeed

    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        dist_init_required=False,
        config={
            "train_micro_batch_size_per_gpu": 2,
            "gradient_accumulation_steps": accumulation,
            "gradient_clipping": clip or 0.0,
            "zero_optimization": dict(zero),
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        },
    )
    return engine
