"""Problems and layouts as the CSV tables of google/minimalloc.

Scope: reading and writing. A table has a header and the columns `id`, `lower`, `upper` and `size`,
in any order, and may have `alignment`; `offset` is what a layout adds. As minimalloc's reader does,
this one takes `buffer` or `buffer_id` for `id`, `begin` or `start` for `lower`, and `end` for
`upper`, where `end` is the last moment of the life and not the first after it. `hint` and `offset`
of a table that is read are advice to other solvers and passed over; `gaps` are refused.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from planner.layout.contracts import Buffer, Layout, Problem

_SYNONYMS = {"buffer": "id", "buffer_id": "id", "begin": "lower", "start": "lower", "end": "upper"}
_REQUIRED = ("id", "lower", "upper", "size")
_KNOWN = (*_REQUIRED, "alignment", "hint", "gaps", "offset")


class TableError(ValueError):
    """The file is not such a table; the message names it, the line and what is wrong there."""


def read_problem(path: Path, *, alignment_bytes: int = 1) -> Problem:
    """Read the buffers of a table, to be laid out at multiples of `alignment_bytes`.

    Raises:
        OSError: when the file can't be read.
        TableError: when it is not such a table, or the alignment is below 1.
    """
    try:
        buffers = _buffers(path, path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise TableError(f"{path}: is not UTF-8 text") from error
    except csv.Error as error:
        raise TableError(f"{path}: is not a CSV table: {error}") from error
    try:
        return Problem(buffers, alignment_bytes)
    except ValueError as error:
        raise TableError(f"{path}: {error}") from error


def write_layout(path: Path, problem: Problem, layout: Layout) -> None:
    """Write the buffers of `problem` in their order, with their offsets in `layout`.

    Raises:
        OSError: when the file can't be written.
    """
    is_aligned = any(buffer.alignment_bytes != 1 for buffer in problem.buffers)
    optional = ["alignment"] if is_aligned else []
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*_REQUIRED, *optional, "offset"])
        for buffer in problem.buffers:
            row: list[str | int] = [buffer.id, buffer.lower, buffer.upper, buffer.size_bytes]
            row += [buffer.alignment_bytes] if is_aligned else []
            writer.writerow([*row, layout.offsets_bytes[buffer.id]])


def _buffers(path: Path, text: str) -> tuple[Buffer, ...]:
    reader = csv.reader(text.splitlines())
    rows = ((reader.line_num, row) for row in reader if any(field.strip() for field in row))
    first = next(rows, None)
    if first is None:
        raise TableError(f"{path}: is empty: it takes a header with {', '.join(_REQUIRED)}")
    line, header = first
    with_ends = "end" in [name.strip().lower() for name in header]
    columns = _columns(path, line, header)
    return tuple(_unique(path, _read_rows(path, rows, columns, with_ends)))


def _columns(path: Path, line: int, header: Sequence[str]) -> list[str]:
    names = [name.strip().lower() for name in header]
    columns = [_SYNONYMS.get(name, name) for name in names]
    where = f"{path}, line {line}: "
    for name in columns:
        if name not in _KNOWN:
            raise TableError(f"{where}unknown column {name!r}: it takes {', '.join(_KNOWN)}")
        if columns.count(name) > 1:
            raise TableError(f"{where}two columns give {name}")
    missing = [name for name in _REQUIRED if name not in columns]
    if missing:
        raise TableError(f"{where}no column {missing[0]}: it takes {', '.join(_REQUIRED)}")
    return columns


def _read_rows(
    path: Path, rows: Iterable[tuple[int, list[str]]], columns: Sequence[str], with_ends: bool
) -> Iterable[tuple[int, Buffer]]:
    for line, row in rows:
        if len(row) != len(columns):
            raise TableError(f"{path}, line {line}: {len(row)} fields: it takes {len(columns)}")
        fields = dict(zip(columns, (field.strip() for field in row), strict=True))
        try:
            yield line, _buffer(fields, with_ends)
        except ValueError as error:
            raise TableError(f"{path}, line {line}: {error}") from error


def _buffer(fields: Mapping[str, str], with_ends: bool) -> Buffer:
    if fields.get("gaps"):
        raise ValueError(f"gaps are {fields['gaps']!r}: gaps in a life are not supported")
    if not fields["id"]:
        raise ValueError("id is empty")
    return Buffer(
        fields["id"],
        _whole(fields, "lower"),
        _whole(fields, "upper") + (1 if with_ends else 0),
        _whole(fields, "size"),
        _whole(fields, "alignment") if fields.get("alignment") else 1,
    )


def _whole(fields: Mapping[str, str], name: str) -> int:
    try:
        return int(fields[name])
    except ValueError as error:
        raise ValueError(f"{name} is {fields[name]!r}: it takes a whole number") from error


def _unique(path: Path, rows: Iterable[tuple[int, Buffer]]) -> Iterable[Buffer]:
    lines: dict[str, int] = {}
    for line, buffer in rows:
        if buffer.id in lines:
            raise TableError(
                f"{path}, line {line}: id {buffer.id!r} was taken in line {lines[buffer.id]}"
            )
        lines[buffer.id] = line
        yield buffer
