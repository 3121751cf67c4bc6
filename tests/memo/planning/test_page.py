"""The page of a plan: what it says, and that shapes lie where times, addresses and shares put them.
The markup is read back by another parser.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest
import typer
from typer.testing import CliRunner

from memo.planning.charts import MOST_POINTS, lane_chart, memory_chart
from memo.planning.cli import plan
from memo.planning.layout_chart import MOST_RECTANGLES, drawn, kind_of, layout_chart, legend
from memo.planning.making import Outcome, make
from memo.planning.page import page
from memo.planning.svg import LEFT, PLOT, ticks
from memo.planning.swap_chart import swap_chart
from memo.planning.sweep import sweep
from planner.contracts import Lane, LayerSwap, Placement, Tier
from planner.layout import Buffer, Layout, Problem
from planner.plan import NoPlan, Plan
from planner.schedule.contracts import Span
from tests.memo.planning.common import GB, disks, llama, machine, request

MB = 10**6


@pytest.fixture(scope="module")
def planned() -> tuple[Outcome, list[Plan | NoPlan]]:
    """A plan that swaps to host and disk, with its layout; and a shorter and a longer one."""
    hardware = machine(host_bytes=40 * MB, disks=disks(count=2))
    asked = request(hardware, config=llama(num_hidden_layers=3), lay_out=True)
    return make(asked), list(sweep(asked, [1500, 30_000]))


def shapes(svg: str, tag: str = "rect") -> list[Element]:
    return list(ElementTree.fromstring(svg).iter(tag))


def number(shape: Element, name: str) -> float:
    return float(shape.attrib[name])


def box(shape: Element) -> tuple[float, float, float, float]:
    """Left, right, top and bottom."""
    x, y = number(shape, "x"), number(shape, "y")
    return x, x + number(shape, "width"), y, y + number(shape, "height")


def told(svg: str, start: str) -> Element:
    """The one rectangle whose tip begins so."""
    (found,) = [one for one in shapes(svg) if one.attrib["data-tip"].startswith(start)]
    return found


# ---- the page ----


def test_the_page_has_verdict_figures_charts_and_other_lengths(
    planned: tuple[Outcome, list[Plan | NoPlan]],
) -> None:
    outcome, others = planned
    assert isinstance(outcome.result, Plan)
    text = page(outcome, others)
    told = outcome.result.predictions
    assert "<title>memo plan: llama, 3_000 tokens, 1 x a test&#x27;s</title>" in text
    assert f"{told.step_s:,.4g} s a step, {told.tokens_per_s:,.0f} tokens/s" in text
    assert told.binding
    assert f"What binds: {', '.join(told.binding)}." in text
    assert re.findall(r'<svg id="(\w+)"', text) == ["memory", "lanes", "swap", "layout"]
    assert text.index('class="verdict fits"') < text.index("<table") < text.index("<figure>")
    assert text.count('<tr class="this">') == 1
    assert "does not fit" in text  # the longer one, in the table


@pytest.mark.slow
def test_the_command_writes_the_page(tmp_path: Path) -> None:
    """With other lengths and two GPUs, of a model that is planned quickly."""
    llama(num_hidden_layers=1).save_pretrained(tmp_path)
    target = tmp_path / "plan.html"
    arguments = [str(tmp_path), "--tokens", "4k", "--gpu", "l4", "--host-memory", "64GB"]
    app = typer.Typer()
    app.command()(plan)
    result = CliRunner().invoke(app, [*arguments, "--report", str(target)])
    assert result.exit_code == 0, result.output
    text = target.read_text(encoding="utf-8")
    rows = re.findall(r"<tr[^>]*><td[^>]*>([^<]*)</td><td[^>]*>([^<]*)", text)
    one_gpu = [(size, "1") for size in ("1K", "2K", "4K", "8K", "16K")]
    assert rows[-6:] == [*one_gpu, ("4K", "2")]


def test_what_does_not_fit_says_what_binds_and_has_no_chart() -> None:
    outcome = make(request(machine(device_bytes=20 * MB, host_bytes=50 * MB)))
    assert isinstance(outcome.result, NoPlan)
    text = page(outcome, [])
    assert '<p class="verdict not"><b>Does not fit.</b> What binds: GPU memory' in text
    assert "more on each GPU would do" in text
    assert "<figure>" not in text
    assert "Other lengths" not in text


def test_names_are_text_and_nothing_is_fetched(
    planned: tuple[Outcome, list[Plan | NoPlan]],
) -> None:
    outcome, _ = planned
    name = '<script src="https://elsewhere/x.js">&'
    work = replace(outcome.result.workload, model=name)
    text = page(replace(outcome, result=replace(outcome.result, workload=work)), [])
    assert "&lt;script src=&quot;https://elsewhere/x.js&quot;&gt;&amp;" in text
    assert text.count("<script") == 1
    for loads in ("src=", "href=", "@import", "url(h", "fetch("):
        assert loads not in text.replace("src=&quot;", "")


# ---- the layout ----


def test_tensors_that_live_together_do_not_overlap_in_the_picture(
    planned: tuple[Outcome, list[Plan | NoPlan]],
) -> None:
    arena = planned[0].arena
    assert arena is not None
    found = {one.attrib["data-tip"].partition(" (")[0]: box(one) for one in shapes(_svg(arena))}
    assert set(found) == {buffer.id for buffer in arena.problem.buffers}
    slack = 0.02  # coordinates have two digits
    for one, other in combinations(arena.problem.buffers, 2):
        if one.lower < other.upper and other.lower < one.upper:
            (_, _, top, bottom), (_, _, other_top, other_bottom) = found[one.id], found[other.id]
            assert bottom <= other_top + slack or other_bottom <= top + slack


def _svg(arena: object) -> str:
    return layout_chart(arena.problem, arena.layout)  # type: ignore[attr-defined]


def test_time_goes_across_and_addresses_up() -> None:
    low, high = Buffer("low", 0, 30, 300), Buffer("high", 30, 120, 100)
    svg = layout_chart(Problem((low, high), 1), Layout({"low": 0, "high": 300}, 400))
    left, right, top, bottom = box(told(svg, "low"))
    assert (left, right) == pytest.approx((LEFT, LEFT + PLOT / 4), abs=0.01)
    second_left, second_right, second_top, second_bottom = box(told(svg, "high"))
    assert (second_left, second_right) == pytest.approx((right, LEFT + PLOT), abs=0.02)
    assert second_bottom == pytest.approx(top, abs=0.01)
    assert bottom - top == pytest.approx(3 * (second_bottom - second_top), abs=0.05)
    tip = "high (other): 100B at 300B, operations 30 to 120"
    assert told(svg, "high").attrib["data-tip"] == tip


def test_a_layout_of_many_tensors_stays_a_small_page_with_the_largest() -> None:
    buffers = tuple(Buffer(f"held {n} forward 1", n, n + 2, 1 + n % 9973) for n in range(30_000))
    problem = Problem(buffers, 1)
    layout = Layout({buffer.id: 0 for buffer in buffers}, 10_000)
    svg = layout_chart(problem, layout)
    assert len(shapes(svg)) == MOST_RECTANGLES
    assert len(svg) < 1.2 * MB
    left_out = {buffer.id for buffer in buffers} - {buffer.id for buffer in drawn(problem)}
    largest = max(buffer.size_bytes for buffer in buffers if buffer.id in left_out)
    assert largest <= min(buffer.size_bytes for buffer in drawn(problem))


def test_every_tensor_of_a_plan_has_a_kind(planned: tuple[Outcome, list[Plan | NoPlan]]) -> None:
    arena = planned[0].arena
    assert arena is not None
    names = [buffer.id for buffer in arena.problem.buffers]
    assert [name for name in names if kind_of(name)[1] == "other"] == []
    kinds = {what for _, what in legend(arena.problem)}
    assert kinds >= {"within a forward", "within a backward", "layer inputs", "in flight"}
    assert kind_of("gradient for 3 backward") != kind_of("gradient head forward 12 left")


# ---- memory and lanes ----


def test_memory_is_an_area_below_its_limit() -> None:
    memory = {
        Tier.DEVICE: ((0.0, 20 * MB), (1.0, 60 * MB), (3.0, 0)),
        Tier.HOST: ((0.0, 10 * MB),),
        Tier.SSD: ((0.0, 0),),
    }
    limits = {Tier.DEVICE: 80 * MB, Tier.HOST: GB, Tier.SSD: 0}
    svg = memory_chart(memory, limits, 4.0)
    low, high, none = (told(svg, f"GPU memory: {size} ") for size in ("20MB", "60MB", "0B"))
    assert box(high)[:2] == pytest.approx((LEFT + PLOT / 4, LEFT + 3 * PLOT / 4), abs=0.01)
    assert number(high, "height") == pytest.approx(3 * number(low, "height"), abs=0.05)
    assert number(none, "height") == 0
    limit, *more = [one for one in shapes(svg, "line") if one.attrib["class"] == "limit"]
    assert more == []  # the host's limit is far above, and would flatten the area
    floor = box(high)[3]
    assert floor - number(limit, "y1") == pytest.approx(4 * number(low, "height"), abs=0.05)
    assert "SSD" not in svg


def test_long_lines_keep_their_peaks() -> None:
    points = [(n / 1000, n % 7) for n in range(50_000)] + [(50.0, 0)]
    points[777] = (0.777, 10**9)
    svg = memory_chart({Tier.DEVICE: points}, {Tier.DEVICE: 10**9}, 50.0)
    assert len(shapes(svg)) <= MOST_POINTS
    assert number(told(svg, "GPU memory: 1GB from 0.777"), "width") > 0


def spans(*parts: tuple[Lane | None, float, float], size_bytes: int = 0) -> Sequence[Span]:
    return [Span(lane, "copy", start, stop, size_bytes) for lane, start, stop in parts]


def test_lanes_have_a_row_each_and_waits_are_computes() -> None:
    wait = Span(Lane.H2D, "waits for h2d", 2.0, 3.0, is_wait=True)
    svg = lane_chart([*spans((None, 0, 2), (Lane.H2D, 1, 3), (Lane.D2H, 0, 1)), wait], 4.0)
    rows = {kind: box(told(svg, kind)) for kind in ("copy", "compute waits", "from", "to the")}
    assert rows["compute waits"][2:] == rows["copy"][2:]
    assert rows["compute waits"][0] == pytest.approx(LEFT + PLOT / 2, abs=0.01)
    assert len({top for _, _, top, _ in rows.values()}) == 3
    assert told(svg, "compute waits for h2d, 2 to 3 s").attrib["class"] == "wait"


def test_narrow_spans_that_touch_are_drawn_together_and_lose_no_byte() -> None:
    parts = [(Lane.D2H, n / 10_000, (n + 1) / 10_000) for n in range(10_000)]
    svg = lane_chart(spans(*parts, (Lane.H2D, 0.5, 0.75), size_bytes=1000), 1.0)
    tips = [shape.attrib["data-tip"] for shape in shapes(svg)]
    assert len(tips) < 2000
    counts = [int(tip.split()[3]) for tip in tips if " x copy" in tip]
    sizes = [float(found[1]) for tip in tips if (found := re.search(r"([\d.]+)KB", tip))]
    assert sum(counts) == 10_000
    assert sum(sizes) == pytest.approx(10_000 + 1)
    assert "from the host: copy, 1KB, 0.5 to 0.75 s" in tips


# ---- the swap plan ----


def test_shares_of_tiles_fill_a_column() -> None:
    keep, ssd = Placement.KEEP, Placement.SSD
    layers = [
        LayerSwap(tiles={keep: 1, ssd: 3}, x=Tier.HOST, o=Tier.SSD),
        LayerSwap(tiles={keep: 1}),
    ]
    svg = swap_chart(layers)
    kept, stored = (told(svg, f"layer 0: {part} tiles") for part in ("1 of 4", "3 of 4"))
    whole = told(svg, "layer 1: 1 of 1 tiles kept on the GPU")
    assert number(stored, "height") == pytest.approx(3 * number(kept, "height"), abs=0.02)
    parts = number(kept, "height") + number(stored, "height")
    assert number(whole, "height") == pytest.approx(parts, abs=0.02)
    assert told(svg, "layer 0: input x host").attrib["class"] != kept.attrib["class"]
    assert told(svg, "layer 0: attention o SSD").attrib["class"] == stored.attrib["class"]


@pytest.mark.parametrize(
    ("last", "most", "step"),
    [(10, 5, 2), (9.9, 5, 2), (7e9, 3, 5e9), (0.07, 8, 0.01), (1, 2, 0.5), (51.8, 6, 10)],
)
def test_ticks_are_round_and_few(last: float, most: int, step: float) -> None:
    found = ticks(last, most)
    assert found == pytest.approx([step * n for n in range(len(found))])
    assert found[-1] <= last * (1 + 1e-9) < found[-1] + step * 1.0001
    assert len(found) - 1 <= most
