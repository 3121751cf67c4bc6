"""The swap plan as a mixed-integer program, over groups of equal layers.

Scope: constraints and objective, in GiB, seconds and tiles; solving is `solver.py`'s.

Lanes are running sums. In forward, `queue` bytes wait for a lane when a group's layers are over:
the queue before, and what these layers write, less what the lane took while they ran (and waited).
It never passes the bytes in flight. Backward is the same in reverse: `ahead` bytes of what is still
to come are back already when a group's layers begin; at first these are the bytes last written,
which are handed back as they are. What goes to the SSD passes the lanes of the host as well, and
its queues are the host's staging memory. Transfers and waiting are counted per group, so a lane may
lag within one by what its last layer has; the simulation says what that does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pulp

from planner.contracts import Lane, Placement, Tier
from planner.swap.contracts import Budgets, Rates, StepCost
from planner.swap.device import least_live, live_moments
from planner.swap.groups import Group
from planner.swap.variables import GIB, WHOLE_TIER, Expression, GroupVariables, Rules

MOVING_COST = 1e-4
"""A second of a lane costs as much as this of the step: of plans that are equally fast, the one
that moves least, and least to the slower tier. Moving pays when it saves more than a ten-thousandth
of its time."""

WRITING_COST = 1e3
"""Where what is written to the SSD is minimised: that a GiB to it counts as so many to the host, so
that least is written first, and then least is moved."""

LOSING_COST = 1e-2
"""There, that a second lost counts as so many GiB to the host: of plans that write and move as
little, the fastest."""

_OUTWARD = (Lane.D2H, Lane.SSD_WRITE)
_INWARD = (Lane.H2D, Lane.SSD_READ)
_TIERS = {
    Lane.D2H: (Tier.HOST, Tier.SSD),
    Lane.H2D: (Tier.HOST, Tier.SSD),
    Lane.SSD_WRITE: (Tier.SSD,),
    Lane.SSD_READ: (Tier.SSD,),
}


@dataclass(slots=True)
class Program:
    """The program of one step; it minimises the step until told otherwise. `slack` GiB are added to
    each budget, fixed at 0 unless one is asked for.
    """

    cost: StepCost
    rates: Rates
    budgets: Budgets
    rules: Rules
    groups: Sequence[Group]
    problem: pulp.LpProblem = field(init=False)
    variables: list[GroupVariables] = field(init=False)
    slack: dict[Tier, pulp.LpVariable] = field(init=False)
    in_flight: pulp.LpVariable = field(init=False)
    staging: pulp.LpVariable = field(init=False)
    uses_ssd: pulp.LpVariable = field(init=False)
    waits: list[pulp.LpVariable] = field(init=False, default_factory=list)
    most_lost: pulp.LpVariable | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.problem = pulp.LpProblem("swap", pulp.LpMinimize)
        self.slack = {tier: self._continuous(f"slack_{tier}", 0.0) for tier in Tier}
        limit = self.budgets.in_flight_bytes
        self.in_flight = self._continuous("in_flight", None if limit is None else limit / GIB)
        self.staging = self._continuous("staging")
        self.uses_ssd = self._integer("uses_ssd", 1)
        self.variables = [self._group(i, group) for i, group in enumerate(self.groups)]
        self._hold()
        self._limit_tiers()
        forward = [self._wait("forward", i) for i in range(len(self.groups))]
        backward = [self._wait("backward", i) for i in range(len(self.groups))]
        for lane in self._lanes(_OUTWARD):
            self._write(lane, forward)
        for lane in self._lanes(_INWARD):
            self._read(lane, backward)
        self.minimise_step()

    # ---- objectives ----

    def minimise_step(self) -> None:
        """Seconds of recomputation and of waiting."""
        self.problem.setObjective(self._step())

    def minimise_writing(self, most_lost_s: float) -> None:
        """GiB written to the SSD, then GiB moved, then seconds, at most so many of them lost."""
        if self.most_lost is None:
            self.most_lost = self._continuous("most_lost")
            self.problem += self._lost() <= self.most_lost
        self.most_lost.upBound = most_lost_s
        written = pulp.lpSum(own.stored(Tier.SSD) for own in self.variables)
        moved = pulp.lpSum(own.stored(Tier.HOST, Tier.SSD) for own in self.variables)
        others = moved + self.uses_ssd + LOSING_COST * self._lost()
        self.problem.setObjective(WRITING_COST * written + others)

    def lose_any(self) -> None:
        """Take the limit of `minimise_writing` away."""
        if self.most_lost is not None:
            self.most_lost.upBound = None

    @property
    def lost_s(self) -> float:
        """Of a solved program: seconds of recomputation and of waiting."""
        return float(pulp.value(self._lost()))

    @property
    def written_gib(self) -> float:
        """Of a solved program: GiB that go to the SSD."""
        return float(sum(pulp.value(own.stored(Tier.SSD)) for own in self.variables))

    @property
    def step_objective_s(self) -> float:
        """Of a solved program: what `minimise_step` minimises."""
        return float(pulp.value(self._step()))

    def _step(self) -> Expression:
        moving = [
            MOVING_COST * GIB / self.rates.of(lane) * variables.stored(*_TIERS[lane])
            for lane in self._lanes(_OUTWARD + _INWARD)
            for variables in self.variables
        ]
        return pulp.lpSum([self._lost(), *moving])

    def _lost(self) -> Expression:
        return pulp.lpSum([*(own.recompute_s for own in self.variables), *self.waits])

    def minimise_slack(self, tier: Tier) -> None:
        """How much more of one tier would make it fit, the others staying as they are."""
        for other, slack in self.slack.items():
            slack.upBound = None if other is tier else 0.0
        self.problem.setObjective(1 * self.slack[tier])

    # ---- variables ----

    def _continuous(self, name: str, most: float | None = None) -> pulp.LpVariable:
        return self.problem.add_variable(name, 0.0, most)

    def _integer(self, name: str, most: int) -> pulp.LpVariable:
        return self.problem.add_variable(name, 0, most, pulp.LpInteger)

    def _wait(self, direction: str, index: int) -> pulp.LpVariable:
        most = None if self.rules.may_wait else 0.0
        self.waits.append(self._continuous(f"wait_{direction}_{index}", most))
        return self.waits[-1]

    def _group(self, index: int, group: Group) -> GroupVariables:
        allowed = {tier for tier in Tier if self.rates.has_ssd or tier is not Tier.SSD}
        placements = [p for p in Placement if p in self.rules.placements and self._has(p)]
        tiers = [t for t in self._skeletal(group, placements) if t in allowed]
        tiles = {p: self._integer(f"tiles_{index}_{p}", group.tiles) for p in placements}
        x = {t: self._integer(f"x_{index}_{t}", group.count) for t in tiers}
        o = {t: self._integer(f"o_{index}_{t}", group.count) for t in tiers}
        self.problem += pulp.lpSum(tiles.values()) == group.tiles
        self.problem += pulp.lpSum(x.values()) == group.count
        self.problem += pulp.lpSum(o.values()) == group.count
        if group.cost.is_whole:
            for tier in tiers:
                self.problem += x[tier] == o[tier]
                own = [tiles[p] for p in placements if WHOLE_TIER[p] is tier]
                self.problem += x[tier] == pulp.lpSum(own)
        return GroupVariables(group, tiles, x, o)

    def _skeletal(self, group: Group, placements: Sequence[Placement]) -> list[Tier]:
        """Where x and o may be: what is allowed, or, of whole layers, where their tiles may be."""
        if group.cost.is_whole:
            return [t for t in Tier if t in {WHOLE_TIER[p] for p in placements}]
        return [t for t in Tier if t in self.rules.skeletal]

    def _has(self, placement: Placement) -> bool:
        return self.rates.has_ssd or placement is not Placement.SSD

    # ---- budgets ----

    def _hold(self) -> None:
        """What a layer moves, `held_layers` times; as much for staging, if the SSD is used."""
        if self.budgets.in_flight_bytes is None:
            for variables in self.variables:
                held = self.rules.held_layers / variables.group.count
                self.problem += self.in_flight >= held * variables.stored(Tier.HOST, Tier.SSD)
        everything = sum(layer.all_bytes for layer in self.cost.layers) / GIB
        spilled = pulp.lpSum(variables.stored(Tier.SSD) for variables in self.variables)
        self.problem += spilled <= everything * self.uses_ssd
        self.problem += self.staging <= self.in_flight
        largest = max(everything, self.budgets.device_bytes / GIB)
        self.problem += self.staging >= self.in_flight - largest * (1 - self.uses_ssd)

    def _limit_tiers(self) -> None:
        for live in live_moments(self.cost, self.variables):
            self.problem += live + self.in_flight <= self._budget(Tier.DEVICE)
        self.problem += max(least_live(self.cost)) <= self._budget(Tier.DEVICE)
        for tier, extra in ((Tier.HOST, self.staging), (Tier.SSD, 0.0)):
            stored = pulp.lpSum(variables.stored(tier) for variables in self.variables)
            self.problem += stored + extra <= self._budget(tier)

    def _budget(self, tier: Tier) -> Expression:
        free_bytes = self.budgets.of(tier) - self.cost.resident_bytes.get(tier, 0)
        return free_bytes / GIB + self.slack[tier]

    # ---- lanes ----

    def _lanes(self, lanes: Sequence[Lane]) -> list[Lane]:
        return [lane for lane in lanes if self.rates.has_ssd or Tier.HOST in _TIERS[lane]]

    def _window(self, lane: Lane) -> pulp.LpVariable:
        return self.in_flight if Tier.HOST in _TIERS[lane] else self.staging

    def _write(self, lane: Lane, waits: Sequence[pulp.LpVariable]) -> None:
        rate, before = self.rates.of(lane) / GIB, 0.0
        for index, (own, wait) in enumerate(zip(self.variables, waits, strict=True)):
            queue = self._continuous(f"queue_{lane.name}_{index}")
            compute_s = own.group.count * own.group.cost.forward.total_s
            taken = rate * compute_s + rate * wait
            self.problem += queue >= before + own.stored(*_TIERS[lane]) - taken
            self.problem += queue <= self._window(lane)
            before = queue

    def _read(self, lane: Lane, waits: Sequence[pulp.LpVariable]) -> None:
        rate, window = self.rates.of(lane) / GIB, self._window(lane)
        ahead = self._continuous(f"ahead_{lane.name}")
        self.problem += ahead <= window
        self.problem += ahead <= pulp.lpSum(own.stored(*_TIERS[lane]) for own in self.variables)
        for index in reversed(range(len(self.variables))):
            own, brought = self.variables[index], self._continuous(f"brought_{lane.name}_{index}")
            compute_s = own.group.count * own.group.cost.backward.total_s
            taken = rate * compute_s + rate * own.recompute_s + rate * waits[index]
            self.problem += brought <= taken
            left = self._continuous(f"ahead_{lane.name}_{index}")
            self.problem += left == ahead + brought - own.stored(*_TIERS[lane])
            self.problem += left <= window
            ahead = left
