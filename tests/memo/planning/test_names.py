"""Names of models: what is here, what is not, and a hub that is silent or says no."""

from __future__ import annotations

import logging
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import logging as hub_logging

from memo.planning import names
from memo.planning.names import config_named, is_path
from tests.memo.planning.common import HIDDEN, llama

NAME = "nobody/at-home"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "llama-small"
    llama().save_pretrained(folder)
    return folder


def _raising(error: Exception) -> Callable[..., Any]:
    def function(*_: object, **__: object) -> Any:
        raise error

    return function


def _answer(status: int) -> HfHubHTTPError:
    response: Any = SimpleNamespace(status_code=status, headers={}, request=None)
    return HfHubHTTPError("no", response=response)


def _cache(monkeypatch: pytest.MonkeyPatch, found: Path | None) -> None:
    path = None if found is None else str(found)
    monkeypatch.setattr(names, "try_to_load_from_cache", lambda *_: path)


def test_files_and_folders_are_loaded(model: Path) -> None:
    assert config_named(str(model)).hidden_size == HIDDEN
    assert config_named(str(model / "config.json")).hidden_size == HIDDEN


@pytest.mark.parametrize("name", ["./a", "../a/b", "/a", "~/a", "a.json", "org/a.json", "a/b/c"])
def test_paths_are_told_from_names(name: str) -> None:
    assert is_path(name)
    assert not is_path(name.strip("./~").replace("/", "-").removesuffix(".json"))


def test_a_path_that_is_not_there_is_refused_unasked_with_names_like_it(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "get_hf_file_metadata", _raising(AssertionError("was asked")))
    monkeypatch.setattr(names, "load_config", _raising(AssertionError("was loaded")))
    missing = model.parent / "Lama-small" / "config.json"
    with pytest.raises(ValueError, match=f"no such file or folder; here is {model}$"):
        config_named(str(missing))
    with pytest.raises(ValueError, match=f"here is {model / 'config.json'}$"):
        config_named(str(model / "confg.json"))
    with pytest.raises(ValueError, match=r"no such file or folder$"):
        config_named(str(model.parent / "quite another"))
    with pytest.raises(ValueError, match="names on the Hugging Face hub are like org/name"):
        config_named("two words")


def test_a_name_is_refused_with_local_names_like_it_where_the_hub_is_not_reached(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    monkeypatch.setattr(names, "is_offline_mode", lambda: False)
    monkeypatch.setattr(names, "get_hf_file_metadata", _raising(OSError("no route")))
    monkeypatch.setattr(names, "load_config", _raising(AssertionError("was loaded")))
    _cache(monkeypatch, None)
    with pytest.raises(ValueError, match=r"does not answer; here is llama-small$"):
        config_named("llama-smal")


def test_a_silent_hub_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/config.json"
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(names, "is_offline_mode", lambda: False)
        monkeypatch.setattr(names, "hf_hub_url", lambda *_: address)
        monkeypatch.setattr(names, "HUB_S", 0.2)
        _cache(monkeypatch, None)
        started_s = time.monotonic()
        with pytest.raises(ValueError, match="does not answer"):
            config_named(NAME)
    assert time.monotonic() - started_s < 5


@pytest.mark.parametrize("status", [500, 503])
def test_the_last_config_serves_while_the_hub_is_away(
    model: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    kept = shutil.copy(model / "config.json", model.parent / "config.json")
    monkeypatch.setattr(names, "is_offline_mode", lambda: False)
    monkeypatch.setattr(names, "get_hf_file_metadata", _raising(_answer(status)))
    _cache(monkeypatch, Path(kept))
    assert config_named(NAME).hidden_size == HIDDEN


@pytest.mark.parametrize("status", [401, 404])
def test_a_hub_that_says_no_is_believed_quietly(
    monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    seen: list[tuple[str, int]] = []

    def load(name: str) -> Any:
        seen.append((name, hub_logging.get_verbosity()))
        raise ValueError("unknown")

    before = hub_logging.get_verbosity()
    monkeypatch.setattr(names, "is_offline_mode", lambda: False)
    monkeypatch.setattr(names, "get_hf_file_metadata", _raising(_answer(status)))
    monkeypatch.setattr(names, "load_config", load)
    with pytest.raises(ValueError, match="unknown"):
        config_named(NAME)
    assert seen == [(NAME, logging.ERROR)]
    assert hub_logging.get_verbosity() == before != logging.ERROR
