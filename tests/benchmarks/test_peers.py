"""What peers and probes of memory are made of: the same gradients, and bytes where they say.

Scope: `peers`, `cut` and `accounting` on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from transformers import PreTrainedModel

import memo
import offload.recording
from benchmarks import accounting, cases, peers, runner
from benchmarks.contracts import Job, Outcome, Phase, Sample, Shape
from benchmarks.cut import attention_cut
from benchmarks.step import Step, build
from memo.measure import MIB
from offload import Tier

SHAPE = Shape(
    layers=2,
    hidden=32,
    intermediate=48,
    heads=4,
    kv_heads=2,
    vocab=101,
    dtype="float32",
    head=True,
)
TOKENS = 75


def job_of(case: str, **changes: object) -> Job:
    job = Job(shape=SHAPE, case=case, tokens=TOKENS, phase=Phase.FIT)
    return replace(job, **changes)  # type: ignore[arg-type]  # the callers name the fields


def gradients(case: str) -> list[Tensor]:
    step = Step(job_of(case))
    step.run(TOKENS)
    return [parameter.grad for parameter in step.model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("case", ["checkpointing", "offload", "alst", "memo:recompute/host"])
def test_all_cases_give_the_same_gradients(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Tiles of a few tokens, so that there are several and none of a size that divides.
    monkeypatch.setattr(peers, "LOGITS_BYTES", 4 * SHAPE.vocab * 20)
    for got, want in zip(gradients(case), gradients("plain"), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


def saved_bytes(run: Callable[[], object], *, beside: list[Tensor]) -> int:
    """Of the storages that autograd holds after `run`, each once, those of `beside` not at all."""
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = run()
    del kept
    for tensor in beside:
        held.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(held.values())


def layers_saved_on_cpu(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes that `save_on_cpu` moved in a step."""
    moved: list[int] = []
    original = Tensor.cpu

    def cpu(tensor: Tensor) -> Tensor:
        moved.append(tensor.numel() * tensor.element_size())
        return original(tensor)

    monkeypatch.setattr(Tensor, "cpu", cpu)
    ids = torch.arange(TOKENS)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    return moved


def test_offload_moves_layer_inputs_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(SHAPE, TOKENS).train()
    cases.prepare("offload", model, None)
    x_bytes = TOKENS * SHAPE.hidden * 4
    moved = layers_saved_on_cpu(model, monkeypatch)
    assert [size for size in moved if size > 1] == [x_bytes] * SHAPE.layers


def test_alst_never_makes_whole_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "LOGITS_BYTES", 4 * SHAPE.vocab * 20)
    widest = []
    step = Step(job_of("alst"))
    head = step.model.get_output_embeddings()
    head.register_forward_hook(lambda *parts: widest.append(parts[2].shape[0]))
    step.run(TOKENS)
    assert max(widest) == 20
    mlp = accounting.layers_of(step.model)[0].mlp
    rows: list[int] = []
    mlp.gate_proj.register_forward_hook(lambda *parts: rows.append(parts[2].shape[1]))  # type: ignore[union-attr]
    step.run(TOKENS)
    assert max(rows) == SHAPE.hidden


# ---- attention in pieces ----


def heads(dtype: torch.dtype = torch.float32, tokens: int = 96) -> list[Tensor]:
    return [
        torch.randn(1, tokens, count, 8, dtype=dtype).transpose(1, 2).requires_grad_()
        for count in (4, 2, 2)
    ]


def attend(tensors: list[Tensor], pieces_tokens: int | None) -> Tensor:
    q, k, v = tensors
    with attention_cut(pieces_tokens):
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def test_pieces_are_attention_of_each_alone() -> None:
    tensors = heads()
    out, grad = attend(tensors, 32), torch.randn(1, 4, 96, 8)
    parts = [[t[:, :, at : at + 32] for t in tensors] for at in (0, 32, 64)]
    want = torch.cat([attend(part, None) for part in parts], dim=2)
    torch.testing.assert_close(out, want)
    found, expected = (torch.autograd.grad(o, tensors, grad) for o in (out, want))
    for got, value in zip(found, expected, strict=True):
        torch.testing.assert_close(got, value)


def test_pieces_hold_what_the_whole_holds() -> None:
    tensors = heads(torch.bfloat16)
    whole = saved_bytes(lambda: attend(tensors, None), beside=tensors)
    assert whole == 96 * 4 * (2 * 8 + 4)  # o, and a sum in float32
    assert saved_bytes(lambda: attend(tensors, 32), beside=tensors) == whole
    assert attend(tensors, 32).stride()[1:] == attend(tensors, None).stride()[1:]


