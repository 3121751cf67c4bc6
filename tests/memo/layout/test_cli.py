"""`memo layout` from end to end: what it writes, prints and refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from memo.layout.cli import layout
from planner.layout import Layout, read_problem, violations

TABLE = "id,lower,upper,size\nb1,0,3,4\nb2,3,9,4\nb3,0,9,4\nb4,9,21,4\nb5,0,21,4\n"
"""The example of google/minimalloc's README; 12 bytes are enough, and needed."""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "in.csv"
    path.write_text(TABLE, encoding="utf-8")
    return path


def invoke(*arguments: object) -> Result:
    app = typer.Typer()
    app.command()(layout)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(result: Result) -> str:
    """Return the one line of a refusal."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0].removeprefix("error: ")


def test_json_has_the_figures(table: Path) -> None:
    result = invoke(table, "--json")
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert figures["height_bytes"] == figures["lower_bound_bytes"] == 12
    assert figures["optimal"] is True
    assert figures["gap"] == 0
    assert figures["buffers"] == 5
    assert figures["solver"].startswith("greedy by size")
    assert 0 <= figures["solve_s"] < 60
    assert "fit" not in figures


def test_the_table_is_written_with_a_valid_layout(table: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    result = invoke(table, "-o", output, "--capacity", 12)
    assert result.exit_code == 0, result.output
    with output.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["id", "lower", "upper", "size", "offset"]
    assert [row["id"] for row in rows] == ["b1", "b2", "b3", "b4", "b5"]
    offsets = {row["id"]: int(row["offset"]) for row in rows}
    assert violations(read_problem(table), Layout(offsets, 12)) == []


def test_people_read_height_bound_solver_and_verdict(table: Path) -> None:
    result = invoke(table, "--capacity", 13)
    assert result.exit_code == 0, result.output
    for text in ("12 bytes, proven optimal", "greedy by size", "13 bytes: fits"):
        assert text in result.stdout


@pytest.mark.parametrize("more", [["--json"], []])
def test_what_does_not_fit_ends_with_1(table: Path, tmp_path: Path, more: list[str]) -> None:
    output = tmp_path / "out.csv"
    result = invoke(table, "--capacity", 11, "-o", output, *more)
    assert result.exit_code == 1
    assert output.exists()
    if more:
        figures = json.loads(result.stdout)
        assert (figures["fit"], figures["height_bytes"]) == ("impossible", 12)
    else:
        assert "11 bytes: no layout fits" in result.stdout


def test_alignment_is_of_every_offset(table: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    result = invoke(table, "--alignment", 512, "--json", "-o", output)
    assert json.loads(result.stdout)["height_bytes"] == 3 * 512
    with output.open(encoding="utf-8") as file:
        assert all(int(row["offset"]) % 512 == 0 for row in csv.DictReader(file))


def test_a_file_that_is_no_table_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text("id,lower,upper,size\nb1,0,3,4\nb2,5,x,4\n", encoding="utf-8")
    assert refused(invoke(path)) == f"{path}, line 3: upper is 'x': it takes a whole number"
    missing = tmp_path / "missing.csv"
    assert refused(invoke(missing)) == f"{missing}: No such file or directory"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is empty: it takes a header with id, lower, upper, size"),
        ("id,lower,size\nb,0,1\n", "line 1: no column upper"),
        ("id,lower,upper,size\nb,0,1,-4\n", "line 2: buffer b: size is -4"),
        ("id,lower,upper,size\nb,3,3,4\n", "line 2: buffer b: lives on [3, 3)"),
        ("id,lower,upper,size\nb,9,3,4\n", "line 2: buffer b: lives on [9, 3)"),
        ("id,lower,upper,size\nb,0,1,4\nb,2,3,4\n", "line 3: id 'b' was taken in line 2"),
        (f"id,lower,upper,size\n{'b' * 200_000},0,1,4\n", "is not a CSV table: field larger"),
    ],
)
def test_tables_that_can_not_be_meant_are_one_line(
    text: str, complaint: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text, encoding="utf-8")
    assert complaint in refused(invoke(path))


def test_a_folder_is_no_table(tmp_path: Path) -> None:
    assert refused(invoke(tmp_path)) == f"{tmp_path}: Is a directory"


def test_a_table_of_no_buffers_fits_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "none.csv"
    path.write_text("id,lower,upper,size\n", encoding="utf-8")
    result = invoke(path, "--json", "--capacity", 1)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["height_bytes"] == 0


@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [
        ("--time-limit", "0", "--time-limit is 0: it takes more than 0 seconds"),
        ("--time-limit", "nan", "--time-limit is nan"),
        ("--capacity", "0", "--capacity is '0'"),
        ("--capacity", "twelve", "--capacity is 'twelve'"),
        ("--output", "/nowhere/out.csv", "--output is /nowhere/out.csv: there is no such folder"),
    ],
)
def test_options_that_can_not_be_meant_are_one_line(
    table: Path, option: str, value: str, complaint: str
) -> None:
    assert complaint in refused(invoke(table, option, value))
