"""DeepSpeed's own offload of the optimizer, to the host and to NVMe, beside memo's tiers in one
job: weight updates under SGD with momentum are those of one process.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.engines import Training, several, train_alone
from tests.distributed.ranks import run_ranks
from tests.distributed.updates import wrong_updates
from tests.distributed.zero import is_compiled
from tests.families.harness import build

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        find_spec("deepspeed") is None, reason="pip install 'memo-offload[deepspeed]'"
    ),
]


SWAPPED = {"hidden_size": 256, "intermediate_size": 512, "vocab_size": 1024}
"""A model whose parts are swapped: DeepSpeed leaves what is less than 1 MiB a rank in memory. At
the others' learning rate its first step is so long that float32 tells little of the second one.
"""

PART_NUMBERS = (1 << 20) // 4
"""Of float32 in such a part."""


def _check(trainings: list[Training], folder: Path) -> None:
    by_rank = run_ranks(several, 2, folder, trainings, limit_s=280.0)
    for index, training in enumerate(trainings):
        start = {n: p.detach() for n, p in build(training.model_family).named_parameters()}
        added = train_alone(training, 2)
        expected = {name: start[name] + update for name, update in added.items()}
        for updates in by_rank:
            found = {name: start[name] + update for name, update in updates[index].items()}
            wrong = wrong_updates(found, expected, start, training.steps)
            assert not wrong, f"updates are off: {wrong} in {training}"


def _tiers(folder: Path) -> list[dict[str, Any]]:
    """Ways to wrap: all on a disk, and all tiers at once."""
    return [
        {"placement": "ssd", "skeletal": "ssd", "spill_dir": folder},
        {
            "placement": {"keep": 0.25, "host": 0.25, "ssd": 0.25, "recompute": 0.25},
            "skeletal": "host",
            "spill_dir": folder,
        },
    ]


def test_optimizer_on_the_host(tmp_path: Path) -> None:
    """DeepSpeed steps torch's SGD there."""
    zero = {"offload_optimizer": {"device": "cpu"}}
    ssd, mixed = _tiers(tmp_path)
    _check(
        [
            _training("zero2", accumulation=2, clip=0.5, zero=zero, options=ssd),
            _training("zero3", zero=zero, options=ssd),
            _training("zero3", accumulation=2, clip=0.5, zero=zero, options=mixed),
        ],
        tmp_path,
    )


@pytest.mark.skipif(
    not is_compiled("async_io"),
    reason="DS_ACCELERATOR=cpu python -c 'from deepspeed.ops.op_builder import AsyncIOBuilder; "
    "AsyncIOBuilder().load()' compiles it in minutes, with libaio's headers (libaio-dev)",
)
def test_optimizer_on_nvme(tmp_path: Path) -> None:
    """Beside memo's own spill in the same directory."""
    zero = {
        "offload_optimizer": {"device": "nvme", "nvme_path": str(tmp_path), "pin_memory": False},
        "sub_group_size": PART_NUMBERS,
    }
    ssd, mixed = _tiers(tmp_path)
    _check(
        [
            _training("zero3", learning_rate=0.05, sizes=SWAPPED, zero=zero, options=ssd),
            _training(
                "zero3",
                learning_rate=0.05,
                sizes=SWAPPED,
                accumulation=2,
                zero=zero,
                options=mixed,
            ),
        ],
        tmp_path,
    )
    for rank in range(2):
        swapped = [path.stat().st_size for path in tmp_path.rglob(f"rank{rank}/*.tensor.swp")]
        assert sum(swapped) >= 2 * 4 * PART_NUMBERS  # weights and momentum of a part at least


def _training(engine: str, **more: Any) -> Training:
    return Training(engine=engine, momentum=0.9, **more)
