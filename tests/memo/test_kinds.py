"""Finding decoder layers and norms, and telling kinds of one class apart."""

from __future__ import annotations

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from memo.kinds import find_layers, find_norms


class Dense(GradientCheckpointingLayer):
    """A layer with a switch."""

    def __init__(
        self, sliding: bool = False, width: int = 4, parts: int = 1, index: int = 0
    ) -> None:
        super().__init__()
        self.is_sliding = sliding
        self.layer_idx = index
        self.norm = nn.LayerNorm(4)
        self.parts = nn.ModuleList(nn.Linear(4, width) for _ in range(parts))


class Other(GradientCheckpointingLayer):
    """A layer that has a layer in it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Dense()


class TinyRMSNorm(nn.Module):
    """Vectors only."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.Linear(4, 1).weight[0].detach().clone())


def _kinds(*layers: nn.Module) -> list[tuple[str, int]]:
    return [(layer.kind, layer.index) for layer in find_layers(nn.Sequential(*layers))]


def test_kinds_are_classes_with_a_number_when_structures_differ() -> None:
    found = _kinds(Dense(), Dense(True), Dense(), Other(), Dense(parts=2), Dense(True))
    assert found == [
        ("Dense", 0),
        ("Dense #2", 0),
        ("Dense", 1),
        ("Other", 0),
        ("Dense #3", 0),
        ("Dense #2", 1),
    ]


def test_sizes_make_kinds_but_modes_and_places_make_none() -> None:
    assert _kinds(Dense(index=4), Dense(index=9).eval()) == [("Dense", 0), ("Dense", 1)]
    assert _kinds(Dense(), Dense(width=9)) == [("Dense", 0), ("Dense #2", 0)]


def test_switches_of_submodules_make_kinds() -> None:
    changed = Dense()
    changed.norm.layer_type = "linear"  # type: ignore[assignment]
    assert _kinds(Dense(), changed) == [("Dense", 0), ("Dense #2", 0)]


def test_only_the_outermost_layers_are_found() -> None:
    model = nn.ModuleDict({"a": Other(), "ab": Dense(), "rest": nn.Linear(4, 4)})
    layers = find_layers(model)
    assert [layer.module for layer in layers] == [model["a"], model["ab"]]
    assert find_layers(nn.Linear(4, 4)) == []


def test_norms_are_vectors_outside_layers() -> None:
    final, rms = nn.LayerNorm(4), TinyRMSNorm()
    model = nn.Sequential(
        Dense(), final, rms, nn.LayerNorm(4, elementwise_affine=False), nn.Linear(4, 4)
    )
    assert find_norms(model, find_layers(model)) == [final, rms]
