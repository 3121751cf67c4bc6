"""Tables: what minimalloc writes is read, what is written is read again, the rest is refused."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from planner.layout import Buffer, Problem, TableError, read_problem, solve, write_layout
from tests.planner.layout.reference import problems


def table(folder: Path, text: str) -> Path:
    path = folder / "table.csv"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "text",
    [
        "id,lower,upper,size\nb1,0,3,4\nb2,3,9,8\n",
        "size,id,upper,lower\n4,b1,3,0\n8,b2,9,3",
        "id,lower,upper,size,alignment,hint,gaps,offset\nb1,0,3,4,1,-1,,0\nb2,3,9,8,,7,,2\n",
        "buffer_id,start,end,size\nb1,0,2,4\nb2,3,8,8\n",
        "buffer,begin,upper,size\r\nb1,0,3,4\r\n\r\nb2, 3 ,9,8\r\n",
        "\ufeffID,Lower,Upper,Size\nb1,0,3,4\nb2,3,9,8\n",
    ],
)
def test_the_forms_of_minimalloc_are_read(text: str, tmp_path: Path) -> None:
    problem = read_problem(table(tmp_path, text))
    assert problem == Problem((Buffer("b1", 0, 3, 4), Buffer("b2", 3, 9, 8)), 1)


def test_alignments_are_read(tmp_path: Path) -> None:
    text = "id,lower,upper,size,alignment\nb1,0,3,4,16\n"
    problem = read_problem(table(tmp_path, text), alignment_bytes=512)
    assert problem == Problem((Buffer("b1", 0, 3, 4, 16),), 512)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(problem=problems(most=5))
def test_what_is_written_is_read_again(problem: Problem, tmp_path: Path) -> None:
    layout = solve(problem).layout
    path = tmp_path / "out.csv"
    write_layout(path, problem, layout)
    assert read_problem(path, alignment_bytes=problem.alignment_bytes) == problem
    with path.open(encoding="utf-8") as file:
        offsets = {row["id"]: int(row["offset"]) for row in csv.DictReader(file)}
    assert offsets == layout.offsets_bytes


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is empty"),
        ("id,lower,upper\nb,0,1\n", "line 1: no column size"),
        ("id,lower,upper,size,color\n", "line 1: unknown column 'color'"),
        ("id,lower,start,upper,size\n", "line 1: two columns give lower"),
        ("id,lower,upper,size\nb,0,1,4\nc,0,1\n", "line 3: 3 fields: it takes 4"),
        ("id,lower,upper,size\nb,0,1.5,4\n", "line 2: upper is '1.5': it takes a whole number"),
        ("id,lower,upper,size\n\nb,0,x,4\n", "line 3: upper is 'x'"),
        ("id,lower,upper,size\nb,3,3,4\n", "line 2: buffer b: lives on [3, 3)"),
        ("id,lower,upper,size\nb,0,1,0\n", "line 2: buffer b: size is 0"),
        ("id,lower,upper,size\nb,0,1,-4\n", "line 2: buffer b: size is -4"),
        ("id,lower,upper,size\n,0,1,4\n", "line 2: id is empty"),
        ("id,lower,upper,size\nb,0,1,4\nb,2,3,4\n", "line 3: id 'b' was taken in line 2"),
        ("id,lower,upper,size,gaps\nb,0,9,4,2-5\n", "line 2: gaps are '2-5'"),
        (
            "id,lower,upper,size\nb,0,99999999999999999999,4\n",
            "line 2: buffer b: lives on [0, 9999",
        ),
        ("id,lower,upper,size,alignment\nb,0,9,4,0\n", "line 2: buffer b: alignment is 0"),
    ],
)
def test_what_is_no_table_is_refused_with_its_line(
    text: str, complaint: str, tmp_path: Path
) -> None:
    path = table(tmp_path, text)
    with pytest.raises(TableError) as caught:
        read_problem(path)
    assert str(caught.value).startswith(str(path))
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "binary.csv"
    path.write_bytes(b"\xff\xfe\x00id")
    with pytest.raises(TableError, match="is not UTF-8 text"):
        read_problem(path)
    with pytest.raises(FileNotFoundError):
        read_problem(tmp_path / "missing.csv")


def test_more_bytes_than_solvers_count_are_refused(tmp_path: Path) -> None:
    path = table(tmp_path, f"id,lower,upper,size\na,0,1,{1 << 59}\nb,0,1,{1 << 59}\n")
    with pytest.raises(TableError, match="the buffers have 1,152,921,504,606,846,978 bytes"):
        read_problem(path)
