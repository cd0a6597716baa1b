"""What the page's tests do on it again and again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.view import page_synthetic as synthetic

AXE = Path(__file__).parents[2] / "web/node_modules/axe-core/axe.min.js"


def eiffel(**options):
    return synthetic.plausible(prompt="The Eiffel Tower is in the city of", **options)


def cell_at(tab, row, column, grid=0):
    """The middle of a cell on the screen (sizes as the page chose them)."""
    box = tab.locator(".sc").nth(grid).bounding_box()
    heads = tab.locator(".sc").nth(grid).locator("[role=columnheader]")
    head = heads.nth(column).bounding_box()
    rows = tab.locator(".sc").nth(grid).locator(".rows [role=row]")
    labels = rows.evaluate_all("es => es.map(e => +e.ariaRowIndex - 2)")
    side = rows.nth(labels.index(row)).bounding_box()
    assert box["x"] < head["x"]
    return head["x"] + head["width"] / 2, side["y"] + side["height"] / 2


def settle(tab):
    """Let the page draw: two frames from now everything asked for is on the screen."""
    tab.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def until(tab, expression, holds=bool):
    """The value of an expression on the page once `holds` is true of it, or after eight seconds.

    For what no locator can wait for; the page's own policy forbids `wait_for_function`.
    """
    for _ in range(200):
        value = tab.evaluate(expression)
        if holds(value):
            break
        tab.wait_for_timeout(40)
    return value


def copied(tab, words):
    """What is on the clipboard once it holds `words`."""
    text = until(tab, "navigator.clipboard.readText()", lambda text: words in text)
    assert words in text
    return text


def violations(tab):
    """What axe-core finds wrong with the page as it is now. Skips the rest of a test without axe-core."""
    if not AXE.exists():
        pytest.skip("axe-core is not installed (npm ci in web/)")
    tab.evaluate(AXE.read_text("utf-8"))  # through the CDP, which the page's policy does not bind
    found = tab.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    return [(v["id"], v["help"], [n["html"][:160] for n in v["nodes"][:3]]) for v in found]
