"""Text as it is written: whole characters, harmless, on a ground that says when each was settled."""

from __future__ import annotations

import numpy as np
from rich.color import Color

from logitlens.view import color as paint
from logitlens.view.brush import Brush
from logitlens.view.flow import Flow, joined
from tests.readings import random_reading

PLAIN = Brush(None, "night")


def column(token: int, pieces: dict[int, str], settled: int = 0, **meta):
    """A column of four layers that has led to a token."""
    reading = random_reading(L=4, T=1, vocab={i: f"w{i}" for i in range(9)} | pieces)
    top_ids = np.array(reading.top_ids)
    top_ids[:, 0, 0] = [3 if row < settled else 4 for row in range(4)]
    return reading.replace(next_ids=[token], top_ids=top_ids, meta=reading.meta | meta)


def test_a_character_over_several_tokens_comes_with_the_last():
    flow = Flow(PLAIN)
    parts = {"5": "e2", "6": "82", "7": "ac"}
    columns = [column(i, {i: "⟨…⟩"}, vocab_bytes=parts) for i in (5, 6, 7)]
    assert [flow.next(c).plain for c in columns] == ["", "", "€"]
    flow.next(columns[0])
    assert flow.end().plain == "�"


def test_line_ends_stay_and_nothing_active_reaches_the_terminal():
    flow = Flow(PLAIN)
    assert flow.next(column(5, {5: " a\n b"})).plain == " a\n b"
    assert "\x1b" not in flow.next(column(5, {5: "\x1b[31m"})).plain
    assert flow.next(column(5, {5: "<|end|>"}, special_ids=[5])).plain == ""


def test_the_ground_is_bright_where_a_token_was_settled_early():
    flow = Flow(Brush("truecolor", "night"))
    for settled, t in ((0, 1.0), (3, 0.0)):
        style = flow.next(column(5, {5: "x"}, settled)).style
        assert style.bgcolor == Color.from_rgb(*paint.rgb(t, "night"))


def test_columns_one_after_the_other_are_the_reading():
    whole = random_reading(L=3, T=5, K=4, M=2)
    whole = whole.replace(meta=whole.meta | {"positions": [0, 1, 2, 3, 4], "special_ids": [2]})
    columns = [
        whole.replace(
            **{
                name: np.take(
                    value, [t], axis=1 if value.ndim > 1 and name != "candidate_ids" else 0
                )
                for name, value in whole.fields().items()
                if isinstance(value, np.ndarray) and not name.startswith("track_id")
            },
            pieces=[whole.pieces[t]],
            meta=whole.meta | {"positions": [t], "special_ids": [2] if t == 1 else []},
        )
        for t in range(5)
    ]
    assert joined(columns).equals(whole)
