"""Reports and searches: means with intervals, paired contrasts, and prompts found again."""

from __future__ import annotations

import dataclasses
import html
import json
import re
import shlex
import shutil

import numpy as np
import pandas
import pytest
from click.testing import CliRunner

import logitlens
from logitlens import FormatError, edit
from logitlens.cli import main
from logitlens.errors import PromptError, SurveyError
from logitlens.lenses import TunedLens, save
from logitlens.survey import bootstrap
from logitlens.survey.bootstrap import interval, paired_shares, quantiles, student, wilson
from logitlens.survey.curves import MEASURES
from logitlens.survey.find import find
from logitlens.survey.groups import QUANTILED
from logitlens.survey.plan import Plan, Settings
from logitlens.survey.report import report
from logitlens.survey.run import run
from logitlens.survey.summary import summarise, table
from logitlens.view import color, page
from logitlens.view.survey import markdown
from logitlens.view.survey_figure import figure
from logitlens.view.text import piece_html
from tests.lenses.test_store import tuned
from tests.models import tiny_gpt2, tiny_tokenizer
from tests.survey.conftest import records, write_lines


@pytest.fixture(scope="module")
def folder(model, saved, tmp_path_factory):
    place = tmp_path_factory.mktemp("report")
    path = write_lines(place / "prompts.jsonl", records(24))
    run(path, place / "tiny", model, source=str(saved), loading={}, settings=Settings(shard_size=8))
    return place / "tiny"


def test_means_are_those_of_the_table_and_lie_in_their_intervals(folder):
    frame = table(folder)
    found = summarise({"tiny": frame}, by="order", draws=200)
    for group in ("even", "odd"):
        mine = frame[frame.order == group]
        (kl,) = [c for c in found.curves if c.measure == "kl" and c.group == group]
        np.testing.assert_allclose(kl.mean, mine.groupby("block").kl.mean(), rtol=1e-5)
        assert (kl.low <= kl.mean + 1e-9).all()
        assert (kl.mean <= kl.high + 1e-9).all()
        assert kl.n == 12
        (top5,) = [c for c in found.curves if c.measure == "top5" and c.group == group]
        np.testing.assert_allclose(
            top5.mean, mine.groupby("block")["rank"].apply(lambda r: (r <= 5).mean())
        )
        (ends,) = [c for c in found.curves if c.measure == "P(end)" and c.group == group]
        there = mine.dropna(subset=["set_end"])
        np.testing.assert_allclose(
            ends.mean, there.groupby("block").set_end.apply(lambda p: np.exp(p).mean()), rtol=1e-5
        )
        for k, place in ((1, "on top"), (5, "at rank ≤ 5"), (10, "at rank ≤ 10")):
            (bars,) = [h for h in found.histograms if h.group == group and h.what.endswith(place)]
            first = mine[mine["rank"] <= k].groupby("prompt_index").block.min()
            counts = [(first == block).sum() for block in sorted(mine.block.unique())]
            assert bars.counts.tolist() == [*counts, 12 - len(first)]
            each_NL = np.arange(len(bars.counts)) == np.repeat(
                np.arange(len(bars.counts)), bars.counts
            )[:, None]  # fmt: skip
            np.testing.assert_allclose(
                [bars.low, bars.high], wilson(each_NL.astype(float), np.arange(12))[1:]
            )
    assert {h.what for h in found.histograms} > {"settled layer"}
    assert all(h.counts.sum() == 12 for h in found.histograms)


def test_a_95_percent_interval_holds_the_truth_about_95_times_in_a_hundred():
    generator = np.random.default_rng(0)
    held = 0
    for seed in range(300):
        values_N1 = generator.normal(3.0, 1.0, (100, 1))
        _, low, high = interval(values_N1, np.arange(100), 1000 + seed, 300)
        held += bool(low[0] <= 3.0 <= high[0])
    assert 0.89 <= held / 300 <= 0.99


@pytest.mark.parametrize(("units", "least"), [(5, 0.89), (10, 0.89), (20, 0.91)])
def test_intervals_of_few_prompts_are_hardly_too_narrow(units, least):
    """Percentiles without the correction hold the truth 82, 89 and 92 times in a hundred."""
    generator = np.random.default_rng(0)
    held = 0
    for seed in range(300):
        values_N1 = generator.normal(3.0, 1.0, (units, 1))
        _, low, high = interval(values_N1, np.arange(units), seed, 1000)
        held += bool(low[0] <= 3.0 <= high[0])
    assert least <= held / 300 <= 0.99


def test_what_happens_to_one_prompt_alone_has_no_interval(folder):
    frame = table(folder)
    frame["rank"] = 50
    frame.loc[(frame.prompt_index == 3) & (frame.block == 1), "rank"] = 1
    (bars,) = [h for h in summarise({"a": frame}).histograms if h.what.endswith("on top")]
    assert bars.counts.tolist() == [0, 0, 1, *[0] * (len(bars.layers) - 3), bars.counts[-1]]
    for mean, low, high in bars.spread.values():
        assert mean == 1
        assert np.isnan([low, high]).all()


def test_students_t_is_that_of_the_tables():
    true = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 30: 2.042, 120: 1.980}
    for freedom, value in true.items():
        assert student(freedom) == pytest.approx(value, rel=2e-3)
    assert np.isnan(student(0))


def test_many_draws_are_made_in_blocks_of_the_same_numbers(monkeypatch):
    values_N2 = np.random.default_rng(3).normal(size=(50, 2))
    once = interval(values_N2, np.arange(50), 7, 100)
    shares = quantiles(values_N2, np.arange(50), (0.5,), 7, 100)
    monkeypatch.setattr(bootstrap, "AT_ONCE", 600)
    np.testing.assert_allclose(once, interval(values_N2, np.arange(50), 7, 100))
    np.testing.assert_array_equal(shares, quantiles(values_N2, np.arange(50), (0.5,), 7, 100))


