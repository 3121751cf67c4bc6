"""The settings that were measured to be best, kept from one run to the next.

Scope: one JSON file under the user's cache folder. A setting belongs to a directory, to the device
on which it lay (its number, `st_dev`), and to a machine: home folders are shared between machines,
and mounts change. Other directories on the same device have the same disk, and its setting.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from ssd.contracts import EngineKind, SpillError, SpillWarning
from ssd.faults import spill_error

_FORMAT = "memo ssd settings 1"

_NUMBER = (int, float)
_TYPES: dict[str, type | tuple[type, ...]] = {
    "engine": EngineKind,
    "block_bytes": int,
    "depth": int,
    "write_bytes_per_s": _NUMBER,
    "read_bytes_per_s": _NUMBER,
    "mixed_bytes_per_s": _NUMBER,
    "cpu_s_per_gb": _NUMBER,
    "measured": str,
}
_POSITIVE = frozenset(_TYPES) - {"engine", "measured", "cpu_s_per_gb"}

_NOT_ITS_FAULT = frozenset({errno.ENOENT, errno.EACCES, errno.EMFILE, errno.ENFILE})


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """How a directory is used best, and what it does then. `mixed`: half written, half read, the
    sum of both. `measured`: when, ISO 8601.
    """

    engine: EngineKind
    block_bytes: int
    depth: int
    write_bytes_per_s: float
    read_bytes_per_s: float
    mixed_bytes_per_s: float
    cpu_s_per_gb: float
    measured: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Entry:
    """A setting, and whose it is."""

    directory: str
    device: int
    machine: str
    setting: Setting

    @classmethod
    def of(cls, directory: Path, setting: Setting) -> Self:
        return cls(
            directory=str(directory.resolve()),
            device=directory.stat().st_dev,
            machine=platform.node(),
            setting=setting,
        )


def settings_path() -> Path:
    """Where settings are kept when no path is given.

    Raises:
        RuntimeError: when the user has no home folder.
    """
    return Path.home() / ".cache" / "memo" / "ssd.json"


def best_setting(directory: Path, *, path: Path | None = None) -> Setting | None:
    """What was saved for the directory, or else last for another on its device; None: nothing."""
    try:
        path = path or settings_path()
        place, device = str(directory.resolve()), directory.stat().st_dev
    except (OSError, RuntimeError):  # no such directory, or no home
        return None
    here = [e for e in _load(path) if (e.device, e.machine) == (device, platform.node())]
    here.sort(key=lambda entry: (entry.directory == place, entry.setting.measured))
    return here[-1].setting if here else None


def common_setting(directories: Sequence[Path], *, path: Path | None = None) -> Setting | None:
    """For a spool striped over several, each on a disk of its own; None unless all have one. The
    slowest decides, since stripes are equal: its engine and N times its bandwidth; the largest
    block; depths add up.
    """
    found = [best_setting(directory, path=path) for directory in directories]
    settings = [setting for setting in found if setting is not None]
    if not settings or len(settings) < len(found):
        return None
    slowest = min(settings, key=lambda s: min(s.write_bytes_per_s, s.read_bytes_per_s))
    count = len(settings)
    return Setting(
        engine=slowest.engine,
        block_bytes=max(s.block_bytes for s in settings),
        depth=sum(s.depth for s in settings),
        write_bytes_per_s=count * min(s.write_bytes_per_s for s in settings),
        read_bytes_per_s=count * min(s.read_bytes_per_s for s in settings),
        mixed_bytes_per_s=count * min(s.mixed_bytes_per_s for s in settings),
        cpu_s_per_gb=sum(s.cpu_s_per_gb for s in settings) / count,
        measured=min(s.measured for s in settings),
    )


def save_setting(directory: Path, setting: Setting, *, path: Path | None = None) -> Path:
    """Keep it in place of the directory's earlier one, and return the file. All or nothing: a
    reader never sees half of it.

    Raises:
        SpillError: when it can't be written.
    """
    try:
        path = path or settings_path()
    except RuntimeError as error:
        raise _homeless(directory, error) from error
    try:
        _add(path, _Entry.of(directory, setting))
    except OSError as error:
        raise spill_error("save the setting", path.parent, error.errno) from error
    return path


# ---- the file ----


def _add(path: Path, entry: _Entry) -> None:
    key = (entry.directory, entry.machine)
    others = [e for e in _load(path) if (e.directory, e.machine) != key]
    _replace(path, json.dumps(_as_json([*others, entry]), indent=2) + "\n")


def _as_json(entries: Sequence[_Entry]) -> dict[str, Any]:
    return {"format": _FORMAT, "settings": [asdict(entry) for entry in entries]}


def _load(path: Path) -> list[_Entry]:
    """What is there; what can't be understood counts as nothing, and is said. So does, unsaid, what
    is no fault of the file's.
    """
    try:
        return _read(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in _NOT_ITS_FAULT:
            return []
        warnings.warn(
            f"{path} holds no settings that can be read ({error}): it is ignored; measure again "
            "with memo bench ssd, which replaces it",
            SpillWarning,
            stacklevel=4,
        )
        return []


def _read(text: str) -> list[_Entry]:
    content = json.loads(text)
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(f"it does not say that it is {_FORMAT!r}")
    try:
        return [_entry(**entry) for entry in content["settings"]]
    except (TypeError, KeyError) as error:
        raise ValueError(f"an entry is not one: {error}") from error


def _entry(*, directory: str, device: int, machine: str, setting: dict[str, Any]) -> _Entry:
    known: dict[str, Any] = {field.name: setting[field.name] for field in fields(Setting)}
    known["engine"] = EngineKind(known["engine"])
    for name, value in known.items():
        is_of_type = isinstance(value, _TYPES[name])
        if not is_of_type or (name in _POSITIVE and value <= 0):
            raise ValueError(f"{name} is {value!r}")
    return _Entry(directory=directory, device=device, machine=machine, setting=Setting(**known))


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink()
        raise


def _homeless(directory: Path, error: RuntimeError) -> SpillError:
    return SpillError(
        f"could not save the setting of {directory}: {error} Name a file for it",
        directory=directory,
        operation="save the setting",
    )
