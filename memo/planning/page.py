"""A plan as one self-contained page: figures, memory over time, lanes, the layout, other lengths.

Scope: HTML. Nothing is loaded from elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from rich.console import Console
from rich.table import Table

from memo.planning.making import Outcome
from memo.planning.show import shown
from memo.planning.svg import lane_chart, layout_chart, memory_chart
from memo.planning.sweep import sweep_table
from planner.contracts import NoPlan, Plan

_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1100px; color: #222 }
pre { background: #f6f6f4; padding: 1em; overflow-x: auto }
svg { background: #fbfbfa; border: 1px solid #ddd }
svg text { font: 12px system-ui, sans-serif; fill: #333 }
rect:hover { stroke: #000 }
#tip { position: fixed; display: none; background: #222; color: #fff; padding: 4px 8px;
       border-radius: 3px; pointer-events: none; max-width: 40em }
"""

_SCRIPT = """
const tip = document.getElementById("tip");
document.addEventListener("mousemove", event => {
  const text = event.target.dataset ? event.target.dataset.tip : undefined;
  tip.style.display = text ? "block" : "none";
  if (!text) return;
  tip.textContent = text;
  tip.style.left = Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8) + "px";
  tip.style.top = (event.clientY + 14) + "px";
});
"""

_TEXT_WIDTH = 110


def page(outcome: Outcome, others: Sequence[Plan | NoPlan]) -> str:
    """The page; `others` are plans for other lengths and numbers of GPUs."""
    result = outcome.result
    title = f"memo plan: {result.workload.model}, {result.workload.tokens:,} tokens"
    parts = [_pre(result), *_charts(outcome)]
    if others:
        parts += ["<h2>Other lengths and GPUs</h2>", f"<pre>{_text(sweep_table(others))}</pre>"]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}'
        f"</title><style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>"
        f'{"".join(parts)}<div id="tip"></div><script>{_SCRIPT}</script></body></html>\n'
    )


def save_page(outcome: Outcome, others: Sequence[Plan | NoPlan], path: Path) -> None:
    """Write the page.

    Raises:
        OSError: when the file cannot be written.
    """
    path.write_text(page(outcome, others), encoding="utf-8")


def _charts(outcome: Outcome) -> list[str]:
    schedule, arena = outcome.schedule, outcome.arena
    parts: list[str] = []
    if schedule is not None:
        parts += ["<h2>Memory over time</h2>", memory_chart(schedule.memory, schedule.step_s)]
        parts += ["<h2>Compute and lanes</h2>", lane_chart(schedule.spans, schedule.step_s)]
    if arena is not None:
        parts += [
            "<h2>Layout of activations and gradients: operations across, addresses up</h2>",
            layout_chart(arena.problem, arena.layout),
        ]
    return parts


def _pre(result: Plan | NoPlan) -> str:
    console = Console(width=_TEXT_WIDTH, no_color=True, force_terminal=False, highlight=False)
    with console.capture() as captured:
        console.print(shown(result, console))
    return f"<pre>{escape(captured.get())}</pre>"


def _text(table: Table) -> str:
    console = Console(width=2 * _TEXT_WIDTH, no_color=True, force_terminal=False)
    with console.capture() as captured:
        console.print(table)
    return escape("\n".join(line.rstrip() for line in captured.get().splitlines()))
