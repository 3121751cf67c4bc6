"""Each race of the catalogue is caught, once it is planted; the table says by what."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from offload import MemoError, SpillError, TransferError
from tests.conftest import TABLE
from tests.races.disk_mutants import DISK_MUTANTS
from tests.races.harness import Grads, Rig, Schedule, has_nan, kept_gradients, run, same
from tests.races.mutants import MUTANTS, Fault, Mutant
from tests.races.traffic import Traffic

SEEDS = [seed for seed in range(100) if not Schedule(seed).has_disk][:16]
DISK_SEEDS = [seed for seed in range(100) if Schedule(seed).has_disk][: len(SEEDS)]
FAILING = 3
"""Which copy, write or read it is."""


@dataclass
class Catch:
    """How many of the schedules showed a race, and by what."""

    nan: int = 0
    different: int = 0
    violation: int = 0
    error: int = 0
    any: int = 0
    names: tuple[str, ...] = field(init=False, default=("nan", "different", "violation", "error"))

    def add(self, seed: int, fault: Fault | None, expected: Grads) -> None:
        """Run one schedule, and see what shows."""
        rig = _rig(seed, fault)
        with self._errors(fault):
            outcome = run(Schedule(seed), rig)
            is_same = all(same(grads, expected) for grads in outcome.grads)
            self._shows(any(map(has_nan, outcome.grads)), not is_same, rig)

    def add_traffic(self, seed: int, fault: Fault | None) -> None:
        """Run one program of parcels, and see what shows."""
        rig = _rig(seed, fault)
        traffic = Traffic(rig, seed)
        with self._errors(fault):
            traffic.run()
            self._shows(has_nan(traffic.wrong), bool(traffic.wrong), rig)

    @contextmanager
    def _errors(self, fault: Fault | None) -> Iterator[None]:
        try:
            yield
        except (MemoError, AssertionError):
            self.error += fault is None  # where something fails, an error is what should be seen
            self.any += fault is None

    def _shows(self, nan: bool, different: bool, rig: Rig) -> None:
        violation = bool(rig.streams.violations)
        self.nan += nan
        self.different += different
        self.violation += violation
        self.any += nan or different or violation


def _rig(seed: int, fault: Fault | None) -> Rig:
    rig = Rig.of(Schedule(seed))
    if fault is not None:
        _plant(fault, rig)
    return rig


def _plant(fault: Fault, rig: Rig) -> None:
    if fault is Fault.COPY:
        rig.streams.fail_copy(FAILING, OSError("no such page"))
        return
    assert rig.disk is not None
    error = SpillError("planted", directory=Path("double"), operation=fault.value, errno=5)
    lane = rig.disk.writes if fault is Fault.WRITE else rig.disk.reads
    lane.fail(FAILING, error)


def _caught(mutant: Mutant | None, *, has_disk: bool) -> Catch:
    catch, expected = Catch(), kept_gradients()
    fault = None if mutant is None else mutant.fault
    with pytest.MonkeyPatch.context() as patch:
        if mutant is not None:
            mutant.plant(patch)
        if not has_disk:
            for seed in SEEDS:
                catch.add(seed, fault, expected)
            return catch
        for seed in DISK_SEEDS[::2]:
            catch.add(seed, fault, expected)
        for seed in DISK_SEEDS:
            catch.add_traffic(seed, fault)
    return catch


@pytest.mark.parametrize(
    ("title", "mutants"),
    [
        (f"Races between device and host, under {len(SEEDS)} schedules", MUTANTS),
        (
            f"Races between host and disk, under {len(DISK_SEEDS[::2])} schedules, and "
            f"{len(DISK_SEEDS)} programs of parcels",
            DISK_MUTANTS,
        ),
    ],
    ids=["lanes", "disk"],
)
@pytest.mark.timeout(400)
def test_every_planted_race_is_caught(
    title: str, mutants: Sequence[Mutant], record_property: Callable[[str, str], None]
) -> None:
    catches = [(mutant, _caught(mutant, has_disk=mutant.has_disk)) for mutant in mutants]
    record_property(TABLE, _shown(_table(title, catches)))
    assert [mutant.number for mutant, catch in catches if not catch.any] == []


@pytest.mark.parametrize("has_disk", [False, True])
def test_without_a_race_nothing_is_caught(has_disk: bool) -> None:
    assert _caught(None, has_disk=has_disk).any == 0


@pytest.mark.parametrize("fault", list(Fault))
def test_an_error_reaches_whoever_needs_what_it_should_have_brought(fault: Fault) -> None:
    seeds = SEEDS if fault is Fault.COPY else DISK_SEEDS
    causes, expected = list[object](), kept_gradients()
    for seed in seeds:
        try:
            outcome = run(Schedule(seed), _rig(seed, fault))
        except TransferError as error:
            causes.append(error if isinstance(error, SpillError) else error.__cause__)
        else:  # nobody needed it
            assert all(same(grads, expected) for grads in outcome.grads)
    assert len(causes) > len(seeds) // 4
    kind = OSError if fault is Fault.COPY else SpillError
    assert all(isinstance(cause, kind) for cause in causes)


def _shown(table: Table) -> str:
    console = Console(width=160)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def _table(title: str, catches: list[tuple[Mutant, Catch]]) -> Table:
    table = Table(title=title)
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