def test_prompts_without_an_answer_are_in_no_histogram_of_answers(survey, tmp_path):
    items = [{"prompt": "Paris is", "answer": " the"}, {"prompt": "The tower"}, {"prompt": "Paris"}]
    survey.run(items)
    found = report([survey.folder / "a"], tmp_path / "r.html")
    sizes = {h.what: int(h.counts.sum()) for h in found.histograms}
    assert sizes.pop("settled layer") == 3
    assert set(sizes.values()) == {1}
    assert {c.measure: c.n for c in found.curves}["logprob"] == 1
    assert {c.measure: c.n for c in found.curves}["kl"] == 3
    page = (tmp_path / "r.html").read_text()
    assert "→ nan" not in page
    assert ">nan<" not in page


def test_layers_at_which_it_happens_have_means_quantiles_and_contrasts(folder):
    frame, generator = table(folder), np.random.default_rng(4)
    frame["rank"] = generator.integers(1, 30, len(frame))  # the tiny model's are all high
    frame["agree"] = (generator.random(len(frame)) < 0.5) | (frame.block == frame.block.max())
    found = summarise({"tiny": frame}, by="order", contrast=("even", "odd"), draws=200)
    last_off = frame[~frame.agree].groupby("prompt_index").block.max()
    settled = last_off.reindex(frame.prompt_index.unique(), fill_value=-2) + 1
    order = frame.drop_duplicates("prompt_index").set_index("prompt_index")
    first10 = frame[frame["rank"] <= 10].groupby("prompt_index").block.min()
    for what, layers in (
        ("settled layer", settled),
        ("first layer with the answer at rank ≤ 10", first10),
    ):
        means = []
        for group in ("even", "odd"):
            (bars,) = [h for h in found.histograms if h.group == group and h.what == what]
            mine = layers[order.order.reindex(layers.index) == group]
            mean, low, high = bars.spread["mean"]
            assert mean == pytest.approx(mine.mean())
            assert low <= mean <= high
            assert bars.spread["50%"][0] == np.quantile(mine, 0.5, method="inverted_cdf")
            means.append(mine.groupby(order.id.reindex(mine.index)).mean())
        (shift,) = [c for c in found.shifts if c.measure == what]
        pairs = (means[1] - means[0]).dropna()
        assert shift.mean.item() == pytest.approx(pairs.mean())
        assert shift.n == len(pairs)
    text = markdown(found, MEASURES)
    assert "## Contrast: layers" in text
    over = "(share of prompts; mean and quantiles over those to which it happens)"
    assert f"## First layer with the answer at rank ≤ 10 {over}" in text


def test_a_contrast_of_layers_counts_the_pairs_to_which_it_happens_alone(survey):
    """Of eight pairs: one half never has the answer at rank ≤ 5 in three, the other in two more."""
    items = [{"prompt": "Paris is", "answer": " the", "id": f"p{n}", "side": side}
             for side in "ab" for n in range(8)]  # fmt: skip
    survey.run(items, size=100)
    frame = table(survey.folder / "a")
    place = frame.id.str[1:].astype(int)
    never = ((frame.side == "a") & (place < 3)) | ((frame.side == "b") & (place.isin([3, 4])))
    frame["rank"] = np.where(never, 50, np.where(frame.block > 0, 3, 50))
    found = summarise({"a": frame}, by="side", contrast=("a", "b"), draws=50)
    counts = {shift.measure: shift.n for shift in found.shifts}
    assert counts == {
        "settled layer": 8, "first layer with the answer on top": 0,
        "first layer with the answer at rank ≤ 5": 3, "first layer with the answer at rank ≤ 10": 3,
    }  # fmt: skip
    text = markdown(found, MEASURES)
    assert "| first layer with the answer at rank ≤ 5 | b − a | 3 |" in text
    assert "| first layer with the answer on top | b − a | 0 | – |" in text
    own = text.partition("## First layer with the answer at rank ≤ 5")[2]
    assert "| a | 8 | 5 |" in own
    assert "| b | 8 | 6 |" in own


def test_prompts_that_share_an_id_are_drawn_together():
    """Each value twice under one id is no more evidence than once."""
    values_N1 = np.random.default_rng(1).normal(size=(40, 1))
    once = interval(values_N1, np.arange(40), 0, 500)
    twice = interval(np.repeat(values_N1, 2, 0), np.repeat(np.arange(40), 2), 0, 500)
    np.testing.assert_allclose(once, twice)


def test_quantiles_are_those_of_the_table_and_lie_in_their_intervals(folder, tmp_path):
    frame = table(folder)
    found = summarise({"tiny": frame}, by="order", draws=200)
    assert {c.measure for c in found.quantiles} == set(QUANTILED)
    assert {c.share for c in found.quantiles} == {0.1, 0.5, 0.9}
    for curve in found.quantiles:
        mine = frame[frame.order == curve.group].groupby("block")[curve.measure]
        truth = mine.apply(
            lambda v, share=curve.share: np.quantile(
                v.dropna().astype(float), share, method="inverted_cdf"
            )
        )
        np.testing.assert_allclose(curve.mean, truth, rtol=1e-6)
        # Of twelve prompts none may be below the 10 % quantile, or above the 90 % one.
        assert np.isnan(curve.low).all() if curve.share == 0.1 else (curve.low <= curve.mean).all()
        assert (
            np.isnan(curve.high).all() if curve.share == 0.9 else (curve.mean <= curve.high).all()
        )
    for name in ("r.md", "r.html"):
        report([folder], tmp_path / name, by="order")
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert "Quantiles: log-probability of the answer (nats)" in text
        assert re.search(r"odd · 50 %.*\[-\d+\.\d\d, -\d+\.\d\d\]", text)
        assert re.search(r"odd · 90 %.*\[-\d+\.\d\d, …\]", text)


