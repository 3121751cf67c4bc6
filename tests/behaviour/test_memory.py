"""Nothing piles up: forwards that never see a backward, full steps, and steps that fail all leave
what is held where it was.

Scope: the store's own counts, and, independent of them, the storages of all tensors that exist.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

import memo
from memo.wrap import runtime_of
from offload import Tier
from tests.behaviour.common import PLACEMENTS, batch, gradients, held_bytes, models, wrapped_model
from tests.families.harness import assert_equal_grads, train_step

TIMES = 20

by_placement = pytest.mark.parametrize("placement", PLACEMENTS, ids=str)


class Living(TorchDispatchMode):
    """Bytes of the storages that operations made inside and that are still there."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(result):
            if type(leaf) is Tensor:
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = int(storage._cdata)
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            weakref.finalize(storage, self._sizes.pop, key, None)

    @property
    def nbytes(self) -> int:
        return sum(self._sizes.values())


def forward_only(model: PreTrainedModel) -> None:
    """A training forward whose loss is thrown away."""
    model(**batch())


def full_step(model: PreTrainedModel) -> None:
    """Forward, backward, and gradients thrown away."""
    train_step(model, batch())


def with_hidden_states(model: PreTrainedModel) -> None:
    """A forward of which more comes out."""
    model(**batch(), output_hidden_states=True)


def of_a_part(model: PreTrainedModel) -> None:
    """A backward that stops in the middle of the model."""
    states = model(**batch(), output_hidden_states=True).hidden_states
    torch.autograd.grad(states[2].sum(), states[1])


ACTIONS = (forward_only, full_step, with_hidden_states, of_a_part)


@by_placement
@pytest.mark.parametrize("action", [forward_only, full_step], ids=lambda a: a.__name__)
def test_nothing_is_held_after_many(
    action: Callable[[PreTrainedModel], None], placement: Any
) -> None:
    wrapped = wrapped_model(placement=placement, skeletal="host")
    for _ in range(TIMES):
        action(wrapped)
        assert held_bytes(wrapped) == 0


@pytest.mark.parametrize(
    ("name", "placement"),
    [
        ("llama", "recompute"),
        ("llama", "keep"),
        ("llama", "host"),
        ("mixtral", "keep"),
        ("falcon", "recompute"),
        ("falcon", "host"),
    ],
)
def test_no_tensor_is_left(name: str, placement: str) -> None:
    wrapped = wrapped_model(name, placement=placement)
    after = []
    with Living() as living:
        for _ in range(3):
            for action in ACTIONS:
                action(wrapped)
            after.append(living.nbytes)
    # The first round fills the caches of transformers and of ours.
    assert after[1] == after[2]
    assert held_bytes(wrapped) == 0


@by_placement
def test_held_between_forward_and_backward_alone(placement: Any) -> None:
    wrapped = wrapped_model(placement=placement)
    loss = wrapped(**batch()).loss
    held = held_bytes(wrapped)
    assert held > 0
    assert memo.report(wrapped).peak_bytes[Tier.DEVICE] > 0
    others = [wrapped(**batch()).loss for _ in range(2)]
    assert held_bytes(wrapped) == 3 * held
    del others
    assert held_bytes(wrapped) == held
    loss.backward()
    del loss
    assert held_bytes(wrapped) == 0


def test_placements_hold_in_their_tiers() -> None:
    held: dict[str, dict[Tier, int]] = {}
    for placement in ("recompute", "keep", "host"):
        wrapped = wrapped_model(placement=placement)
        loss = wrapped(**batch()).loss
        counts = runtime_of(wrapped).store.counts
        held[placement] = {tier: count.held_bytes for tier, count in counts.items()}
        loss.backward()
    assert held["recompute"][Tier.HOST] == held["keep"][Tier.HOST] == 0
    assert held["host"][Tier.DEVICE] == held["recompute"][Tier.DEVICE] > 0  # x and o
    transient_bytes = held["host"][Tier.HOST]
    assert transient_bytes > 0
    assert held["keep"][Tier.DEVICE] == held["recompute"][Tier.DEVICE] + transient_bytes


@by_placement
def test_less_is_alive_than_in_the_unwrapped_model(placement: Any) -> None:
    plain, wrapped = models(placement=placement)
    alive = []
    for model in (plain, wrapped):
        full_step(model)
        with Living() as living:
            loss = model(**batch()).loss
            alive.append(living.nbytes)
        loss.backward()
    # Memory that stands for the host's is made in steps of a large page.
    host_bytes = sum(host.pool.size_bytes for host in runtime_of(wrapped).store.hosts.values())
    assert alive[1] - host_bytes < alive[0]


@pytest.mark.parametrize("tiled_loss", [True, False])
@by_placement
def test_a_second_backward_is_refused(placement: Any, tiled_loss: bool) -> None:
    wrapped = wrapped_model(placement=placement, tiled_loss=tiled_loss)
    loss = wrapped(**batch()).loss
    loss.backward(retain_graph=True)
    with pytest.raises(memo.MemoError, match="backward ran a second time"):
        loss.backward()
    del loss
    assert held_bytes(wrapped) == 0
    train_step(wrapped, batch())


def test_a_second_backward_through_a_part_is_refused() -> None:
    wrapped = wrapped_model()
    output = wrapped(**batch(), output_hidden_states=True)
    output.hidden_states[1].sum().backward(retain_graph=True)
    with pytest.raises(memo.MemoError, match="backward ran a second time"):
        output.loss.backward()


@pytest.mark.parametrize("name", ["llama", "falcon"])
def test_a_second_backward_through_the_head_is_refused(name: str) -> None:
    # No tiled layer with a gradient lies behind it that would notice in its stead.
    wrapped = wrapped_model(name)
    wrapped.base_model.requires_grad_(name == "falcon")
    loss = wrapped(**batch()).loss
    loss.backward(retain_graph=True)
    first = {n: None if g is None else g.clone() for n, g in gradients(wrapped).items()}
    with pytest.raises(memo.MemoError, match="backward ran a second time"):
        loss.backward()
    assert_equal_grads(gradients(wrapped), first)
