"""Readings side by side and as a difference, in a real browser."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.browser.steps import cell_at, eiffel, settle, until, violations
from tests.view import page_synthetic as synthetic

pytestmark = [pytest.mark.browser, pytest.mark.slow]

# every text that is written into a cell from now on
WRITTEN = """() => {
    window.written = new Set()
    const { fillText } = CanvasRenderingContext2D.prototype
    CanvasRenderingContext2D.prototype.fillText = function (text, ...place) {
        written.add(text)
        return fillText.call(this, text, ...place)
    }
}"""


def three():
    prompts = ("The Colosseum is in the old city of", "Tower is in the capital of")
    return [eiffel(), *(synthetic.plausible(prompt=p, seed=i) for i, p in enumerate(prompts, 3))]


def test_three_readings_are_linked(open_page):
    tab = open_page(three(), "w=160&cell=[5,3]")
    assert tab.locator("[role=grid]").count() == 3
    tab.locator("[role=grid]").nth(1).focus()
    tab.keyboard.press("ArrowDown")
    settle(tab)
    # one cell is chosen in all of them, at the token they share
    for cell in tab.locator("[role=gridcell]").all_inner_texts():
        assert "layer 5, " in cell
    tab.locator(".sc").nth(2).evaluate("e => e.scrollLeft = 130")
    settle(tab)
    assert tab.locator(".sc").evaluate_all("es => es.map(e => e.scrollLeft)") == [130] * 3


def test_the_inspector_has_a_column_for_each_of_three_readings(open_page):
    readings = three()
    tab = open_page(readings, "cell=[6,5]")
    assert tab.locator(".card .names .letter").all_inner_texts() == ["A", "B", "C"]
    wide, inner = tab.locator(".several").evaluate("e => [e.scrollWidth, e.clientWidth]")
    assert wide <= inner
    # the same token, each at its own position: "city", "old", "of" and so on are aligned by text
    places = tab.locator(".card .at div").all_inner_texts()
    assert {place.split("after ")[1] for place in places} == {"␣the"}
    positions = [r.pieces.index(" the") for r in readings]
    assert [int(re.search(r"position (\d+)", place)[1]) for place in places] == positions
    row = tab.locator(".card tr", has_text="entropy").locator("td").all_inner_texts()[:3]
    want = [float(np.float16(r.entropy[6, t])) for r, t in zip(readings, positions)]
    assert [float(text) for text in row] == pytest.approx(want, rel=0.006)
    assert tab.locator(".prompt .letter").all_inner_texts() == ["A", "B", "C"]


def test_charts_of_several_readings_name_each_line(open_page):
    readings = three()
    paris = int(readings[0].track_ids[0])
    tab = open_page(readings, f"pins=[[0,{paris}]]&cell=[6,5]")
    names = tab.locator(".chart").first.locator(".n").all_text_contents()
    assert sorted(n.split()[-1] for n in names) == ["A", "B", "C"]
    dashes = tab.locator(".chart").first.locator("path[fill=none]")
    assert (
        len(set(dashes.evaluate_all("es => es.map(e => e.getAttribute('stroke-dasharray'))"))) == 3
    )


def test_any_two_of_three_are_subtracted(open_page):
    readings = three()
    tab = open_page(readings, "view=diff&a=1&b=2&color=entropy&text=value")
    heads = tab.locator("[role=columnheader] bdi").all_inner_texts()
    assert "␣the" in heads
    differing = [head for head in heads if " / " in head]
    assert differing, "where the tokens differ the column has both"
    for head in differing:
        one, other = head.split(" / ")
        assert one in {p.replace(" ", "␣") for p in readings[1].pieces}
        assert other in {p.replace(" ", "␣") for p in readings[2].pieces}
    assert tab.locator("figcaption").inner_text().startswith("C − B: Tower is in the capital of −")
    column = heads.index("␣the")
    tab.mouse.move(*cell_at(tab, 4, column))
    settle(tab)
    assert tab.locator(".card .names .letter").all_inner_texts() == ["B", "C"]
    t = [readings[r].pieces.index(" the") for r in (1, 2)]
    tab.locator("[role=grid]").focus()
    tab.keyboard.press("t")
    text = tab.locator("dialog .real tbody tr").nth(4).locator("td").nth(column).inner_text()
    want = float(np.float16(readings[2].entropy[4, t[1]])) - float(
        np.float16(readings[1].entropy[4, t[0]])
    )
    assert float(text.replace("−", "-")) == pytest.approx(want, rel=0.06, abs=0.01)
    tab.keyboard.press("Escape")
    tab.mouse.move(2, 2)
    tab.mouse.move(*cell_at(tab, 4, column))
    settle(tab)
    # every number of the card has its difference
    row = tab.locator(".card tr", has_text="entropy").locator("td").all_inner_texts()
    assert float(row[2].replace("−", "-")) == pytest.approx(want, abs=0.006)
    deltas = tab.locator(".card .delta").all_inner_texts()
    assert sum(bool(re.fullmatch(r"[+−][\d.,]+|0|×.+", d)) for d in deltas) >= 3, deltas


def eiffel_and_colosseum(model):
    prompts = ("The Eiffel Tower is in the city of", "The Colosseum is in the city of")
    return [model.read(prompt) for prompt in prompts]


def test_a_difference_says_how_large_it_is_at_least_where_one_side_is_only_bounded(
    open_page, demo_model
):
    tab = open_page(eiffel_and_colosseum(demo_model), "view=diff")
    assert tab.locator(".tools select:visible").count() == 2, "of two there is one difference"
    rows = [row.split("\t") for row in tab.locator(".card tr:has(.pin)").all_inner_texts()]
    deltas = {name: delta for name, _, _, delta, *_ in rows}
    assert re.fullmatch(r"−9\d\.\d", deltas["␣Paris"]), deltas
    assert re.fullmatch(r"\+9\d\.\d", deltas["␣Rome"]), deltas
    assert any(re.fullmatch(r"≥ ×\d+", delta) for delta in deltas.values()), deltas


def test_a_change_is_seen_in_narrow_cells(open_page, demo_model):
    tab = open_page(eiffel_and_colosseum(demo_model), "view=diff&w=64")
    tab.evaluate(WRITTEN)
    for height in (28, 16):
        tab.evaluate("h => { location.hash = `view=diff&w=64&h=${h}`; written.clear() }", height)
        assert until(tab, "written.has('→␣Rome')")
        assert tab.evaluate("written.has('␣Paris')") == (height == 28), "both where there is room"


@pytest.mark.parametrize("readings", [1, 2])
def test_the_tools_of_one_or_two_readings_are_one_line(open_page, readings):
    tab = open_page(three()[:readings])
    lower_edges = tab.locator(".tools button:visible, .tools select:visible").evaluate_all(
        "es => es.map(e => e.getBoundingClientRect().bottom)"
    )
    assert max(lower_edges) - min(lower_edges) < 10


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_no_violation_in_a_difference(open_page, theme):
    tab = open_page(three(), "view=diff&color=kl&cell=[3,2]", color_scheme=theme)
    assert violations(tab) == []
    tab.locator("[role=grid]").first.focus()
    tab.keyboard.press("Enter")
    assert violations(tab) == []