def test_an_interval_of_a_median_holds_the_truth_about_95_times_in_a_hundred():
    generator = np.random.default_rng(0)
    held = 0
    for seed in range(300):
        values_N1 = generator.exponential(1.0, (101, 1))
        ((_, low, high),) = quantiles(values_N1, np.arange(101), [0.5], 1000 + seed, 300)
        held += bool(low[0] <= np.log(2) <= high[0])
    assert 0.89 <= held / 300 <= 0.99


def test_quantiles_of_prompts_that_share_an_id_and_of_missing_numbers():
    values_N1 = np.random.default_rng(1).normal(size=(40, 1))
    once = quantiles(values_N1, np.arange(40), [0.1, 0.9], 0, 500)
    twice = quantiles(np.repeat(values_N1, 2, 0), np.repeat(np.arange(40), 2), [0.1, 0.9], 0, 500)
    np.testing.assert_allclose(once, twice)
    there = [3.0, 1.0, np.nan, 2.0, np.nan, 4.0, 6.0, 5.0]
    values_N2 = np.stack([np.full(8, np.nan), there], 1)
    ((middle, low, high),) = quantiles(values_N2, np.arange(8), [0.5], 0, 500)
    assert np.isnan([middle[0], low[0], high[0]]).all()
    assert (middle[1], low[1], high[1]) == (3.0, 1.0, 6.0)
    ((middle, low, high),) = quantiles(values_N2[:1], np.zeros(1, int), [0.5], 0, 500)
    assert middle[1] == 3.0
    assert np.isnan([*low, *high]).all()


def test_a_contrast_is_the_mean_of_paired_differences(folder):
    frame = table(folder)
    found = summarise({"tiny": frame}, by="order", contrast=("even", "odd"), draws=100)
    (kl,) = [c for c in found.contrasts if c.measure == "kl"]
    wide = frame.pivot_table(index="id", columns=["order", "block"], values="kl")
    truth = (wide["odd"] - wide["even"]).mean()
    np.testing.assert_allclose(kl.mean, truth, rtol=1e-5, atol=1e-7)
    assert kl.group == "odd − even"
    assert kl.n == 12
    shares = [c for c in found.quantiles if (c.measure, c.group) == ("kl", "odd − even")]
    assert [c.share for c in shares] == [0.1, 0.5, 0.9]
    for curve in shares:
        truth = np.quantile(wide["odd"] - wide["even"], curve.share, axis=0, method="inverted_cdf")
        np.testing.assert_allclose(curve.mean, truth, rtol=1e-5, atol=1e-7)
        assert curve.share == 0.1 or (curve.low <= curve.mean).all()
        assert curve.share == 0.9 or (curve.mean <= curve.high).all()
        if curve.share == 0.5:
            assert (curve.low[:-1] < curve.high[:-1]).all()  # the last layer's KL is 0
    assert "| odd − even · 50 % | 12 |" in markdown(found, MEASURES)
    with pytest.raises(FormatError, match="no prompts of 'red'"):
        summarise({"tiny": frame}, by="order", contrast=("red", "odd"))
    with pytest.raises(
        FormatError, match="no condition 'colour': it has id, prompt, answer, order, number"
    ):
        summarise({"tiny": frame}, by="colour")


def test_a_contrast_of_two_surveys_pairs_the_same_prompts_and_refuses_numbers_of_other_files(
    survey, tmp_path
):
    plain = [{"prompt": item["prompt"], "answer": item["answer"]} for item in records()]
    survey.run(plain, "plain")
    survey.run(folder="edited", edits=[edit.ablate(1, "mlp")])
    a, b = (table(tmp_path / name) for name in ("plain", "edited"))
    found = summarise({"plain": a, "edited": b}, contrast=("plain", "edited"), draws=100)
    (kl,) = [c for c in found.contrasts if c.measure == "kl"]
    truth = b.groupby("block").kl.mean() - a.groupby("block").kl.mean()
    np.testing.assert_allclose(kl.mean, truth, rtol=1e-4, atol=1e-6)
    assert (kl.survey, kl.n) == ("edited − plain", len(plain))
    assert kl.low[-2] <= kl.mean[-2] <= kl.high[-2]
    drawn = figure(found, MEASURES).axes
    assert [a.get_ylabel() for a in drawn if a.get_title().startswith("contrast: KL")] == [
        kl.survey
    ]
    survey.run(plain[::-1], "other", name="other")
    frames = {"plain": a, "other": table(tmp_path / "other")}
    with pytest.raises(FormatError, match="of plain and of other are different: give paired"):
        summarise(frames, contrast=("plain", "other"))
    with pytest.raises(FormatError, match="no survey 'red'"):
        summarise(frames, contrast=("red", "other"))
    for item in (paired := [{"id": f"p{n}", **item} for n, item in enumerate(plain)]):
        item["prompt"] = item["prompt"] + " the"
    survey.run(paired, "longer", name="longer")
    survey.run([{**item, "prompt": item["prompt"][:-4]} for item in paired], "ids", name="ids")
    frames = {name: table(tmp_path / name) for name in ("longer", "ids")}
    assert summarise(frames, contrast=("longer", "ids")).contrasts[0].n == len(plain)
    report(
        [tmp_path / "plain", tmp_path / "edited"], tmp_path / "c.md", contrast=("plain", "edited")
    )
    text = (tmp_path / "c.md").read_text(encoding="utf-8")
    assert "| edited − plain | 23 |" in text.partition("## Contrast: KL(final ‖ layer) (nats)")[2]


