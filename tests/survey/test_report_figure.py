"""The figure of a report: a line looks the same in every panel, and names are what users call things."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb

from logitlens.survey.curves import MEASURES, Curve, Histogram, Summary
from logitlens.survey.report import report
from logitlens.survey.summary import summarise, table
from logitlens.view import survey_figure
from logitlens.view.color import LEGIBLE, contrast
from logitlens.view.survey import markdown
from logitlens.view.survey_figure import figure
from tests.lenses.test_store import save, tuned
from tests.survey.conftest import records


def drawn(found: Summary) -> tuple[dict[str, dict[str, tuple]], dict[str, tuple]]:
    """Panel → line → how it looks, and the same of the figure's legend."""

    def look(line) -> tuple:
        return to_hex(line.get_color()), line.get_linestyle(), line.get_marker()

    picture = figure(found, MEASURES)
    panels = {
        axes.get_title(): {line.get_label(): look(line) for line in axes.get_lines()}
        for axes in picture.axes
    }
    (legend,) = picture.legends
    texts = [text.get_text() for text in legend.get_texts()]
    return panels, dict(zip(texts, map(look, legend.get_lines())))


def test_a_line_that_some_panels_lack_looks_the_same_in_all(survey):
    """`en` has no answers."""
    items = [
        {"prompt": item["prompt"], "language": "en"} if n % 2
        else {"prompt": item["prompt"], "answer": " the tower of", "language": "fr"}
        for n, item in enumerate(records(8))
    ]  # fmt: skip
    survey.run(items)
    panels, legend = drawn(summarise({"a": table(survey.folder / "a")}, by="language", draws=20))
    first = panels["log-probability of the answer's first token, nats"]
    assert list(first) == ["fr"]
    assert first["fr"] == legend["fr"] == panels["entropy, nats"]["fr"] != legend["en"]
    assert set(legend) == {"en", "fr"}


def test_contrasts_of_several_lenses_say_which_is_which(survey, model):
    place = save(tuned(model), survey.folder / "tuned.safetensors")
    survey.run(records(8), lenses=["logit", f"tuned:{place}"])
    frame = table(survey.folder / "a")
    found = summarise({"a": frame}, by="order", contrast=("even", "odd"), draws=20)
    panels, legend = drawn(found)
    lines = panels["contrast: entropy, nats"]
    assert list(lines) == ["logit · odd − even", "tuned · odd − even"]
    assert not {*lines.values()} & {*legend.values()}
    axes = next(a for a in figure(found, MEASURES).axes if a.get_title().startswith("contrast:"))
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(lines)


@pytest.mark.parametrize("title", ["", "A survey"])
def test_the_legend_is_above_all_panels_and_begins_on_the_left(title):
    picture = figure(many(2), MEASURES, title=title)
    picture.draw_without_rendering()
    (legend,) = picture.legends
    assert legend.get_title().get_text() == title
    box, (axes,) = legend.get_window_extent(), picture.axes
    assert box.y0 >= axes.get_tightbbox().y1
    assert 0 <= box.x0 < 30
    assert box.y1 <= picture.bbox.y1


def test_bars_that_are_as_high_stand_beside_one_another():
    counts = np.array([1, 3, 0])
    bars = [
        Histogram("s", lens, "", "settled layer", ["embed", "0"], counts, counts / 5, counts / 3)
        for lens in ("logit", "tuned")
    ]
    (axes,) = figure(Summary("", histograms=bars), MEASURES).axes
    edges = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches)
    assert len(edges) == 4
    assert all(before[1] <= after[0] + 1e-9 for before, after in itertools.pairwise(edges))


def test_bars_have_the_intervals_of_their_shares(survey):
    survey.run(records(8))
    found = summarise({"a": table(survey.folder / "a")}, draws=20)
    (bars,) = [h for h in found.histograms if h.what == "settled layer"]
    axes = next(a for a in figure(found, MEASURES).axes if a.get_title() == "settled layer")
    (lines,) = axes.collections
    drawn_L = np.array([segment[:, 1] for segment in lines.get_segments()])
    np.testing.assert_allclose(drawn_L, np.stack([bars.low, bars.high], 1)[:-1])
    np.testing.assert_allclose([bar.get_height() for bar in axes.patches], bars.counts[:-1] / 8)