@pytest.mark.parametrize(("tokens", "pieces"), [(96, 96), (96, 40), (30, 32)])
def test_what_cannot_be_cut_is_whole(tokens: int, pieces: int) -> None:
    tensors = heads(tokens=tokens)
    assert torch.equal(attend(tensors, pieces), attend(tensors, None))


def test_the_function_is_put_back() -> None:
    original = functional.scaled_dot_product_attention
    with attention_cut(8):
        assert functional.scaled_dot_product_attention is not original
    assert functional.scaled_dot_product_attention is original


def test_a_wrapped_model_attends_in_pieces_too() -> None:
    step = Step(job_of("memo:recompute"))
    with attention_cut(25):
        cut = step.run(TOKENS)
    assert cut != step.run(TOKENS)


# ---- memory that is accounted for ----


@pytest.mark.parametrize(
    ("case", "hiddens"), [("memo:recompute", 2), ("memo:recompute/host", 0), ("memo:host/host", 0)]
)
def test_a_wrapped_layer_holds_x_and_o_or_nothing(
    case: str, hiddens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offload.recording, "_SMALL_BYTES", 0)
    step = Step(job_of(case))
    tensors_bytes = hiddens * TOKENS * SHAPE.hidden * 4
    sums_bytes = 4 * TOKENS * SHAPE.heads if hiddens else 0
    assert accounting.held_by_layer(step, job_of(case)) == tensors_bytes + sums_bytes
    assert memo.report(step.model).peak_bytes[Tier.DEVICE] == 0, "counts must start anew"


def test_a_layer_holds_more_at_more_tokens_in_proportion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "CALIBRATION_TOKENS", TOKENS)
    step = Step(job_of("memo:recompute"))
    near = accounting.held_by_layer(step, job_of("memo:recompute"))
    far = accounting.held_by_layer(step, job_of("memo:recompute", tokens=4 * TOKENS))
    assert far == 4 * near > 0


def test_what_a_peers_layer_holds_is_read_between_layers_of_forward(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    live = iter([1000, 1700, 3, 4])
    monkeypatch.setattr(accounting, "_live_bytes", lambda _: next(live))
    step, run = Step(job_of("checkpointing")), Step.run
    # Where a checkpoint lies around hooks, they are called again in backward.
    monkeypatch.setattr(Step, "run", lambda *given: (run(*given), run(*given)))
    assert accounting.held_by_layer(step, job_of("checkpointing")) == 700


def test_parameters_count_with_their_gradients() -> None:
    layer = accounting.layers_of(build(SHAPE, TOKENS))[0]
    weights = 32 * (32 + 16 + 16 + 32) + 3 * 32 * 48 + 2 * 32
    assert accounting.parameter_bytes(layer) == 2 * 4 * weights


def test_the_memory_of_other_layers_is_really_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    empty = torch.empty

    def watched(size: int, **options: object) -> Tensor:
        taken.append(size)
        return empty(1)

    job = job_of("checkpointing", account_layers=30)
    step = Step(job)
    monkeypatch.setattr(torch, "empty", watched)
    with accounting.held(step, job, layer_bytes=100 << 20):
        pass
    monkeypatch.undo()
    layer = accounting.layers_of(step.model)[0]
    assert sum(taken) == 30 * (accounting.parameter_bytes(layer) + (100 << 20))
    assert max(taken) <= 1 << 30


def test_the_host_allows_what_its_memory_holds_of_all_layers() -> None:
    sample = Sample(case="offload", tokens=1000, phase=Phase.FIT, outcome=Outcome.OK)
    held = replace(sample, layer_host_bytes=8000)
    assert accounting.host_tokens(held, 32, available_bytes=32 * 8000 * 5) == 5000
    assert accounting.host_tokens(sample, 32, available_bytes=10**9) is None


def test_layers_that_are_accounted_for_make_a_probe_fail() -> None:
    job = job_of("memo:recompute", limit_bytes=4096 * MIB, attention_tokens=25)
    fits = runner.run(replace(job, account_layers=30), timeout_s=100)
    assert fits.outcome is Outcome.OK, fits.message
    assert fits.layer_bytes == 2 * TOKENS * SHAPE.hidden * 4 + 4 * TOKENS * SHAPE.heads
    too_many = runner.run(replace(job, account_layers=200_000), timeout_s=100)
    assert too_many.outcome is Outcome.DOES_NOT_FIT, too_many.message
