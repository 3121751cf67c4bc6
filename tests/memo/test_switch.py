"""The switch and the guard against threads: what is changed for a while is changed back."""

from __future__ import annotations

import copy
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from memo.attention.interface import NAME
from memo.switch import OneThread, Switch
from offload import MemoError


def _config(implementation: str = "sdpa") -> SimpleNamespace:
    return SimpleNamespace(_attn_implementation_internal=implementation)


class _Part(nn.Module):
    def __init__(self, config: Any, checkpointing: bool | None = None) -> None:
        super().__init__()
        self.config = config
        if checkpointing is not None:
            self.gradient_checkpointing = checkpointing


def _model() -> nn.Sequential:
    shared = _config()
    return nn.Sequential(
        _Part(shared, True), _Part(shared, False), _Part(_config("eager")), _Part(object())
    )


def _parts(model: nn.Module) -> list[_Part]:
    return [part for part in model.children() if isinstance(part, _Part)]


def _state(model: nn.Module) -> list[object]:
    return [
        (
            getattr(module.config, "_attn_implementation_internal", None),
            getattr(module, "gradient_checkpointing", None),
        )
        for module in _parts(model)
    ]


BEFORE = [("sdpa", True), ("sdpa", False), ("eager", None), (None, None)]
DURING = [(NAME, False), (NAME, False), (NAME, None), (None, None)]


def test_configs_and_checkpointing_are_turned_for_a_while() -> None:
    model = _model()
    switch = Switch.of(model, attention=True)
    assert switch.is_checkpointing_asked
    with switch.on():
        assert _state(model) == DURING
        with switch.on():
            assert _state(model) == DURING
        assert _state(model) == DURING
    assert _state(model) == BEFORE


def test_a_fault_inside_turns_back() -> None:
    model = _model()
    switch = Switch.of(model, attention=True)
    for error in (KeyError, KeyboardInterrupt):
        with pytest.raises(error), switch.on():
            raise error
        assert _state(model) == BEFORE


def test_without_attention_only_checkpointing_is_turned() -> None:
    model = _model()
    with Switch.of(model, attention=False).on():
        assert _state(model) == [("sdpa", False), ("sdpa", False), ("eager", None), (None, None)]
    assert _state(model) == BEFORE


def test_caches_are_off_for_a_while() -> None:
    config = SimpleNamespace(_attn_implementation_internal="sdpa", use_cache=True)
    with Switch.of(nn.Sequential(_Part(config)), attention=False).on():
        assert (config._attn_implementation_internal, config.use_cache) == ("sdpa", False)
    assert vars(config) == {"_attn_implementation_internal": "sdpa", "use_cache": True}


def test_what_the_user_changes_in_between_is_found() -> None:
    model = _model()
    switch = Switch.of(model, attention=True)
    first, second = _parts(model)[:2]
    first.gradient_checkpointing, second.config._attn_implementation_internal = False, "eager"
    assert not switch.is_checkpointing_asked
    with switch.on():
        assert second.config._attn_implementation_internal == NAME
    assert second.config._attn_implementation_internal == "eager"
    assert not first.gradient_checkpointing


def test_a_second_thread_is_refused_while_a_first_is_inside() -> None:
    guard, refused = OneThread(), list[MemoError]()

    def enter() -> None:
        try:
            with guard.entered():
                assert guard.is_inside
        except MemoError as error:
            refused.append(error)

    def in_another_thread() -> None:
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join(10)
        assert not thread.is_alive()

    with guard.entered():
        assert guard.is_inside
        in_another_thread()
        assert len(refused) == 1
        assert guard.is_inside  # the refused one has not let the first one go
    in_another_thread()
    assert len(refused) == 1


def test_a_fault_inside_lets_the_thread_go() -> None:
    guard = OneThread()
    with pytest.raises(KeyError), guard.entered():
        raise KeyError
    assert not guard.is_inside
    assert not copy.deepcopy(guard).is_inside
