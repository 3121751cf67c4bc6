"""How many GPUs share a sequence, and what they send each other for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from transformers import AutoConfig

from memo.planning.choosing import choose
from memo.planning.collectives import exchange_of, fewest_heads
from memo.planning.costing import Costing, traced
from memo.planning.degrees import best_case, degrees
from memo.planning.longest import find_longest
from memo.planning.making import make
from memo.planning.request import PlanRequest
from memo.planning.states import StateChoice
from planner.contracts import Stored
from planner.hardware import Hardware
from planner.plan import Plan
from tests.memo.planning.common import GB, HEADS, HIDDEN, LAYERS, SHARED, llama, machine, request
from tests.memo.tracing.common import config_of

TOKENS = 3000


def _node(**changes: Any) -> Hardware:
    return machine(**{"device_bytes": 4 * GB, "gpus": 4, "link_bytes_per_s": 1e11, **changes})


def _compared(hardware: Hardware, **changes: Any) -> PlanRequest:
    most = {"sequence_parallel": hardware.gpus, "compare_degrees": True}
    return request(hardware, **{**most, **changes})


def _speed(hardware: Hardware, degree: int, **changes: Any) -> float:
    found = make(request(hardware, sequence_parallel=degree, **changes)).result
    assert isinstance(found, Plan)
    return found.predictions.tokens_per_s


def test_divisors_up_to_the_heads_and_the_tokens() -> None:
    assert degrees(_compared(_node(gpus=12), sequence_parallel=1)) == (6, 4, 3, 2, 1)
    assert degrees(_compared(_node(gpus=16), sequence_parallel=1)) == (8, 4, 2, 1)
    assert degrees(_compared(_node(gpus=4), sequence_parallel=1, tokens=3)) == (2, 1)


@pytest.mark.parametrize("link", [2e8, 1e9, 1e11])
def test_the_degree_with_most_tokens_a_second_is_taken(link: float) -> None:
    node = _node(link_bytes_per_s=link)
    found = make(_compared(node)).result
    assert isinstance(found, Plan)
    speeds = {degree: _speed(node, degree) for degree in (4, 2, 1)}
    own = found.workload.sequence_parallel
    assert found.predictions.tokens_per_s == pytest.approx(speeds[own])
    assert speeds[own] >= max(speeds.values()) * (1 - 0.0101)
    assert any(f"sequence_parallel {own} was chosen" in note for note in found.notes)


def test_a_slow_link_keeps_sequences_apart_and_a_small_device_has_them_shared() -> None:
    slow = make(_compared(_node(link_bytes_per_s=2e8))).result
    assert slow.workload.sequence_parallel == 1
    tight = _node(device_bytes=42 * 10**6, link_bytes_per_s=2e9, host_bytes=GB // 100)
    asked = _compared(tight, tokens=8 * TOKENS)
    assert not isinstance(make(replace(asked, compare_degrees=False, sequence_parallel=1)), Plan)
    assert make(asked).result.workload.sequence_parallel == 4


def test_what_cannot_win_is_not_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[int] = []

    def counted(case: Any) -> Any:
        planned.append(case.request.sequence_parallel)
        return choose(case)

    monkeypatch.setattr("memo.planning.degrees.choose", counted)
    even = _compared(_node(link_bytes_per_s=1e14), tokens=3072)  # alike on all four
    case = best_case(even)
    assert planned == [4]
    assert any("2, 1 cannot be faster" in note for note in case.notes)
    planned.clear()
    best_case(_compared(_node(link_bytes_per_s=1e9)))
    assert planned == [4, 2, 1]


def test_layers_that_run_whole_share_no_sequence() -> None:
    hybrid = config_of("lfm2", num_hidden_layers=4, layer_types=["conv", "full_attention"] * 2)
    found = make(_compared(_node(), config=hybrid)).result
    assert isinstance(found, Plan)
    assert found.workload.sequence_parallel == 1
    assert any("layers that run whole" in note for note in found.notes)


@pytest.mark.long
def test_the_longest_sequence_is_shared_by_all_whatever_is_fastest() -> None:
    node = _node(device_bytes=90 * 10**6, link_bytes_per_s=2e8, host_bytes=GB // 10)
    case = best_case(_compared(node))
    assert case.request.sequence_parallel == 1
    assert case.largest is not None
    assert case.largest.request.sequence_parallel == 4
    longest = [find_longest(one, fits=True) for one in (case.largest, case)]
    assert longest[0] > longest[1] >= TOKENS
    assert make(_compared(node, find_longest=True)).result.predictions.longest_tokens == longest[0]  # type: ignore[union-attr]


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_bytes_on_the_wire_are_ulysses_formula(ranks: int) -> None:
    """Each rank keeps one of `ranks` parts of what it has of q, k, v and o (arXiv 2309.14509,
    section 3.2); kv heads that are fewer than ranks go to several.
    """
    tokens, size = 600, HIDDEN // HEADS
    exchange = exchange_of(llama(), tokens=tokens, batch=3, ranks=ranks, dtype_bytes=2)
    kv_heads = max(SHARED, ranks)
    kept = 3 * tokens * 2 * size * (2 * HEADS + 2 * kv_heads) / ranks
    assert exchange.forward_bytes == pytest.approx(kept * (ranks - 1), abs=1)
    assert exchange.backward_bytes == 2 * exchange.forward_bytes


@pytest.mark.parametrize(
    ("ranks", "heads", "shared", "most"),
    [
        # Query and kv heads of the rank that sends most in backward, and of all others together.
        (2, 9, 3, ((4, 2), (5, 2))),
        (4, 8, 2, ((2, 1), (6, 3))),
        (8, 8, 8, ((1, 1), (7, 7))),
    ],
)
def test_what_is_stored_is_not_exchanged_again(
    ranks: int, heads: int, shared: int, most: tuple[tuple[int, int], tuple[int, int]]
) -> None:
    tokens, size = 600, 32
    config = llama(hidden_size=heads * size, num_attention_heads=heads, num_key_value_heads=shared)
    sent = {
        stored: exchange_of(
            config, tokens=tokens, batch=3, ranks=ranks, dtype_bytes=2, stored=stored
        )
        for stored in Stored
    }
    (own_q, own_kv), (other_q, other_kv) = most
    unit = 3 * tokens * size * 2
    home = (ranks - 1) * (own_q + 2 * own_kv)
    o, qkv = other_q, other_q + 2 * other_kv
    times = {Stored.BEFORE: 2 * o + qkv, Stored.OUTPUT: o + qkv, Stored.AFTER: o}
    for stored, exchange in sent.items():
        assert exchange.backward_bytes == unit * (times[stored] + home)
        assert exchange.forward_bytes == sent[Stored.BEFORE].forward_bytes


def test_the_exchange_is_in_the_steps_time() -> None:
    """A link that is half as fast makes the step longer by what is sent, once more."""
    seconds = []
    for link in (2e9, 1e9):
        asked = request(_node(link_bytes_per_s=link), sequence_parallel=4)
        cost = Costing(asked, StateChoice(3, "none")).cost(traced(asked))
        seconds.append(sum(one.forward.core_s + one.backward.core_s for one in cost.layers))
    exchange = exchange_of(llama(), tokens=TOKENS // 4, batch=1, ranks=4, dtype_bytes=2)
    sent_s = LAYERS * (exchange.forward_bytes + exchange.backward_bytes) / 2e9
    assert seconds[1] - seconds[0] >= sent_s * (1 - 1e-9)


def test_layers_of_one_model_send_what_their_own_heads_have() -> None:
    """Gemma 4: of three layers the last has larger heads."""
    config = AutoConfig.for_model(
        "gemma4_text",
        **{"num_hidden_layers": 3, "hidden_size": 64, "num_attention_heads": 4, "head_dim": 32},
        **{"num_key_value_heads": 4, "global_head_dim": 64},
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        **{"intermediate_size": 64, "vocab_size": 1003, "vocab_size_per_layer_input": 1003},
        **{"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "pad_token_id": 0},
    )
    asked = request(_node(), config=config, tokens=TOKENS, sequence_parallel=2)
    trace = traced(asked)
    sent = Costing(asked, StateChoice(0, "none")).exchanges(trace)
    # Two of a token's four heads of q, k, v and o go to the other rank, or come from there.
    unit = trace.tokens * 2 * 4 * 2
    found = [sent[name].forward_bytes for name in trace.order]
    assert found == [unit * 32, unit * 32, unit * 64]


def test_layers_may_have_each_their_own_number_of_heads() -> None:
    config = AutoConfig.for_model(
        "laguna",
        **{"num_hidden_layers": 3, "hidden_size": 64, "intermediate_size": 64, "head_dim": 16},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1003},
        **{"num_attention_heads_per_layer": [4, 8, 2], "pad_token_id": 0},
    )
    assert fewest_heads(config) == 2
    sent = [
        exchange_of(config, tokens=10, batch=1, ranks=2, dtype_bytes=2, layer=layer)
        for layer in range(3)
    ]
    # The half of a token's heads of q and of o, and one head of k and of v.
    unit = 10 * 16 * 2
    assert [found.forward_bytes for found in sent] == [unit * (n // 2 * 2 + 2) for n in (4, 8, 2)]


def test_alone_nothing_is_sent() -> None:
    exchange = exchange_of(llama(), tokens=10, batch=1, ranks=1, dtype_bytes=2)
    assert (exchange.forward_bytes, exchange.backward_bytes) == (0, 0)
