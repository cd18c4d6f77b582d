"""The page as readers meet it: with a mouse, with a finger, in the dark, on a phone, without JavaScript."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, Page, look

from inlay.nas.report.page import page_of
from inlay.nas.report.pictures import all_pictures
from inlay.nas.workspace import Workspace

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

Look = Callable[[Callable[[Page], Coroutine[Any, Any, None]]], None]

PLOT = "[...Bokeh.index].find(view => view.model.select_one?.('tried'))"
# Where a candidate is drawn in the window, and what stands beside it.
POINT = """(index => {{
  const view = {plot}, box = view.canvas_view.el.getBoundingClientRect();
  const {{data}} = view.model.select_one('tried').data_source;
  const {{x_scale, y_scale}} = view.frame;
  return [box.left + x_scale.compute(data.ratio[index]), box.top + y_scale.compute(data.kl[index])];
}})({index})"""
TIPS = """(() => {
  const texts = [], walk = (node) => {
    if (node.classList?.contains('bk-Tooltip')) texts.push(node.shadowRoot.textContent.split('}').pop());
    for (const child of [...(node.shadowRoot?.children ?? []), ...node.children]) walk(child);
  };
  walk(document.body);
  return texts;
})()"""
SEEN = "[...document.querySelectorAll('[data-filter={name}] tbody tr')].filter(row => !row.hidden).length"


@pytest.fixture
def looked(search: Workspace, tmp_path: Path) -> Look:
    """Opens the report of the search and does something with it; nothing may be fetched, no script may fail."""
    page_file = tmp_path / "report.html"
    page_file.write_text(page_of(search, dict(all_pictures(search))), encoding="utf-8")

    def work(steps: Callable[[Page], Coroutine[Any, Any, None]]) -> Callable[[Page], Coroutine[Any, Any, None]]:
        async def watched(page: Page) -> None:
            await steps(page)
            await page.ask("1")
            told = [event["method"] for event in page.events]
            assert "Runtime.exceptionThrown" not in told
            asked = [each["params"] for each in page.events if each["method"] == "Network.requestWillBeSent"]
            urls = {each["request"]["url"] for each in asked}
            assert {url for url in urls if not url.startswith("data:")} == {page_file.resolve().as_uri()}

        return watched

    return lambda steps: look(tmp_path / "browser", page_file, work(steps))


async def point_at_place(page: Page, index: int) -> list[float]:
    """Brings the front into view; where one of its candidates is."""
    await page.ask("document.querySelector('#chart-pareto').scrollIntoView()")
    place = await page.ask(POINT.format(plot=PLOT, index=index))
    assert isinstance(place, list)
    return place


def test_a_mouse_points_zooms_and_filters(looked: Look) -> None:
    async def steps(page: Page) -> None:
        await page.open()
        assert await page.ask("document.querySelectorAll('.is-live').length") == 5
        x, y = await point_at_place(page, 3)
        await page.mouse("mouseMoved", x, y)
        await page.until(f"{TIPS}.length === 1")
        (tip,) = await page.ask(TIPS)
        for words in ("candidate: 000000000003", "tried: 0.541x, KL 0.4927", "predicted: 0.536x, KL 0.4591"):
            assert words in tip

        before = await page.ask(f"{PLOT}.model.x_range.end - {PLOT}.model.x_range.start")
        await page.mouse("mousePressed", x - 60, y - 60, button="left", buttons=1, clickCount=1)
        await page.mouse("mouseMoved", x, y, button="left", buttons=1)
        await page.mouse("mouseMoved", x + 60, y + 60, button="left", buttons=1)
        await page.mouse("mouseReleased", x + 60, y + 60, button="left", clickCount=1)
        await page.until(f"{PLOT}.model.x_range.end - {PLOT}.model.x_range.start < {before} / 4")

        seen = SEEN.format(name="candidates")
        assert await page.ask(seen) == 16
        await page.ask("document.querySelector('.filter input').focus()")
        await page.send("Input.insertText", text="0a POOL")
        assert await page.ask(seen) == 1
        assert await page.ask(f"{PLOT}.model.select_one('tried').data_source.selected.indices") == [10]
        assert await page.ask("document.querySelector('.filter output').textContent") == "1 of 16"

        seen = SEEN.format(name="blocks")
        choose = """(name, value) => {
          const select = document.querySelector(`.filter select[aria-label='${name}']`);
          select.value = value;
          select.dispatchEvent(new Event("input", {bubbles: true}));
        }"""
        assert await page.ask(seen) == 72
        await page.ask(f"({choose})('layer', '2')")
        assert await page.ask(seen) == 9
        await page.ask(f"({choose})('kind', 'window')")
        assert await page.ask(seen) == 1

    looked(steps)


def test_on_a_phone_and_in_the_dark(looked: Look) -> None:
    async def steps(page: Page) -> None:
        await page.send("Emulation.setTouchEmulationEnabled", enabled=True)
        await page.open(width=390, height=844, dark=True)
        assert await page.ask("document.documentElement.scrollWidth") == 390
        assert await page.ask("getComputedStyle(document.body).backgroundColor") == "rgb(20, 25, 31)"
        legend = f"{PLOT}.model.below.find(part => part.type === 'Legend').label_text_color"
        assert await page.ask(legend) == "#e3e8ee"
        assert await page.ask(f"{PLOT}.canvas_view.events_el.style.touchAction") == "pan-x pan-y"
        x, y = await point_at_place(page, 3)
        await page.send("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        await page.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        await page.until(f"{TIPS}.some(text => text.includes('000000000003'))")
        # What is wider than a phone moves in its own box.
        for box in (".table", "[data-filter=blocks]"):
            wide = (
                f"(box => [box.scrollWidth > box.clientWidth, box.clientWidth <= 390])(document.querySelector('{box}'))"
            )
            assert await page.ask(wide) == [True, True]
        await page.scheme(dark=False)
        await page.until(f"{legend} === '#1f2933'")

    looked(steps)


def test_without_javascript_it_says_the_same(looked: Look) -> None:
    async def steps(page: Page) -> None:
        await page.send("Emulation.setScriptExecutionDisabled", value=True)
        await page.open()
        assert await page.ask("document.querySelectorAll('.is-live').length") == 0
        drawn = "[...document.querySelectorAll('img')].map(each => each.complete && each.offsetWidth > 300)"
        assert await page.ask(drawn) == [True] * 5
        assert await page.ask(SEEN.format(name="candidates")) == 16
        assert await page.ask("document.querySelectorAll('.filter').length") == 0

    looked(steps)
