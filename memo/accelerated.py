"""An accelerator whose processes work in groups, each of which shares its sequences.

Scope: accelerate. The config is accelerate's own kind, and changes the accelerators that are made
with it, one by one: methods of theirs that ask how many processes there are, or which this is, are
answered with groups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from accelerate import Accelerator, ParallelismConfig
from accelerate.scheduler import AcceleratedScheduler
from accelerate.utils import DummyScheduler, gather_object, recursively_apply
from torch import Tensor, nn

from memo.wrap import runtime_of
from offload import MemoError


class SequenceParallelism(ParallelismConfig):  # type: ignore[misc]  # accelerate has no types
    """Runs of `degree` consecutive processes have the same batch; None: all processes.

    accelerate's own sizes are all 1: each stands for a way of its own to split a model or a batch,
    and `Trainer` divides labels by them even where it counted those of one rank alone
    (`average_tokens_across_devices=False`).
    """

    def __init__(self, degree: int | None) -> None:
        # No size is left to accelerate's environment variables.
        super().__init__(dp_replicate_size=1, dp_shard_size=1, tp_size=1, cp_size=1, sp_size=1)
        self.degree = degree

    def get_device_mesh(self, device_type: str | None = None) -> None:
        """None: engines make their mesh of all ranks, as without a config."""

    def _validate_accelerator(self, accelerator: Accelerator) -> None:
        ranks = int(accelerator.num_processes)
        degree = ranks if self.degree is None else self.degree
        if ranks % degree:
            raise ValueError(
                f"sequence_parallel={degree}: takes a divisor of the job's {ranks} ranks"
            )
        if degree > 1:
            Groups(accelerator, degree).install()


@dataclass(frozen=True, slots=True)
class Groups:
    """An accelerator's processes in groups of `degree`."""

    accelerator: Accelerator
    degree: int

    @property
    def count(self) -> int:
        return int(self.accelerator.num_processes) // self.degree

    @property
    def index(self) -> int:
        """This process's group."""
        return int(self.accelerator.process_index) // self.degree

    def install(self) -> None:
        """On this accelerator; others are untouched."""
        own = vars(self.accelerator)
        for name in ("prepare", "prepare_model", "prepare_scheduler"):
            own[name] = partial(_prepare, self, getattr(self.accelerator, name))
        own["prepare_data_loader"] = partial(_prepare_data_loader, self)
        own["gather_for_metrics"] = _GatherForMetrics(self)


class _AsGroups:
    """An accelerator as a data loader sees it: a process for each group."""

    def __init__(self, groups: Groups) -> None:
        self._accelerator = groups.accelerator
        self.num_processes, self.process_index = groups.count, groups.index

    def __getattr__(self, name: str) -> Any:
        return getattr(self._accelerator, name)

    @property
    def dispatch_batches(self) -> bool:
        """Every process reads for itself: what one reads is dispatched to processes, not groups."""
        return False


def _prepare(groups: Groups, prepare: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    for value in args:
        if isinstance(value, nn.Module):
            _check_model(value, groups)
        if isinstance(value, DummyScheduler) and value.total_num_steps is not None:
            raise MemoError(
                "a DummyScheduler with total_num_steps is counted in processes by accelerate: "
                "under sequence parallelism takes lr_scheduler_callable, or a scheduler of torch's"
            )
    prepared = prepare(*args, **kwargs)
    for value in prepared if isinstance(prepared, tuple) else (prepared,):
        if type(value) is AcceleratedScheduler:
            value.__class__ = _GroupScheduler
            value.groups = groups.count
    return prepared


def _check_model(model: nn.Module, groups: Groups) -> None:
    first = groups.index * groups.degree
    expected = list(range(first, first + groups.degree))
    ranks = _sharing(model)
    if ranks != expected:
        raise MemoError(
            f"parallelism_config gives ranks {expected} the same samples, and the model shares its "
            f"sequences {f'among ranks {ranks}' if ranks else 'with no other rank'}: takes a "
            f"model wrapped with sequence_parallel={groups.degree}"
        )


def _sharing(model: nn.Module) -> list[int]:
    parallel = runtime_of(model).parallel
    if parallel is None:
        return []
    group = parallel.wire.group
    return [group.global_rank(rank) for rank in range(group.size)]


def _prepare_data_loader(groups: Groups, data_loader: Any, *args: Any, **kwargs: Any) -> Any:
    if groups.accelerator.dispatch_batches:
        raise MemoError(
            "dispatch_batches=True has one process read for all others, and accelerate knows no "
            "groups there: under sequence parallelism takes False, or None"
        )
    view = _AsGroups(groups)
    return type(groups.accelerator).prepare_data_loader(view, data_loader, *args, **kwargs)


class _GroupScheduler(AcceleratedScheduler):  # type: ignore[misc]  # accelerate has no types
    """Steps once for each batch that the groups had, as accelerate does for each process."""

    groups: int
    split_batches: bool

    def step(self, *args: Any, **kwargs: Any) -> None:
        split, self.split_batches = self.split_batches, True  # then accelerate steps once
        try:
            for _ in range(1 if split or not self._is_due else self.groups):
                if not self._is_over:
                    super().step(*args, **kwargs)
        finally:
            self.split_batches = split

    @property
    def _is_due(self) -> bool:
        return self.step_with_optimizer and bool(self.gradient_state.sync_gradients)

    @property
    def _is_over(self) -> bool:
        """A one-cycle schedule refuses to go on after its last step."""
        total = getattr(self.scheduler, "total_steps", None)
        return self._is_due and total is not None and self.scheduler._step_count > total


@dataclass(frozen=True, slots=True)
class _GatherForMetrics:
    """`Accelerator.gather_for_metrics`, with what a group has in common once."""

    groups: Groups

    def __call__(self, input_data: Any, use_gather_object: bool = False) -> Any:
        if use_gather_object or not _all_tensors(input_data):
            by_rank = gather_object([input_data])
            data = [item for one in by_rank[:: self.groups.degree] for item in one]
            return self._without_repeats(data)
        gathered = self.groups.accelerator.gather(input_data)
        return recursively_apply(self._once, gathered)

    def _once(self, gathered: Tensor) -> Tensor:
        """[processes * batch, ...] as [samples, ...]."""
        ranks = self.groups.count * self.groups.degree
        by_rank = gathered.unflatten(0, (ranks, -1))
        once: Tensor = by_rank[:: self.groups.degree].flatten(0, 1)
        left: Tensor = self._without_repeats(once)
        return left

    def _without_repeats(self, data: Any) -> Any:
        """The last batches of a data loader begin again from its first samples, to be even."""
        state = self.groups.accelerator.gradient_state
        return data[: state.remainder] if state.end_of_dataloader and state.remainder > 0 else data


def _all_tensors(data: Any) -> bool:
    try:
        recursively_apply(lambda tensor: tensor, data, error_on_other_type=True)
    except TypeError:
        return False
    return True