def test_first_layers_and_settled_layers_agree_with_the_readings(folder, model):
    rows = find(folder, limit=100)
    assert len(rows) == 24
    for i in (0, 5, 11):
        item = records(24)[i]
        settled = model.read(item["prompt"]).settled()[-1]
        assert rows[i]["settled"] == (-1 if settled == "embed" else settled)


def test_find_gives_the_prompts_for_which_the_condition_holds(folder):
    frame = table(folder)
    kl = frame[(frame.block == 0) & (frame.kl > 2) & (frame.order == "odd")]
    found = find(folder, "kl_0 > 2 and \"order\" = 'odd'", limit=100)
    assert [row["id"] for row in found] == kl.id.tolist()
    assert len(find(folder, limit=3)) == 3
    here = frame[frame.block == 1]
    a, b = here.wrong_rank.median(), here.set_end_rank.quantile(0.8)
    right = here[(here.wrong_rank >= a) & (here.set_end_rank <= b)]
    found = find(
        folder, f"wrong_rank_1 >= {a} and set_end_rank_1 <= {b} and top_id_1 >= 0", limit=99
    )
    assert 0 < len(found) < 24
    assert [row["id"] for row in found] == right.id.tolist()
    best = find(folder, order="kl_0 desc", limit=1)[0]
    assert best["prompt"] == frame[frame.block == 0].sort_values("kl").prompt.iloc[-1]
    with pytest.raises(FormatError, match="kl_99") as refused:
        find(folder, "kl_99 > 1")
    assert "\n" not in str(refused.value)


