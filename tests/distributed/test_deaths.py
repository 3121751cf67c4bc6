"""A rank that dies or hangs in the middle of a step: the others end with an error within the
process group's timeout, and nothing is left on the disk or among the processes."""

from __future__ import annotations

import os
import signal
import time
from multiprocessing import active_children
from pathlib import Path

import psutil
import pytest
from torch import Tensor

from memo.parallel.wire import Wire
from tests.distributed.calls import Asked, wrapped
from tests.distributed.ranks import run_ranks

RANKS, TIMEOUT_S = 3, 6.0


def _step(wire: Wire, how: str, spill_dir: Path, told: Path) -> None:
    """A step with all that can be on a disk; rank 1 is gone after one layer's backward. Who is left
    writes down what it met, and after how long."""
    options = {"placement": "ssd", "skeletal": "ssd", "spill_dir": spill_dir}
    asked = Asked(options=options)
    model = wrapped(asked, wire.group.size)
    model(**asked.batch()).loss.backward()  # connections are made, and files opened
    if wire.group.rank == 1:
        last = model.get_submodule("model.layers.1.mlp.down_proj")
        last.get_parameter("weight").register_hook(lambda grad: _gone(how, grad))
    start_s = time.monotonic()
    try:
        model(**asked.batch()).loss.backward()
    except RuntimeError as error:
        line = f"{time.monotonic() - start_s:.1f} {type(error).__name__} {error}"
        (told / f"{wire.group.rank}").write_text(line, encoding="utf-8")
    while len(list(told.iterdir())) < wire.group.size - 1:  # or the first would end the others
        time.sleep(0.05)


def _gone(how: str, grad: Tensor) -> Tensor:
    if how == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)
    return grad


@pytest.mark.parametrize("how", ["dies", "hangs"])
def test_the_others_end_with_an_error(how: str, tmp_path: Path) -> None:
    spill_dir, told = tmp_path / "spill", tmp_path / "told"
    spill_dir.mkdir()
    told.mkdir()
    with pytest.raises((AssertionError, TimeoutError)):
        run_ranks(_step, RANKS, tmp_path, how, spill_dir, told, limit_s=60.0, timeout_s=TIMEOUT_S)
    lines = {path.name: path.read_text(encoding="utf-8") for path in told.iterdir()}
    assert lines.keys() == {"0", "2"}
    assert all(float(line.split()[0]) < 3 * TIMEOUT_S for line in lines.values()), lines
    assert not list(spill_dir.iterdir())
    assert not active_children()
    servers = psutil.Process().children()
    assert not [child for server in servers for child in server.children(recursive=True)]
