"""What leaves the page: the address, the clipboard, pictures and paper."""

from __future__ import annotations

import io
import re
from pathlib import Path
from urllib.parse import parse_qs
from xml.etree import ElementTree

import numpy as np
import pytest

from logitlens.view.page import words
from tests.browser.steps import copied, eiffel, settle
from tests.view import page_synthetic as synthetic

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_every_part_of_the_state_lives_in_the_address(open_page):
    readings = [eiffel(), eiffel(seed=3)]
    paris = int(readings[0].track_ids[0])
    wanted = (
        f"color=pinrank1&text=value&map=viridis&w=90&h=31&view=diff&a=1&b=0&from=2&to=9&step=3"
        f"&cell=[5,4]&pins=[[0,{paris}],[0,20,21]]&pos=[1,6]&q=the"
    )
    tab = open_page(readings, wanted)
    tab.evaluate("history.replaceState(null, '', '#')")
    tab.locator("[role=grid]").focus()
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("ArrowRight")
    tab.wait_for_url(re.compile(r"cell=\[5,4\]"))
    assert parse_qs(tab.evaluate("location.hash.slice(1)")) == parse_qs(wanted)
    assert tab.locator("select[aria-label=Colour]").input_value() == "pinrank1"
    assert tab.locator("input[type=search]").input_value() == "the"
    # and an address that changes while the page is open is followed
    tab.evaluate("location.hash = 'view=side&color=kl'")
    settle(tab)
    assert tab.locator("[role=grid]").count() == 2
    assert tab.locator("select[aria-label=Colour]").input_value() == "kl"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layers": "embed,1:6:2", "positions": "-4:", "lens": "tuned"},
        {"stream": "mlp", "layers": "2:6"},
    ],
)
def test_the_python_of_a_cell_makes_the_reading_again(open_page, demo_model, options):
    reading = demo_model.read(
        "The Eiffel Tower is in the city of", top=4, track=[" Paris"], **options
    )
    tab = open_page([reading], f"cell=[2,{reading.shape[1] - 2}]")
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab.locator("[role=grid]").focus()
    tab.keyboard.press("Shift+C")
    code = copied(tab, "import logitlens")
    made: dict = {}
    exec(code, made)
    again = made["reading"]
    assert again.layers == reading.layers
    assert again.pieces == reading.pieces
    assert np.array_equal(again.top_ids, reading.top_ids)
    assert np.allclose(again.track_logprobs, reading.track_logprobs, atol=1e-4)
    # the lines that go to the cell say what is there
    for line in code.splitlines()[-2:]:
        where, _, said = line.partition("#")
        numbers = [float(x) for x in said.split(",")]
        assert np.allclose(eval(where, made), numbers, rtol=2e-3)


def test_python_for_ids_says_when_they_are_not_the_whole_prompt(demo_model):
    whole = words.code(demo_model.read([5, 6, 7], top=2))
    assert "model.read([5, 6, 7], top=2" in whole
    assert "#" not in whole
    part = words.code(demo_model.read([5, 6, 7], top=2, positions="1:"))
    assert "positions='1:3'" in part
    assert "whole prompt's ids" in part


def test_pictures_of_a_hostile_vocabulary_are_well_formed(open_page):
    from PIL import Image

    tab = open_page([synthetic.hostile()], "w=90")
    for kind in ("SVG", "PNG"):
        tab.click(".tools summary:has-text('Save')")
        with tab.expect_download() as download:
            tab.click(f".tools summary:has-text('Save') + div >> text={kind}")
        data = Path(download.value.path()).read_bytes()
        if kind == "SVG":
            words = [e.text for e in ElementTree.fromstring(data.decode()).iter() if e.text]
            assert any("◌" in w for w in words)
            assert "⟨80⟩" in words
            assert any("\\ud800" in w for w in words), "half a character, which no file can hold"
        else:
            assert Image.open(io.BytesIO(data)).width > 400


def test_paper_names_every_reading_and_its_lens(open_page):
    readings = [eiffel(), eiffel(lens="tuned")]
    tab = open_page(readings, color_scheme="dark")
    tab.pdf()  # the page makes its paper when it is printed
    tab.emulate_media(media="print")
    paper = tab.locator(".print")
    assert paper.locator("h1").all_inner_texts() == ["A · logit lens", "B · tuned lens"]
    assert "no fitted map" in paper.inner_text()
    assert "a map fitted for each layer" in paper.inner_text()
    # dark on white, whatever the screen
    ground = "e => [getComputedStyle(e).color, getComputedStyle(e.closest('.ll')).backgroundColor]"
    assert paper.evaluate(ground) == ["rgb(0, 0, 0)", "rgb(255, 255, 255)"]
    lines = """e => { const r = document.createRange(); r.selectNodeContents(e)
        return r.getClientRects().length }"""
    heads = paper.locator("th[scope=row]").all()
    assert {head.evaluate(lines) for head in heads} == {1}, "a layer's name is on one line"