def test_means_over_what_is_all_alike_are_marked_where_an_interval_would_have_no_width(survey):
    """Quantiles are not: their interval says how many are alike. Nor is what is so by definition."""
    survey.run(
        [{"prompt": f"{'the ' * n}tower", "answer": " Paris", "id": f"p{n}"} for n in range(1, 9)]
    )
    frame = table(survey.folder / "a")
    frame["agree"], frame["entropy"] = frame.block > 0, 2.0 + frame.block
    found = summarise({"a": frame}, draws=50)
    text = markdown(found, MEASURES)
    rows = {title.partition("\n")[0]: title.split("| logit |")[1] for title in text.split("## ")[1:]
            if "| logit |" in title}  # fmt: skip
    assert rows["entropy (nats)"].split("\n")[0].split(" | ")[1:] == [
        f"{n}.00 (all alike)" for n in (1, 2, 3)] + ["4.00 (all alike) |"]  # fmt: skip
    settled = rows[
        "Settled layer (share of prompts; mean and quantiles over those to which it happens)"
    ]
    assert " 8 | 8 | 1.00 (all alike) | 1.00 [" in settled
    assert "1.00 [0.68, 1.00]" in settled, "the share of those that settle there"
    assert rows["KL(final ‖ layer) (nats)"].split("\n")[0].endswith("] | 0.00 |")
    assert rows["same top token as the final layer"].split("\n")[0].endswith("] | 1.00 |")
    picture = figure(found, MEASURES)
    hollow = {axes.get_title(): len(c.get_offsets()) for axes in picture.axes
              for c in axes.collections if [*map(to_hex, c.get_facecolor())] == ["#ffffff"]}  # fmt: skip
    assert hollow == {"entropy, nats": 4}
    (legend,) = picture.legends
    assert [each.get_text() for each in legend.get_texts()] == [survey_figure.HOLLOW]
    assert not figure(summarise({"a": table(survey.folder / "a")}, draws=50), MEASURES).legends


def test_no_two_of_many_lines_are_alike():
    names = [f"relation {n}" for n in range(81)]
    styles = survey_figure._styles(names)
    assert len({tuple(sorted(style.items())) for style in styles.values()}) == 81
    without_marks = [
        {k: v for k, v in styles[name].items() if k != "marker"} for name in names[:32]
    ]
    assert len({tuple(each.items()) for each in without_marks}) == 32


def test_an_empty_cell_of_a_heatmap_says_nothing():
    layers, none = ["embed", "0"], np.full(2, np.nan)
    curves = [
        Curve("s", "logit", group, "agree", layers, np.array(mean), none, none, 3)
        for group, mean in (("a", [0.25, 1.0]), ("b", [np.nan, np.nan]))
    ]
    axes = next(a for a in figure(Summary("kind", curves), MEASURES).axes if a.images)
    assert [text.get_text() for text in axes.texts] == [".25", "", "1", ""]


def test_numbers_in_a_heatmap_are_legible_on_their_colours():
    axes = next(axes for axes in figure(many(40), MEASURES).axes if axes.images)
    (image,) = axes.images
    assert len(axes.texts) == image.get_array().size
    for text in axes.texts:
        x, y = text.get_position()
        on = image.to_rgba(image.get_array(), bytes=True)[int(y), int(x), :3].tolist()
        red, green, blue = (round(255 * part) for part in to_rgb(text.get_color()))
        assert contrast((red, green, blue), tuple(on)) >= LEGIBLE


@pytest.mark.parametrize("suffix", ["html", "svg", "pdf", "png"])
def test_a_report_has_the_same_bytes_every_time(survey, tmp_path, suffix):
    survey.run(records(4))
    for name in "ab":
        report([survey.folder / "a"], tmp_path / f"{name}.{suffix}", title="A survey")
    assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", ["html", "png"])
