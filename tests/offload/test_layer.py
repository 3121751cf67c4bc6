"""The tiled layer on a toy: gradients, what is held meanwhile, and what becomes of faults."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from itertools import product

import pytest
import torch
from torch import Tensor

from offload import MemoError, Placement, TensorStore, Tier, Turn, run_tiled
from offload.store import Ticket
from tests.offload.disks import disk_store
from tests.offload.toy import (
    BATCH,
    HIDDEN,
    TOKENS,
    Toy,
    ToyState,
    gradients,
    plain,
    toy_input,
    toy_params,
)

KEEP, HOST, RECOMPUTE, SSD = Placement.KEEP, Placement.HOST, Placement.RECOMPUTE, Placement.SSD
MIXED = (RECOMPUTE, HOST, KEEP)
SKELETAL_BYTES = BATCH * TOKENS * (HIDDEN + 6) * 8 + ToyState().nbytes


def _inputs(toy: Toy, x: Tensor) -> dict[str, Tensor]:
    return {"x": x, **toy.split.params}


def _assert_close(got: dict[str, Tensor | None], want: dict[str, Tensor | None]) -> None:
    assert got.keys() == want.keys()
    for name, expected in want.items():
        found = got[name]
        assert expected is not None
        assert found is not None, name
        assert torch.allclose(found, expected, rtol=1e-11, atol=1e-11), name


@pytest.mark.parametrize("tile_tokens", [1, 3, 6, 7, 50])
@pytest.mark.parametrize(("parallel", "hold_pre"), list(product((False, True), repeat=2)))
def test_outputs_and_gradients_are_the_untiled_layers(
    tile_tokens: int, parallel: bool, hold_pre: bool
) -> None:
    toy, x = Toy.of(toy_params(), parallel=parallel), toy_input().requires_grad_()
    want = plain(toy.split, x)
    got = run_tiled(toy.forward(tile_tokens, MIXED, hold_pre=hold_pre), x)
    assert list(got) == ["", "router"]
    for name, tensor in want.items():
        assert torch.allclose(got[name], tensor, rtol=1e-12, atol=1e-12)
    _assert_close(gradients(got, _inputs(toy, x)), gradients(want, _inputs(toy, x)))
    assert (toy.core.forwards, toy.core.backwards) == (1, 1)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_placements_change_no_bit(dtype: torch.dtype, parallel: bool, dropout: float) -> None:
    steps = []
    for placements, skeletal, hold_pre in product(
        ((RECOMPUTE,), (KEEP,), (HOST,), (SSD,), MIXED), list(Tier), (False, True)
    ):
        torch.manual_seed(1)
        toy = Toy.of(toy_params(dtype), parallel=parallel, dropout=dropout)
        toy.store = disk_store(in_flight_bytes=0)
        x = toy_input(dtype).requires_grad_()
        forward = toy.forward(2, placements, skeletal=skeletal, hold_pre=hold_pre)
        outputs = run_tiled(forward, x)
        steps.append({**gradients(outputs, _inputs(toy, x)), "y": outputs[""].detach()})
    for step in steps[1:]:
        for name, tensor in steps[0].items():
            other = step[name]
            assert tensor is not None
            assert other is not None
            assert torch.equal(tensor, other), name


@pytest.mark.parametrize("placement", list(Placement))
def test_only_what_takes_a_gradient_gets_one(placement: Placement) -> None:
    trained = {"down", "wo"}
    params = {name: p.requires_grad_(name in trained) for name, p in toy_params().items()}
    toy, x = Toy.of(params), toy_input()
    toy.store = disk_store()
    want = gradients(plain(toy.split, x), _inputs(toy, x))
    got = gradients(run_tiled(toy.forward(3, (placement,)), x), _inputs(toy, x))
    _assert_close(got, want)
    assert toy.core.backwards == 0  # nothing before attention takes a gradient


def test_an_output_without_a_gradient_takes_no_part() -> None:
    toy, x = Toy.of(toy_params()), toy_input().requires_grad_()
    want = torch.autograd.grad(plain(toy.split, x)[""].square().sum(), x)[0]
    got = torch.autograd.grad(run_tiled(toy.forward(3), x)[""].square().sum(), x)[0]
    assert torch.allclose(got, want, rtol=1e-11, atol=1e-11)


def test_dropout_is_the_same_in_both_directions() -> None:
    toy = Toy.of(toy_params(), dropout=0.4)
    x = toy_input().requires_grad_()
    direction = torch.randn_like(x)

    def loss(moved: Tensor) -> Tensor:
        torch.manual_seed(11)
        return run_tiled(toy.forward(3), moved)[""].pow(3).sum()

    slope = (torch.autograd.grad(loss(x), x)[0] * direction).sum()
    step = 1e-6
    with torch.no_grad():
        difference = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
    assert torch.allclose(slope, difference, rtol=1e-6)


def test_only_skeletal_tensors_are_held_when_the_rest_is_rebuilt() -> None:
    toy, x = Toy.of(toy_params()), toy_input().requires_grad_()
    outputs = run_tiled(toy.forward(3, (RECOMPUTE,), skeletal=Tier.HOST), x)
    assert toy.held_bytes() == SKELETAL_BYTES - ToyState().nbytes
    assert toy.store.counts[Tier.DEVICE].held_bytes == 0
    assert toy.count.skeletal_bytes == {Tier.HOST: SKELETAL_BYTES}
    assert toy.count.tiles == {RECOMPUTE: 3}
    outputs[""].sum().backward()
    del outputs
    gc.collect()
    assert toy.held_bytes() == 0


@pytest.mark.parametrize("placement", [KEEP, HOST])
def test_held_graphs_that_see_no_backward_are_freed(placement: Placement) -> None:
    toy, x = Toy.of(toy_params()), toy_input().requires_grad_()
    outputs = run_tiled(toy.forward(3, (placement,)), x)
    assert toy.held_bytes() > SKELETAL_BYTES
    assert placement.tier is not None
    assert toy.count.stored_bytes[placement.tier] > 0
    del outputs
    gc.collect()
    assert toy.held_bytes() == 0


def test_parameters_and_constants_are_never_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    toy, x = Toy.of(toy_params()), toy_input().requires_grad_()
    put, stored = TensorStore.put, set[int]()

    def watched(
        store: TensorStore, tensors: Sequence[Tensor], tier: Tier, turn: Turn = Turn.LAYER
    ) -> Ticket:
        stored.update(tensor.data_ptr() for tensor in tensors)
        return put(store, tensors, tier, turn)

    monkeypatch.setattr(TensorStore, "put", watched)
    run_tiled(toy.forward(3, (KEEP,)), x)
    assert len(stored) > 2 * 3  # more than x and o
    assert not stored & {t.data_ptr() for t in (*toy.split.params.values(), toy.split.table)}


def test_without_gradients_nothing_is_kept_or_counted() -> None:
    toy, x = Toy.of(toy_params()), toy_input()
    with torch.no_grad():
        y = run_tiled(toy.forward(3, (KEEP,)), x)[""]
    assert torch.allclose(y, plain(toy.split, x)[""], rtol=1e-12)
    assert not y.requires_grad
    assert (toy.held_bytes(), toy.count.calls) == (0, 0)
    assert toy.split.runs[:6] == ["pre"] * 3 + ["run"] * 3


@pytest.mark.parametrize(("hold_pre", "again"), [(False, ["pre"] * 3), (True, [])])
def test_backward_runs_within_its_scope(hold_pre: bool, again: list[str]) -> None:
    toy, x = Toy.of(toy_params()), toy_input().requires_grad_()
    y = run_tiled(toy.forward(3, hold_pre=hold_pre), x)[""]
    toy.split.runs.clear()
    y.sum().backward()
    assert toy.split.runs == ["scope entered", *["run"] * 3, *again, "scope left"]


def test_each_parameter_gets_its_gradient_once_a_call() -> None:
    toy, x = Toy.of(toy_params()), toy_input()
    calls: list[str] = []
    for name, param in toy.split.params.items():
        param.register_hook(lambda grad, name=name: calls.append(name))
    outputs = run_tiled(toy.forward(2, MIXED), x)
    (outputs[""].sum() + outputs["router"].sum()).backward()
    assert sorted(calls) == sorted(toy.split.params)


def test_a_second_backward_is_refused() -> None:
    toy, x = Toy.of(toy_params()), toy_input().requires_grad_()
    loss = run_tiled(toy.forward(3), x)[""].sum()
    loss.backward(retain_graph=True)
    with pytest.raises(MemoError, match="second time"):
        loss.backward()


@pytest.mark.parametrize("placements", [(RECOMPUTE,), (KEEP,)])
def test_after_a_fault_in_backward_the_next_step_is_right(
    placements: tuple[Placement, ...],
) -> None:
    toy, x = Toy.of(toy_params()), toy_input().requires_grad_()
    toy.core.fault = KeyError("planted")
    with pytest.raises(KeyError, match="planted"):
        run_tiled(toy.forward(3, placements), x)[""].sum().backward()
    assert all(param.grad is None for param in toy.split.params.values())
    want = gradients(plain(toy.split, x), _inputs(toy, x))
    _assert_close(gradients(run_tiled(toy.forward(3, placements), x), _inputs(toy, x)), want)
    gc.collect()
    assert toy.held_bytes() == 0


def test_autocast_is_found_again_in_backward() -> None:
    steps = []
    for placements in ((RECOMPUTE,), (KEEP,)):
        toy, x = Toy.of(toy_params(torch.float32)), toy_input(torch.float32).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            outputs = run_tiled(toy.forward(3, placements), x)
            aux = outputs["router"]
        assert aux.dtype is torch.bfloat16
        steps.append(gradients(outputs, _inputs(toy, x)))
    for name, tensor in steps[0].items():
        other = steps[1][name]
        assert tensor is not None
        assert other is not None
        assert torch.equal(tensor, other), name
