"""The waterfall: every bar begins where the last one ended, and the last ends at the sum."""

from __future__ import annotations

import io
from itertools import pairwise

import numpy as np
import pytest
from rich.console import Console

from logitlens import Attribution
from logitlens.view import text as safe
from logitlens.view import waterfall
from tests.test_attribution import made


def test_bars_follow_one_another_and_end_at_the_sum():
    found = made()
    for top in (1, 2, 4, 99):
        bars = waterfall.bars(found, top)
        assert bars[0].before == 0
        assert all(a.after == b.before for a, b in pairwise(bars))
        assert bars[-1].after == pytest.approx(found.sum)
    assert [bar.label for bar in waterfall.bars(found, 2)] == ["0.attn", "0.mlp", "2 others"]


def test_the_text_says_what_sums_to_what():
    text = waterfall.text(made(), width=60)
    lines = text.splitlines()
    assert lines[0].startswith("logit of “␣Paris” minus “␛[31m␣Rome”".replace("␣Rome", " Rome"))
    assert "\x1b" not in text
    assert max(map(len, lines[:-1])) <= 60
    assert "+1.125" in next(line for line in lines if "sum " in line)
    assert lines[-1] == (
        "4 parts sum to 1.1250; the model's own difference of logits is 1.1250: they differ by "
        "1.0e-07 (rounding may cost 1.0e-05)"
    )


@pytest.mark.parametrize("width", [40, 44, 60, 120])
def test_every_row_is_one_line_of_the_width(width):
    pieces = [" The", " antidisestablishment", "日本語日本語", "שלום עולם שלום"]
    found = Attribution(
        components=["embed", *(f"11.head15@{i}" for i in range(4))],
        token_parts=[0.5, 12345.5, -1.0, 0.25, 3.0], versus_parts=None, token=3, versus=None,
        vocab={3: " Paris"},
        meta={"logits": [12348.25], "finished": [12348.25], "bound": 1e-5, "by": "token", "pieces": pieces},
    )  # fmt: skip
    console = Console(width=width, file=io.StringIO())
    console.print(waterfall.render(found, width=width))
    rows = waterfall.text(found, width=width).splitlines()[1:7]
    assert [row.split()[0] for row in rows] == [
        *("embed", "11.head15@0", "11.head15@1", "11.head15@2"), rows[4].split()[0], "sum"
    ]  # fmt: skip
    assert "11.head15@3" in rows[4]
    assert all(safe.width(row) <= width for row in rows)
    assert all(row.count("\u2068") == row.count("\u2069") for row in rows)
    printed = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert all(row in printed for row in rows), "nothing wraps"
    assert ("12348.250" in rows[-1].split()) == (width >= 60), "the running sums go first"


def test_lengths_of_bars_are_as_their_parts():
    lines = waterfall.text(made(), width=120).splitlines()
    full = {line.split()[0]: line.count("█") for line in lines[1:5]}
    assert full["0.attn"] == pytest.approx(7 * full["embed"], abs=8)
    assert full["0.attn"] > full["0.mlp"] > full["embed"]


def test_a_softcap_and_a_scale_are_stated():
    text = waterfall.text(made(None, softcap=30.0, slopes=[0.75], scale=0.0625))
    assert "multiplies its logits by 0.0625" in text
    assert "softcap of 30, which makes 1.8750 of the sum (slope 0.750 there)" in text


def test_parts_of_nothing_are_drawn():
    found = made(None)
    found.token_parts = np.zeros(4)
    assert "sum to 0.0000" in waterfall.text(found)


def test_the_figure_shows_every_part(tmp_path):
    pytest.importorskip("matplotlib")
    figure = made().figure()
    (axes,) = figure.axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["embed", "0.attn", "0.mlp", "norm bias", "sum"]
    widths = [patch.get_width() for patch in axes.patches]
    np.testing.assert_allclose(widths, [*made().parts, made().sum])
    for suffix in (".png", ".svg", ".pdf", ".txt"):
        assert made().save(tmp_path / f"found{suffix}").stat().st_size > 100
