"""Settings that were saved: whose they are, and what becomes of files that are damaged."""

from __future__ import annotations

import errno
import json
import os
import platform
from dataclasses import replace
from pathlib import Path

import pytest

from ssd.contracts import EngineKind, SpillError, SpillWarning
from ssd.settings import Setting, best_setting, common_setting, save_setting

SETTING = Setting(
    engine=EngineKind.URING,
    block_bytes=4 << 20,
    depth=16,
    write_bytes_per_s=2.5e9,
    read_bytes_per_s=2e9,
    mixed_bytes_per_s=2.25e9,
    cpu_s_per_gb=0.01,
    measured="2026-01-02T03:04:05+00:00",
)
OTHER = replace(
    SETTING,
    engine=EngineKind.THREADS,
    block_bytes=1 << 20,
    depth=4,
    write_bytes_per_s=1e9,
    read_bytes_per_s=3e9,
    cpu_s_per_gb=0.03,
    measured="2026-01-01T00:00:00+00:00",
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "memo" / "ssd.json"


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    pair = tmp_path / "one", tmp_path / "two"
    for place in pair:
        place.mkdir()
    return pair


def _set_all(path: Path, name: str, value: object) -> None:
    """Change a field of all entries in the file."""
    content = json.loads(path.read_text())
    for entry in content["settings"]:
        assert name in entry
        entry[name] = value
    path.write_text(json.dumps(content))


def test_what_is_saved_comes_back(path: Path, places: tuple[Path, Path]) -> None:
    assert best_setting(places[0], path=path) is None
    assert save_setting(places[0], SETTING, path=path) == path
    assert best_setting(places[0], path=path) == SETTING
    save_setting(places[0], OTHER, path=path)
    assert best_setting(places[0], path=path) == OTHER
    assert len(json.loads(path.read_text())["settings"]) == 1
    assert [entry.name for entry in path.parent.iterdir()] == ["ssd.json"]


def test_each_directory_has_its_own_whatever_is_newer(
    path: Path, places: tuple[Path, Path]
) -> None:
    save_setting(places[0], OTHER, path=path)
    save_setting(places[1], SETTING, path=path)
    assert best_setting(places[0], path=path) == OTHER
    assert best_setting(places[1], path=path) == SETTING


def test_a_directory_without_one_has_the_newest_of_its_device(
    path: Path, places: tuple[Path, Path], tmp_path: Path
) -> None:
    save_setting(places[0], SETTING, path=path)
    save_setting(places[1], OTHER, path=path)
    assert best_setting(tmp_path, path=path) == SETTING


@pytest.mark.parametrize(("name", "value"), [("device", 1 << 40), ("machine", "another")])
def test_another_device_and_another_machine_have_none(
    path: Path, places: tuple[Path, Path], name: str, value: object
) -> None:
    save_setting(places[0], SETTING, path=path)
    _set_all(path, name, value)
    assert best_setting(places[0], path=path) is None


def test_another_machine_s_is_kept(
    path: Path, places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_setting(places[0], SETTING, path=path)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(platform, "node", lambda: "another")
        assert best_setting(places[0], path=path) is None
        save_setting(places[0], OTHER, path=path)
        assert best_setting(places[0], path=path) == OTHER
    assert best_setting(places[0], path=path) == SETTING


def test_one_directory_by_two_names_is_one(path: Path, places: tuple[Path, Path]) -> None:
    link = places[0].parent / "link"
    link.symlink_to(places[0])
    save_setting(link, SETTING, path=path)
    save_setting(places[1], replace(OTHER, measured="2027"), path=path)
    assert best_setting(places[0], path=path) == SETTING


def test_a_missing_directory_has_none(path: Path, places: tuple[Path, Path]) -> None:
    save_setting(places[0], SETTING, path=path)
    assert best_setting(places[0] / "none", path=path) is None


DAMAGED = [
    b"",
    b"{",
    b"\xff\xfe\x00",
    b"[]",
    b"{}",
    b'{"format": "something else", "settings": []}',
    b'{"format": "memo ssd settings 1"}',
    b'{"format": "memo ssd settings 1", "settings": 3}',
    b'{"format": "memo ssd settings 1", "settings": [3]}',
    b'{"format": "memo ssd settings 1", "settings": [{"directory": "/"}]}',
]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_or_foreign_file_is_ignored_with_one_warning_and_replaced(
    path: Path, places: tuple[Path, Path], content: bytes
) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.warns(SpillWarning, match="holds no settings that can be read") as told:
        assert best_setting(places[0], path=path) is None
    assert len(told) == 1
    with pytest.warns(SpillWarning, match="holds no settings"):
        save_setting(places[0], SETTING, path=path)
    assert best_setting(places[0], path=path) == SETTING


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("engine", "aio"),
        ("engine", None),
        ("block_bytes", 0),
        ("block_bytes", "4MiB"),
        ("depth", -1),
        ("depth", 1.5),
        ("read_bytes_per_s", "fast"),
        ("write_bytes_per_s", None),
        ("write_bytes_per_s", 0),
        ("measured", 3),
    ],
)
def test_values_that_make_no_sense_are_damage(
    path: Path, places: tuple[Path, Path], name: str, value: object
) -> None:
    save_setting(places[0], SETTING, path=path)
    content = json.loads(path.read_text())
    content["settings"][0]["setting"][name] = value
    path.write_text(json.dumps(content))
    with pytest.warns(SpillWarning, match="holds no settings that can be read"):
        assert best_setting(places[0], path=path) is None


def test_a_file_that_is_a_folder_is_ignored_and_can_t_be_replaced(
    path: Path, places: tuple[Path, Path]
) -> None:
    path.mkdir(parents=True)
    with pytest.warns(SpillWarning, match="holds no settings"):
        assert best_setting(places[0], path=path) is None
    with pytest.warns(SpillWarning), pytest.raises(SpillError, match="save the setting"):
        save_setting(places[0], SETTING, path=path)
    assert [entry.name for entry in path.parent.iterdir()] == ["ssd.json"]


def test_a_write_that_fails_leaves_the_old_ones(
    path: Path, places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_setting(places[0], SETTING, path=path)

    def fail(self: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(SpillError, match=r"could not save the setting .*ENOSPC"):
        save_setting(places[0], OTHER, path=path)
    assert best_setting(places[0], path=path) == SETTING
    assert [entry.name for entry in path.parent.iterdir()] == ["ssd.json"]


def test_it_lies_in_the_home_folder_s_cache_if_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert save_setting(tmp_path, SETTING) == tmp_path / ".cache" / "memo" / "ssd.json"
    assert best_setting(tmp_path) == SETTING

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert best_setting(tmp_path) is None
    with pytest.raises(SpillError, match="home directory"):
        save_setting(tmp_path, SETTING)


def test_several_directories_are_as_fast_as_the_slowest_times_their_number(
    path: Path, places: tuple[Path, Path]
) -> None:
    save_setting(places[0], SETTING, path=path)
    save_setting(places[1], OTHER, path=path)
    both = common_setting(places, path=path)
    assert both is not None
    assert (both.engine, both.block_bytes, both.depth) == (EngineKind.THREADS, 4 << 20, 20)
    assert (both.write_bytes_per_s, both.read_bytes_per_s) == (2e9, 4e9)
    assert both.cpu_s_per_gb == pytest.approx(0.02)
    assert common_setting(places[:1], path=path) == SETTING
    assert common_setting([*places, places[0] / "none"], path=path) is None
    assert common_setting([], path=path) is None