def test_spoilt_cells_are_behind_no_report(model, saved, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the tower is in Paris")
    settings = Settings(length=8, threads=1, cells=True)
    run(path, tmp_path / "s", model, source=str(saved), loading={}, settings=settings)
    cells = tmp_path / "s" / "cells" / "00000.parquet"
    spoilt = bytearray(cells.read_bytes())
    spoilt[100] ^= 1
    cells.write_bytes(spoilt)
    with pytest.raises(SurveyError, match=r"cells/00000\.parquet is not what was committed"):
        report([tmp_path / "s"], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_a_spoilt_part_is_not_searched(survey):
    survey.run(records(4), folder="spoilt")
    part = survey.folder / "spoilt" / "parts" / "00000.parquet"
    spoilt = bytearray(part.read_bytes())
    spoilt[100] ^= 1
    part.write_bytes(spoilt)
    with pytest.raises(SurveyError, match=r"00000\.parquet is not what was committed"):
        find(survey.folder / "spoilt")


def test_a_report_is_written_as_text_and_as_a_page_that_needs_no_network(folder, tmp_path):
    report([folder], tmp_path / "r.md", by="order", contrast=("even", "odd"))
    said = (tmp_path / "r.md").read_text(encoding="utf-8")
    tables = re.findall(r"^## (.*)\n\n\|  \| ([^|]+) \| embed", said, re.M)  # heading, what n is of
    counted = {of for heading, of in tables if heading.startswith("Contrast")}
    assert (counted, dict(tables)["entropy (nats)"]) == ({"pairs"}, "prompts")
    report([folder], tmp_path / "r.html", by="order")  # draws the figure
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert 'src="http' not in page
    assert "P(end)" in page
    # Every point leads to a section of the page, and every prompt there to its reading.
    links = set(re.findall(r'(?:xlink:)?href="#((?:point|reading)-[0-9-]+)"', page))
    names = set(re.findall(r'<section class="behind" id="([^"]+)"', page))
    assert links == names
    assert any(name.startswith("point-1-") for name in names)
    assert len([name for name in names if name.startswith("reading")]) == 2 * 12
    text = (tmp_path / "r.md").read_text(encoding="utf-8")
    assert "| even | 12 |" in text
    assert "Contrast: KL(final ‖ layer) (nats)" in text
    with pytest.raises(FormatError, match=r"\.docx"):
        report([folder], tmp_path / "r.docx")


def test_behind_a_point_is_the_command_that_reads_a_prompt_again(folder, tmp_path, monkeypatch):
    report([folder], tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    commands = [html.unescape(each) for each in re.findall(r"<code>(.*?)</code>", page)]
    assert len(commands) == page.count('id="reading-')
    monkeypatch.chdir(tmp_path)
    name, *words = shlex.split(commands[0])
    assert name == "logitlens"
    done = CliRunner().invoke(main, words, prog_name=name)
    assert done.exit_code == 0, done.output
    assert records()[0]["prompt"] in (tmp_path / "reading.html").read_text(encoding="utf-8")


def test_a_page_has_the_readings_of_its_prompts_by_their_lens_and_the_surveys_edits(
    tmp_path, model, saved
):
    """What a grid shows is what `read` gives, token for token."""
    path = write_lines(
        tmp_path / "p.jsonl", [{"prompt": "The tower"}, {"prompt": "The end is " * 9}]
    )
    save(tuned(model), tmp_path / "lens.safetensors")
    lenses = {"logit": "logit", "tuned": f"tuned:{tmp_path / 'lens.safetensors'}"}
    changes = [edit.ablate(block=0, stream="mlp")]
    run(path, tmp_path / "s", model, source=str(saved), loading={}, lenses=list(lenses.values()),
        settings=Settings(shard_size=8), edits=changes)  # fmt: skip
    found = report([tmp_path / "s"], tmp_path / "r.html", readings=True)
    shown = (tmp_path / "r.html").read_text(encoding="utf-8")
    grids = [re.findall(r"<t[dh][^>]*>([^<]*)", grid)
             for grid in re.findall(r'<table class="grid">(.*?)</table>', shown)]  # fmt: skip
    kept = [(each.lens, prompt.prompt) for each in found.kept for prompt in each.prompts]
    assert len(kept) == len(grids) == 4
    assert f"24 of {len(model.read(kept[1][1]).ids)} positions" in shown
    assert "darker where it is likelier (embed is not painted" in shown
    for shade in re.findall(r"\.p\d+ { background: rgb(.*?); color: rgb(.*?) }", shown):
        background, ink = (tuple(map(int, re.findall(r"\d+", each))) for each in shade)
        assert color.contrast(background, ink) >= 4.5
        assert (ink[0] < 128) == (color.contrast((0, 0, 0), background) > 5.5)
    for (lens, prompt), cells in zip(kept, grids, strict=True):
        truth = model.read(prompt, lens=lenses[lens], edits=changes, positions=slice(-24, None))
        rows = [["layer", *truth.pieces]] + [
            [name, *(truth.piece(int(token)) for token in truth.top_ids[row, :, 0])]
            for row, name in enumerate(truth.layers)
        ]
        assert cells == [piece_html(cell) for row in rows for cell in row]


def test_readings_of_a_corpus_end_at_the_position_that_was_kept(tmp_path, model, saved):
    path = write_lines(tmp_path / "c.jsonl", [{"text": "The tower is in the end of the city " * 3}])
    settings = Settings(shard_size=1000, length=12, overlap=4, cells=True)
    run(path, tmp_path / "s", model, source=str(saved), loading={}, settings=settings)
    found = report([tmp_path / "s"], tmp_path / "r.html", readings=True)
    cells = pandas.concat(map(pandas.read_parquet, (tmp_path / "s" / "cells").glob("*.parquet")))
    kept = [prompt for each in found.kept for prompt in each.prompts]
    assert len(kept) > 10
    for prompt in kept:
        place = (cells["document"] == 0) & (cells["position"] == prompt.found["position"])
        mine = cells[place].sort_values("block")
        assert len(prompt.reading.ids) == mine["seen"].iloc[0] + 1
        assert prompt.reading.top_ids[:, -1, 0].tolist() == [ids[0] for ids in mine["top_ids"]]


def test_a_report_does_not_read_by_another_model_nor_where_there_is_nothing_to_read(
    tmp_path, model, saved
):
    shutil.copytree(saved, tmp_path / "saved")
    path = write_lines(tmp_path / "p.jsonl", records(4))
    run(path, tmp_path / "s", model, source=str(tmp_path / "saved"), loading={},
        settings=Settings(shard_size=8))  # fmt: skip
    tiny_gpt2(seed=5).save_pretrained(tmp_path / "saved")
    with pytest.raises(SurveyError, match="other weights"):
        report([tmp_path / "s"], tmp_path / "r.html", readings=True)
    with pytest.raises(FormatError, match=r"no room for readings: write a page \(\.html\)"):
        report([tmp_path / "s"], tmp_path / "r.md", readings=True)
    texts = write_lines(tmp_path / "c.jsonl", [{"text": "The tower is in the end"}])
    run(texts, tmp_path / "c", model, source=str(saved), loading={},
        settings=Settings(shard_size=1000, length=12))  # fmt: skip
    with pytest.raises(FormatError, match="--keep cells"):
        report([tmp_path / "c"], tmp_path / "r.html", readings=True)
    assert not (tmp_path / "r.html").exists()
    done = CliRunner().invoke(main, ["survey", "find", str(tmp_path / "s"), "--open", "r.html"])
    assert done.exit_code == 1
    assert "other weights" in done.output


def test_ids_chats_and_prompts_that_look_like_ids_are_found_again_as_they_were_read(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }} is in {% endfor %}"
        "{% if add_generation_prompt %}the{% endif %}"
    )
    for part in (tiny_gpt2(), tokenizer):
        part.save_pretrained(tmp_path / "chatting")
    chat = [{"role": "user", "content": "The 'tower'"}]
    items = [{"prompt": [5, 7, 11]}, {"messages": chat}, {"prompt": "[5, 7, 11]"}, {"prompt": [5]}]
    write_lines(tmp_path / "my prompts.jsonl", items)
    words = ["run", "my prompts.jsonl", "-o", "my survey", "-m", "chatting"]
    done = CliRunner().invoke(main, ["survey", *words])
    assert done.exit_code == 0, done.output
    report(["my survey"], tmp_path / "r.html")
    page_text = (tmp_path / "r.html").read_text(encoding="utf-8")
    commands = [html.unescape(each) for each in re.findall(r"<code>(.*?)</code>", page_text)]
    opened = []
    monkeypatch.setattr(page, "save", lambda readings, out: opened.append(readings))
    model = logitlens.load("chatting")
    truth = [model.read(item.get("messages", item.get("prompt"))) for item in items]
    assert len({tuple(reading.ids.tolist()) for reading in truth}) == len(items) == len(commands)
    for command in commands:
        name, *given = shlex.split(command)
        assert given[:3] == ["survey", "find", "my survey"]
        done = CliRunner().invoke(main, given, prog_name=name)
        assert done.exit_code == 0, done.output
    assert [len(readings) for readings in opened] == [1] * len(items)
    for (reading,), known in zip(opened, truth):
        assert reading.ids.tolist() == known.ids.tolist()
        np.testing.assert_allclose(reading.entropy, known.entropy, atol=1e-5)


def test_several_lenses_of_one_kind_are_each_found_by_their_name_in_the_table(survey, model):
    """Also where the second is asked for by the name that the first would have."""
    places = [save(tuned(model, seed=n), survey.folder / f"{n}.safetensors") for n in (1, 2)]
    paths = [f"tuned:{place}" for place in places]
    survey.run(records(3), lenses=paths)
    names = list(table(survey.folder / "a").lens.unique())
    assert names == ["tuned", paths[1]]
    words = ["survey", "find", str(survey.folder / "a"), "--json", "--lens"]
    for name in names:
        done = CliRunner().invoke(main, [*words, name])
        assert {json.loads(line)["lens"] for line in done.stdout.splitlines()} == {name}
    said = [{"name": "tuned", "said": each} for each in (paths[0], "tuned")]
    assert Plan({"lenses": said}).lenses == {paths[0]: paths[0], "tuned": "tuned"}


def test_a_layer_that_only_one_lens_has_moves_no_other_line(survey, model):
    """In the figure, the histograms and the tables."""
    lens = tuned(model)
    tensors = {k: v for k, v in lens.tensors.items() if not k.startswith("0.")}
    header = dataclasses.replace(lens.header, depths=lens.header.depths[1:], losses={})
    place = save(TunedLens(tensors, header), survey.folder / "late.safetensors")
    survey.run(records(8), lenses=[f"tuned:{place}", "logit"])
    frame = table(survey.folder / "a")
    layers = [[*frame[frame.lens == name].layer.unique()] for name in ("tuned", "logit")]
    assert layers == [["0", "1", "2"], ["embed", "0", "1", "2"]]
    found = summarise({"a": frame}, draws=20)
    axes = {each.get_title(): each for each in figure(found, MEASURES).axes}
    lines = axes["entropy, nats"].get_lines()
    assert [[int(x) for x in line.get_xdata()] for line in lines] == [[1, 2, 3], [0, 1, 2, 3]]
    bars = axes["settled layer"].containers
    centres = [[round(bar.get_x() + bar.get_width() / 2, 1) for bar in each] for each in bars]
    assert centres == [[0.8, 1.8, 2.8], [0.2, 1.2, 2.2, 3.2]]
    for title in ("entropy, nats", "settled layer"):
        assert [label.get_text() for label in axes[title].get_xticklabels()] == layers[1]
    rows = re.findall(r"^\| (.*) \|$", markdown(found, MEASURES), re.M)
    start = rows.index(" | prompts | embed | 0 | 1 | 2")
    assert [row.split(" | ")[2] == "" for row in rows[start + 2 : start + 4]] == [True, False]
    assert all(len(row.split(" | ")) == 6 for row in rows[start : start + 4])


def test_what_a_report_leaves_out_is_said(survey, tmp_path):
    items = [
        {**item, "order": None if n < 2 else item["order"]} for n, item in enumerate(records(9))
    ]
    items.append({"prompt": "Paris " * 300})
    survey.run(items, size=3, bad="skip", share=(0, 2))
    summary = report([survey.folder / "a"], tmp_path / "r.md", by="order")
    of_kl = {c.group: c.n for c in summary.curves if c.measure == "kl"}
    assert of_kl == {"even": 3, "odd": 1, "no order": 2}
    text = (tmp_path / "r.md").read_text(encoding="utf-8")
    assert "Not all is read: 2 of 4 shards." in text
    survey.run(items, size=3, bad="skip")
    report([survey.folder / "a"] * 1, tmp_path / "r.md")
    text = (tmp_path / "r.md").read_text(encoding="utf-8")
    assert "Not all" not in text
    assert "Left out, as they could not be read: 1." in text
    with pytest.raises(
        FormatError, match="no condition 'top': it has id, prompt, answer, order, number"
    ):
        report([survey.folder / "a"], tmp_path / "r.md", by="top")


@pytest.mark.parametrize("name", ["r.html", "r.png", "r.md"])
def test_a_survey_of_which_nothing_could_be_read_is_refused(survey, tmp_path, name, unlooked):
    survey.run([{"prompt": "Paris " * 300}], bad="skip")
    with pytest.raises(PromptError, match="a has no rows: none of its prompts could be read"):
        report([survey.folder / "a"], tmp_path / name)
    assert not (tmp_path / name).exists()


def test_whole_numbers_that_some_prompts_lack_are_whole_in_a_report(survey, tmp_path):
    items = [{**item, "shots": [0, 4, None][n % 3]} for n, item in enumerate(records(12))]
    survey.run(items)
    found = report([survey.folder / "a"], tmp_path / "r.html", by="shots")
    assert {curve.group for curve in found.curves} == {"0", "4", "no shots"}


def test_a_pair_has_the_mean_of_those_prompts_that_have_a_value(survey, tmp_path):
    """Several templates share an id; what never happens in one of them is still there in the others."""
    items = [
        {"prompt": f"{' '.join('abc'[: n + 1])}{' d' * t}", "id": str(n), "side": side,
         **({"answer": " a"} if t else {})}
        for n in range(3) for t in range(2) for side in ("A", "B")
    ]  # fmt: skip
    survey.run(items, size=100)
    frame = table(survey.folder / "a")
    found = summarise({"a": frame}, by="side", contrast=("A", "B"), draws=50)
    (curve,) = [c for c in found.contrasts if c.measure == "logprob"]
    assert curve.n == 3
    last = frame[frame.block == frame.block.max()]
    means = last.groupby(["id", "side"]).logprob.mean().unstack()
    assert curve.mean[-1] == pytest.approx((means.B - means.A).mean(), abs=1e-6)
    assert np.isfinite(curve.mean).all()


def test_whole_numbers_beside_fractions_are_named_as_they_were_given(survey, tmp_path):
    items = [
        {"prompt": "a b", "answer": " c", "id": i, "shots": shots}
        for i in ("x", "y") for shots in (1, 2, 2.5)
    ]  # fmt: skip
    survey.run(items)
    report([survey.folder / "a"], tmp_path / "r.md", by="shots", contrast=("1", "2"))
    found = report([survey.folder / "a"], tmp_path / "r.md", by="shots", contrast=("2.5", "1.0"))
    assert {curve.group for curve in found.curves} == {"1", "2", "2.5"}
    assert {curve.group for curve in found.contrasts} == {"1 − 2.5"}


def test_a_set_may_have_any_name(survey, tmp_path):
    items = [{**item, "sets": {"first_rank": [" Paris"], "end": ["."]}} for item in records(4)]
    survey.run(items)
    found = report([survey.folder / "a"], tmp_path / "r.md")
    sets = {curve.measure for curve in found.curves if curve.measure.startswith("P(")}
    assert sets == {"P(first_rank)", "P(end)"}


def test_a_prompt_cannot_put_markup_into_the_page(survey, tmp_path):
    survey.run([{"prompt": "<b>the</b><script>", "kind": "<i>|x"}], size=1)
    report([survey.folder / "a"], tmp_path / "r.html", by="kind")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "<i>|x" not in page


def test_the_command_line_reports_and_finds(folder, tmp_path):
    def go(*arguments):
        return CliRunner().invoke(main, ["survey", *map(str, arguments)], prog_name="logitlens")

    done = go(
        "report", folder, "-o", tmp_path / "r.md", "--by", "order", "--contrast", "even", "odd"
    )
    assert done.exit_code == 0, done.output
    assert go("report", folder, "-o", tmp_path / "r.md", "--contrast", "even", "odd").exit_code == 2
    assert go("find", folder, "--where", " ", "--lens", "logit").exit_code == 0
    done = go("find", folder, "--where", "number < 2", "--json")
    assert [json.loads(line)["number"] for line in done.stdout.splitlines()] == [0, 1]
    done = go("find", folder, "--where", "number = 3", "--open", tmp_path / "found.html")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "found.html").is_file()
    assert "--order 'kl_99': Binder" in go("find", folder, "--order", "kl_99").stderr
    assert "nope: this survey has logit" in go("find", folder, "--lens", "nope").stderr
    assert "not all is read" not in go("find", folder).stderr
    refused = go("report", folder, "-o", tmp_path / "r.md", "--seed", "-1")
    assert (refused.exit_code, "x>=0" in refused.stderr) == (2, True)

    late = "number < 9 -- and more"
    assert len(go("find", folder, "--where", late, "--limit", 2, "--json").stdout.splitlines()) == 2
    assert "order 'number -- desc'" not in go("find", folder, "--order", "number -- desc").stderr
    assert go("find", folder, "--where", late, "--lens", "logit", "--limit", 2).exit_code == 0
    assert "no prompts match" in go("find", folder, "--where", "number > 99").stdout


