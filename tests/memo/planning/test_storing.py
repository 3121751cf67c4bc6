"""What is stored for attention's backward where ranks share a sequence: bytes, and the choice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from memo.planning.choosing import Case, Chosen, choose
from memo.planning.costing import Costing
from memo.planning.figures import STORED, figures
from memo.planning.lives import step_lives
from memo.planning.making import make
from memo.planning.show import shown
from memo.planning.states import StateChoice
from memo.planning.storing import alternatives, saved_s, with_stored
from planner.contracts import Placement, Stored, Tier
from planner.hardware import Hardware
from planner.plan import Plan
from planner.schedule.planning import plan_step
from planner.schedule.uniform import uniform_swap
from planner.swap.costs import Extras, step_cost
from planner.trace import Kind
from tests.memo.planning.common import GB, HEADS, HIDDEN, LAYERS, SHARED, llama, machine, request

RANKS, LOCAL, MOST, ITEM = 4, 750, 768, 2
"""A rank has 750 tokens of 3,000 in the mean, and 768 at most: 24 units of 32."""

SIZE = HIDDEN // HEADS
SLOW, FAST = 1e9, 1e13
LINKS = (2e7, 3e8, SLOW, FAST)
"""On the slowest two, ZeRO's reduction of gradients is what layers wait for, and nothing is won."""


def _node(**changes: Any) -> Hardware:
    figures = {"device_bytes": 4 * GB, "gpus": RANKS, "link_bytes_per_s": 1e9, **changes}
    return machine(**figures)


def _case(hardware: Hardware, **changes: Any) -> Case:
    return Case(request(hardware, **{"sequence_parallel": RANKS, "zero": 0, **changes}))


def _chosen(case: Case) -> Chosen:
    found = choose(case)
    assert found is not None
    return found


def _rank_bytes() -> dict[Stored, int]:
    """What a rank has of its heads and all tokens: o, and q, k and v beside it."""
    heads, kv_heads = HEADS // RANKS, max(1, SHARED // RANKS)
    token = SIZE * ITEM
    o = RANKS * LOCAL * heads * token
    qkv = RANKS * LOCAL * (heads + 2 * kv_heads) * token
    return {Stored.BEFORE: 0, Stored.OUTPUT: o, Stored.AFTER: o + qkv}


def test_bytes_of_a_layer_grow_by_what_is_stored() -> None:
    case = _case(_node())
    before = case.trace().layers[0]
    for stored, more in _rank_bytes().items():
        costing = Costing(case.request, StateChoice(0, "none"), stored=stored)
        trace = case.trace_again(case.trace(), stored)
        layer = costing.cost(trace).layers[0]
        assert layer.o_core_bytes == more
        assert layer.o_bytes == before.o_bytes + more
        assert layer.x_bytes == before.x_bytes
        assert layer.tile_bytes == before.stored_bytes


def test_seconds_of_backward_shrink_by_what_is_not_sent() -> None:
    case = _case(_node())
    seconds = {}
    for stored in Stored:
        costing = Costing(case.request, StateChoice(0, "none"), stored=stored)
        trace = case.trace_again(case.trace(), stored)
        # Without ZeRO's traffic, which is waited for beside the layer.
        extras = Extras(exchange=costing.exchanges(trace))
        cost = step_cost(trace, case.request.node.hardware, extras)
        seconds[stored] = cost.layers[0].backward.core_s
    # Of its tokens' q, k, v and o a rank keeps a quarter; kv heads go to two ranks each.
    o = MOST * HEADS * SIZE * ITEM * 3 / 4
    qkv = MOST * (HEADS + 2 * RANKS) * SIZE * ITEM * 3 / 4
    assert seconds[Stored.BEFORE] - seconds[Stored.OUTPUT] == pytest.approx(o / 1e9, rel=1e-4)
    assert seconds[Stored.BEFORE] - seconds[Stored.AFTER] == pytest.approx(
        (o + qkv) / 1e9, rel=1e-3
    )


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("budget", [4 * GB, 60 * 10**6])
def test_the_shortest_step_of_all_is_taken(link: float, budget: int) -> None:
    case = _case(_node(link_bytes_per_s=link, device_bytes=budget))
    chosen = _chosen(case)
    steps: dict[Stored, float] = {}
    for stored in Stored:
        costing = replace(chosen.costing, stored=stored)
        cost = costing.cost(case.trace_again(chosen.trace, stored))
        found = plan_step([cost], case.rates, case.budgets, search=case.search)
        if found is not None:
            steps[stored] = found.schedule.step_s
            assert found.plan.stored is stored
    most_s = min(steps.values()) * (1 + case.request.step_tolerance)
    best = with_stored(case, chosen).costing.stored
    # What is not looked at saves less than the tolerance by its exchange alone.
    assert best is next(stored for stored, step_s in steps.items() if step_s <= most_s)


