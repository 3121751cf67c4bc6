"""What a trace can be asked for: large models, ranks, adapters, files, and what it refuses."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from memo.tracing import load_config, trace_step
from memo.tracing import run as tracing_run
from memo.tracing import step as tracing_step
from memo.tracing.runtime import DeviceKind
from memo.tracing.sampled import SampledModel
from offload import MemoError
from planner.codec import PlanError
from planner.contracts import Stored
from planner.trace import (
    LayerTrace,
    Pass,
    Segment,
    StepTrace,
    step_peak_bytes,
    trace_from_json,
    trace_to_json,
)
from planner.trace.costs import attention_flops, visible_pairs
from planner.trace.live import need_of
from tests.memo.tracing.common import config_of, no_tiles

MILLION = 1 << 20

SMALL_BYTES = 100
"""A flash kernel keeps a few numbers beside the log-sum-exp (its random state)."""


def _llama_70b() -> PreTrainedConfig:
    config = AutoConfig.for_model(
        "llama",
        hidden_size=8192,
        num_hidden_layers=80,
        intermediate_size=28672,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
        tie_word_embeddings=False,
    )
    assert isinstance(config, PreTrainedConfig)
    return config


def _flops(layer: LayerTrace, segment: Segment, direction: Pass) -> int:
    part = layer.recomputed
    block = part.forward if direction is Pass.FORWARD else part.backward
    times = [1] * len(block.operations)
    for repeat in block.repeats:
        for index in range(repeat.start, repeat.stop):
            times[index] += repeat.times
    wanted = (segment, direction)
    return sum(
        op.flops * count
        for op, count in zip(block.operations, times, strict=True)
        if (op.segment, op.direction) == wanted
    )


def test_a_large_model_at_a_million_tokens_takes_seconds() -> None:
    started_s = time.process_time()
    step = trace_step(_llama_70b(), tokens=MILLION // 8, sequence_parallel=8)
    assert time.process_time() - started_s < 10
    assert step.order == ("LlamaDecoderLayer",) * 80
    assert step.parameters == 70_553_706_496
    (layer,) = step.layers
    hidden_bytes = MILLION // 8 * 8192 * 2
    assert layer.x_bytes == hidden_bytes
    log_sum_exp_bytes = MILLION * 8 * 4
    assert 0 <= layer.o_bytes - hidden_bytes - log_sum_exp_bytes < SMALL_BYTES
    # q, k, v once in `pre`, and all of the layer but its core in `post`.
    widths = 8192 * (2 * 8192 + 2 * 1024 + 3 * 28672)
    assert _flops(layer, Segment.POST, Pass.FORWARD) == 2 * widths * MILLION // 8
    pairs = visible_pairs(MILLION, MILLION, causal=True)
    core = attention_flops((1, 8, MILLION, 128), 128, pairs, backward=True)
    assert _flops(layer, Segment.CORE, Pass.BACKWARD) == core


def test_a_rank_of_one_is_no_rank() -> None:
    alone, ranks = (
        trace_step(config_of("llama"), tokens=640 // degree, sequence_parallel=degree)
        for degree in (1, 2)
    )
    assert ranks.layers[0].x_bytes * 2 == alone.layers[0].x_bytes
    assert abs(ranks.layers[0].o_bytes * 2 - alone.layers[0].o_bytes) < SMALL_BYTES
    core = [_flops(step.layers[0], Segment.CORE, Pass.FORWARD) for step in (alone, ranks)]
    assert core[1] * 2 == core[0] > 0


@pytest.mark.parametrize("device_kind", ["cuda", "cpu"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_sequences_of_a_batch_do_not_attend_each_other(
    device_kind: DeviceKind, family: str
) -> None:
    def flops(batch: int) -> list[int]:
        traced = trace_step(config_of(family), tokens=600, batch=batch, device_kind=device_kind)
        blocks = [(t.recomputed.forward, t.recomputed.backward) for t in traced.layers]
        return [
            sum(op.flops for op in block.operations if "attention" in op.name)
            for block in itertools.chain(*blocks)
        ]

    alone = flops(1)
    assert flops(3) == [3 * each for each in alone]
    assert min(alone) > 0


@pytest.mark.parametrize("device_kind", ["cuda", "cpu"])
@pytest.mark.parametrize("stored", Stored)
def test_a_batch_over_ranks_stores_as_much_of_each_sequence(
    device_kind: DeviceKind, stored: Stored
) -> None:
    alone, several = (
        trace_step(
            config_of("llama"),
            tokens=600,
            batch=batch,
            sequence_parallel=4,
            device_kind=device_kind,
            stored=stored,
        ).layers[0]
        for batch in (1, 3)
    )
    assert several.o_bytes == pytest.approx(3 * alone.o_bytes, rel=0.001)


def test_sequences_one_behind_another_are_counted_to_the_last() -> None:
    """Chunks of 256 tokens, of which 600 has two and a part."""
    config = AutoConfig.for_model(
        "llama4_text",
        **{"vocab_size": 1003, "hidden_size": 128, "intermediate_size": 128, "head_dim": 32},
        **{"intermediate_size_mlp": 128, "num_local_experts": 2, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0},
        attention_chunk_size=256,
    )
    flops = [
        _flops(layer, Segment.CORE, Pass.FORWARD)
        for kind in ("cuda", "cpu")
        for layer in trace_step(config, tokens=600, device_kind=kind).layers
    ]
    assert flops[: len(flops) // 2] == flops[len(flops) // 2 :]


@pytest.mark.parametrize("device_kind", ["cuda", "cpu"])
def test_dropout_is_traced(device_kind: DeviceKind) -> None:
    """GPT-2's own config has it."""
    config = AutoConfig.for_model("gpt2", n_layer=2, n_embd=128, n_head=4, vocab_size=1003)
    assert trace_step(config, tokens=300, device_kind=device_kind).layers[0].reason is None


