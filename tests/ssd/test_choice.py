"""The choice of an engine: io_uring where a real operation works, else threads, and said."""

from __future__ import annotations

import builtins
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ssd.choice import choose_engine
from ssd.contracts import Attempt, EngineKind, Operation, SpillError, SpillWarning, SpoolFile
from ssd.files import close_file, open_file
from ssd.threads import ThreadEngine
from tests.ssd.disk import MIB, open_descriptors, skip_where_refused

uring = pytest.importorskip("ssd.uring", reason="no liburing for this machine")


@pytest.fixture
def file(tmp_path: Path) -> Iterator[SpoolFile]:
    file = open_file(tmp_path, MIB)
    yield file
    close_file(file)


def test_io_uring_is_chosen_where_it_works(file: SpoolFile) -> None:
    skip_where_refused(EngineKind.URING)
    engine = choose_engine([file])
    assert engine.name == "io_uring"
    engine.close()


def test_threads_are_chosen_where_the_package_is_missing(
    file: SpoolFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "ssd.uring":
            raise ImportError("no liburing here")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.warns(SpillWarning, match="no liburing here.*: threads") as told:
        engine = choose_engine([file])
    assert isinstance(engine, ThreadEngine)
    assert len(told) == 1
    engine.close()
    with pytest.raises(SpillError, match="io_uring is refused"):
        choose_engine([file], EngineKind.URING)


def test_an_operation_that_fails_decides_though_the_ring_was_made(
    file: SpoolFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: object, attempt: Attempt) -> None:
        attempt.end(-errno.EOPNOTSUPP)

    before = open_descriptors()
    monkeypatch.setattr(uring.UringEngine, "start", refuse)
    with pytest.warns(SpillWarning, match="not supported"):
        engine = choose_engine([file])
    assert isinstance(engine, ThreadEngine)
    assert open_descriptors() == before
    engine.close()


def test_bytes_that_come_back_wrong_decide_too(
    file: SpoolFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = uring.UringEngine.start

    def lose_reads(self: Any, attempt: Attempt) -> None:
        if attempt.operation is Operation.READ:
            attempt.end(len(attempt.piece.buffer))
        else:
            real(self, attempt)

    skip_where_refused(EngineKind.URING)
    monkeypatch.setattr(uring.UringEngine, "start", lose_reads)
    with pytest.raises(SpillError, match="did not come back"):
        choose_engine([file], EngineKind.URING)


def test_threads_can_be_asked_for_without_a_word(file: SpoolFile) -> None:
    engine = choose_engine([file], EngineKind.THREADS)
    assert isinstance(engine, ThreadEngine)
    engine.close()