def test_a_search_of_what_is_not_all_read_says_so_and_its_json_is_json(survey):
    path = survey.folder / "prompts.jsonl"
    path.write_text(
        "".join(f'{{"prompt": "a b", "weight": {w}}}\n' for w in ("Infinity", "1", "2"))
    )
    survey.run(size=1, share=(0, 3))
    found = CliRunner().invoke(main, ["survey", "find", str(survey.folder / "a"), "--json"])
    assert "not all is read: 1 of 3 shards are committed" in found.stderr
    (row,) = found.stdout.splitlines()
    assert json.loads(row, parse_constant=pytest.fail)["weight"] is None


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("kl_99 > 5", '"kl_99" not found'),
        ("kl_1 >> and", "syntax error"),
        ("kl_1 >", 'syntax error at or near ">"'),
        ("kl_1 > 0 limit 5", 'syntax error at or near "limit"'),
        ("kl_1 > 1) or (true", 'syntax error at or near ")"'),
        ("kl_1 > 'much'", "much"),
    ],
)
def test_a_slip_in_a_condition_is_shown_with_the_columns_there_are(survey, where, why):
    survey.run(records(4), folder="slip")
    with pytest.raises(FormatError) as said:
        find(survey.folder / "slip", where)
    text = str(said.value)
    assert why in text
    assert f"--where {where!r}" in text
    assert "columns are order, number, prompt_index, id" in text
    assert "set_end_N" in text
    assert "select" not in text
    assert "\n" not in text
    assert len(text) < 520
    words = ["survey", "find", str(survey.folder / "slip"), "--lens", "logit", "--where", where]
    done = CliRunner().invoke(main, words, prog_name="logitlens")
    assert text in done.stderr, "whichever lens is asked for"