def test_groups_may_have_any_name(survey, tmp_path, suffix):
    """A line end, a formula that is none, and what matplotlib keeps for itself."""
    kinds = ["Q: {}\nA:", r"$5 to $\foo", "_base", "50 %\u2028|x", "日本"]
    survey.run([{**item, "kind": kinds[n % 5]} for n, item in enumerate(records(10))])
    found = report([survey.folder / "a"], tmp_path / f"r.{suffix}", by="kind", title="In $ or €")
    _, legend = drawn(found)
    # What no font has is written by its number.
    names = {"$5 to $\\foo", "50 %\\u2028|x", "Q: {}⏎A:", "_base"}
    assert set(legend) - names in ({"日本"}, {"\\u65e5\\u672c"})
    assert names <= set(legend)
    text = markdown(found, MEASURES)
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in tables if "Q: {}" in line} == {
        line.count("|") for line in tables if line.startswith("|  | prompts | embed")
    } | {
        line.count("|")
        for line in tables
        if line.startswith("|  | prompts | to which it happens |")
    }
    if suffix == "html":
        page = (tmp_path / "r.html").read_text(encoding="utf-8")
        cells = re.findall(r"<td>Q: \{\}⏎A:<td>2<", page)
        assert len(cells) > 5


def test_contrasts_of_two_surveys_are_of_the_lenses_that_both_have(survey, model):
    place = save(tuned(model), survey.folder / "tuned.safetensors")
    survey.run(records(8), "a", lenses=["logit", f"tuned:{place}"])
    survey.run(folder="b")
    frames = {name: table(survey.folder / name) for name in ("a", "b")}
    found = summarise(frames, contrast=("a", "b"), draws=20)
    assert {curve.lens for curve in found.contrasts} == {"logit"}
    frames["a"] = frames["a"][frames["a"].lens == "tuned"]
    with pytest.raises(ValueError, match="a and b have no lens in common"):
        summarise(frames, contrast=("a", "b"), draws=20)


def test_a_survey_named_twice_is_reported_once(survey, tmp_path):
    survey.run(records(4), "a")
    survey.run(folder="b")
    places = [str(survey.folder / name) for name in ("a", "a", "b")]
    found = report(places, tmp_path / "r.html")
    assert [kept.survey for kept in found.kept] == ["a", "b"]


def many(groups: int, measure: str = "entropy") -> Summary:
    layers = ["embed", "0"]
    each = [
        [Curve("s", lens, group, measure, layers, np.array([n / 10, shift]), *[np.full(2, 0.5)] * 2, 3)
         for lens, shift in (("logit", 0.25), ("tuned", 0.75)) for n, group in enumerate(names)]
        for names in ([f"g{n}" for n in range(groups)], ["all prompts"])
    ]  # fmt: skip
    return Summary("kind", each[0], together=Summary("", each[1]))


def test_more_lines_than_eight_are_divided_by_lens_on_one_scale():
    """Of so many in one panel nothing could be told. A group looks the same in every panel."""
    few, several = (figure(many(groups), MEASURES) for groups in (4, 5))
    assert [len(axes.get_lines()) for axes in few.axes] == [8]
    titles = [axes.get_title() for axes in several.axes]
    said = "entropy, nats\n"
    assert titles == [f"{said}all prompts", f"{said}logit lens", f"{said}tuned lens"]
    assert [[line.get_label() for line in axes.get_lines()] for axes in several.axes] == [
        ["logit", "tuned"], [f"g{n}" for n in range(5)], [f"g{n}" for n in range(5)],
    ]  # fmt: skip
    assert all(len(axes.collections) == len(axes.get_lines()) for axes in several.axes), "intervals"
    looks = [[line.get_color() for line in axes.get_lines()] for axes in several.axes]
    assert looks[1] == looks[2]
    assert not {*looks[0]} & {*looks[1]}
    (legend,) = several.legends
    assert [text.get_text() for text in legend.get_texts()][:3] == ["logit", "tuned", "g0"]
    assert len({axes.get_ylim() for axes in several.axes}) == 1
    assert len({axes.get_position().y0 for axes in several.axes}) == 1, "they are one row"


