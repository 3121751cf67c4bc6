"""What lies beside what is sent: nothing that is no longer needed, or a rank's longest sequence is
shorter than it could be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from memo.attention.masks import RangeMask
from memo.parallel.alone import LoneWire
from memo.parallel.contracts import Stored
from memo.parallel.tiled import TiledExchanges
from memo.parallel.wire import Transit
from offload import CoreCall, CoreEnd, Tier, split_tokens
from planner.trace.recorder import Recorder
from tests.distributed.jobs import Case, call_of, core_of

RANKS, RANK, TILE_TOKENS = 4, 1, 50
CASE = Case(
    mask=RangeMask.full(803, causal=True),
    heads=4,
    kv_heads=4,
    size=64,
    v_size=64,
    tier=Tier.DEVICE,
)
SMALL = 1.1
"""Beside what is counted: the log-sum-exp, a 64th of o, and masks."""


@dataclass(slots=True)
class Watched(LoneWire):
    """A wire that notes how many bytes that were made while `recorder` watched are there whenever
    something is sent, and how many are sent.
    """

    recorder: Recorder = field(default_factory=lambda: Recorder(with_costs=False))
    seen: list[tuple[int, int]] = field(default_factory=list)

    def all_to_all(
        self, sent: Tensor, send_counts: Sequence[int], receive_counts: Sequence[int]
    ) -> Transit:
        storages = self.recorder.tape.storages
        living = sum(s.size_bytes for s in storages if s.freed is None and s.born >= 0)
        self.seen.append((living, sent.nbytes))
        return LoneWire.all_to_all(self, sent, send_counts, receive_counts)


@pytest.mark.parametrize("stored", [Stored.BEFORE, Stored.OUTPUT])
def test_q_k_v_and_o_are_gone_when_gradients_are_sent(stored: Stored) -> None:
    wire = Watched.of(RANK, RANKS)
    assert isinstance(wire, Watched)
    case = replace(CASE, stored=stored)
    core, _ = core_of(wire, case)
    join, call = TiledExchanges(core, TILE_TOKENS), call_of(case, core.view)
    wire.recorder.know(call.heads)
    with torch.no_grad(), wire.recorder:
        o, state = core.forward(_arrived(join, call), case.tier)
        assert state is not None
        forward, sent_o = wire.seen[-1]
        end = CoreEnd(o=o, grad_o=torch.ones_like(o), state=state)
        del o, state
        core.backward(_arrived(join, call), end)
    assert sent_o <= forward < SMALL * sent_o  # what is stored on the device is what is sent
    backward, sent_gradients = wire.seen[-1]
    assert sent_gradients == 3 * sent_o
    assert sent_gradients <= backward < SMALL * sent_gradients


def _arrived(join: TiledExchanges, call: CoreCall) -> CoreCall:
    joined = join()
    for tile in split_tokens(call.heads[0].shape[2], TILE_TOKENS):
        heads = tuple(head[:, :, tile.start : tile.stop] for head in call.heads)
        joined.write(tile, replace(call, heads=heads))
    return joined.value()
