"""`memo bench ssd` from end to end on files of a few MiB: what it prints, writes and refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from memo.bench import show
from memo.bench.cli import app
from ssd.bench import BenchPlan, Op, best_of
from ssd.bench import Result as Measured
from ssd.settings import best_setting

TINY: Sequence[object] = (
    *("--size", "13M", "--blocks", "1MiB", "--depths", "2,3", "--rounds", 1),
    *("--engines", "threads", "--no-fio"),
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Not the user's own."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setattr(Path, "home", lambda: home)
    return home


@pytest.fixture
def place(tmp_path: Path) -> Path:
    place = tmp_path / "place"
    place.mkdir()
    return place


def bench(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["ssd", *map(str, arguments)])


def refused(result: Result) -> str:
    assert result.exit_code == 1, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def saved(home: Path) -> Path:
    return home / ".cache" / "memo" / "ssd.json"


def test_it_shows_saves_and_writes_what_it_measured(
    place: Path, home: Path, tmp_path: Path
) -> None:
    target = tmp_path / "results.json"
    result = bench(place, *TINY, "--json", target)
    assert result.exit_code == 0, result.output
    found = json.loads(target.read_text())
    assert {(r["engine"], r["op"], r["depth"]) for r in found} == {
        ("threads", op, depth) for op in ("write", "read", "mixed") for depth in (2, 3)
    }
    for entry in found:
        assert entry["directory"] == str(place)
        assert (entry["block_bytes"], entry["rounds"]) == (1 << 20, 1)
        assert entry["bytes_per_s"] > 0
        assert entry["cpu_s_per_gb"] > 0
        assert f"{entry['bytes_per_s'] / 1e9:.2f}" in result.stdout
    best = best_setting(place, path=saved(home))
    assert best is not None
    speeds = {(r["op"], r["depth"]): r["bytes_per_s"] for r in found}
    assert best.write_bytes_per_s == speeds["write", best.depth]
    assert best.read_bytes_per_s == speeds["read", best.depth]
    assert f"best: threads, blocks of 1 MiB, depth {best.depth}" in result.stdout
    assert str(saved(home)) in result.stdout
    assert list(place.iterdir()) == []


def test_json_on_standard_output_is_alone_there(place: Path) -> None:
    result = bench(place, *TINY, "--json", "-")
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)) == 6
    assert "best: threads" in result.stderr


def test_several_directories_are_measured_one_after_the_other(
    place: Path, tmp_path: Path, home: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    result = bench(place, other, place, *TINY, "--json", "-")
    directories = [entry["directory"] for entry in json.loads(result.stdout)]
    assert directories == [str(place)] * 6 + [str(other)] * 6
    assert len(json.loads(saved(home).read_text())["settings"]) == 2


def test_nothing_is_saved_when_it_is_not_wanted(place: Path, home: Path) -> None:
    result = bench(place, *TINY, "--no-save")
    assert result.exit_code == 0, result.output
    assert "best: threads" in result.stdout
    assert not saved(home).exists()


def test_without_a_directory_it_measures_here(
    place: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    assert bench(*TINY).exit_code == 0
    assert json.loads(saved(home).read_text())["settings"][0]["directory"] == str(place)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "2 GiBs"], "--size is '2 GiBs': takes a size above 0"),
        (["--blocks", "1M,,4M"], "--blocks is ''"),
        (["--depths", "0"], "--depths: got '0'"),
        (["--engines", "aio"], "--engines: got 'aio', takes io_uring or threads"),
        (["--size", "1M", "--blocks", "1M", "--depths", "3"], "it takes 12582912 or more"),
        (["--size", "900T"], "could not reserve"),
    ],
)
def test_what_it_can_t_do_is_one_line(place: Path, options: list[str], message: str) -> None:
    assert message in refused(bench(place, "--no-fio", *options))


def test_a_missing_directory_is_one_line_and_nothing_is_saved(place: Path, home: Path) -> None:
    assert "create the directory" in refused(bench(place / "none", *TINY))
    assert not saved(home).exists()


def test_blocks_that_are_not_aligned_are_one_line(place: Path) -> None:
    line = refused(bench(place, *TINY, "--blocks", "1000", "--size", "1M"))
    assert "block_bytes is 1000: it takes a multiple of" in line


def test_memory_is_said_once_and_is_no_error() -> None:
    if not Path("/dev/shm").is_dir():
        pytest.skip("no tmpfs here")
    result = bench("/dev/shm", *TINY, "--no-save")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("/dev/shm is memory") == 1


@pytest.mark.slow
@pytest.mark.parametrize("fio", ["--no-fio", "--fio"])
def test_an_interruption_is_one_line_and_the_space_is_back(
    place: Path, home: Path, fio: str
) -> None:
    code = "from memo.bench.cli import app; app()"
    options = ["--size", "16M", "--blocks", "1M", "--depths", "2", "--rounds", "100000", fio]
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", code, "ssd", str(place), *options],
        env=os.environ | {"HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert "passes" in process.stdout.readline()
    # As a terminal does: to the command and all that it started.
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert len(errors.strip().splitlines()) == 1, errors
    assert errors.startswith("error: interrupted")
    assert list(place.iterdir()) == []
    assert not saved(home).exists()


# ---- the table ----


def _measured(engine: str, op: Op, speed: float) -> Measured:
    return Measured(
        directory=Path("/place"),
        engine=engine,
        op=op,
        block_bytes=4 << 20,
        depth=16,
        bytes_per_s=speed,
        cpu_s_per_gb=0.014,
        rounds=3,
        spread=0.1,
    )


def test_what_is_best_is_compared_with_fio_at_the_same_setting() -> None:
    results = [
        _measured(engine, op, speed * 1e9)
        for engine, speeds in {
            "io_uring": (3, 2, 2),
            "fio": (2, 4, 1),
            "fio-thp": (4, 2, 1),
        }.items()
        for op, speed in zip(Op, speeds, strict=True)
    ]
    best = best_of(results)
    assert best is not None
    text = show.verdict(results, best)
    assert "writes 3.00 GB/s, reads 2.00 GB/s, 0.014 CPU s/GB" in text
    assert text.endswith("1.50 and 0.50 of fio; 0.75 and 1.00 of fio-thp")
    ours = [result for result in results if result.engine == "io_uring"]
    assert "fio" not in show.verdict(ours, best)


def test_what_was_left_out_is_said() -> None:
    plan = BenchPlan(size_bytes=16 << 20, block_bytes=(1 << 20, 4 << 20), depths=(1, 4))
    lines = list(show.explanation(plan, [_measured("threads", Op.READ, 1e9)]))
    assert any(line.startswith("1 left out") for line in lines)
    assert not any("fio-thp:" in line for line in lines)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(4 << 20, "4 MiB"), (3 << 30, "3 GiB"), (1536 << 20, "1536 MiB"), (1000, "1000 B")],
)
def test_sizes_are_shown_without_fractions(size_bytes: int, text: str) -> None:
    assert show.size(size_bytes) == text
