"""A spool opened with what was measured to be best for its directories."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ssd import choice, open_spool
from ssd.contracts import EngineKind, Extent, SpillWarning
from ssd.settings import save_setting
from tests.ssd.disk import MIB, skip_where_refused
from tests.ssd.test_settings import SETTING


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    return tmp_path / "ssd.json"


def _pieces(place: Path, settings: Path, **given: int | str) -> tuple[str, int, list[int]]:
    """The engine, its depth, and the blocks into which 6 MiB are cut."""
    with open_spool([place], 32 * MIB, settings=settings, **given) as spool:  # type: ignore[arg-type]
        cuts = [stripe.size_bytes for stripe in spool._cut(Extent(0, 6 * MIB))]
        return spool.queue.engine.name, spool.queue.engine.depth, cuts


@pytest.mark.parametrize("kind", [EngineKind.URING, EngineKind.THREADS])
def test_what_was_saved_is_taken(tmp_path: Path, settings: Path, kind: EngineKind) -> None:
    skip_where_refused(kind)
    save_setting(tmp_path, replace(SETTING, engine=kind, block_bytes=MIB, depth=3), path=settings)
    assert _pieces(tmp_path, settings) == (kind, 3, [MIB] * 6)


def test_what_is_given_goes_before_it(tmp_path: Path, settings: Path) -> None:
    save_setting(tmp_path, replace(SETTING, block_bytes=MIB, depth=3), path=settings)
    given = _pieces(tmp_path, settings, engine="threads", block_bytes=2 * MIB, depth=5)
    assert given == ("threads", 5, [2 * MIB] * 3)
    assert _pieces(tmp_path, settings, engine="threads") == ("threads", 4, [4 * MIB, 2 * MIB])


def test_without_any_the_defaults_hold(tmp_path: Path, settings: Path) -> None:
    skip_where_refused(EngineKind.URING)
    assert _pieces(tmp_path, settings) == ("io_uring", 8, [4 * MIB, 2 * MIB])


def test_io_uring_that_is_refused_today_is_threads_of_that_depth(
    tmp_path: Path, settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(files: object, *, depth: int | None = None) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(choice, "proved_uring", refuse)
    save_setting(tmp_path, replace(SETTING, depth=3), path=settings)
    with pytest.warns(SpillWarning, match="io_uring is refused"):
        assert _pieces(tmp_path, settings)[:2] == ("threads", 3)


def test_blocks_that_are_too_large_for_the_spool_are_not_taken(
    tmp_path: Path, settings: Path
) -> None:
    save_setting(tmp_path, replace(SETTING, block_bytes=64 * MIB), path=settings)
    assert _pieces(tmp_path, settings)[2] == [4 * MIB, 2 * MIB]
