"""Turning a model's configs to memo's attention while its layers run, and back.

Scope: the few attributes of a model that are changed for the time of a forward or of a tile's run.
Outside that time the model is what it was, so that generation, saving and everything else are
untouched.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from memo.attention.interface import NAME
from offload import MemoError

_HOLD = "_memo_hold"
"""The attribute of a config that says how many models have it turned, for models may share one."""


@dataclass(slots=True)
class _Hold:
    count: int = 0
    before: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Switch:
    """Counted, so that a forward within a forward leaves things as the outer one needs them.

    `configs` get our attention implementation, if `attention`, and no cache; modules whose
    `gradient_checkpointing` is set are told not to, for Hugging Face's checkpointing (enabled after
    `wrap`, by a Trainer's argument say) would rebuild what memo rebuilds.
    """

    configs: list[Any]
    checkpointed: list[nn.Module]
    attention: bool = True
    _depth: int = 0
    _held: list[Any] = field(default_factory=list)
    _undo: list[tuple[Any, str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, model: nn.Module, *, attention: bool) -> Switch:
        """`attention` False: only checkpointing is turned off (a model none of whose layers are
        tiled).
        """
        configs = {
            id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None
        }
        named = [c for c in configs.values() if hasattr(c, "_attn_implementation_internal")]
        flagged = [m for m in model.modules() if hasattr(m, "gradient_checkpointing")]
        return cls(named, flagged, attention)

    @property
    def is_on(self) -> bool:
        return self._depth > 0

    @property
    def is_checkpointing_asked(self) -> bool:
        return any(module.gradient_checkpointing for module in self.checkpointed)

    @contextmanager
    def on(self) -> Iterator[None]:
        depth = self._depth
        try:
            if depth == 0:
                self._turn()
            self._depth = depth + 1
            yield
        finally:
            self._depth = depth
            if depth == 0:
                self._turn_back()

    def _turn(self) -> None:
        for config in self.configs:
            self._held.append(config)
            self._hold(config)
        for module in self.checkpointed:
            if module.gradient_checkpointing:
                self._set(module, "gradient_checkpointing", False)

    def _hold(self, config: Any) -> None:
        hold = vars(config).setdefault(_HOLD, _Hold())
        hold.count += 1
        wanted: dict[str, Any] = {"_attn_implementation_internal": NAME} if self.attention else {}
        if getattr(config, "use_cache", False):
            wanted["use_cache"] = False
        for name, value in wanted.items():
            hold.before.setdefault(name, getattr(config, name))
            setattr(config, name, value)

    def _set(self, owner: Any, name: str, value: object) -> None:
        self._undo.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    def _turn_back(self) -> None:
        while self._held:
            _release(self._held.pop())
        while self._undo:
            owner, name, value = self._undo.pop()
            setattr(owner, name, value)


def _release(config: Any) -> None:
    hold = vars(config)[_HOLD]
    hold.count -= 1
    if hold.count == 0:
        del vars(config)[_HOLD]
        for name, value in hold.before.items():
            setattr(config, name, value)


@dataclass(slots=True)
class OneThread:
    """Refuses a second thread while a first is inside. (A lock could not be deep-copied with its
    model.)
    """

    _owner: dict[str, int] = field(default_factory=dict)

    @property
    def is_inside(self) -> bool:
        """Whether this thread is inside already."""
        return self._owner.get("thread") == threading.get_ident()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Raises `MemoError` in a second thread; not to be nested."""
        mine = threading.get_ident()
        if self._owner.setdefault("thread", mine) != mine:
            raise MemoError(
                "a wrapped model's forward runs in one thread at a time, and one is running"
            )
        try:
            yield
        finally:
            self._owner.clear()