def test_both_ends_are_among_these() -> None:
    slow, fast = (_case(_node(link_bytes_per_s=link)) for link in (SLOW, FAST))
    assert with_stored(slow, _chosen(slow)).costing.stored is Stored.AFTER
    assert with_stored(fast, _chosen(fast)).costing.stored is Stored.BEFORE


def test_what_cannot_win_is_neither_traced_nor_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    case = _case(_node(link_bytes_per_s=FAST))
    chosen = _chosen(case)
    assert saved_s(case.request, chosen, Stored.OUTPUT) > 0
    assert saved_s(case.request, chosen, Stored.AFTER) < chosen.found.schedule.step_s / 100

    def never(*_: Any) -> Any:
        raise AssertionError("it was planned")

    monkeypatch.setattr("memo.planning.storing._with", never)
    assert with_stored(case, chosen) is chosen


def test_alone_and_on_a_ring_nothing_more_is_stored() -> None:
    alone = Case(request(_node(gpus=1, link_bytes_per_s=None)))
    assert not alternatives(alone.request, _chosen(alone))
    few = llama(num_attention_heads=2, num_key_value_heads=2)
    ring = _case(_node(link_bytes_per_s=SLOW), config=few)
    assert not alternatives(ring.request, _chosen(ring))
    assert with_stored(ring, _chosen(ring)).costing.stored is Stored.BEFORE
    case = _case(_node())
    assert alternatives(case.request, _chosen(case)) == (Stored.OUTPUT, Stored.AFTER)


def _planned(link: float) -> Plan:
    asked = _case(_node(link_bytes_per_s=link), lay_out=True).request
    found = make(asked).result
    assert isinstance(found, Plan)
    return found


def _text(plan: Plan) -> str:
    console = Console(width=200, no_color=True)
    with console.capture() as captured:
        console.print(shown(plan, console))
    return captured.get()


def test_a_plan_says_what_it_stores() -> None:
    slow, fast = _planned(SLOW), _planned(FAST)
    assert (slow.swap.stored, fast.swap.stored) == (Stored.AFTER, Stored.BEFORE)
    assert STORED[Stored.AFTER] in _text(slow)
    assert not any(words in _text(fast) for words in STORED.values())
    assert figures(slow)["stored"] == "after"
    assert figures(fast)["stored"] == "before"
    assert Plan.from_json(slow.to_json()) == slow


@pytest.mark.parametrize("tier", [Tier.DEVICE, Tier.HOST])
def test_a_layout_has_them_from_the_core_to_the_core(tier: Tier) -> None:
    case = _case(_node())
    trace = case.trace_again(case.trace(), Stored.AFTER)
    cost = Costing(case.request, StateChoice(0, "none"), stored=Stored.AFTER).cost(trace)
    swap = uniform_swap(cost, Placement.RECOMPUTE, tier, in_flight_bytes=0)
    lives = step_lives(trace, swap, small_bytes=1)
    layer = trace.layers[0]
    made = [a for a in layer.recomputed.forward.allocations if a.kind is Kind.EXCHANGED]
    assert sum(a.size_bytes for a in made) == _rank_bytes()[Stored.AFTER]
    names = {f"held {i} forward {a.id}" for i in range(LAYERS) for a in made}
    held = [b for b in lives.buffers if b.id.removesuffix(" out").removesuffix(" back") in names]
    operations = layer.recomputed.backward.operations
    core = [op.index for op in operations if op.segment == "core"]
    longest = max(buffer.upper - buffer.lower for buffer in held)
    if tier is Tier.DEVICE:
        assert len(held) == len(names)
        assert longest > len(operations)
        return
    assert len(held) == 2 * len(names)
    back = max(b.upper - b.lower for b in held if b.id.endswith(" back"))
    assert back <= max(core) + 1 - min(core) < len(operations) / 2
    # q, k and v arrive tile by tile, while `pre` runs.
    until_sent = [op.index for op in layer.recomputed.forward.operations if op.segment != "post"]
    assert longest <= len(until_sent) < len(layer.recomputed.forward.operations)