@pytest.mark.parametrize("device_kind", ["cuda", "cpu"])
def test_more_ranks_than_heads_attend_a_row_of_queries(device_kind: DeviceKind) -> None:
    """Ranks 1 and 2 of four are a row, and each has one of two heads: their queries see the keys of
    ranks before them, and those up to themselves of their own.
    """
    tokens, size = 300, 64
    config = config_of("llama", num_attention_heads=2, num_key_value_heads=1)
    step = trace_step(
        config, tokens=tokens, tile_tokens=64, sequence_parallel=4, device_kind=device_kind
    )
    pairs = 3 * tokens * tokens + 2 * visible_pairs(tokens, tokens, causal=True)
    for direction in (Pass.FORWARD, Pass.BACKWARD):
        backward = direction is Pass.BACKWARD
        want = attention_flops((1, 1, tokens, size), size, pairs, backward=backward)
        assert _flops(step.layers[0], Segment.CORE, direction) == want


@pytest.mark.parametrize("device_kind", ["cuda", "cpu"])
def test_pieces_of_a_ring_that_are_alike_are_traced_a_few_times(device_kind: DeviceKind) -> None:
    few, every = (
        trace_step(
            config_of("llama", num_attention_heads=8, num_key_value_heads=8),
            tokens=100,
            tile_tokens=25,
            sequence_parallel=16,
            device_kind=device_kind,
            everything=everything,
        )
        for everything in (False, True)
    )
    for direction in (Pass.FORWARD, Pass.BACKWARD):
        costs = [_flops(step.layers[0], Segment.CORE, direction) for step in (few, every)]
        assert costs[0] == costs[1] > 0
    blocks = [step.layers[0].recomputed for step in (few, every)]
    for some, all_of in zip(*((part.forward, part.backward) for part in blocks), strict=True):
        assert len(some.operations) < 0.7 * len(all_of.operations)
        assert need_of(some) == need_of(all_of)


def test_adapters_alone_take_gradients() -> None:
    pytest.importorskip("peft")
    full, lora = (
        trace_step(config_of("llama"), tokens=500, tile_tokens=120, train=train)
        for train in ("full", "lora")
    )
    assert 0 < lora.trainable < lora.parameters // 5
    layer = lora.layers[0]
    assert layer.gradient_bytes == 4 * lora.trainable // 2, "float32, half of them in each layer"
    assert step_peak_bytes(lora, no_tiles(lora)) < step_peak_bytes(full, no_tiles(full))


@pytest.fixture(scope="module")
def small() -> StepTrace:
    return trace_step(config_of("llama"), tokens=700, tile_tokens=100)


def test_json_gives_the_same_trace(small: StepTrace) -> None:
    assert trace_from_json(trace_to_json(small)) == small


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("memo_trace", "version"), "no trace"),
        (('"memo_trace": 1', '"memo_trace": 7'), "memo_trace is 7"),
        (('"tokens": 700', '"tokens": "many"'), "trace.tokens"),
        (('"kind": "skeletal"', '"kind": "soft"'), "kind"),
        (('{"memo', '{"surprise": 1, "memo'), "surprise"),
        (("}\n", ""), "not JSON"),
    ],
)
def test_a_damaged_file_is_refused(small: StepTrace, change: tuple[str, str], message: str) -> None:
    text = trace_to_json(small)
    assert change[0] in text
    with pytest.raises(PlanError, match=message):
        trace_from_json(text.replace(*change, 1) if change[0] != "}\n" else text[:-2])


