"""Plans that say what is stored for attention's backward, run by two ranks: gradients, and bytes on
the wire and in the store, as planned.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

import memo
from memo.parallel.wire import Transport, Wire
from memo.planning.collectives import exchange_of
from memo.planning.figures import STORED
from memo.wrap import runtime_of
from offload import Tier as TierHere
from planner.contracts import LayerSwap, Placement, Stored, Tier
from planner.plan import Plan
from tests.behaviour.common import TILE_TOKENS, plain_model
from tests.behaviour.planned import plan_with, roomy
from tests.distributed.models import averaged
from tests.distributed.ranks import run_ranks
from tests.families.harness import Step, assert_same_step, random_batch, train_step

RANKS, TOKENS, ROWS, ITEM = 2, 24, 2, 4
LOCAL = TOKENS // RANKS
TILES = -(-LOCAL // TILE_TOKENS)

IN_BACKWARD = {Stored.BEFORE: "oqkvo", Stored.OUTPUT: "oqkv", Stored.AFTER: "o"}
"""What is exchanged on backward's way in: o's gradient, and what is not stored."""

IN_STORE = {Stored.BEFORE: "", Stored.OUTPUT: "o", Stored.AFTER: "oqkv"}


@dataclass(frozen=True)
class Ran:
    """A planned step on one rank: bytes sent, in layers' attention alone, and bytes of x and o that
    its layers stored.
    """

    step: Step
    forward_bytes: int
    backward_bytes: int
    skeletal_bytes: int
    text: str


def planned(wire: Wire, text: str) -> Ran:
    """A step by the plan, with gradients averaged over ranks."""
    model = memo.wrap(plain_model(), plan=Plan.from_json(text))
    parallel = runtime_of(model).parallel
    assert parallel is not None
    count = parallel.wire.counts[Transport.ALL_TO_ALL]
    loss = model(**random_batch(ROWS, TOKENS)).loss
    forward_bytes = count.sent_bytes
    loss.backward()
    report = memo.report(model)
    grads = {name: averaged(param.grad) for name, param in model.named_parameters()}
    return Ran(
        Step(loss.detach(), grads),
        forward_bytes,
        count.sent_bytes - forward_bytes,
        sum(kind.skeletal_bytes[TierHere.HOST] for kind in report.kinds),
        " ".join(str(report).split()),
    )


def _plan(stored: Stored) -> Plan:
    """Some tiles are kept, x stays, and o goes to the host with all that lies where it is."""
    tiles = {Placement.KEEP: 1, Placement.RECOMPUTE: TILES - 1}
    return plan_with(
        plain_model().config,
        (LayerSwap(tiles=tiles, x=Tier.DEVICE, o=Tier.HOST),) * 2,
        hardware=roomy(gpus=RANKS, link_bytes_per_s=1e9),
        sequence_parallel=RANKS,
        tokens=TOKENS,
        stored=stored,
    )


@pytest.mark.parametrize("stored", Stored)
def test_a_plan_stores_what_it_says(stored: Stored, tmp_path: Path) -> None:
    plan, model = _plan(stored), plain_model()
    config = model.config
    expected = train_step(model, random_batch(ROWS, TOKENS))
    size = config.hidden_size // config.num_attention_heads
    heads = {
        **dict.fromkeys("qo", config.num_attention_heads),
        **dict.fromkeys("kv", config.num_key_value_heads),
    }

    def sent(names: str) -> int:
        """Half of the heads of a rank's tokens go to the other one, in every layer."""
        return int(2 * sum(ROWS * LOCAL * heads[name] // 2 * size * ITEM for name in names))

    exchange = exchange_of(
        config, tokens=LOCAL, batch=ROWS, ranks=RANKS, dtype_bytes=ITEM, stored=stored
    )
    o, lse = (2 * ROWS * LOCAL * heads["o"] * each * ITEM for each in (size, 1))
    held = 2 * sum(ROWS * TOKENS * heads[name] // 2 * size * ITEM for name in IN_STORE[stored])
    for ran in run_ranks(planned, RANKS, tmp_path, plan.to_json()):
        assert_same_step(ran.step, expected)
        assert ran.forward_bytes == sent("qkvo") == 2 * exchange.forward_bytes
        assert ran.backward_bytes == sent(IN_BACKWARD[stored] + "qkv")
        assert ran.backward_bytes == 2 * exchange.backward_bytes
        assert o + lse + held <= ran.skeletal_bytes < o + lse + held + 1000  # seeds of kernels
        for told, words in STORED.items():
            assert (words in ran.text) == (told is stored)
