"""One table of statistics: what is added there appears in every view and file."""

import json

import numpy as np
import pytest

from logitlens import FormatError, Reading, statistics
from logitlens.statistics import Statistic
from logitlens.view import figure, terminal
from tests.readings import random_reading


@pytest.fixture
def surprising(monkeypatch) -> Reading:
    """A reading with a statistic that nothing but the table has heard of."""
    fields = random_reading(L=3, T=4).fields()
    made_up = Statistic(
        "surprise", "LT", "float32", "bits", "surprise of the reader",
        color="surprise", scale="linear", confident="low",
    )  # fmt: skip
    monkeypatch.setattr(statistics, "TABLE", (*statistics.TABLE, made_up))
    return Reading(**fields, surprise=np.arange(12, dtype=np.float32).reshape(3, 4))


def _without(reading: Reading, name: str) -> dict:
    return {field: value for field, value in reading.fields().items() if field != name}


def test_a_new_statistic_is_an_array_and_a_colour(surprising):
    assert surprising.surprise[2, 3] == 11
    assert "surprise" in statistics.colors()
    assert not surprising.surprise.flags.writeable
    assert surprising.equals(surprising.replace())
    assert not surprising.equals(surprising.replace(surprise=np.zeros((3, 4))))


def test_a_new_statistic_is_in_json_and_parquet(surprising, tmp_path):
    for suffix in ("json", "parquet"):
        path = surprising.save(tmp_path / f"r.{suffix}")
        assert Reading.load(path).equals(surprising)
    assert json.loads((tmp_path / "r.json").read_text())["surprise"][2][3] == 11
    frame = surprising.to_pandas()
    assert frame.query("layer == '1' and position == 3").surprise.tolist() == [11]


def test_a_new_statistic_is_in_the_terminal_and_the_figure(surprising):
    shown = terminal.text(surprising, color="surprise", width=120)
    assert "surprise of the reader, bits" in shown
    assert "11.0" in shown
    drawn = figure.figure(surprising, color="surprise")
    assert drawn.axes[1].get_ylabel() == "Surprise of the reader, bits"


def test_a_statistic_that_a_file_lacks_is_an_error_or_empty():
    reading = random_reading()
    with pytest.raises(FormatError, match="needs entropy"):
        Reading(**_without(reading, "entropy"))
    assert Reading(**_without(reading, "candidate_ids")).candidate_ids.shape == (6, 0)
    with pytest.raises(FormatError, match="no array called surprise"):
        reading.replace(surprise=np.zeros((4, 6)))


def test_names_and_colours_are_unique_and_every_colour_has_a_scale_and_a_label():
    names = [s.name for s in statistics.TABLE]
    assert len(set(names)) == len(names)
    colored = [s for s in statistics.TABLE if s.color]
    assert len({s.color for s in colored}) == len(colored)
    assert all(s.scale and s.label and s.per_cell for s in colored)
    with pytest.raises(FormatError, match="cannot colour by 'loss': expected one of prob, entropy"):
        statistics.by_color("loss")
    with pytest.raises(FormatError, match="cannot colour by ''"):
        statistics.by_color("")


def test_colours_show_what_their_labels_say():
    reading = random_reading(L=3, T=4, K=5)
    values = {s.color: s.values(reading) for s in statistics.TABLE if s.color}
    assert np.allclose(values["prob"], np.exp(reading.top_logprobs[..., 0]))
    assert np.allclose(values["next"][:, :-1], np.exp(reading.next_logprobs[:, :-1]))
    assert np.isnan(values["rank"][:, -1]).all()
    assert (values["final"][-1] == 1).all()
    final_T = reading.top_ids[-1, :, 0]
    for row in range(3):
        for t in range(4):
            among = np.flatnonzero(reading.top_ids[row, t] == final_T[t])
            expected = among[0] + 1 if len(among) else np.nan
            assert np.array_equal(values["final"][row, t], expected, equal_nan=True)
            assert values["agree"][row, t] == (reading.top_ids[row, t, 0] == final_T[t])


@pytest.mark.parametrize("color", statistics.colors())
def test_every_view_opens_on_every_colour(color, tmp_path):
    reading = random_reading(L=3, T=4)
    assert statistics.by_color(color).label.split()[0] in terminal.text(
        reading, color=color, width=160
    )
    reading.save(tmp_path / "x.png", color=color)
    reading.save(tmp_path / "x.html", color=color)
