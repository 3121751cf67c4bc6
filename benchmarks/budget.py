"""Doing what matters most within a time, the longest of it last.

Scope: choosing. A task says how long it would take, as far as is known by then, and is asked again
before each choice; what a task does is its own business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """`rank`: lower ones matter more. `skip` is told why."""

    rank: tuple[int, ...]
    estimate_s: Callable[[], float]
    run: Callable[[], None]
    skip: Callable[[str], None]


def run_within(tasks: Iterable[Task], left_s: Callable[[], float]) -> None:
    """Run tasks while `left_s` lasts: of those that can all still finish, by rank, the shortest
    comes first. The others are skipped at the end.
    """
    pending = sorted(tasks, key=lambda task: task.rank)
    while chosen := affordable(pending, left_s()):
        task = min(chosen, key=lambda task: task.estimate_s())
        pending.remove(task)
        task.run()
    for task in pending:
        task.skip(f"takes about {task.estimate_s():.0f} s, and {max(0.0, left_s()):.0f} s are left")


def affordable(by_rank: Sequence[Task], left_s: float) -> list[Task]:
    """The tasks that fit into the time together, more important ones first."""
    chosen, used_s = [], 0.0
    for task in by_rank:
        needed_s = task.estimate_s()
        if used_s + needed_s <= left_s:
            chosen.append(task)
            used_s += needed_s
    return chosen
