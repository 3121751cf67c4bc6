"""The loss's seam in a small Llama: what stands in the model's way, and that it goes away again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel

from memo.loss.lazy import LazyLogits
from memo.loss.seam import LossSeam

VOCABULARY = 29
CONFIG: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
}


def _model(**options: Any) -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**CONFIG, **options))


def _batch() -> dict[str, Tensor]:
    ids = torch.randint(1, VOCABULARY, (2, 13))
    labels = ids.clone()
    labels[0, :4] = -100
    return {"input_ids": ids, "labels": labels}


def _seam(model: nn.Module, told: list[str] | None = None) -> LossSeam:
    seam = LossSeam.of(model, (told if told is not None else []).append)
    assert seam is not None
    return seam


def _step(model: LlamaForCausalLM, batch: dict[str, Any]) -> tuple[Tensor, list[Tensor]]:
    model.zero_grad()
    loss = model(**batch).loss
    (loss / 3).backward()
    grads = [param.grad for param in model.parameters()]
    assert None not in grads
    return loss.detach(), [grad for grad in grads if grad is not None]


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    before = [dict(vars(module)) for module in model.modules()]
    yield
    after = [dict(vars(module)) for module in model.modules()]
    assert [list(attributes) for attributes in after] == [list(a) for a in before]


@pytest.mark.parametrize("extra", ["nothing", "items", "shifted", "both"])
@pytest.mark.parametrize("tied", [False, True])
def test_loss_and_gradients_are_the_models_own(tied: bool, extra: str) -> None:
    model, batch, told = _model(tie_word_embeddings=tied), _batch(), list[str]()
    if extra in ("items", "both"):
        batch["num_items_in_batch"] = torch.tensor(41)
    if extra in ("shifted", "both"):
        batch["shift_labels"] = batch["labels"].roll(-2, 1)
    want, grads = _step(model, batch)
    with _untouched(model), _seam(model, told).installed():
        found, ours = _step(model, batch)
    assert torch.allclose(found, want, rtol=1e-6)
    for grad, expected in zip(ours, grads, strict=True):
        assert float((grad - expected).norm()) <= 1e-5 * float(expected.norm())
    assert told == []


def test_the_loss_is_tiled_and_logits_are_lazy() -> None:
    model, told = _model(), list[str]()
    with _seam(model, told).installed():
        output = model(**_batch())
    assert isinstance(output.logits, LazyLogits)
    assert output.logits.shape == (2, 13, VOCABULARY)
    assert told == []
    assert output.logits.argmax(-1).shape == (2, 13)
    assert told == ["argmax"]


def test_hooks_of_an_engine_see_one_call_and_a_scalar() -> None:
    model, seen = _model(), list[torch.Size]()

    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        seen.append(output.shape)

    hook.__module__ = "torch.distributed.fsdp"
    model.lm_head.register_forward_hook(hook)
    with _seam(model).installed():
        model(**_batch()).loss.backward()
    assert seen == [torch.Size(())]


def test_a_head_wider_than_the_vocabulary_gives_whole_logits() -> None:
    model, batch, told = _model(), _batch(), list[str]()
    with _seam(model, told).installed():
        wide = model.lm_head(torch.randn(2, 13, 16))
        with pytest.raises((ValueError, RuntimeError)):
            model.loss_function(wide, batch["labels"] % 27, VOCABULARY - 2)
    assert told == ["a head wider than the vocabulary"]


def test_whole_logits_go_through_the_models_own_loss() -> None:
    model, batch = _model(), _batch()
    logits = model(input_ids=batch["input_ids"]).logits
    want = model.loss_function(logits, batch["labels"], VOCABULARY)
    with _seam(model).installed():
        assert torch.equal(model.loss_function(logits, batch["labels"], VOCABULARY), want)


def test_models_without_a_causal_loss_have_no_seam() -> None:
    config = LlamaConfig(**CONFIG)
    for model in (LlamaModel(config), LlamaForSequenceClassification(config)):
        assert LossSeam.of(model, lambda why: None) is None
    own = _model()
    own.loss_function = lambda *args, **kwargs: torch.zeros(())
    assert LossSeam.of(own, lambda why: None) is None


def test_a_fault_in_the_forward_leaves_the_model_as_it_was() -> None:
    model = _model()
    before = model.loss_function
    with _untouched(model), pytest.raises(KeyError), _seam(model).installed():
        raise KeyError
    assert isinstance(model.lm_head, nn.Linear)
    assert model.loss_function is before


def test_a_loss_that_was_set_comes_back() -> None:
    model = _model()
    model.loss_function = before = model.loss_function  # now in the instance
    with _seam(model).installed():
        assert model.loss_function is not before
    assert vars(model)["_loss_function"] is before


def test_the_head_is_still_asked_for_its_attributes() -> None:
    model = _model()
    head = model.lm_head
    with _seam(model).installed():
        assert model.lm_head.weight is head.weight
        assert model.lm_head.out_features == VOCABULARY
    assert model.lm_head is head


def test_autocast_decides_the_dtype_of_logits() -> None:
    model = _model()
    with _seam(model).installed(), torch.autocast("cpu", torch.bfloat16):
        lazy = model.lm_head(torch.randn(2, 3, 16))
        assert lazy.dtype is torch.bfloat16 is lazy.materialise("the test").dtype


def test_heads_that_others_have_changed_have_no_seam() -> None:
    model = _model()
    before = model.lm_head.forward
    model.lm_head.forward = lambda hidden: before(hidden)  # as accelerate's hooks do
    assert LossSeam.of(model, lambda why: None) is None
    hooked = _model()
    handle = hooked.lm_head.register_forward_hook(lambda module, args, output: output * 2)
    assert LossSeam.of(hooked, lambda why: None) is None
    handle.remove()
    assert LossSeam.of(hooked, lambda why: None) is not None
