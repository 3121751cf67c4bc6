"""Each race of the catalogue is caught, once it is planted; the table says by what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from rich.console import Console
from rich.table import Table

from offload import TransferError
from tests.conftest import TABLE
from tests.races.double import DoubleStreams
from tests.races.harness import Grads, Schedule, has_nan, kept_gradients, run, same
from tests.races.mutants import MUTANTS, Mutant

SEEDS = range(24)
FAILING_COPY = 3


@dataclass
class Catch:
    """How many of the schedules showed a race, and by what."""

    nan: int = 0
    different: int = 0
    violation: int = 0
    error: int = 0
    any: int = 0
    names: tuple[str, ...] = field(init=False, default=("nan", "different", "violation", "error"))

    def add(self, seed: int, mutant: Mutant | None, expected: Grads) -> None:
        """Run one schedule, and see what shows."""
        double = DoubleStreams(seed)
        fails = mutant is not None and mutant.number == 10
        if fails:
            double.fail_copy(FAILING_COPY, OSError("no such page"))
        try:
            outcome = run(Schedule(seed), double)
        except (TransferError, AssertionError):
            self.error += not fails  # where a copy fails, an error is what should be seen
            self.any += not fails
            return
        shown = {
            "nan": any(map(has_nan, outcome.grads)),
            "different": not all(same(grads, expected) for grads in outcome.grads),
            "violation": bool(outcome.violations),
        }
        for name, is_shown in shown.items():
            setattr(self, name, getattr(self, name) + is_shown)
        self.any += any(shown.values())


def _caught(mutant: Mutant | None) -> Catch:
    catch, expected = Catch(), kept_gradients()
    with pytest.MonkeyPatch.context() as patch:
        if mutant is not None:
            mutant.plant(patch)
        for seed in SEEDS:
            catch.add(seed, mutant, expected)
    return catch


def test_every_planted_race_is_caught(record_property: Callable[[str, str], None]) -> None:
    catches = [(mutant, _caught(mutant)) for mutant in MUTANTS]
    record_property(TABLE, _shown(_table(catches)))
    assert [mutant.number for mutant, catch in catches if not catch.any] == []


def test_without_a_race_nothing_is_caught() -> None:
    assert _caught(None).any == 0


def test_an_error_of_a_copy_reaches_whoever_needs_what_it_should_have_brought() -> None:
    errors, expected = list[TransferError](), kept_gradients()
    for seed in SEEDS:
        double = DoubleStreams(seed)
        double.fail_copy(FAILING_COPY, OSError("no such page"))
        try:
            outcome = run(Schedule(seed), double)
        except TransferError as error:
            errors.append(error)
        else:  # it was forwarded, and nobody needed the copy
            assert all(same(grads, expected) for grads in outcome.grads)
    assert len(errors) > len(SEEDS) // 2
    assert all(isinstance(error.__cause__, OSError) for error in errors)


def _shown(table: Table) -> str:
    console = Console(width=160)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def _table(catches: list[tuple[Mutant, Catch]]) -> Table:
    table = Table(title=f"Races, planted in the engine under {len(SEEDS)} schedules each")
    table.add_column("race", overflow="fold")
    table.add_column("planted in", overflow="fold")
    for name in ("caught", "NaN", "other bits", "no event between", "error"):
        table.add_column(name, justify="right")
    for mutant, catch in catches:
        counts = [catch.any, *(getattr(catch, name) for name in catch.names)]
        table.add_row(
            f"{mutant.number}. {mutant.race}", mutant.place, *(str(n or "-") for n in counts)
        )
    return table
