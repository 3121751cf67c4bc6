"""Wrapping changes nothing that can be seen from outside, and unwrapping leaves nothing behind."""

from __future__ import annotations

import inspect
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import memo
from tests.behaviour.common import TILE_TOKENS, batch, models, plain_model, wrapped_model
from tests.behaviour.state import assert_restored, state_of
from tests.families.catalogue import family_named
from tests.families.harness import (
    assert_equal_grads,
    assert_same_step,
    random_ids,
    train_step,
    wrap_family,
)

NAMES = ("llama", "gpt2", "gemma3_text", "mixtral", "falcon", "lfm2")


def settled(name: str = "llama") -> PreTrainedModel:
    """A model after a step and an evaluation: transformers has left its own marks on it."""
    model = plain_model(name)
    train_step(model, batch() | {"output_hidden_states": True})
    with torch.no_grad():
        model(**batch())
    return model


def wrap(model: PreTrainedModel, name: str = "llama", **options: Any) -> PreTrainedModel:
    """`memo.wrap`, with the warnings that the family gives."""
    return wrap_family(family_named(name), model, tile_tokens=TILE_TOKENS, **options)


@pytest.mark.parametrize("name", NAMES)
def test_unwrap_at_once(name: str) -> None:
    model = settled(name)
    state = state_of(model)
    assert memo.unwrap(wrap(model, name)) is model
    assert_restored(model, state)


@pytest.mark.parametrize("placement", ["recompute", "keep"])
@pytest.mark.parametrize("name", NAMES)
def test_unwrap_after_everything(name: str, placement: str) -> None:
    model = settled(name)
    state, before = state_of(model), train_step(model, batch())
    wrap(model, name, placement=placement)
    train_step(model, batch() | {"output_hidden_states": True})
    with torch.no_grad():
        model(**batch())
    model.generate(random_ids(1, 5), max_new_tokens=2, pad_token_id=0)  # type: ignore[operator]
    memo.report(model, reset=True)
    memo.unwrap(model)
    assert_restored(model, state)
    after = train_step(model, batch())
    assert float(after.loss) == float(before.loss)
    assert_equal_grads(after.grads, before.grads)


def test_between_calls_a_wrapped_model_differs_by_its_entry_and_leaves_alone() -> None:
    model = settled()
    state = state_of(model)
    wrap(model)
    train_step(model, batch())
    now = state_of(model)
    assert now.configs == state.configs
    for name, attributes in now.attributes.items():
        more = attributes.keys() - state.attributes[name].keys()
        ours = {"forward", "_memo_runtime"} if name in ("", "model") else set()
        is_layer = "layers" in name.split(".")[-2:-1]
        assert more <= ours | ({"_z3_leaf"} if is_layer else set())  # what DeepSpeed is told
        assert [key for key in attributes if key not in more] == list(state.attributes[name])


def test_a_forward_of_the_users_own_is_back() -> None:
    model = plain_model()
    calls: list[str] = []
    original = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        calls.append("own")
        return original(*args, **kwargs)

    model.forward = forward
    expected = train_step(model, batch())
    wrap(model)
    calls.clear()
    assert_same_step(train_step(model, batch()), expected)
    assert calls == ["own"]
    assert memo.unwrap(model).forward is forward


def test_wrap_leaves_numbers_modes_and_gradients() -> None:
    model = plain_model("gpt2")
    model(**batch()).loss.backward()
    model.get_submodule("transformer.h.0").eval()
    model.get_submodule("transformer.h.1.ln_1").requires_grad_(False)
    modes = {name: module.training for name, module in model.named_modules()}
    needs = {name: param.requires_grad for name, param in model.named_parameters()}
    grads = {
        name: (p.grad, p.grad.clone()) for name, p in model.named_parameters() if p.grad is not None
    }
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    wrap(model, "gpt2")
    assert torch.equal(torch.get_rng_state(), random)
    assert modes == {name: module.training for name, module in model.named_modules()}
    assert needs == {name: param.requires_grad for name, param in model.named_parameters()}
    for name, (grad, value) in grads.items():
        assert model.get_parameter(name).grad is grad
        assert torch.equal(grad, value)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[name])


def test_names_and_signature_are_the_models_own() -> None:
    plain, wrapped = models()
    train_step(wrapped, batch())
    assert list(wrapped.state_dict()) == list(plain.state_dict())
    assert [n for n, _ in wrapped.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert [n for n, _ in wrapped.named_modules()] == [n for n, _ in plain.named_modules()]
    assert str(wrapped) == str(plain)
    # Trainer reads the signature to tell which columns a model takes.
    assert inspect.signature(wrapped.forward) == inspect.signature(plain.forward)
    assert type(wrapped) is type(plain)


def test_save_pretrained_is_untouched(tmp_path: Path) -> None:
    plain, wrapped = models()
    train_step(wrapped, batch())
    for model, folder in ((plain, "plain"), (wrapped, "wrapped")):
        model.save_pretrained(tmp_path / folder)
    files = sorted(path.name for path in (tmp_path / "plain").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "wrapped").iterdir())
    for name in files:
        contents = [(tmp_path / folder / name).read_bytes() for folder in ("plain", "wrapped")]
        assert contents[0] == contents[1], name
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "wrapped").train()
    assert_same_step(train_step(loaded, batch()), train_step(plain, batch()))


def test_loading_weights_into_a_wrapped_model() -> None:
    plain, wrapped = models()
    weights = io.BytesIO()
    torch.save(plain.state_dict(), weights)
    with torch.no_grad():
        for param in wrapped.parameters():
            param.zero_()
    weights.seek(0)
    wrapped.load_state_dict(torch.load(weights))
    assert_same_step(train_step(wrapped, batch()), train_step(plain, batch()))


def test_casting_a_wrapped_model() -> None:
    plain, wrapped = models()
    for model in (plain, wrapped):
        model.double()
    assert_same_step(train_step(wrapped, batch()), train_step(plain, batch()), tolerance=1e-6)
    assert wrapped_model().bfloat16()(**batch()).loss.isfinite()
