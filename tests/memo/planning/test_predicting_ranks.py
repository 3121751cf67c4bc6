"""What is predicted of one rank of several, for everything that may be stored for attention's
backward, held against a real step of that rank alone.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

import memo
from memo.parallel.alone import LoneWire
from memo.parallel.call import Parallel
from memo.parallel.contracts import Stored as StoredHere
from memo.planning.predicting import Predictor
from memo.planning.states import StateChoice
from memo.wrap import runtime_of
from offload import Tier as TierHere
from planner.contracts import Placement, Stored, Tier
from planner.trace.recorder import Recorder, peak_bytes
from tests.memo.planning.common import llama, machine, request

RANKS, TOKENS, TILE_TOKENS = 4, 4096, 192


def _predictor(stored: Stored) -> Predictor:
    asked = request(
        machine(gpus=RANKS, link_bytes_per_s=1e9),
        config=llama(num_hidden_layers=3),
        tokens=TOKENS,
        tile_tokens=TILE_TOKENS,
        sequence_parallel=RANKS,
    )
    asked = replace(asked, node=replace(asked.node, device_kind="cpu"))
    return Predictor(asked, StateChoice(0, "host"), stored=stored)


def _measured(stored: Stored, skeletal: str) -> tuple[int, int]:
    """The peak of the second step's tensors, and the bytes of x and o that it stored."""
    torch.manual_seed(0)
    config = llama(num_hidden_layers=3)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).train()
    memo.wrap(model, tile_tokens=TILE_TOKENS, skeletal=skeletal)
    runtime = runtime_of(model)
    runtime.parallel = Parallel(
        LoneWire.of(0, RANKS), stored=StoredHere(stored.value), is_agreed=True
    )
    ids = torch.randint(3, 1000, (1, TOKENS))

    def step() -> None:
        model(input_ids=ids, labels=ids).loss.backward()

    step()
    model.zero_grad(set_to_none=True)
    memo.report(model, reset=True)
    recorder = Recorder(with_costs=False)
    with recorder:
        recorder.know((*model.parameters(), *model.buffers(), ids))
        step()
    tier = TierHere.DEVICE if skeletal == "keep" else TierHere.HOST
    (kind,) = memo.report(model).kinds
    return peak_bytes(recorder.tape), kind.skeletal_bytes[tier]


@pytest.mark.parametrize("stored", Stored)
def test_a_rank_peaks_where_it_was_predicted(stored: Stored) -> None:
    predictor = _predictor(stored)
    found = predictor.predictions(predictor.uniform(Placement.RECOMPUTE))
    peak, skeletal = _measured(stored, "keep")
    layer = predictor.cost.layers[0]
    assert 3 * (layer.x_bytes + layer.o_bytes) == pytest.approx(skeletal, rel=0.003)
    # Ids and labels of the whole sequence, which are no rank's share, are some thousandths.
    assert found.peak_bytes[Tier.DEVICE] == pytest.approx(peak, rel=0.005)
