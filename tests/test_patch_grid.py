"""`PatchGrid`: a table that goes to a file and back, drawn in the terminal and as a figure."""

from __future__ import annotations

import json

import numpy as np
import pytest

from logitlens import FormatError, PatchGrid, PromptError
from logitlens.view import patches


def made(**changes) -> PatchGrid:
    fields = {
        "layers": ["embed", "0", "1"],
        "positions": [0, 1],
        "pieces": [" the", "\x1b[31m"],
        "clean_pieces": [" a", "\x1b[31m"],
        "logits": [[1.0, 1.0], [2.0, 1.5], [1.0, 3.0]],
        "logprobs": [[-2.0, -2.0], [-1.5, -1.75], [-2.0, -1.0]],
        "clean": {"logit": 3.0, "logprob": -1.0},
        "corrupted": {"logit": 1.0, "logprob": -2.0},
        "token": 3,
        "versus": 4,
        "vocab": {3: " Paris", 4: " Rome"},
        "meta": {
            "model": "tiny",
            "stream": "resid",
            "unpatched_nats": 1e-6,
            "prompts": ["go to a\x1b", "go to the\x1b"],
        },
    }
    return PatchGrid(**{**fields, **changes})


def test_0_is_the_corrupted_prompt_and_1_the_clean_one():
    grid = made()
    np.testing.assert_allclose(grid.restored, [[0, 0], [0.5, 0.25], [0, 1]])
    assert grid.restored_prob[2, 1] == pytest.approx(1)
    assert grid.row(1) == 2
    with pytest.raises(PromptError, match="no layer 9"):
        grid.row(9)
    same = made(clean={"logit": 1.0, "logprob": -1.0})
    assert np.isnan(same.restored).all(), "prompts that do not differ have nothing to restore"


def test_a_file_gives_everything_back(tmp_path):
    path = made().save(tmp_path / "grid.json")
    assert PatchGrid.load(path).to_dict() == made().to_dict()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "x"}, "expected a file of logitlens.patch_grid"),
        ({"logits": [[1.0]]}, "logits has shape"),
        ({"logits": [[1.0], [1.0, 2.0]]}, "several lengths"),
        ({"pieces": ["a"]}, "needs layers, and positions"),
        ({"clean": {}}, "lacks 'logit'"),
    ],
)
def test_damaged_files_are_refused(tmp_path, change, said):
    path = tmp_path / "grid.json"
    path.write_text(json.dumps({**made().to_dict(), **change}), encoding="utf-8")
    with pytest.raises(FormatError, match=said):
        PatchGrid.load(path)
    with pytest.raises(FormatError, match="end it in"):
        made().save(tmp_path / "grid.gif")


def test_the_terminal_shows_every_cell_and_both_prompts():
    text = patches.text(made(), width=80)
    lines = text.splitlines()
    assert "\x1b" not in text
    assert lines[1] == "clean: go to a␛"
    assert lines[2] == "corrupted: go to the␛"
    assert "␣a→␣the" in lines[3]
    assert lines[5].split() == ["0", "+0.50", "+0.25"]
    assert lines[-2] == "columns: tokens of both prompts; clean→corrupted where they differ"
    assert lines[-1].startswith("1 is the clean prompt (+3.000), 0 the corrupted one (+1.000)")
    narrow = patches.text(made(), width=20)
    assert "the last 1 of 2 positions fit 20 columns" in narrow
    assert "\ncorrupted: … to the␛\n" in narrow, "of a long prompt, the end"


def drawn(figure) -> str:
    """Everything that a figure says around its cells."""
    axes = figure.axes[0]
    return f"{axes.get_title()}\n{axes.get_xlabel()}"


@pytest.mark.parametrize("place", ["terminal", "figure"])
def test_every_view_names_the_prompts_and_the_way_of_the_scale(place):
    if place == "figure":
        pytest.importorskip("matplotlib")
    seen = patches.text if place == "terminal" else lambda grid: drawn(grid.figure())
    for line in ("clean: go to a", "corrupted: go to the", "clean→corrupted where"):
        assert line in seen(made())
    assert "lower" not in seen(made())
    lower = made(clean={"logit": 1.0, "logprob": -2.0}, corrupted={"logit": 3.0, "logprob": -1.0})
    assert "the clean prompt has the lower logit: 1 means lowered as far" in seen(lower)
    same = made(clean_pieces=made().pieces, meta={"prompts": [None, "x"]})
    assert "columns:" not in seen(same)
    assert "clean:" not in seen(same), "token ids have no text"


def test_where_the_prompts_do_not_differ_a_cell_is_a_dash():
    pytest.importorskip("matplotlib")
    same = made(clean={"logit": 1.0, "logprob": -2.0})
    text = patches.text(same, width=80)
    assert "nan" not in text
    assert text.count("–") == 6
    said = "both prompts give +1.000: no patch has anything to bring back"
    assert said in text
    assert said in drawn(same.figure())
    assert [cell.get_text() for cell in same.figure().axes[0].texts] == ["–"] * 6


def test_the_figure_is_a_heatmap_of_what_is_restored(tmp_path):
    pytest.importorskip("matplotlib")
    (axes, _) = made().figure().axes
    np.testing.assert_allclose(axes.images[0].get_array(), made().restored)
    for suffix in (".html", ".png", ".svg", ".txt"):
        assert made().save(tmp_path / f"grid{suffix}").stat().st_size > 100


def test_a_data_frame_has_a_row_for_each_cell():
    pytest.importorskip("pandas")
    assert len(made().to_pandas()) == 6