@pytest.mark.parametrize(("embed", "room"), [(0.2, 0.1), (5.0, 0.25)])
def test_a_scale_of_several_panels_has_room_for_embed_where_it_leaves_half_for_layers(embed, room):
    mean, ends = np.array([embed, 0.25, 0.75]), [np.array([embed, 0.25, 0.75])] * 2
    curves = [
        Curve("s", "logit", f"g{n % 9}", "kl", ["embed", "0", "1"], mean, *ends, 3)
        for n in range(9)
    ]
    found = Summary("kind", curves, together=Summary("", curves[:1]))
    axes = figure(found, MEASURES).axes[0]
    low, high = axes.get_ylim()
    assert low == pytest.approx(min(room * 2, 0.25 if embed > 1 else embed) - 0.02, abs=0.01)
    assert high == pytest.approx(0.77, abs=0.01)


def test_many_groups_are_heatmaps_of_each_lens_in_the_same_colours_beside_the_mean_of_all():
    found = figure(many(9), MEASURES)
    together, *heats = [axes for axes in found.axes if axes.get_title()]
    assert [line.get_label() for line in together.get_lines()] == ["logit", "tuned"]
    assert len(together.collections) == 2, "with intervals"
    assert [axes.get_title() for axes in heats] == [
        "entropy, nats\nlogit lens", "entropy, nats\ntuned lens",
    ]  # fmt: skip
    for axes, shift in zip(heats, (0.25, 0.75)):
        (image,) = axes.images
        np.testing.assert_allclose(image.get_array(), [[n / 10 for n in range(9)], [shift] * 9])
        assert image.get_clim() == (0.25, 0.75)  # not of embed
        assert image.colorbar.extend == "both"
        assert [label.get_text() for label in axes.get_xticklabels()] == [f"g{n}" for n in range(9)]
    shares = [axes for axes in figure(many(9, "top1"), MEASURES).axes if axes.images]
    assert [axes.images[0].get_clim() for axes in shares] == [(0.0, 1.0)] * 2


def test_a_report_of_many_groups_has_all_prompts_together(survey, tmp_path):
    """As a line of the tables too; what few groups have in common is not added."""
    items = [{**item, "kind": f"k{n % 9}", "half": n % 2} for n, item in enumerate(records(18))]
    survey.run(items)
    frame = table(survey.folder / "a")
    found, whole = summarise({"a": frame}, by="kind", draws=50), summarise({"a": frame}, draws=50)
    assert found.together is not None
    for place in ("curves", "quantiles"):
        for mine, other in zip(getattr(found.together, place), getattr(whole, place), strict=True):
            assert (mine.measure, mine.group, mine.n) == (other.measure, "all prompts", other.n)
            np.testing.assert_array_equal(mine.low, other.low)
    text = markdown(found, MEASURES)
    assert text.count("| all prompts |") == len(whole.curves) + len(whole.histograms)
    few = summarise({"a": frame}, by="half", draws=50)
    assert few.together is None
    assert "all prompts" not in markdown(few, MEASURES)


def test_a_cell_of_a_heatmap_leads_to_its_prompts_and_moments_are_shares(survey, tmp_path):
    items = [{**item, "kind": f"k{n}"} for n, item in enumerate(records(9))]
    survey.run(items)
    found = report([survey.folder / "a"], tmp_path / "r.html", by="kind")
    titles = {axes.get_title(): axes for axes in figure(found, MEASURES).axes}
    (image,) = titles["settled layer, share\nlogit lens"].images
    assert image.get_array().shape == (5, 9)
    np.testing.assert_allclose(image.get_array().sum(0), 1)
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert '<div class="figure"><svg' in page, "which moves sideways on a narrow screen"
    links = set(re.findall(r'href="#(point-[^"]*)"', page))
    assert len(links) == (9 + 1) * 4, "of every group, and of all prompts"
    assert links <= set(re.findall(r'id="([^"]*)"', page))
