"""table: a tidy frame of many readings."""

import numpy as np
import pytest

import logitlens
from logitlens import FormatError
from tests.readings import random_reading

pandas = pytest.importorskip("pandas")


def test_a_row_for_each_reading_layer_and_position_with_every_statistic():
    readings = [random_reading(seed=s, L=13, T=5, M=2) for s in range(2)]
    frame = logitlens.table(readings)
    assert len(frame) == 2 * 13 * 5
    for column in ("prompt", "model", "lens", "layer", "position", "token", "top", "prob", "entropy",
                   "kl", "next", "next_prob", "next_rank", "track_1", "track_2_rank"):  # fmt: skip
        assert column in frame
    row = frame[(frame.prompt == readings[1].prompt) & (frame.layer == "3") & (frame.position == 2)]
    assert len(row) == 1
    layer = readings[1].row(3)
    assert row.kl.item() == readings[1].kl[layer, 2]
    assert row.track_1_rank.item() == readings[1].track_ranks[layer, 2, 0]
    assert row.top.item() == readings[1].words[layer][2]
    assert row.prob.item() == pytest.approx(readings[1].probs[layer, 2, 0])


def test_exits_and_reading_ahead_come_from_two_columns():
    reading = random_reading(seed=3, L=5, T=8)
    frame = logitlens.table(reading)
    frame["exit"] = frame.agree & (frame.prob >= 0.4)
    exits = frame.groupby("layer", observed=True).exit.mean()
    np.testing.assert_allclose(exits, reading.exits(0.4), rtol=1e-6)
    for n in (1, 3):
        assert ((frame.ahead <= n).to_numpy() == reading.reads_ahead(n).reshape(-1)).all()


def test_who_speaks_is_a_column_where_a_chat_was_read():
    reading = random_reading(T=3)
    chat = reading.replace(
        role=["user", "", "assistant"], section=["content", "template", "answer"]
    )
    assert "role" not in logitlens.table(reading)
    frame = logitlens.table([reading, chat])
    assert frame.section.isna().sum() == len(frame) / 2
    assert set(frame[frame.role == "assistant"].position) == {2}


def test_layers_sort_as_numbers_and_nothing_follows_the_last_token():
    frame = logitlens.table(random_reading(L=13, T=3))
    assert list(frame.groupby("layer", observed=True).kl.mean().index) == [
        "embed", *map(str, range(12)),
    ]  # fmt: skip
    last = frame[frame.position == 2]
    assert last.next.isna().all()
    assert last.next_rank.isna().all()
    assert np.isfinite(frame[frame.position < 2].next_prob).all()


def test_prompts_may_track_one_answer_each():
    one, two = random_reading(seed=1, M=1), random_reading(seed=2, M=2)
    frame = logitlens.table([one, two])
    assert frame.track_1.notna().all()
    assert frame.track_2.notna().sum() == 4 * 6
    with pytest.raises(FormatError, match="at least one reading"):
        logitlens.table([])


def test_a_tracked_set_has_its_name():
    reading = random_reading(seed=1, M=2)
    reading = reading.replace(track_ids=np.array([-2, 5]), vocab={**reading.vocab, -2: "France"})
    frame = logitlens.table(reading)
    assert set(frame.track_1) == {"France"}
    assert frame.track_2.notna().all()
