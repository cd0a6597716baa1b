"""Frames while thousands of positions are scrolled, in the browser's own clock."""

from __future__ import annotations

import pytest

from tests.browser.steps import settle
from tests.view import page_synthetic as synthetic

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def scroll_trace(tab, dx, dy, frames=150):
    """Milliseconds between frames while scrolling a step in each."""
    return sorted(
        tab.evaluate(
            """([dx, dy, n]) => new Promise(done => {
            const sc = document.querySelector('.sc'), at = []
            const step = () => { at.push(performance.now()); sc.scrollLeft += dx
              sc.scrollTop += at.length % 40 < 20 ? dy : -dy
              at.length < n ? requestAnimationFrame(step) : done(at.slice(1).map((t, i) => t - at[i])) }
            requestAnimationFrame(step) })""",
            [dx, dy, frames],
        )
    )


def test_thousands_of_positions_scroll_smoothly(open_page):
    tab = open_page([synthetic.with_candidates(synthetic.plausible(L=48, T=2000, K=5))])
    tab.wait_for_timeout(800)
    times = scroll_trace(tab, 40, 24)
    # only what is in view exists, whatever the length of the prompt
    assert tab.locator("[role=columnheader]").count() < 40
    assert tab.locator(".rows [role=row]").count() < 50
    # a busy machine may drop frames; drawing everything would take seconds for each
    assert times[len(times) // 2] < 60, times[::15]
    # and with the pointer over the cells, whose card and charts follow it
    box = tab.locator(".sc").bounding_box()
    tab.mouse.move(box["x"] + 300, box["y"] + 200)
    times = scroll_trace(tab, 4, 24, frames=60)
    assert times[len(times) // 2] < 60, times[::6]
    tab.locator("[role=grid]").focus()
    tab.keyboard.press("End")
    assert "position 1999," in tab.locator("[aria-live=polite]").inner_text()
    tab.mouse.click(*_middle(tab.locator(".overview")))
    settle(tab)
    first = int(tab.locator("[role=columnheader] small").first.inner_text())
    assert 900 < first < 1100, "the overview jumps to its middle"
    tab.keyboard.press("0")
    settle(tab)
    assert tab.locator("[role=columnheader]").count() > 5, (
        "positions are numbered when cells are small"
    )


def _middle(locator):
    box = locator.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
