"""The page in a real browser, without a screen: it loads, tells what the pointer is on, follows the
keyboard, and its words do not lie over each other.

Skipped, and says why, where playwright or a Chromium is not installed.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from memo.planning.making import Outcome, make
from memo.planning.page import save_page
from memo.planning.sweep import sweep
from planner.plan import NoPlan, Plan
from planner.sizes import format_bytes
from tests.memo.planning.common import disks, llama, machine, request

MB = 10**6

playwright: Any = pytest.importorskip(
    "playwright.sync_api", reason="needs a browser's driver: pip install playwright"
)
_NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, _NAMES)), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason=f"none of these browsers is installed: {', '.join(_NAMES)}"
)


@dataclass
class Opened:
    """A page of the browser, and what it complained of and fetched."""

    page: Any
    outcome: Outcome
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def open(self, path: Path) -> None:
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda message: self.errors.append(message.text))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def tip(self) -> str | None:
        shown = self.page.locator("#tip")
        return shown.inner_text() if shown.is_visible() else None


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def made() -> tuple[Outcome, list[Plan | NoPlan]]:
    hardware = machine(host_bytes=40 * MB, disks=disks(count=2))
    asked = request(hardware, config=llama(num_hidden_layers=3), lay_out=True)
    return make(asked), list(sweep(asked, [1500]))


@pytest.fixture(params=["light", "dark"])
def opened(
    request: pytest.FixtureRequest,
    browser: Any,
    made: tuple[Outcome, list[Plan | NoPlan]],
    tmp_path: Path,
) -> Iterator[Opened]:
    path = tmp_path / "plan.html"
    save_page(*made, path)
    page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=request.param)
    found = Opened(page, made[0])
    found.open(path)
    yield found
    page.close()


def test_it_loads_alone_and_without_an_error(opened: Opened) -> None:
    opened.page.wait_for_load_state("networkidle")
    assert opened.errors == []
    assert [url for url in opened.requests if not url.startswith("file:")] == []
    assert len(opened.requests) == 1
    assert opened.page.title() == "memo plan: llama, 3_000 tokens, 1 x a test's"
    heights = [
        chart.bounding_box()["height"] for chart in opened.page.locator("figure > svg").all()
    ]
    assert len(heights) == 4
    assert min(heights) > 100


def test_hovering_tells_the_tensor_under_the_pointer(opened: Opened) -> None:
    arena = opened.outcome.arena
    assert arena is not None
    opened.page.mouse.move(1, 1)
    assert opened.tip() is None
    names = ("in flight", "kept 2", "gradients 2 2 backward")
    there = [buffer for buffer in arena.problem.buffers if buffer.id in names]
    assert there
    for buffer in there:
        shape = opened.page.locator(f'#layout rect[data-tip^="{buffer.id} ("]')
        shape.scroll_into_view_if_needed()
        box = shape.bounding_box()
        # At its left edge, where nothing that is smaller and came later is drawn over it.
        opened.page.mouse.move(box["x"] + 1, box["y"] + box["height"] / 2)
        tip = opened.tip()
        assert tip is not None
        assert tip.startswith(f"{buffer.id} (")
        assert format_bytes(buffer.size_bytes) in tip
        assert f"operations {buffer.lower:,} to {buffer.upper:,}" in tip
        edge = opened.page.locator("#tip").bounding_box()
        assert 0 <= edge["x"] <= 1280 - edge["width"]


def test_arrow_keys_walk_over_the_shapes(opened: Opened) -> None:
    opened.page.focus("#lanes")
    opened.page.keyboard.press("ArrowRight")
    first = opened.tip()
    assert first is not None
    assert first.startswith("embedding forward")
    opened.page.keyboard.press("ArrowRight")
    second = opened.tip()
    assert second != first
    opened.page.keyboard.press("ArrowLeft")
    assert opened.tip() == first
    opened.page.keyboard.press("End")
    assert opened.tip() not in (first, second, None)
    opened.page.keyboard.press("Escape")
    assert opened.tip() is None


def test_words_stay_in_their_chart_and_apart(opened: Opened) -> None:
    clashes = opened.page.evaluate(_CLASHES)
    assert clashes == []


def test_words_can_be_read_on_their_ground(opened: Opened) -> None:
    """WCAG 2.1, 1.4.3: a contrast of 4.5 or more."""
    for selector, ground in [
        ("h1", "body"),
        (".verdict b", ".verdict"),
        (".named td", "body"),
        ("#memory text", "#memory"),
        ("#memory text.strong", "#memory"),
        ("ul.legend li", "body"),
    ]:
        ink = "fill" if "text" in selector else "color"
        one = opened.page.evaluate(_COLOUR, [selector, ink])
        other = opened.page.evaluate(_COLOUR, [ground, "backgroundColor"])
        assert _contrast(one, other) >= 4.5, selector


def test_what_does_not_fit_is_a_page_too(browser: Any, tmp_path: Path) -> None:
    outcome = make(request(machine(device_bytes=20 * MB, host_bytes=50 * MB)))
    assert isinstance(outcome.result, NoPlan)
    path = tmp_path / "none.html"
    save_page(outcome, [], path)
    page = browser.new_page()
    found = Opened(page, outcome)
    found.open(path)
    assert page.locator(".verdict.not").inner_text().startswith("Does not fit. What binds: GPU")
    page.mouse.move(300, 60)
    assert found.tip() is None
    assert found.errors == []
    assert page.locator("figure").count() == 0
    page.close()


def _contrast(one: list[float], other: list[float]) -> float:
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: list[float]) -> float:
    """WCAG 2.1's relative luminance of an sRGB colour of 0 to 255."""
    parts = [part / 255 for part in colour[:3]]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


_COLOUR = """([selector, name]) =>
  getComputedStyle(document.querySelector(selector))[name].match(/[0-9.]+/g).map(Number)"""

_CLASHES = """() => {
  const found = [];
  for (const chart of document.querySelectorAll("figure > svg")) {
    const frame = chart.getBoundingClientRect();
    const texts = [...chart.querySelectorAll("text")];
    const boxes = texts.map(text => [text.textContent, text.getBoundingClientRect()]);
    for (const [text, b] of boxes) {
      const isWithin = b.left >= frame.left && b.right <= frame.right;
      if (!isWithin || b.top < frame.top || b.bottom > frame.bottom)
        found.push(chart.id + ": outside: " + text);
    }
    boxes.forEach(([text, a], i) => boxes.slice(i + 1).forEach(([other, b]) => {
      if (a.left < b.right && b.left < a.right && a.top < b.bottom - 1 && b.top < a.bottom - 1)
        found.push(chart.id + ": " + text + " over " + other);
    }));
  }
  return found;
}"""
