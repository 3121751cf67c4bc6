"""A model's config by what a user typed: a file, a folder, or a name on the Hugging Face hub.

Scope: telling the three apart, and a hub that does not answer. Its client tries again for a minute
or more, and says so each time: it is asked once first, and kept quiet. Loading is `memo.tracing`'s.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

from huggingface_hub import (
    get_hf_file_metadata,
    hf_hub_url,
    is_offline_mode,
    try_to_load_from_cache,
)
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import logging as hub_logging
from transformers import PreTrainedConfig
from transformers.utils import CONFIG_NAME

from memo.tracing import load_config

HUB_S = 5.0
"""To connect, and again to answer."""

_SERVER_ERRORS = 500


def config_named(name: str) -> PreTrainedConfig:
    """The config of a `config.json`, a folder with one, or a model of the hub. Where the hub does
    not answer, the last config that was loaded from it is taken.

    Raises:
        ValueError: when there is none; names files and folders nearby that are alike.
    """
    if Path(name).exists():
        return load_config(name)
    if is_path(name):
        raise ValueError(f"model {name!r}: there is no such file or folder{_alike(name)}")
    try:
        address = hf_hub_url(name, CONFIG_NAME)
    except HFValidationError as error:
        raise ValueError(
            f"model {name!r}: there is no such file or folder, and names on the Hugging Face hub "
            f"are like org/name{_alike(name)}"
        ) from error
    with _quiet():
        return load_config(_known(name, address))


def is_path(name: str) -> bool:
    """Whether it cannot be a name on the hub, which is `name` or `org/name`."""
    return name.startswith((".", "/", "~")) or name.endswith(".json") or name.count("/") > 1


def _known(name: str, address: str) -> str:
    """The name, or the config that is in the cache."""
    if is_offline_mode() or _answers(address):
        return name
    cached = try_to_load_from_cache(name, CONFIG_NAME)
    if isinstance(cached, str):
        return cached
    raise ValueError(
        f"model {name!r}: there is no such file or folder, and the Hugging Face hub, where it may "
        f"be a model's name, does not answer{_alike(name)}"
    )


def _answers(address: str) -> bool:
    """Whether the hub says anything of the file, be it that there is none."""
    try:
        get_hf_file_metadata(address, timeout=HUB_S)
    except HfHubHTTPError as error:
        return error.response.status_code < _SERVER_ERRORS
    except Exception:  # noqa: BLE001 - the client's transport, and so its errors, differ by release
        return False
    return True


@contextmanager
def _quiet() -> Iterator[None]:
    before = hub_logging.get_verbosity()
    hub_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        hub_logging.set_verbosity(before)


def _alike(name: str) -> str:
    """Names beside the first part of a path that is missing."""
    missing = Path(name)
    while not missing.parent.exists():
        missing = missing.parent
    try:
        there = {path.name.lower(): path for path in sorted(missing.parent.iterdir())}
    except OSError:  # it may not be looked into
        return ""
    near = [str(there[one]) for one in get_close_matches(missing.name.lower(), there)]
    return f"; here is {', '.join(near)}" if near else ""
