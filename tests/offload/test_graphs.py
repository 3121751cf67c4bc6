"""One tile's graph: gradients delivered to their sinks, q k v let go of, graphs told apart."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor

from offload import Recording, TensorStore, Tier, Tile
from offload.graphs import TileGraph, trace, trace_pre
from tests.offload.toy import HEAD_DIM, HEADS, ToySplit, toy_params

TILE = Tile(1, 2, 5)


def _split(parallel: bool = False) -> ToySplit:
    table = torch.linspace(0.5, 1.5, 7, dtype=torch.float64)[:, None]
    return ToySplit(toy_params(), table, parallel)


def _sources() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(8)
    shapes = {"x": (2, 3, 5), "o": (2, 3, HEADS, HEAD_DIM)}
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in shapes.items()
    }


def _traced(
    split: ToySplit, sources: dict[str, Tensor], delivered: dict[str, list[Tensor]]
) -> TileGraph:
    ends = {
        name: (tensor, delivered.setdefault(name, []).append) for name, tensor in sources.items()
    }
    return trace(split, TILE, split.params, ends["x"], ends["o"])[0]


def _run(graph: TileGraph, sources: dict[str, Tensor]) -> None:
    with graph.bound(sources):
        graph.backward_outputs([torch.ones(2, 3, 5).double(), torch.ones(2, 3, 4).double()])
        graph.release_call()
        graph.backward_call([torch.ones(2, HEADS, 3, HEAD_DIM).double()] * 3 + [None])


def _expected(split: ToySplit, sources: dict[str, Tensor]) -> tuple[Tensor, ...]:
    x, o = (sources[name].clone().requires_grad_() for name in ("x", "o"))
    out = split.run(x, o, TILE, split.params)
    total = out.y.sum() + out.aux["router"].sum() + sum(head.sum() for head in out.call.heads)
    return torch.autograd.grad(total, [x, o])


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("parallel", [False, True])
def test_gradients_go_to_the_sinks(parallel: bool, held: bool) -> None:
    split, sources = _split(parallel), _sources()
    delivered: dict[str, list[Tensor]] = {}
    recording = Recording(TensorStore(), Tier.HOST, sources, (*split.params.values(), split.table))
    if held:
        with recording.recording():
            graph = _traced(split, sources, delivered)
        graph.hold(recording)
    else:
        graph = _traced(split, sources, delivered)
    # A held graph reads x and o only from what it is bound to.
    again = {name: tensor.clone() for name, tensor in sources.items()}
    want_x, want_o = _expected(split, sources)
    if held:
        for tensor in sources.values():
            tensor.fill_(torch.nan)
    if parallel and not held:  # both ends share the norm, and a rebuilt graph is used up by one
        assert not graph.is_apart
        return
    _run(graph, again)
    assert torch.allclose(torch.stack(delivered["x"]).sum(0), want_x, rtol=1e-11, atol=1e-11)
    assert torch.allclose(torch.stack(delivered["o"]).sum(0), want_o, rtol=1e-11, atol=1e-11)


def test_graphs_are_apart_unless_they_share_an_operation() -> None:
    delivered: dict[str, list[Tensor]] = {}
    assert _traced(_split(), _sources(), delivered).is_apart
    assert not _traced(_split(parallel=True), _sources(), delivered).is_apart


def test_a_graph_reaches_the_core_only_through_what_takes_a_gradient() -> None:
    split, sources = _split(), _sources()
    assert _traced(split, sources, {}).reaches_core
    split.params = {name: p.requires_grad_(name == "down") for name, p in split.params.items()}
    graph, _ = trace(
        split, TILE, split.params, (sources["x"], None), (sources["o"], lambda grad: None)
    )
    assert not graph.reaches_core
    assert graph.outputs[0] is not None


def test_the_call_is_let_go_of_once_released() -> None:
    graph = _traced(_split(), _sources(), {})
    q = weakref.ref(graph.release_call().heads[0])
    assert q() is None


def test_pre_alone_gives_gradients_of_q_k_v() -> None:
    split, x = _split(), _sources()["x"]
    delivered: list[Tensor] = []
    graph = trace_pre(split, TILE, split.params, (x, delivered.append))
    graph.backward_call([torch.ones(2, HEADS, 3, HEAD_DIM).double(), None, None, None])
    leaf = x.clone().requires_grad_()
    (want,) = torch.autograd.grad(split.pre(leaf, TILE, split.params).heads[0].sum(), leaf)
    assert torch.allclose(delivered[0], want, rtol=1e-12)
    assert split.runs == ["pre", "pre"]
