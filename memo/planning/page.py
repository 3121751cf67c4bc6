"""A plan as one self-contained page: verdict, figures, memory over time, lanes, swaps, the layout,
other lengths.

Scope: what is on the page and in which order. Nothing is loaded from elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from rich.console import Console

from memo.planning.charts import LANE_LEGEND, TIERS, lane_chart, limits_of, memory_chart
from memo.planning.layout_chart import MOST_RECTANGLES, layout_chart, legend
from memo.planning.making import Outcome
from memo.planning.markup import legend_markup, table_markup, tables_in
from memo.planning.page_style import HATCH, SCRIPT, STYLE
from memo.planning.show import shown
from memo.planning.swap_chart import PLACES, swap_chart
from memo.planning.sweep import sweep_table
from planner.plan import NoPlan, Plan
from planner.sizes import format_tokens

_OFFLINE = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""The browser is to fetch nothing, whatever a model's name may hold."""


def page(outcome: Outcome, others: Sequence[Plan | NoPlan]) -> str:
    """The page; `others` are plans for other lengths and numbers of GPUs."""
    result = outcome.result
    title = escape(f"memo plan: {_asked(result)}")
    body = [f"<h1>{title}</h1>", _verdict(result), *_figures(result), *_charts(outcome)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_OFFLINE}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head><body>{HATCH}\n"
        + "\n".join([*body, *_others(result, others)])
        + f'\n<div id="tip" role="status"></div><script>{SCRIPT}</script></body></html>\n'
    )


def save_page(outcome: Outcome, others: Sequence[Plan | NoPlan], path: Path) -> None:
    """Write the page.

    Raises:
        OSError: when the file cannot be written.
    """
    path.write_text(page(outcome, others), encoding="utf-8")


def _asked(result: Plan | NoPlan) -> str:
    work, hardware = result.workload, result.hardware
    return f"{work.model}, {format_tokens(work.tokens)} tokens, {hardware.gpus} x {hardware.device}"


def _verdict(result: Plan | NoPlan) -> str:
    if isinstance(result, NoPlan):
        binding = ", ".join(TIERS[tier] for tier in result.binding) or "no budget alone"
        return f'<p class="verdict not"><b>Does not fit.</b> What binds: {binding}.</p>'
    told = result.predictions
    speed = f"{told.step_s:,.4g} s a step, {told.tokens_per_s:,.0f} tokens/s, MFU {told.mfu:.1%}"
    binding = escape(", ".join(told.binding) or "not told")
    return f'<p class="verdict fits"><b>Fits:</b> {speed}. What binds: {binding}.</p>'


def _figures(result: Plan | NoPlan) -> Iterator[str]:
    """The tables that the terminal shows, and the notes."""
    for table in tables_in(shown(result, Console())):
        yield table_markup(table)
    if result.notes:
        notes = "".join(f"<li>{escape(note)}</li>" for note in result.notes)
        yield f'<ul class="notes">{notes}</ul>'


def _charts(outcome: Outcome) -> Iterator[str]:
    result, schedule, arena = outcome.result, outcome.schedule, outcome.arena
    if schedule is not None:
        limits = limits_of(result.hardware)
        drawing = memory_chart(schedule.memory, limits, schedule.step_s)
        yield from _section("Memory over time, of each GPU", drawing)
        drawing = lane_chart(schedule.spans, schedule.step_s)
        yield from _section("Compute and lanes", drawing, LANE_LEGEND)
    if isinstance(result, Plan):
        drawing = swap_chart(result.swap.layers)
        yield from _section("Where each layer's tensors are", drawing, tuple(PLACES.values()))
    if arena is not None:
        drawing = layout_chart(arena.problem, arena.layout)
        heading = "Layout of activations and gradients in device memory"
        yield from _section(heading, drawing, legend(arena.problem))
        if (count := len(arena.problem.buffers)) > MOST_RECTANGLES:
            yield f"<p>The {MOST_RECTANGLES:,} largest of {count:,} tensors are drawn.</p>"


def _section(heading: str, drawing: str, kinds: Sequence[tuple[str, str]] = ()) -> Iterator[str]:
    yield f"<h2>{escape(heading)}</h2>"
    if kinds:
        yield legend_markup(kinds)
    yield f"<figure>{drawing}</figure>"


def _others(result: Plan | NoPlan, others: Sequence[Plan | NoPlan]) -> Iterator[str]:
    """A table of all, the page's own plan among them."""
    if others:
        rows = sorted([result, *others], key=lambda one: (one.workload.ranks, one.workload.tokens))
        yield "<h2>Other lengths and GPUs</h2>"
        yield table_markup(sweep_table(rows), this_row=rows.index(result))
