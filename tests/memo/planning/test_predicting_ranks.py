"""What is predicted of one rank of several, for everything that may be stored for attention's
backward, held against a real step of that rank alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

import memo
from memo.parallel.alone import LoneWire
from memo.parallel.call import Parallel
from memo.parallel.contracts import Stored as StoredHere
from memo.planning.emulate import emulate
from memo.planning.predicting import Predictor
from memo.planning.states import StateChoice
from memo.wrap import runtime_of
from offload import MemoError
from offload import Tier as TierHere
from planner.contracts import Placement, Stored, Tier
from planner.trace.contracts import OperationCost
from planner.trace.recorder import Recorder, peak_bytes
from tests.memo.planning.common import llama, machine, request
from tests.memo.tracing.common import config_of

TOKENS, TILE_TOKENS, LAYERS = 4096, 192, 3


@dataclass(frozen=True)
class Ranks:
    """How many share how many heads, and the `batch` sequences; `rank` is one of those with the
    most to do.
    """

    ranks: int
    heads: int
    kv_heads: int
    rank: int = 0
    tokens: int = TOKENS
    batch: int = 1
    tile_tokens: int = TILE_TOKENS

    @property
    def config(self) -> PreTrainedConfig:
        return llama(
            num_hidden_layers=LAYERS,
            hidden_size=240,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
        )


ULYSSES = Ranks(4, 8, 2)
UNEVEN = Ranks(4, 24, 3, rank=1)
RING = Ranks(4, 1, 1, rank=3)
BOTH = Ranks(4, 2, 1)
MANY_ROWS = Ranks(8, 2, 2)
FEW_TILES = [replace(ULYSSES, tile_tokens=tile_tokens) for tile_tokens in (TOKENS, 600, 400)]
STRADDLING = Ranks(4, 15, 5, rank=2, batch=2)
"""Of the three ranks with four query heads of two kv heads, the one whose query heads are as many
of each: it attends them at once, its neighbours one kv head's after the other's."""
ODD = Ranks(4, 8, 2, tokens=4099)
"""Shared in units of 64 tokens: the first rank has 1,088, not 1,025."""


def _predictor(shared: Ranks, stored: Stored) -> Predictor:
    asked = request(
        machine(gpus=shared.ranks, link_bytes_per_s=1e9),
        config=shared.config,
        tokens=shared.tokens,
        batch=shared.batch,
        tile_tokens=shared.tile_tokens,
        sequence_parallel=shared.ranks,
    )
    asked = replace(asked, node=replace(asked.node, device_kind="cpu"))
    return Predictor(asked, StateChoice(0, "host"), stored=stored)


@dataclass(frozen=True)
class Measured:
    """The peak of the second step's tensors, the bytes of x and o that it stored, and the FLOPs of
    its attention.
    """

    peak_bytes: int
    skeletal_bytes: int
    attention_flops: int


def _measured(shared: Ranks, stored: Stored, skeletal: str) -> Measured:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(shared.config, dtype=torch.bfloat16).train()
    memo.wrap(model, tile_tokens=shared.tile_tokens, skeletal=skeletal)
    runtime = runtime_of(model)
    runtime.parallel = Parallel(
        LoneWire.of(shared.rank, shared.ranks), stored=StoredHere(stored.value), is_agreed=True
    )
    ids = torch.randint(3, 1000, (shared.batch, shared.tokens))

    def step() -> None:
        model(input_ids=ids, labels=ids).loss.backward()

    step()
    model.zero_grad(set_to_none=True)
    memo.report(model, reset=True)
    recorder = Recorder()
    with recorder:
        recorder.know((*model.parameters(), *model.buffers(), ids))
        step()
    tier = TierHere.DEVICE if skeletal == "keep" else TierHere.HOST
    (kind,) = memo.report(model).kinds
    flops = _attention_flops(recorder.tape.operations)
    return Measured(peak_bytes(recorder.tape), kind.skeletal_bytes[tier], flops)


def _attention_flops(operations: Iterable[OperationCost]) -> int:
    return sum(operation.flops for operation in operations if "attention" in operation.name)


CASES = [
    *((ULYSSES, stored) for stored in Stored),
    (UNEVEN, Stored.BEFORE),
    (BOTH, Stored.BEFORE),
    (BOTH, Stored.AFTER),
    (RING, Stored.AFTER),
    (MANY_ROWS, Stored.OUTPUT),
    *((shared, Stored.BEFORE) for shared in (*FEW_TILES, STRADDLING, ODD)),
]


@pytest.mark.parametrize(("shared", "stored"), CASES)
def test_a_rank_peaks_where_it_was_predicted(shared: Ranks, stored: Stored) -> None:
    predictor = _predictor(shared, stored)
    found = predictor.predictions(predictor.uniform(Placement.RECOMPUTE))
    measured = _measured(shared, stored, "keep")
    layer, traced = predictor.cost.layers[0], predictor.trace.layers[0].recomputed
    skeletal_bytes = LAYERS * (layer.x_bytes + layer.o_bytes)
    assert skeletal_bytes == pytest.approx(measured.skeletal_bytes, rel=0.003)
    operations = (*traced.forward.operations, *traced.backward.operations)
    assert LAYERS * _attention_flops(operations) == measured.attention_flops
    # Ids and labels of the whole sequence, which are no rank's share, are some thousandths.
    assert found.peak_bytes[Tier.DEVICE] == pytest.approx(measured.peak_bytes, rel=0.005)


def test_what_wrap_refuses_among_ranks_is_not_emulated() -> None:
    asked = request(
        machine(gpus=2, link_bytes_per_s=1e9),
        config=config_of("lfm2"),
        tokens=256,
        sequence_parallel=2,
        dtype="float32",
    )
    asked = replace(asked, node=replace(asked.node, device_kind="cpu"))
    with pytest.raises(MemoError, match="cannot share a sequence among ranks: only what is"):
        emulate(asked, 0)
