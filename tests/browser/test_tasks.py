"""docs/tasks.md says how many clicks a task takes on the page: each is done here, and its clicks counted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.browser.steps import eiffel
from tests.view import page_synthetic as synthetic

pytestmark = [pytest.mark.browser, pytest.mark.slow]

TASKS = Path(__file__).parents[2] / "docs/tasks.md"
# a click is one on anything but a list, whose choice is one
COUNT = """() => { window.clicks = 0
  addEventListener('click', e => e.isTrusted && !e.target.closest('select') && window.clicks++, true)
  addEventListener('change', e => e.target.closest('select') && window.clicks++, true) }"""


def said(task):
    """The number of clicks in the row of a task."""
    (row,) = (
        line for line in TASKS.read_text("utf-8").splitlines() if line.startswith(f"| {task}")
    )
    number = re.search(r"On the page: (no|\d+) clicks?", row.split("|")[2])[1]
    return 0 if number == "no" else int(number)


@pytest.fixture
def opened(open_page):
    def show(readings):
        tab = open_page(readings)
        tab.evaluate(COUNT)
        return tab

    return show


def clicks(tab):
    return tab.evaluate("window.clicks")


def test_when_the_answer_appears_is_seen_without_a_click(opened):
    reading = eiffel()
    tab = opened([reading])
    since = reading.settled()[-1]
    row = tab.locator(".card .stats tr", has_text="settled from").inner_text()
    assert re.search(rf"layer {since}\b", row)
    assert tab.locator(".chart").nth(1).locator("circle").count() > 0, "its rank, layer by layer"
    assert clicks(tab) == said("when does the answer appear?")


def test_where_two_lenses_disagree(opened):
    tab = opened([eiffel(), eiffel(seed=4, lens="tuned")])
    tab.select_option("select[aria-label=View]", "diff")
    tab.locator("figcaption", has_text="tuned lens − logit lens").wait_for()
    assert clicks(tab) == said("where do two lenses disagree?")


def test_what_a_third_prompt_changes(opened):
    others = [
        synthetic.plausible(prompt=f"The {name} is in the city of", seed=seed)
        for seed, name in enumerate(("Colosseum", "Tower"), 3)
    ]
    tab = opened([eiffel(), *others])
    tab.select_option("select[aria-label=View]", "diff")
    tab.select_option("select[aria-label='Difference of']", "2")
    tab.locator("figcaption", has_text="C − A").wait_for()
    assert clicks(tab) == said("what does a third prompt change?")


def test_a_figure_for_a_paper(opened):
    tab = opened([eiffel()])
    tab.click(".tools summary:has-text('Save')")
    with tab.expect_download() as download:
        tab.click(".tools summary:has-text('Save') + div >> text=SVG")
    assert download.value.suggested_filename.endswith(".svg")
    # the page itself clicks the link of a download, which no person does
    assert clicks(tab) == said("a figure for a paper")
