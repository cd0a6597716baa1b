"""compare: aligned differences, in words, as a grid, a page and a figure."""

import re

import numpy as np
import pytest

import logitlens
from logitlens import FormatError, PromptError
from tests.view.conftest import make


@pytest.fixture
def pair():
    a = make(["The", " Eiff", "el", " is"], layers=4, seed=0)
    return a, make(["The", " Tower", " is"], layers=4, seed=1)


def test_differences_are_b_minus_a_at_aligned_tokens_and_layers(pair):
    a, b = pair
    found = logitlens.compare(a, b)
    assert [(a.pieces[i], b.pieces[j]) for i, j in found.columns] == [
        ("The", "The"), (" Eiff", " Tower"), (" is", " is"),
    ]  # fmt: skip
    np.testing.assert_allclose(
        found.difference("entropy"), b.entropy[:, [0, 1, 2]] - a.entropy[:, [0, 1, 3]]
    )
    ranks = found.difference("rank")
    assert ranks[0, 0] == np.log10(b.next_ranks[0, 0] / a.next_ranks[0, 0])
    assert np.isnan(ranks[:, -1]).all(), "nothing follows the last token"


def test_words_say_what_changed_and_count_cells(pair):
    a, b = pair
    lines = logitlens.compare(a, b).changes()
    ends = [r.words[-1][-1].replace(" ", "␣") for r in pair]
    assert ends[0] != ends[1]
    assert lines[0].startswith("after “␣is”")
    assert ends[1] in lines[0].split("instead of")[0]
    assert ends[0] in lines[0].split("instead of")[1]
    pairs = [(0, 0), (1, 1), (3, 2)]
    same = sum(a.words[d][i] == b.words[d][j] for d in range(4) for i, j in pairs)
    assert f"same top token in {same} of 12 cells" in lines[1]
    again = logitlens.compare(a, a)
    assert "both end in" in again.changes()[0]
    assert not again.difference().any()


def test_two_tokens_with_one_text_are_two_tokens_and_their_ids_say_so():
    words = ["P", "P", " of", " the", " in"]
    a = make(["The", " is"], layers=4, vocab=words)
    top_ids = a.top_ids.copy()
    top_ids[a.top_ids == 0], top_ids[a.top_ids == 1] = 1, 0
    b = a.replace(top_ids=top_ids)
    assert a.words == b.words
    assert a.top_ids[-1, -1, 0] == 0
    changed = int((a.top_ids[..., 0] != top_ids[..., 0]).sum())
    found = logitlens.compare(a, b, color="entropy", width=120)
    lines = found.changes()
    assert "P⟨1⟩ instead of" in lines[0].replace("\u2069", "").replace("\u2068", "")
    assert f"same top token in {8 - changed} of 8 cells" in lines[1]
    assert "P⟨0⟩→P⟨1⟩" in str(found)
    # Of another tokenizer the ids mean nothing: there the text decides.
    renamed = {i + 7: piece for i, piece in a.vocab.items()}
    other = a.replace(top_ids=top_ids + 7, vocab=renamed)
    assert "same top token in 8 of 8 cells" in logitlens.compare(a, other).changes()[1]


def test_what_was_edited_is_said(pair):
    a, b = pair
    assert "edited" not in str(logitlens.compare(a, b))
    b.meta["edits"] = [{"text": "swapped 'a' and 'b' in layer 6"}]
    assert logitlens.compare(a, b).changes()[-1] == "B was edited: swapped 'a' and 'b' in layer 6"


def test_the_text_has_a_row_for_each_layer_and_changed_words_have_an_arrow(pair):
    text = str(logitlens.compare(*pair, color="kl", width=120))
    rows = [line for line in text.splitlines() if re.match(r" *(embed|\d+) ", line)]
    assert [row.split()[0] for row in rows] == pair[0].layers
    assert "␣Eiff→␣Tower" in text
    assert "\x1b" not in text
    part = str(logitlens.compare(*pair, layers="1:", positions=[0], width=120))
    assert "embed" not in part
    assert "␣Eiff" not in part


def test_a_comparison_is_saved_by_suffix_and_shows_itself(pair, tmp_path):
    found = logitlens.compare(*pair, color="entropy")
    for suffix in ("html", "txt"):
        assert found.save(tmp_path / f"x.{suffix}").is_file()
    assert "color=entropy" in (tmp_path / "x.html").read_text("utf-8")
    with pytest.raises(FormatError, match="saved as"):
        found.save(tmp_path / "x.json")
    assert set(found._repr_mimebundle_()) == {"text/plain", "text/html"}


def test_a_figure_has_both_and_their_difference(pair):
    pytest.importorskip("matplotlib")
    fig = logitlens.compare(*pair).figure()
    assert [ax.get_title() for ax in fig.axes[:3]] == [
        "A  The Eiffel is", "B  The Tower is", "B − A",
    ]  # fmt: skip


def test_long_names_are_two_lines_over_their_heatmaps():
    pytest.importorskip("matplotlib")
    prompts = [["The Eiffel Tower is", " in the city", " of", f" {end}"] for end in "ab"]
    fig = logitlens.compare(*(make(prompt, layers=4) for prompt in prompts)).figure()
    for title, end in zip((ax.get_title() for ax in fig.axes[:2]), "ab"):
        assert "\n" in title
        assert title.endswith(f"of {end}"), "it is whole"


def test_a_wrong_choice_is_one_line(pair):
    a, _ = pair
    with pytest.raises(FormatError, match="figsize=5: expected width and height"):
        logitlens.compare(a, a).figure(figsize=5)
    with pytest.raises(FormatError, match="figsize=5: expected width and height"):
        a.trajectories(figsize=5)
    with pytest.raises(FormatError, match="cannot colour by"):
        logitlens.compare(*pair, color="loss")
    with pytest.raises(PromptError, match="layer"):
        str(logitlens.compare(*pair, layers=77))
    first, last = (make(["The"], layers=4, seed=n) for n in (0, 1))
    apart = [
        reading.replace(layers=[f"{n + start}" for n in range(len(reading.layers))])
        for reading, start in ((first, 0), (last, 20))
    ]
    with pytest.raises(FormatError, match="no layers in common"):
        str(logitlens.compare(*apart, layers=0))
    a, _ = pair
    with pytest.raises(FormatError, match="compare takes two readings, got str"):
        logitlens.compare(a, "b.json")
    with pytest.raises(PromptError, match="position"):
        str(logitlens.compare(a, a, positions=77))
