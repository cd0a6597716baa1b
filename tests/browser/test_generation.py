"""The page of docs/generation.md: made by its command, it replays without a network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from logitlens.view import page

DOCS = Path(__file__).resolve().parents[2] / "docs"


def replays(tab) -> None:
    """The slider of time hides what was written later, and brings it back."""
    expect = pytest.importorskip("playwright.sync_api").expect
    slider, words = tab.get_by_label("Tokens written so far"), tab.locator(".time .lab")
    expect(words).not_to_contain_text("Paris")
    slider.fill(str(int(slider.get_attribute("max")) - 1))
    expect(words).to_contain_text("Paris")
    slider.fill(slider.get_attribute("min"))
    expect(words).to_contain_text("It")


def test_the_page_in_the_docs_is_small_and_replays(open_page):
    path = DOCS / "images" / "generation.html"
    assert path.stat().st_size < 150_000
    replays(open_page(page.load(path)))


@pytest.mark.slow
def test_its_command_makes_it_again(tmp_path):
    subprocess.run([sys.executable, DOCS / "generation_images.py", tmp_path], check=True)
    made, kept = (page.load(f / "generation.html") for f in (tmp_path, DOCS / "images"))
    assert made[0].words == kept[0].words
    assert (tmp_path / "generation.gif").stat().st_size < 100_000
