"""A reading in a notebook: text, a static table, a page in a frame, and little script."""

from __future__ import annotations

import gzip
import json
import re

from logitlens.view import page
from logitlens.view.page import notebook
from tests.view import page_synthetic as synthetic


def test_a_cell_carries_at_most_64_kb_of_script():
    assert notebook.script_bytes() <= notebook.SCRIPT_LIMIT


def test_the_packed_script_is_the_page_script():
    assert gzip.decompress(notebook.packed_script()).decode() == page.script()


def test_a_cell_is_json_with_few_escapes():
    cell = notebook.cell([synthetic.plausible(L=13, T=60, K=5)])
    assert len(json.dumps(cell)) < 1.03 * len(cell)


def test_mimebundle_gives_text_and_html_with_a_static_table():
    reading = synthetic.plausible(L=30, T=40)
    bundle = reading._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html"}
    table = re.search(r"<table.*</table>", bundle["text/html"], re.S)[0]
    assert "14 of 30 layers, last 12 of 40 positions" in table
    assert table.count("<tr>") == 15
    assert "logit lens" in table


def test_the_html_alone_is_that_of_the_bundle():
    reading = synthetic.plausible()
    ours, bundled = reading._repr_html_(), reading._repr_mimebundle_()["text/html"]
    place = r"logitlens-[0-9a-f]{12}"  # new for each execution
    assert re.sub(place, "", ours) == re.sub(place, "", bundled)


def test_without_scripts_a_hostile_vocabulary_is_text():
    table = notebook.static_table(synthetic.hostile())
    assert "<script" not in table
    assert "&lt;b&gt;" in table
    assert len(table) < 20_000, "a token of 10,000 characters is cut"


def test_each_execution_has_its_own_place():
    reading = synthetic.random(2, 3, 2, 0)
    places = {re.search(r'id="([^"]+)"', notebook.cell([reading]))[1] for _ in range(3)}
    assert len(places) == 3
