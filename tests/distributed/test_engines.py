"""Weight updates under plain SGD over ranks are those of one process with the same global batch:
gradients have the right scale under every engine, whatever the mesh, the model and the batch."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.distributed.cells import (
    CLIP,
    FAMILIES,
    HEADS,
    MESHES,
    PACKINGS,
    TORCH,
    ZERO,
    Cell,
    chosen_cells,
    every_cell,
    scale_cells,
)
from tests.distributed.engines import train_alone
from tests.distributed.errors import errors_of
from tests.families.harness import TOLERANCE

needs_deepspeed = pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="pip install 'memo-offload[deepspeed]'"
)
meshes = pytest.mark.parametrize("mesh", MESHES, ids=lambda mesh: f"{mesh[0]} ranks by {mesh[1]}")


def _check(cells: list[Cell], ranks: int, folder: Path, limit_s: float) -> None:
    errors = errors_of(cells, ranks, folder, limit_s)
    wrong = {
        str(cell): error
        for cell, error in zip(cells, errors, strict=True)
        if max(error.total, error.worst) > TOLERANCE
    }
    assert not wrong


@pytest.mark.parametrize("engine", TORCH)
def test_gradients_have_the_right_scale(engine: str, tmp_path: Path) -> None:
    _check(scale_cells(engine, 2), 4, tmp_path, limit_s=110.0)


@pytest.mark.long
@pytest.mark.timeout(600)
@meshes
def test_torch(mesh: tuple[int, int], tmp_path: Path) -> None:
    cells = [cell for engine in TORCH for cell in chosen_cells(engine, mesh)]
    _check(cells, mesh[0], tmp_path, limit_s=500.0)


@needs_deepspeed
@pytest.mark.long
@pytest.mark.timeout(1000)  # deepspeed compiles an operator when it is first used
@meshes
def test_zero(mesh: tuple[int, int], tmp_path: Path) -> None:
    cells = [cell for engine in ZERO for cell in chosen_cells(engine, mesh)]
    _check(cells, mesh[0], tmp_path, limit_s=900.0)


def test_every_engine_meets_every_family_packed_and_padded_with_all_heads_on_all_meshes() -> None:
    for engine in (*TORCH, *ZERO):
        cells = {mesh: chosen_cells(engine, mesh) for mesh in MESHES}
        of_models = [c for of_mesh in cells.values() for c in of_mesh if c.packing != "plain"]
        models = {(cell.family, cell.packing) for cell in of_models}
        assert models == {(family, packing) for family in FAMILIES for packing in PACKINGS}
        for mesh, of_mesh in cells.items():
            assert {cell.heads for cell in of_mesh if cell.packing != "plain"} == HEADS.keys()
            every = every_cell(engine, mesh[1])
            assert all(cell in every for cell in of_mesh)


def test_clipping_and_counting_matter() -> None:
    plain = Cell(engine="ddp")
    base = train_alone(plain, 4)
    for other in (replace(plain, clip=CLIP), replace(plain, counted=True)):
        changed = train_alone(other, 4)
        assert any((changed[name] - base[name]).norm() > 1e-3 for name in base)