def test_a_folder_with_a_config_is_enough(tmp_path: Path) -> None:
    config_of("qwen3").save_pretrained(tmp_path)
    assert load_config(tmp_path).model_type == "qwen3"
    assert load_config(tmp_path / "config.json").model_type == "qwen3"
    assert trace_step(tmp_path, tokens=64).order == ("Qwen3DecoderLayer",) * 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model_type": "llama", "hidden_size": "abc"}', "'hidden_size'.*got str"),
        (
            '{"model_type": "llama", "hidden_size": 100, "num_attention_heads": 7}',
            r"hidden size \(100\) is not a multiple",
        ),
        ('{"model_type": "llama", "num_attention_heads": 0}', "ZeroDivisionError: integer"),
        ('{"model_type": "lama"}', "model type `lama`"),
        ('{"hidden_size": 4}', "Should have a `model_type`"),
        ("[1, 2]", "Unrecognized model"),
        ("{", "not a valid JSON file"),
    ],
)
def test_a_config_that_is_there_is_refused_with_the_reason(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    for path in (tmp_path, tmp_path / "config.json"):
        with pytest.raises(ValueError, match=f"does not take its config: .*{message}") as caught:
            load_config(path)
        assert "\n" not in str(caught.value)


def test_unknown_models_are_named_with_what_is_near(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"mixtrl.*mixtral"):
        load_config(str(tmp_path / "mixtrl"))


@pytest.mark.parametrize("name", ["tokens", "batch", "tile_tokens", "sequence_parallel"])
def test_sizes_below_one_are_refused(name: str) -> None:
    sizes: dict[str, Any] = {"tokens": 10, name: 0}
    with pytest.raises(ValueError, match=f"{name} is 0: takes 1 or more"):
        trace_step(config_of("llama"), **sizes)


def test_tokens_that_are_no_share_are_refused() -> None:
    with pytest.raises(ValueError, match="tokens is 1025: 4 ranks have 1088 of 4099 at most"):
        trace_step(config_of("llama"), tokens=1025, total_tokens=4099, sequence_parallel=4)


def test_a_config_without_a_causal_lm_is_refused() -> None:
    with pytest.raises(MemoError, match="no causal LM can be made of a T5Config"):
        trace_step(AutoConfig.for_model("t5"), tokens=10)


def test_a_config_that_makes_no_model_is_refused() -> None:
    config = config_of("llama", hidden_act="nope")
    with pytest.raises(MemoError, match="made of a LlamaConfig: KeyError: 'nope'"):
        trace_step(config, tokens=10)
    with pytest.raises(MemoError, match="made of a LlamaConfig: KeyError: 'nope'"):
        SampledModel.of(config, torch.float32)


def test_a_config_without_words_is_refused() -> None:
    config = config_of("llama", vocab_size=0, pad_token_id=None)
    with pytest.raises(MemoError, match="made of a LlamaConfig: vocab_size is 0: takes 1 or more"):
        trace_step(config, tokens=10)
    with pytest.raises(MemoError, match="made of a LlamaConfig: vocab_size is 0: takes 1 or more"):
        SampledModel.of(config, torch.float32)


def test_models_that_look_at_values_are_refused() -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    with pytest.raises(MemoError, match="looks at values"):
        trace_step(config_of("llama", rope_parameters=rope), tokens=64)


def test_layers_without_a_twin_are_told_as_far_as_they_show(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tracing_step, "layer_modes", lambda *_: None)
    step = trace_step(config_of("lfm2"), tokens=200, tile_tokens=64)
    assert [layer.reason is None for layer in step.layers] == [False, True]
    assert [layer.tiles for layer in step.layers] == [1, 4]
    (note,) = step.notes
    assert "self-check" in note


def test_nothing_is_left_behind() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    trace_step(config_of("llama"), tokens=300, tile_tokens=64)
    assert torch.equal(torch.rand(2), expected)
    config = config_of("gpt2")
    before = config.to_dict()
    trace_step(config, tokens=300)
    assert config.to_dict() == before
    model = AutoModelForCausalLM.from_config(config)  # real again
    logits = model(torch.zeros((1, 9), dtype=torch.int64)).logits.detach()
    assert float(logits.abs().sum()) > 0


def test_an_error_on_the_way_takes_everything_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: object) -> None:
        raise RuntimeError("on the way")

    monkeypatch.setattr(tracing_run, "_cuts", fails)
    with pytest.raises(RuntimeError, match="on the way"):
        trace_step(config_of("llama"), tokens=100)
    monkeypatch.undo()
    assert trace_step(config_of("llama"), tokens=100).layers