def test_what_a_condition_and_an_order_name_is_shown(folder):
    """Not what is said in a text or a remark."""
    where = "(first_10 > 0 or true) and \"rank_1\" > 0 and prompt <> 'settled kl_2' -- kl_0"
    words = [
        "survey",
        "find",
        str(folder),
        "--where",
        where,
        "--order",
        "MARGIN_2 desc",
        "--limit",
        "3",
    ]
    done = CliRunner().invoke(main, [*words, "--json"], prog_name="logitlens")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    frame = table(folder).set_index(["prompt_index", "block"])
    assert len(rows) == 3
    for row in rows:
        assert list(row) == [
            "lens", "settled", "order", "number", "first_10", "rank_1", "prompt", "margin_2", "prompt_index",
            "id", "answer",
        ]  # fmt: skip
        truth = frame.loc[row["prompt_index"]]
        assert row["margin_2"] == pytest.approx(truth.margin[2])
        assert row["rank_1"] == truth["rank"][1]
    assert rows == sorted(rows, key=lambda row: -row["margin_2"])
    shown = CliRunner().invoke(main, words, prog_name="logitlens").stdout
    assert f"rank_1 {rows[0]['rank_1']} · margin_2 {rows[0]['margin_2']:.6g} · " in shown


@pytest.mark.parametrize(("hits", "low", "high"), [(7, 0.646, 1), (0, 0, 0.354), (3, 0.158, 0.75)])
def test_an_interval_of_a_share_is_wilsons_over_ids(hits, low, high):
    values_N1 = np.repeat([1.0, 0.0, np.nan], [hits, 7 - hits, 1])[:, None]
    once = wilson(values_N1, np.arange(8))
    np.testing.assert_allclose(np.ravel(once), [hits / 7, low, high], atol=1e-3)
    twice = wilson(np.repeat(values_N1, 2, 0), np.repeat(np.arange(8), 2))
    np.testing.assert_allclose(once, twice)
    assert np.isnan(wilson(values_N1[7:], np.zeros(1, int))).all()


