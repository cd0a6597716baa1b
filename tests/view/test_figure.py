import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from logitlens import statistics
from logitlens.errors import FormatError, MissingExtra, PromptError
from logitlens.view import color, fonts
from logitlens.view import figure as module
from logitlens.view import text as safe
from tests.readings import random_reading
from tests.view.goldens import assert_golden

pytest.importorskip("matplotlib")


def draw(reading, **options):
    """A figure, laid out, with the renderer that did it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    fig = module.figure(reading, **options)
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    return fig, fig.axes[0], canvas.get_renderer()


def words(ax, columns):
    texts = [text.get_text() for text in ax.texts]
    return [texts[i : i + columns] for i in range(0, len(texts), columns)]


def assert_words_lie_in_their_cells(fig, ax, renderer, sample=1):
    for text in ax.texts[::sample]:
        x, y = text.get_position()
        box = text.get_window_extent(renderer)
        (left, low), (right, high) = ax.transData.transform(
            [(x - 0.5, y + 0.5), (x + 0.5, y - 0.5)]
        )
        assert left <= box.x0, text.get_text()
        assert box.x1 <= right, text.get_text()
        assert box.height <= 1.3 * (high - low), text.get_text()


def test_reproduces_the_picture_of_the_tutorial(reading_of):
    """12 layers × 10 tokens: words inside, tokens on top and rotated, layers down, colour bar."""
    reading = reading_of(
        [" The", " E", "iff", "el", " Tower", " is", " in", " the", " city", " of"], layers=13
    )
    fig, ax, renderer = draw(reading, layers="0:", cmap="seed", title="Logit Lens Visualization")
    assert words(ax, 10) == [[word.strip() for word in row] for row in reading.words[1:]]
    assert [t.get_text() for t in ax.get_xticklabels()] == [p.strip() for p in reading.pieces]
    assert {t.get_rotation() for t in ax.get_xticklabels()} == {45}
    assert ax.xaxis.get_label_position() == "top"
    labels = ax.get_yticklabels()
    assert [t.get_text() for t in labels] == [str(i) for i in range(12)]
    assert labels[0].get_window_extent(renderer).y0 > labels[-1].get_window_extent(renderer).y1
    assert fig.axes[1].get_ylabel() == "Probability of the top token"
    mesh = ax.collections[0]
    assert mesh.get_array().shape == (12, 10)
    np.testing.assert_allclose(mesh.get_array(), reading.probs[1:, :, 0], rtol=1e-6)
    assert (mesh.get_edgecolor()[0] == (1, 1, 1, 1)).all()
    assert fig.get_suptitle() == "Logit Lens Visualization"
    assert_words_lie_in_their_cells(fig, ax, renderer)


def test_every_layer_and_position_by_default(eiffel):
    _, ax, _ = draw(eiffel)
    assert [t.get_text() for t in ax.get_yticklabels()] == eiffel.layers
    assert len(ax.texts) == 7 * 10


def test_the_caption_carries_the_proof(eiffel):
    fig, _, _ = draw(eiffel)
    line = "demo · logit lens: no fitted map · float32 on cpu · last row checked against the model's own logits"
    assert fig.texts[0].get_text().replace("\n", " · ").startswith(line)
    assert not draw(eiffel, caption=False)[0].texts


def test_spaces_are_shown_on_demand(eiffel):
    assert words(draw(eiffel)[1], 10)[-1][-1] == "Paris"
    assert words(draw(eiffel, spaces=True)[1], 10)[-1][-1] == "␣Paris"


def _rgb(colour):
    import matplotlib.colors

    return tuple(round(255 * c) for c in matplotlib.colors.to_rgb(colour))


@pytest.mark.parametrize("cmap", ["day", "night", "seed", "viridis"])
@pytest.mark.parametrize("name", statistics.colors())
def test_ink_is_legible_on_every_cell(eiffel, name, cmap):
    ax = module.figure(eiffel, color=name, cmap=cmap).axes[0]
    unit = ax.collections[0].get_array()
    faces = ax.collections[0].to_rgba(unit)
    assert len(ax.texts) == unit.size
    for text, face, t in zip(ax.texts, faces.reshape(-1, 4), unit.reshape(-1)):
        if t is np.ma.masked:
            grey = (0xE5, 0xE7, 0xEB)
            assert color.contrast(_rgb(text.get_color()), grey) >= color.LEGIBLE
            continue
        ink = tuple(int(text.get_color()[i : i + 2], 16) for i in (1, 3, 5))
        assert color.contrast(ink, tuple(round(255 * c) for c in face[:3])) >= color.LEGIBLE


def test_missing_values_are_masked_not_zero(eiffel):
    _, ax, _ = draw(eiffel, color="rank")
    assert ax.collections[0].get_array().mask[:, -1].all()
    assert not ax.collections[0].get_array().mask[1:, :-1].any()
    assert ax.collections[0].get_array().mask[0].all(), "embed is not painted"


def test_words_of_large_grids_are_one_artist_and_keep_apart(reading_of):
    reading = reading_of([" word", "ish", " Notre-Dame", " $of$"] * 15, layers=20)
    fig, ax, _ = draw(reading, words=True)
    assert not ax.texts, "thousands of texts take seconds to draw"
    (words,) = (c for c in ax.collections if len(c.get_offsets()) == 20 * 60)
    box, (L, T) = ax.get_window_extent(), (20, 60)
    points = 72 / fig.dpi
    cell, line = box.width * points / T, box.height * points / L
    for path in {id(path): path for path in words.get_paths()}.values():
        extent = path.get_extents()
        assert extent.width <= cell
        assert 0 < extent.height <= line
    width, height = fig.get_size_inches()
    assert width < 60
    assert height < 20


def test_a_strip_shows_how_early_each_position_settled(eiffel):
    _, ax, _ = draw(eiffel, positions=[2, 8, 9])
    (strip,) = ax.child_axes
    since = np.array([eiffel._settled_rows()[c] for c in (2, 8, 9)])
    shown = strip.collections[0].get_array().reshape(-1)
    np.testing.assert_allclose(shown, 1 - since / (len(eiffel.layers) - 1))
    assert strip.get_yticklabels()[0].get_text() == "settled"
    below = max(t.get_window_extent().y0 for t in ax.get_xticklabels())
    assert ax.get_window_extent().y1 < strip.get_window_extent().y1 < below


def test_a_large_grid_fits_a_page_and_its_labels_keep_apart(reading_of):
    reading = reading_of([" word", "ish", " Notre-Dame", " of"] * 15, layers=49)
    for options in ({}, {"figsize": (7, 5)}, {"figsize": (3.3, 2.5), "caption": False}):
        fig, ax, renderer = draw(reading, **options)
        assert not ax.texts, "no word could be read"
        assert fig.get_size_inches().max() <= 12
        heights = [t.get_window_extent(renderer) for t in ax.get_yticklabels()]
        assert all(a.y0 >= b.y1 - 1 for a, b in pairwise(heights))
        assert ax.get_yticklabels()[-1].get_text() == "47", "the last layer is always named"


def test_words_can_be_left_out_and_axes_of_ones_own_are_drawn_into(eiffel):
    from matplotlib.figure import Figure

    assert not draw(eiffel, words=False)[1].texts
    fig = Figure(figsize=(9, 3))
    left, right = fig.subplots(1, 2)
    assert eiffel.figure(ax=left, title="logit $lens$") is left
    eiffel.figure(ax=right, color="kl", layers="1:", words=False)
    assert len(left.texts) == 70
    assert left.get_title() == "logit $lens$"
    assert len(right.get_yticklabels()) == 5
    fig.canvas.draw()


@pytest.mark.parametrize("figsize", [(10, 6), (5, 3)])
def test_words_fit_a_figure_size_that_is_asked_for(eiffel, figsize):
    fig, ax, renderer = draw(eiffel, figsize=figsize)
    assert tuple(fig.get_size_inches()) == figsize
    assert_words_lie_in_their_cells(fig, ax, renderer)


@pytest.mark.slow
def test_hostile_words(hostile, tmp_path):
    """Nothing is parsed as mathematics, nothing is drawn as an empty box: a warning would fail."""
    fig, ax, renderer = draw(hostile)
    assert_words_lie_in_their_cells(fig, ax, renderer)
    for kind in ("png", "svg", "pdf"):
        hostile.save(tmp_path / f"x.{kind}", color="kl", dpi=50)
    shown = [safe.without_lead(safe.visible(piece)) for piece in hostile.pieces]
    assert_golden("hostile-figure-words.txt", "\n".join(shown) + "\n")


@pytest.mark.slow
def test_without_fonts_characters_are_escaped(hostile, monkeypatch, tmp_path):
    fonts._cover.cache_clear()
    monkeypatch.setattr(fonts, "_installed", lambda: ())
    try:
        _, ax, _ = draw(hostile)
        heads = [t.get_text() for t in ax.get_xticklabels()]
        assert "\\u4e2d\\u6587\\u5b57\\u7b26" in heads
        assert "$x^2$" in heads
        hostile.save(tmp_path / "x.png", dpi=50)
    finally:
        fonts._cover.cache_clear()


def test_fonts_cover_what_they_say():
    found = fonts.Fonts.covering("aé中‐\U0010fffe")
    assert "\U0010fffe" in found.missing
    assert "é" not in found.missing
    assert found.shown("a\U0010fffe") == "a\\U10fffe"


def test_the_same_reading_makes_the_same_bytes(eiffel, tmp_path):
    for kind in ("png", "svg", "pdf"):
        first, second = (eiffel.save(tmp_path / f"{n}.{kind}").read_bytes() for n in "ab")
        assert first == second
        assert len(first) > 5000
    assert len(list(tmp_path.iterdir())) == 6


def test_a_failed_save_leaves_what_was_there(eiffel, tmp_path):
    path = tmp_path / "x.png"
    path.write_text("old")
    with pytest.raises(FormatError):
        eiffel.save(path, cmap="no such map")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"cmap": "no such map"},
            "no colour map 'no such map': expected day, night, seed|night, day, seed",
        ),
        ({"color": "loss"}, "cannot colour by 'loss'"),
        ({"layers": "9:"}, "no layer selected"),
        ({"positions": 10}, "no position 10"),
        ({"figsize": 5}, r"figsize=5: expected width and height in inches, like \(7, 5\)"),
        ({"figsize": (7, -5)}, "expected width and height"),
        ({"ax": 5}, "ax=5: expected matplotlib's Axes"),
        ({"colour": "kl"}, "a figure has no option 'colour': did you mean color=?"),
    ],
)
def test_bad_options_are_one_line(eiffel, options, message):
    with pytest.raises((FormatError, PromptError), match=message):
        eiffel.figure(**options)


def test_without_matplotlib_the_extra_is_named(eiffel, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match=r"pip install 'logitlens\[plot\]'"):
        eiffel.save(tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


def test_pyplot_and_its_global_state_are_left_alone():
    code = (
        "import sys; from tests.view.conftest import make, EIFFEL\n"
        "import matplotlib; settings = lambda: {k: matplotlib.rcParams[k] for k in matplotlib.rcParams"
        " if k != 'backend'}\n"  # to ask for the backend is to choose one
        "before = settings(); make(EIFFEL).figure().canvas.draw()\n"
        "assert settings() == before; assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_a_users_tex_setting_does_not_reach_the_tokens(hostile):
    import matplotlib

    with matplotlib.rc_context({"text.usetex": True}):
        fig = module.figure(hostile)
        assert not any(t.get_usetex() for t in fig.findobj(matplotlib.text.Text) if t.get_text())


def test_a_notebook_shows_the_figure_without_pyplot():
    shown = random_reading(seed=1).figure()._repr_png_()
    assert shown.startswith(b"\x89PNG")
