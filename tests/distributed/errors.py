"""How far off weight updates are from those of one process.

Scope: the measure of the table of gradient scales, and running its cells over ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from tests.distributed.cells import Cell
from tests.distributed.engines import Updates, several, train_alone
from tests.distributed.ranks import run_ranks
from tests.families.harness import FLOOR, build

ROUNDING = 2.0**-24
"""Of a weight in float32, relative: an update is read off the weights before and after."""


@dataclass(frozen=True, slots=True)
class UpdateError:
    """Relative errors of a weight update: `total` of all weights as one vector, `worst` of the
    parameter that is furthest off beyond what its weights are rounded to, relative to its own norm
    or to `FLOOR` times the largest parameter's.
    """

    total: float
    worst: float


@dataclass(frozen=True, slots=True)
class Reference:
    """The updates of one process, and by how much rounding of weights at every step, there and
    here, may put each parameter off.
    """

    updates: Updates
    rounding: Updates

    @classmethod
    def of(cls, cell: Cell, ranks: int) -> Reference:
        weights = build(cell.model_family).named_parameters()
        each_step = 2 * cell.steps * ROUNDING
        rounding = {name: each_step * param.detach().norm() for name, param in weights}
        return cls(train_alone(cell, ranks), rounding)

    def error(self, found: Updates) -> UpdateError:
        """That of one rank's updates."""
        differences = {name: (found[name] - want).double() for name, want in self.updates.items()}
        largest = max(float(update.norm()) for update in self.updates.values())
        beyond = [
            (differences[name].norm() - self.rounding[name])
            / max(float(want.norm()), FLOOR * largest)
            for name, want in self.updates.items()
        ]
        total = _norm(differences) / _norm({n: want.double() for n, want in self.updates.items()})
        return UpdateError(_number(total), max(0.0, *map(_number, beyond)))


def errors_of(cells: Sequence[Cell], ranks: int, folder: Path, limit_s: float) -> list[UpdateError]:
    """Of every cell the largest errors that any rank has; each trained over `ranks`."""
    by_rank: list[list[Updates]] = run_ranks(several, ranks, folder, list(cells), limit_s=limit_s)
    references: dict[str, Reference] = {}  # no engine changes them
    errors = []
    for index, cell in enumerate(cells):
        alone = replace(cell, engine="none")
        if repr(alone) not in references:
            references[repr(alone)] = Reference.of(alone, ranks)
        errors.append(_largest([references[repr(alone)].error(of[index]) for of in by_rank]))
    return errors


def _norm(tensors: Updates) -> Tensor:
    norm: Tensor = torch.stack([tensor.norm() for tensor in tensors.values()]).norm()
    return norm


def _number(error: Tensor) -> float:
    """Infinite for an update that is no number."""
    return float(error.nan_to_num(nan=torch.inf))


def _largest(errors: Sequence[UpdateError]) -> UpdateError:
    return UpdateError(max(e.total for e in errors), max(e.worst for e in errors))
