"""The page's main promises in Firefox: it draws, follows the pointer and the keys, and asks for nothing."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from logitlens.view import page
from logitlens.view.page import data
from tests.browser.firefox import Firefox
from tests.browser.steps import eiffel
from tests.server.held import served
from tests.view import page_synthetic as synthetic

pytestmark = [pytest.mark.browser, pytest.mark.slow]

CELL = """(([row, column]) => {
  const sc = document.querySelector('.sc')
  const head = [...sc.querySelectorAll('[role=columnheader]')][column].getBoundingClientRect()
  const rows = [...sc.querySelectorAll('.rows [role=row]')]
  const side = rows.find(e => +e.ariaRowIndex == row + 2).getBoundingClientRect()
  return [head.x + head.width / 2, side.y + side.height / 2] })"""


CHOOSE = """(name => { const colour = document.querySelector('select[aria-label=Colour]')
  colour.value = name
  colour.dispatchEvent(new Event('change')) })"""
SHADES = """(canvas => {
  const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height)
  return new Set(new Uint32Array(data.buffer)).size })(document.querySelector('.sc canvas'))"""


@pytest.fixture(scope="module")
def firefox():
    if not (shutil.which("firefox-esr") or shutil.which("firefox")):
        pytest.skip("Firefox is not installed (apt-get install firefox-esr)")
    pytest.importorskip("websocket", reason="websocket-client is not installed")
    browser = Firefox()
    yield browser
    browser.close()


@pytest.fixture
def show(firefox, tmp_path):
    """show(readings, fragment, …) → Firefox, with their page opened from a file."""
    firefox.problems.clear()

    def opened(readings, fragment="", **size):
        path = tmp_path / "page.html"
        path.write_text(page.html(readings), "utf-8")
        firefox.open(f"{path.as_uri()}#{fragment}", **size)
        firefox.wait("!!document.querySelector('.sc')")
        return firefox

    yield opened
    assert not firefox.problems, firefox.problems


def test_the_inspector_follows_the_pointer_in_firefox(show):
    reading = eiffel()
    tab = show([reading])
    for row, column in [(5, 3), (12, 7)]:
        tab.point(*tab.js(f"{CELL}([{row}, {column}])"))
        words = tab.js("[...document.querySelectorAll('.card .top tr bdi')].map(e => e.innerText)")
        want = [reading.piece(int(i)).replace(" ", "␣") for i in reading.top_ids[row, column]]
        assert [word for word in words if word in want] == want
    tab.point(*tab.js(f"{CELL}([2, 3])"), click=True)
    tab.wait("location.hash.includes('cell=[2,3]')")


def test_keys_reach_everything_in_firefox(show):
    tab = show([eiffel()])
    focused = "document.activeElement.getAttribute('role') || document.activeElement.ariaLabel"
    tab.press("Tab")
    assert tab.js(focused) == "grid", "the grid is the first that Tab reaches"
    tab.press("Control+Home", "ArrowDown", "ArrowDown", "ArrowRight")
    assert "layer 1, position 1," in tab.text("[aria-live=polite]")
    tab.press("Control+End", "p", "m")
    assert tab.text(".chips .lab") == "Pinned"
    assert tab.js("document.querySelector('select[aria-label=Colour]').value") == "entropy"
    tab.press("Enter")
    assert tab.js("document.activeElement.ariaLabel").startswith("Pin ")
    tab.press("Escape", "?")
    assert "What am I looking at?" in tab.text("dialog[open]")
    tab.press("Escape", "t")
    assert tab.js("document.querySelectorAll('dialog[open] table.real').length") == 1
    tab.press("Escape", "/", *"the")
    tab.wait("document.querySelectorAll('.results button').length > 0")
    tab.press("Escape")
    assert tab.js(focused) == "grid"


def test_every_colour_draws_in_firefox(show):
    tab = show([eiffel()])
    names = [record["name"] for record in data.records()]
    pictures = set()
    for name in names:
        tab.js(f"{CHOOSE}({name!r})")
        pictures.add(tab.js("document.querySelector('.sc canvas').toDataURL()"))
    assert len(pictures) == len(names)
    shades = tab.js(SHADES)
    assert shades > 20


@pytest.mark.parametrize("width", [1280, 390])
def test_readings_side_by_side_and_subtracted_fit_the_window_of_firefox(show, width):
    a, b = eiffel(), synthetic.plausible(prompt="The Colosseum is in the old city of", seed=3)
    tab = show([a, b], "w=160", width=width)
    assert tab.js("document.querySelectorAll('[role=grid]').length") == 2
    tab.js("document.querySelector('.sc').scrollLeft = 90")
    tab.wait("document.querySelectorAll('.sc')[1].scrollLeft == 90")
    assert tab.js("document.documentElement.scrollWidth") <= width
    grid, inspector = (
        tab.js(f"document.querySelector('{q}').getBoundingClientRect().toJSON()")
        for q in (".grids", ".inspector")
    )
    below = inspector["y"] >= grid["y"] + grid["height"]
    assert below == (width == 390), "the inspector is beside the grid, on a phone below"
    tab.js("document.querySelector('.sc').focus()")
    tab.press("v")
    tab.wait("document.querySelectorAll('[role=grid]').length == 1")
    assert "B − A" in tab.text("figcaption")


def test_a_long_reading_is_inflated_and_jumped_through_in_firefox(show):
    reading = synthetic.plausible(L=5, T=400, K=5)
    tab = show([reading])
    tab.js("document.querySelector('.sc').focus()")
    tab.press("Control+End")
    word = reading.words[-1][-1].replace(" ", "␣")
    tab.wait(f"document.querySelector('[aria-live=polite]').innerText.includes({word!r})")
    percent = 100 * np.exp(np.float16(reading.top_logprobs[-1, -1, 0]).astype(float))
    assert f"{percent:.3g}%" in tab.text("[aria-live=polite]")


def test_the_server_reads_and_writes_in_firefox(firefox, tmp_path):
    pytest.importorskip("uvicorn")
    firefox.problems.clear()
    with served(tmp_path, "-m", "demo", "--max-tokens", "64") as (_, address):
        firefox.open(address)
        firefox.wait("document.querySelector('.status')?.innerText.startsWith('Done in')")
        firefox.wait("document.querySelector('.card .top')?.innerText.includes('Paris')")
        firefox.js(
            "[...document.querySelectorAll('button')].find(b => b.innerText == 'Write').click()"
        )
        firefox.wait("document.querySelector('.made')?.innerText.includes('tokens written')")
        firefox.wait("!!document.querySelector('.time input')")
        firefox.open("about:blank")  # nothing asks on behind the server's back
    assert not firefox.problems, firefox.problems
