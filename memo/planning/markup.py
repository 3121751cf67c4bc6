"""Tables and legends as HTML.

Scope: from rich tables, which the terminal shows too, to markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape

from rich.console import Group, RenderableType
from rich.table import Table


def tables_in(shown: RenderableType) -> Iterator[Table]:
    """The tables of what a terminal would show, in their order."""
    if isinstance(shown, Table):
        yield shown
    elif isinstance(shown, Group):
        for part in shown.renderables:
            yield from tables_in(part)


def table_markup(table: Table, *, this_row: int | None = None) -> str:
    """A table of words; one without names of columns has names of rows in its first. `this_row` is
    set off from the others.
    """
    names = [str(column.header) for column in table.columns]
    rows = list(
        zip(*([str(cell) for cell in column.cells] for column in table.columns), strict=True)
    )
    sides = ["right" if column.justify == "right" else "left" for column in table.columns]
    head = _row("th", names, sides) if any(names) else ""
    body = [
        _row("td", row, sides, ' class="this"' if number == this_row else "")
        for number, row in enumerate(rows)
    ]
    kind = "wide" if head else "named"
    return f'<div class="scroll"><table class="{kind}">{head}{"".join(body)}</table></div>'


def legend_markup(kinds: Iterable[tuple[str, str]]) -> str:
    """A patch of each kind's colour, and what it is."""
    items = "".join(
        f'<li><svg viewBox="0 0 12 12"><rect width="12" height="12" class="{kind}"/></svg>'
        f"{escape(what)}</li>"
        for kind, what in kinds
    )
    return f'<ul class="legend">{items}</ul>'


def _row(tag: str, cells: Sequence[str], sides: Sequence[str], extra: str = "") -> str:
    inside = "".join(
        f'<{tag} class="{side}">{escape(cell)}</{tag}>'
        for cell, side in zip(cells, sides, strict=True)
    )
    return f"<tr{extra}>{inside}</tr>"