@pytest.mark.parametrize(("n", "share"), [(10, 0.9), (10, 0.97), (28, 0.97), (100, 0.99)])
def test_intervals_of_shares_near_one_hold_the_truth(n, share):
    """Percentiles of a bootstrap hold it 28 to 65 times in a hundred."""
    draws_BN = np.random.default_rng(0).random((1000, n)) < share
    held = 0
    for drawn_N in draws_BN:
        _, low, high = wilson(drawn_N[:, None].astype(float), np.arange(n))
        held += bool(low[0] <= share <= high[0])
    assert held / 1000 >= 0.9


@pytest.mark.parametrize(
    ("n", "more", "less"), [(8, 0, 0.05), (10, 0.9, 0), (28, 0.3, 0.3), (28, 0.02, 0)]
)
def test_intervals_of_differences_of_shares_hold_the_truth(n, more, less):
    """Also those of few pairs, of which most are alike."""
    chances = [less, 1 - less - more, more]
    draws_BN = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], p=chances, size=(1000, n))
    mean_B, low_B, high_B = paired_shares(draws_BN.T)
    np.testing.assert_allclose(mean_B, draws_BN.mean(1))
    assert (low_B < high_B).all()
    assert low_B.min() >= -1
    assert high_B.max() <= 1
    assert ((low_B <= mean_B) & (mean_B <= high_B)).all()
    assert ((low_B <= more - less) & (more - less <= high_B)).mean() >= 0.9


def test_the_interval_of_a_difference_of_shares_is_bonett_and_prices():
    """The example of R's statpsych, `ci.prop.ps(.05, 12, 4, 26, 6)`. A pair that lacks a value is none."""
    values_N1 = np.repeat([1.0, -1.0, 0.0, np.nan], [26, 4, 18, 2])[:, None]
    np.testing.assert_allclose(
        np.ravel(paired_shares(values_N1)), [22 / 48, 0.2548067, 0.6251933], rtol=1e-6
    )
    assert np.isnan(paired_shares(values_N1[48:])).all()


@pytest.mark.parametrize("n", [10, 30, 60])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_intervals_of_quantiles_of_few_prompts_are_open_rather_than_wrong(n, share):
    generator, truth = np.random.default_rng(0), {0.1: -1.2816, 0.5: 0.0, 0.9: 1.2816}[share]
    held = 0
    for seed in range(200):
        values_N1 = generator.normal(size=(n, 1))
        ((_, low, high),) = quantiles(values_N1, np.arange(n), [share], seed, 300)
        held += bool(not low[0] > truth and not high[0] < truth)
        assert n < 60 or np.isfinite([low[0], high[0]]).all()
    assert held / 200 >= 0.88


def test_a_measure_that_repeats_another_is_shown_where_one_group_has_its_own(survey):
    """Of `b` all answers are one token and none is wrong: its curves are there beside those of `a`."""
    items = [
        {"prompt": "Paris is", "answer": " the tower of", "wrong": " Rome", "kind": "a"},
        {"prompt": "The tower", "answer": " is", "wrong": " Paris", "kind": "a"},
        {"prompt": "Rome is", "answer": " the", "kind": "b"},
        {"prompt": "The city", "answer": " of", "kind": "b"},
    ]
    survey.run(items)
    frame = table(survey.folder / "a")
    for measure in ("first_logprob", "correct"):
        groups = [
            c.group for c in summarise({"a": frame}, by="kind").curves if c.measure == measure
        ]
        assert groups == ["a", "b"], measure
    alone = {c.measure for c in summarise({"a": frame[frame.kind == "b"]}, by="kind").curves}
    assert not alone & {"first_logprob", "correct"}


def test_shares_of_a_report_have_intervals_except_where_nothing_can_differ(folder):
    frame = table(folder)
    frame["rank"] = np.where(frame.block == frame.block.max(), 1, 50)
    curves = {c.measure: c for c in summarise({"a": frame}, draws=50).curves}
    ids = frame["id"].nunique()  # prompts that share one are drawn together
    beyond, top1 = 1.96**2 / (ids + 1.96**2), curves["top1"]
    np.testing.assert_allclose(top1.low, [*[0] * (len(top1.mean) - 1), 1 - beyond], atol=1e-4)
    np.testing.assert_allclose(top1.high, [*[beyond] * (len(top1.mean) - 1), 1], atol=1e-4)
    assert curves["agree"].low[-1] == curves["agree"].high[-1] == 1
