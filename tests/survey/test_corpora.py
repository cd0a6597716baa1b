"""Surveys of running text: windows, bands, sketches, and what cannot be read."""

from __future__ import annotations

import gzip
import html
import json
import re
import shlex

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

import logitlens
from logitlens import FormatError, PromptError, SurveyError
from logitlens.cli import main
from logitlens.model import score
from logitlens.readout import engine
from logitlens.survey import bands, corpus_summary, documents, sketch
from logitlens.survey.bootstrap import student
from logitlens.survey.commit import Folder
from logitlens.survey.documents import FILES, Windows
from logitlens.survey.find import find, read_again
from logitlens.survey.plan import Settings
from logitlens.survey.report import report
from logitlens.survey.run import run
from logitlens.survey.summary import SAMPLE
from logitlens.view import page as view_page
from tests.models import tiny_gpt2, tiny_tokenizer
from tests.survey.conftest import WORDS, write_lines

TEXTS = [" ".join(WORDS[(i + n) % len(WORDS)] for n in range(1 + 5 * (i % 3))) for i in range(14)]


@pytest.fixture
def corpus(model, saved, tmp_path):
    """Runs a survey of a corpus: corpus(folder="a", text=…, name=…, length=…, …)."""

    def go(folder="a", data=None, *, name="text.txt", lenses=("logit",), using=None, **options):
        path = tmp_path / name
        if data is not None or not path.exists():
            path.write_bytes("\n\n".join(TEXTS).encode() if data is None else data)
        rest = {n: options.pop(n) for n in ("share", "jobs", "engine") if n in options}
        settings = Settings(
            **{"length": 16, "overlap": 4, "shard_size": 64, "token_budget": 64, **options}
        )
        run(path, tmp_path / folder, using or model, source=str(saved), loading={}, lenses=lenses,
            settings=settings, **rest)  # fmt: skip
        return tmp_path / folder

    return go


def frame(folder, name="survey.parquet"):
    return pq.read_table(folder / name).to_pandas()


@pytest.mark.parametrize(("length", "overlap"), [(8, 0), (8, 3), (8, 7), (100, 10)])
def test_windows_count_every_token_once_with_the_stated_overlap(length, overlap):
    ends = np.cumsum([1, 8, 9, 30, 2, 16])
    windows = Windows(ends, length, overlap)
    counted = []
    for n in range(len(windows)):
        w = windows.window(n)
        assert w.stop - w.start <= length
        assert w.context == (overlap if w.offset else 0)
        counted += range(w.start + w.context, w.stop)
    assert counted == list(range(int(ends[-1])))
    for size in (1, 7, 20, 1000):
        shards = windows.shards(size)
        assert [a for a, _ in shards[1:]] == [b for _, b in shards[:-1]]
        assert (shards[0][0], shards[-1][1]) == (0, len(windows))
        if size == 1000:
            assert len(shards) == 1


def test_quantiles_of_a_sketch_are_within_two_percent_and_merge_exactly():
    values = np.random.default_rng(0).lognormal(0, 2, 5000)
    counts = np.bincount(sketch.bins_of(values), minlength=sketch.BINS)
    halves = [
        np.bincount(sketch.bins_of(v), minlength=sketch.BINS) for v in (values[:999], values[999:])
    ]
    assert (sum(halves) == counts).all()
    for share in (0.01, 0.1, 0.5, 0.9, 0.999):
        truth = np.quantile(values, share, method="lower")
        assert abs(sketch.quantile(counts, share) / truth - 1) <= sketch.ACCURACY + 1e-9
    assert sketch.quantile(np.bincount(sketch.bins_of(np.zeros(3)), minlength=9), 0.5) == 0


def test_counts_by_document_are_those_of_a_loop_and_add_up():
    generator = np.random.default_rng(3)
    bins_N, B = generator.integers(0, 9, 500), 3
    document_N, band_N = generator.integers(0, 20, 500), generator.integers(0, B, 500)
    unit_N = document_N * B + band_N
    squares, cross = (each.cumsum(1) for each in sketch.ByDocument(unit_N, B).sums(bins_N))
    for b in range(B):
        for x in range(10):
            c = np.array([(bins_N[unit_N == d * B + b] <= x).sum() for d in range(20)])
            n = np.bincount(document_N[band_N == b], minlength=20)
            assert (squares[b, x], cross[b, x]) == ((c * c).sum(), (c * n).sum())
    some = document_N < 7  # in another shard
    parts = [sketch.ByDocument(unit_N[part], B).sums(bins_N[part]) for part in (some, ~some)]
    np.testing.assert_array_equal(np.add(*parts).cumsum(2), [squares, cross])
    assert not np.any(sketch.ByDocument(unit_N[:0], B).sums(bins_N[:0]))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(
    ("documents", "least", "most", "alike"),
    [(5, 20, 200, 0.2), (10, 1, 400, 0.6), (30, 1, 400, 0.2), (100, 10, 60, 0.02), (100, 10, 60, 0.6)],
)  # fmt: skip
def test_intervals_of_quantiles_of_tokens_hold_the_truth(documents, least, most, alike, share):
    """As if each token were a document of its own they hold it 20 to 51 times in a hundred, or, where tokens
    are alike by 0.02 alone, 95 times."""
    truth = np.exp(2 * {0.1: -1.2816, 0.5: 0.0, 0.9: 1.2816}[share] + 1)
    generator = np.random.default_rng(0)
    held, trials, whole = 0, 200, 0
    for _ in range(trials):
        document_N = np.repeat(np.arange(documents), generator.integers(least, most, documents))
        own_D, rest_N = generator.normal(size=documents), generator.normal(size=len(document_N))
        x_N = np.sqrt(alike) * own_D[document_N] + np.sqrt(1 - alike) * rest_N
        bins_N = sketch.bins_of(np.exp(2 * x_N + 1))
        counts = np.bincount(bins_N, minlength=sketch.BINS)
        squares, cross = (each[0] for each in sketch.ByDocument(document_N, 1).sums(bins_N))
        low, high = sketch.quantile_ends(counts, squares, cross, documents, share)
        held += bool(not low > truth and not high < truth)
        assert low != high  # a bin has a width, and so has an interval
        whole += bool(np.isfinite([low, high]).all())
        found = sketch.quantile(counts, share)
        assert not found < low
        assert not found > high
    assert held / trials >= 0.9
    assert whole == (trials if documents >= (10 if share == 0.5 else 100) else 0)


def test_a_quantile_of_documents_that_are_all_alike_is_open_where_they_cannot_tell_it():
    """All 40 tokens have rank 1: that of a hundred documents is no other than 1, that of four may be more."""
    bins_N = sketch.bins_of(np.ones(40))
    counts = np.bincount(bins_N, minlength=sketch.BINS)

    def ends(documents, share):
        sums = (each[0] for each in sketch.ByDocument(np.arange(40) % documents, 1).sums(bins_N))
        return sketch.quantile_ends(counts, *sums, documents, share)

    one = pytest.approx(1, rel=0.041)
    assert ends(40, 0.5) == (one, one)
    low, high = ends(4, 0.9)
    assert low == one
    assert np.isnan(high)
    assert np.isnan(ends(2, 0.5)).all()
    whole = {
        share: [bool(np.isfinite(ends(n, share)).all()) for n in (6, 7, 37, 38)]
        for share in (0.1, 0.5)
    }
    assert whole == {0.1: [False, False, False, True], 0.5: [False, True, True, True]}
    assert np.isnan(sketch.quantile_ends(counts * 0, counts * 0, counts * 0, 40, 0.5)).all()


def test_the_standard_error_takes_documents_as_units():
    """Against a bootstrap over documents, and unmoved where every token is written twice."""
    generator = np.random.default_rng(1)
    n = generator.integers(1, 30, 400).astype(float)
    s = n * generator.normal(2, 1, 400)
    mean, error = sketch.mean_and_error(
        s.sum(), (s * s).sum(), (s * n).sum(), n.sum(), (n * n).sum(), 400
    )
    draws = [s[d].sum() / n[d].sum() for d in generator.integers(0, 400, (800, 400))]
    assert mean == pytest.approx(s.sum() / n.sum())
    assert error == pytest.approx(np.std(draws), rel=0.1)
    again = sketch.mean_and_error(
        2 * s.sum(), 4 * (s * s).sum(), 4 * (s * n).sum(), 2 * n.sum(), 4 * (n * n).sum(), 400
    )
    np.testing.assert_allclose(again, (mean, error))


def _is_mean(rows, name, e, by_document):
    """The mean and error of `sketch.mean_and_error`, written out, in every row."""
    n = np.array([len(values) for values in by_document])
    totals = np.array([values.sum() for values in by_document])
    mean, D = totals.sum() / n.sum(), np.count_nonzero(n)
    error = np.sqrt(D / (D - 1) * ((totals - mean * n) ** 2).sum()) / n.sum()
    for row in rows.to_dict("records"):
        assert row[name][e] == pytest.approx(mean, abs=1e-9), (name, e)
        assert row[f"{name}_error"][e] == pytest.approx(error, abs=1e-6), (name, e)


def test_the_table_holds_what_read_gives_for_every_document(corpus, model):
    """One window a document: bands, means, quantiles, settled layers and exits, against readings."""
    table = frame(corpus(length=64, overlap=0))
    readings = [model.read(text) for text in TEXTS]
    everything = table[table.band == "all"]
    assert everything.layer.tolist() == readings[0].layers
    assert (everything.tokens == sum(len(r.ids) for r in readings)).all()
    for name in ("kl", "entropy"):
        truth = np.concatenate([getattr(r, name) for r in readings], 1).mean(1)
        np.testing.assert_allclose(everything[name], truth, atol=1e-4)
    loss = np.concatenate([-r.next_logprobs[:, :-1] for r in readings], 1)
    np.testing.assert_allclose(everything.loss, loss.mean(1), atol=1e-4)
    assert (everything.next == loss.shape[1]).all()
    rank = np.concatenate([r.next_ranks[:, :-1] for r in readings], 1)
    np.testing.assert_allclose(everything.right, (rank == 1).mean(1))
    median = np.quantile(rank, 0.5, axis=1, method="lower")
    np.testing.assert_allclose(everything.rank_p50, median, rtol=0.021)
    for name in ("loss", "rank", "entropy", "kl"):
        low, middle, high = (everything[f"{name}_p50{end}"] for end in ("_low", "", "_high"))
        assert ((low <= middle) & (middle <= high)).all(), name
        assert (low < high)[: -1 if name == "kl" else None].any(), name
    settled = np.concatenate([r._settled_rows() for r in readings])
    assert everything.settled.tolist() == np.bincount(settled, minlength=len(everything)).tolist()
    top = np.concatenate([r.top_ids[:, :, 0] for r in readings], 1)
    np.testing.assert_allclose(everything.agree, (top == top[-1]).mean(1))
    assert all(sum(column) == top.shape[1] for column in zip(*everything.exits))
    assert all(sum(column) == loss.shape[1] for column in zip(*everything.exits_next))
    number = everything.block.to_numpy()
    by_document = [number[r._settled_rows()] for r in readings]
    _is_mean(everything, "settled_layer", 0, by_document)
    for row, error in enumerate(everything.settled_error):
        one = [(r._settled_rows() == row).astype(float) for r in readings]
        n = np.array([len(each) for each in one])
        off = np.array([each.sum() for each in one]) - np.concatenate(one).mean() * n
        D = len(n)
        assert error == pytest.approx(np.sqrt(D / (D - 1) * (off**2).sum()) / n.sum(), abs=1e-9)
    for e, threshold in enumerate(bands.THRESHOLDS):
        left, same, right = [], [], []
        for r in readings:
            sure = r.top_logprobs[:, :, 0] >= np.log(threshold)
            sure[-1] = True
            row, at = sure.argmax(0), np.arange(len(r.ids))
            top1 = r.top_ids[row, at, 0]
            left.append(number[row])
            same.append((top1 == r.top_ids[-1, :, 0]).astype(int))
            right.append((r.next_ranks[row, at] == 1).astype(int)[:-1])
        for name, values in (("exit_layer", left), ("exit_agree", same), ("exit_right", right)):
            _is_mean(everything, name, e, values)
    first = table[table.band == "1–3"]
    truth = np.concatenate([r.kl[:, 1:4] for r in readings], 1)
    np.testing.assert_allclose(first.kl, truth.mean(1), atol=1e-4)
    assert (first.tokens == truth.shape[1]).all()


def test_an_overlap_is_read_but_not_counted_again(corpus, model):
    table = frame(corpus(keep := "cells", cells=True), "survey.parquet")
    total = sum(len(model.tokens.encode(text)) for text in TEXTS)
    assert table[(table.band == "all") & (table.block == -1)].tokens.item() == total
    cells = pq.read_table(corpus(keep, cells=True) / "cells").to_pandas()
    assert not cells.duplicated(["document", "position", "layer"]).any()
    assert len(cells) == total * (model.n_blocks + 1)
    longest = int(cells.document[cells.position.idxmax()])
    ids = model.tokens.encode(TEXTS[longest])
    mine = cells[(cells.document == longest) & (cells.layer == "0")].set_index("position")
    assert mine.token.tolist() == ids
    assert mine.next.dropna().tolist() == ids[1:]
    assert mine.seen.max() < 16
    window = model.read(ids[12:28])  # the second window repeats four tokens of the first
    np.testing.assert_allclose(mine.kl.loc[16:27], window.kl[1, 4:], atol=1e-4)
    assert np.stack(mine.top_ids).shape[1] == 5
    assert mine.text.tolist() == model.tokens.pieces(ids)
    assert mine.top.tolist() == [model.tokens.piece(int(each[0])) for each in mine.top_ids]


@pytest.mark.parametrize("size", [20, 10_000])
def test_shards_of_any_size_add_up_to_the_same(corpus, size):
    one, other = frame(corpus("one")), frame(corpus("other", shard_size=size))
    for name in one.columns:
        if (
            name.endswith(("_bins", "settled"))
            or name.startswith(("exit", "settled"))
            or "_p" in name
        ):
            continue  # floats on an edge may round
        if "documents" in name or "squares" in name or "cross" in name or "error" in name:
            continue  # a document in two shards counts as two
        if one[name].dtype.kind == "f":
            np.testing.assert_allclose(one[name], other[name], rtol=1e-3, atol=1e-4)
        else:
            assert one[name].equals(other[name]), name


def test_a_left_corpus_survey_goes_on_without_its_text_and_gives_the_same_bytes(
    corpus, model, saved, monkeypatch
):
    whole = (corpus("whole", cells=True) / "survey.parquet").read_bytes()
    folder = corpus("left", cells=True, share=(0, 2))
    monkeypatch.setattr("logitlens.fit.corpus.ids_of", None)  # the ids are there
    corpus("left", cells=True)
    assert (folder / "survey.parquet").read_bytes() == whole
    (folder / "cells" / "00001.parquet").unlink()  # lost
    (folder / "survey.parquet").unlink()
    corpus("left", cells=True)
    assert (folder / "survey.parquet").read_bytes() == whole
    with pytest.raises(
        SurveyError, match=r"input: it was [\d,]+ bytes of text, now 10 of other text"
    ):
        corpus("left", b"other text", cells=True)
    prompts = write_lines(folder.parent / "p.jsonl", [{"prompt": "Paris"}])
    with pytest.raises(
        SurveyError, match="another: input: it was text, now labelled prompts. Run it"
    ):
        run(prompts, folder, model, source=str(saved), loading={})
    prompts.write_text('{"prompt": "Paris", "text": "Paris"}')
    run(prompts, folder.parent / "prompts", model, source=str(saved), loading={}, share=(1, 2))
    with pytest.raises(
        SurveyError, match="another: input: it was labelled prompts, now text. Run it"
    ):
        corpus("prompts", name="p.jsonl")
    assert not (folder.parent / "prompts" / FILES[0]).exists()
    before = {name: (folder / name).read_bytes() for name in FILES}
    with pytest.raises(SurveyError, match='another: corpus field: "text", now "body"'):
        corpus("left", "\n\n".join(TEXTS).encode(), cells=True, field="body")
    assert before == {name: (folder / name).read_bytes() for name in FILES}
    with pytest.raises(SurveyError, match="settings overlap: 4, now 2"):
        corpus("left", "\n\n".join(TEXTS).encode(), cells=True, overlap=2)


BAD = [
    ("a.jsonl", b'{"text": "Paris is"}\n{not json\n{"text": "the tower"}\n', "line 2 is not JSON", 2),
    ("b.jsonl", b'{"text": "Paris is"}\n{"text": "\xff"}\n{"body": "x"}\n', "line 2 cannot be read", 1),
    ("c.txt", b"Paris is\n\nthe \xff tower\n\nis there a", "line 3 cannot be read as UTF-8", 2),
    ("d.txt.gz", gzip.compress(b"Paris is\n\n" * 99)[:-9], "nor what follows", None),
    ("e.jsonl", b'{"text": "Paris is"}\n{"ids": [1, 99999]}\n{"ids": [1]}\n', "line 2: token id 99999", 2),
    ("f.jsonl", b'{"text": "Paris is"}\n{"text": "\\ud800"}\n', "line 2: ", 1),
]  # fmt: skip


@pytest.mark.parametrize(("name", "data", "said", "documents"), BAD, ids=[b[0] for b in BAD])
def test_what_cannot_be_read_is_named_with_file_and_line_or_skipped_and_counted(
    corpus, name, data, said, documents
):
    with pytest.raises((FormatError, PromptError), match=rf"{name}.* {said}") as refused:
        corpus("a", data, name=name)
    assert "\n" not in str(refused.value)
    plan = json.loads((corpus("b", data, name=name, bad="skip") / "plan.json").read_text())
    assert plan["corpus"]["bad"] == len(plan["skipped"]) >= 1
    assert said in plan["skipped"][0]
    assert documents is None or plan["corpus"]["documents"] == documents


def test_ids_without_a_tokenizer_are_skipped_like_others(saved, tmp_path):
    bare = logitlens.load(tiny_gpt2())
    path = write_lines(tmp_path / "ids.jsonl", [{"ids": [1, 2]}, {"ids": [99999]}, {"ids": [3]}])
    settings = Settings(length=8, bad="skip")
    found = run(path, tmp_path / "a", bare, source=str(saved), loading={}, settings=settings)
    assert found.plan.facts["corpus"]["documents"] == 2
    with pytest.raises(PromptError, match=r"line 2: .*\(--bad skip leaves such lines out\)"):
        run(path, tmp_path / "b", bare, source=str(saved), loading={}, settings=Settings(length=8))
    text = write_lines(tmp_path / "text.jsonl", [{"text": "Paris"}])
    with pytest.raises(PromptError, match="loaded without a tokenizer"):
        run(text, tmp_path / "c", bare, source=str(saved), loading={}, settings=settings)


def test_means_of_the_token_that_follows_are_of_the_documents_that_have_one(corpus):
    data = "".join(
        json.dumps({"ids": ids}) + "\n" for ids in [[1], [2], [3, 4], [5, 6], [4, 2]]
    ).encode()
    table = frame(corpus("a", data, name="ids.jsonl"))
    everything = table[table.band == "all"]
    assert (everything.documents == 5).all()
    assert (everything.next_documents == 3).all()
    found = corpus_summary.summarise({"a": table})
    (loss,) = [c for c in found.curves if c.measure == "loss" and c.group == "all positions"]
    half = everything.loss_error.to_numpy() * student(2)
    np.testing.assert_allclose(loss.high - loss.mean, half)
    counts = {c.measure: c.n for c in (*found.curves, *found.exits) if c.group == "all positions"}
    assert {name for name, n in counts.items() if n == 3} == {
        "loss", "rank_p50", "right", "exit_right",
    }  # fmt: skip
    assert {counts[name] for name in ("kl", "entropy", "agree", "exit_layer")} == {8}
    # Windows of 16 tokens have bands that no document reaches.
    assert {c.group for c in found.curves} == {"all positions", "position 0", "position 1–3"}


def test_a_corpus_without_text_is_refused_and_leaves_nothing(corpus, tmp_path):
    with pytest.raises(PromptError, match="holds no text"):
        corpus("empty", b"\n\n")
    assert not (tmp_path / "empty").exists()


def test_a_document_whose_logits_are_not_finite_is_counted_and_left_out(corpus, model):
    broken = logitlens.load(tiny_gpt2(), tokenizer=tiny_tokenizer())
    with torch.no_grad():
        broken.hf.transformer.wte.weight[9].fill_(float("nan"))
    lines = [{"ids": [1, 2, 3]}, {"ids": [1, 9, 3, 4]}]
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    folder = corpus("a", data, name="ids.jsonl", using=broken, cells=True)
    table = frame(folder)
    last = table[(table.band == "all") & (table.layer == table.layer.iloc[-1])]
    assert last.nonfinite.item() + last.tokens.item() == 7
    everything = table[table.band == "all"]
    whole = everything.tokens.min()  # some are finite at early layers alone
    assert all(sum(column) <= whole for column in zip(*everything.exits))


def test_a_layer_agrees_with_no_last_layer_that_is_not_finite(corpus):
    broken = logitlens.load(tiny_gpt2(), tokenizer=tiny_tokenizer())
    with torch.no_grad():
        broken.hf.transformer.h[-1].mlp.c_proj.bias.fill_(float("nan"))
    folder = corpus("a", using=broken, cells=True)
    cells = pq.read_table(folder / "cells").to_pandas()
    assert cells.entropy[cells.block == 0].notna().all()
    assert cells.agree.isna().all()
    assert (frame(folder).tokens == 0).all()


def test_windows_longer_than_the_context_and_a_whole_overlap_are_refused(corpus):
    with pytest.raises(FormatError, match="context holds"):
        corpus(length=100_000)
    with pytest.raises(FormatError, match="expected less"):
        corpus(length=8, overlap=8)


def test_bands_grow_by_four():
    assert bands.edges(1) == [0]
    assert bands.edges(16) == [0, 1, 4]
    assert bands.edges(256) == [0, 1, 4, 16, 64]


def test_a_report_of_a_corpus_shows_curves_exits_and_agreement_by_band(corpus, tmp_path):
    folder = corpus(cells=True)
    found = report([folder], tmp_path / "a.html")
    measures = {curve.measure for curve in (*found.curves, *found.exits)}
    assert measures >= {"loss", "kl", "agree", "rank_p50", "exit_layer", "exit_agree"}
    assert {c.group for c in found.curves} == {
        "all positions", "position 0", "position 1–3", "position 4–15",
    }  # fmt: skip
    page = (tmp_path / "a.html").read_text()
    assert not re.search(r'(?:src|href)="http', page)
    links = set(re.findall(r'href="#((?:point|reading)-[^"]*)"', page))
    assert links
    assert links <= set(re.findall(r'id="([^"]*)"', page))
    text = (report([folder], tmp_path / "a.md"), (tmp_path / "a.md").read_text())[1]
    assert "by threshold" in text
    assert "| tokens |" in text
    with pytest.raises(FormatError, match="grouped by position"):
        report([folder], tmp_path / "b.md", by="language")


def test_a_report_of_a_corpus_has_whole_ranks_and_no_interval_beyond_what_is_possible(
    corpus, tmp_path
):
    """Three documents that differ in everything: Student's t is 4.3."""
    data = b"the the the the\n\nParis is in the city\n\nThe Eiffel Tower is there a tower"
    found = report([corpus("few", data)], tmp_path / "a.md")
    ranks = [curve for curve in found.curves if curve.measure == "rank_p50"]
    assert all(np.nanmax(c.low - c.mean, initial=0) <= 0 <= np.nanmin(c.high - c.mean, initial=0)
               for c in ranks)  # fmt: skip
    curves = [curve for curve in found.curves if curve.measure != "rank_p50"]
    ends = np.concatenate([[c.low, c.high] for c in curves], 1)
    assert np.nanmin(ends) == 0
    shares = np.concatenate([c.high for c in curves if c.measure in ("right", "agree")])
    assert np.nanmax(shares) <= 1
    for curve in curves:
        there = ~np.isnan(curve.low)
        assert (curve.low <= curve.mean)[there].all()
        assert (curve.high >= curve.mean)[there].all()
    text = (tmp_path / "a.md").read_text(encoding="utf-8")
    ranks = text.split("## median rank of the token that follows (within 2 %)")[1].split("##")[0]
    cells = [row.split(" | ")[2:] for row in ranks.splitlines() if row.startswith("| logit")]
    around = r"\d+( \[(\d+|…), (\d+|…)\])?( \|)?"
    assert all(re.fullmatch(around, cell) for row in cells for cell in row)
    assert "too few" not in text
    for curve in found.exits:
        there = ~np.isnan(curve.low)
        assert there.all() or curve.group != "all positions"
        assert (curve.low <= curve.mean)[there].all()
        assert (curve.high >= curve.mean)[there].all()
    (low, high), mean = (
        found.histograms[0].spread["mean"][1:],
        found.histograms[0].spread["mean"][0],
    )
    assert low <= mean <= high
    found = report([corpus("two", data.rpartition(b"\n\n")[0])], tmp_path / "b.md")
    assert all(np.isnan(curve.low).all() for curve in found.curves)
    text = (tmp_path / "b.md").read_text(encoding="utf-8")
    assert "Of the survey are 2 documents: too few for an interval." in text


def test_a_lens_by_which_most_positions_exit_at_embed_is_named(corpus, tmp_path):
    folder = corpus()
    frame = corpus_summary.table(folder)
    e = bands.THRESHOLDS.index(corpus_summary.OFTEN)

    def told(at_embed: int, agree: int) -> str:
        exits = {-1: at_embed, 0: 10, 1: 0, 2: 40}
        left = [[0] * e + [exits[block], 0] for block in frame.block]
        same = [[0] * e + [agree if block < 0 else 5, 0] for block in frame.block]
        mine = frame.assign(exits=left, exits_agree=same)
        return corpus_summary._remarks("the survey", mine)

    assert "through the logit lens, 66 % at a threshold of 0.9 are at embed" in told(97, 0)
    assert not told(97, 96)
    assert not told(40, 0)
    late = frame[frame.block >= 0]
    assert not corpus_summary._remarks("the survey", late)
    assert 0 not in report([corpus("late", layers="0:")], tmp_path / "r.md").exits[0].mean + 1


def test_positions_of_a_corpus_are_found_and_their_windows_read_again(corpus, model, tmp_path):
    folder = corpus(cells=True)
    cells = pq.read_table(folder / "cells").to_pandas()
    kl = round(float(cells.kl[cells.block == 0].median()), 3)
    wide = cells[(cells.block == 0) & (cells.kl > kl) & (cells.seen > 3)]
    rows = find(folder, f"kl_0 > {kl} and seen > 3", order="kl_0 desc", limit=1000)
    assert 0 < len(rows) == len(wide)
    places = [(row["document"], row["position"]) for row in rows]
    wide = wide.sort_values(["kl", "document", "position"], ascending=[False, True, True])
    assert places == list(zip(wide.document, wide.position))
    for row in rows:
        pieces = model.tokens.pieces(model.tokens.encode(TEXTS[row["document"]]))
        after = row["position"] + 1
        assert row["prompt"] == "".join(pieces[max(0, after - corpus_summary.CONTEXT) : after])
        assert row["answer"] == (pieces[after] if after < len(pieces) else None)
        assert row["seen"] > 3
        assert row["kl_0"] > kl
    assert len(find(folder, limit=3)) == 3
    (row,) = find(folder, "text is not null", order="top_1, next", limit=1)
    assert {"text", "top_1", "next"} < set(row)
    late = max(
        rows, key=lambda row: row["position"]
    )  # in a window that is not its document's first
    (reading,) = read_again(folder, [late, late], most=8)
    mine = cells[(cells.document == late["document"]) & (cells.position == late["position"])]
    seen = mine.seen.iloc[0]
    assert seen < late["position"]
    np.testing.assert_allclose(reading.kl[:, seen], mine.kl, atol=1e-4)
    with pytest.raises(FormatError, match="loss_N.*layers are numbers"):
        find(folder, "logprob_1 > 3")
    with pytest.raises(FormatError, match="run it with --keep cells"):
        find(corpus("plain"))


def test_behind_a_position_is_the_command_that_reads_its_window_again(
    corpus, model, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    corpus("kept", cells=True, overlap=0)
    report(["kept"], tmp_path / "r.html")
    commands = re.findall(r"<code>(.*?)</code>", (tmp_path / "r.html").read_text())
    assert len(commands) > SAMPLE
    opened = []
    monkeypatch.setattr(view_page, "save", lambda readings, out: opened.extend(readings))
    name, *words = shlex.split(html.unescape(commands[-1]))
    done = CliRunner().invoke(main, words, prog_name=name)
    assert done.exit_code == 0, done.output
    where = words[words.index("--where") + 1]
    assert f"{where.replace(' = ', ' ').replace(' and ', ' · ')}" in done.stdout
    document, position = map(int, re.findall(r"\d+", where))
    start = position - position % 16
    (reading,) = opened
    assert reading.ids.tolist() == model.tokens.encode(TEXTS[document])[start : start + 16]


def test_a_position_leads_to_the_file_and_line_of_its_document(
    corpus, tmp_path, model, saved, monkeypatch
):
    """Documents without text and skipped ones have no number; the lines they stand on still count."""
    place = tmp_path / "texts" / "more"
    place.mkdir(parents=True)
    texts = ["a b", "", "c d"]
    (place / "c.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    (tmp_path / "texts" / "a.txt").write_text("the the\n\nof of\n")
    settings = Settings(length=8, threads=1, cells=True)
    run(tmp_path / "texts", tmp_path / "s", model, source=str(saved), loading={}, settings=settings)
    found = find(tmp_path / "s", "position = 0")
    files = json.loads((tmp_path / "s" / "plan.json").read_text())["corpus"]["made_of"]["files"]
    assert [file["name"] for file in files] == ["a.txt", "more/c.jsonl"]
    places = {row["document"]: row["origin"] for row in found}
    assert places == {
        0: "a.txt line 1", 1: "a.txt line 3", 2: "more/c.jsonl line 1", 3: "more/c.jsonl line 3",
    }  # fmt: skip
    assert find(tmp_path / "s", "origin = 'more/c.jsonl line 3' and position = 0")
    monkeypatch.chdir(tmp_path / "texts")
    for n, spelt in enumerate(("./more", "../texts/more/", f"file://{place}")):
        run(spelt, tmp_path / str(n), model, source=str(saved), loading={}, settings=settings)
        assert {row["origin"] for row in find(tmp_path / str(n), "true")} == {
            "c.jsonl line 1", "c.jsonl line 3",
        }  # fmt: skip
    data = b"first\n\nsecond"
    assert {row["origin"] for row in find(corpus("one", data, cells=True))} == {
        "text.txt line 1", "text.txt line 3",
    }  # fmt: skip


def test_behind_the_points_of_a_corpus_are_positions_where_cells_are_kept(corpus, monkeypatch):
    folder = corpus("kept", cells=True)
    table = corpus_summary.table(folder)
    found = corpus_summary.examples(folder, "kept", table)
    assert len(found) == len(table.band.unique())
    for kept in found:
        assert 0 < len(kept.prompts) <= min(kept.of, SAMPLE)
        for each in kept.prompts:
            assert any(each.prompt + each.answer in text for text in TEXTS)
            assert [row["layer"] for row in each.rows] == table.layer.unique().tolist()
    without = corpus("without")
    assert corpus_summary.examples(without, "", corpus_summary.table(without)) == []
    monkeypatch.setattr(Folder, "committed", lambda self, shard: {})
    monkeypatch.setattr(Folder, "checked", lambda self, n, cells: self.place.read(self.cells(n)))
    for cells in (folder / "cells").iterdir():  # as an earlier version wrote them
        pq.write_table(pq.read_table(cells).drop_columns(["text", "top"]), cells)
    assert corpus_summary.examples(folder, "kept", table) == []


def test_every_shard_is_read_by_the_kernel_that_suits_the_whole(corpus, monkeypatch):
    """A last, short shard would otherwise be read by another than those before it."""
    asked = []

    def choose(head, rows, k=1, **options):
        asked.append(rows)
        return engine.choose(head, rows, k, **options)

    monkeypatch.setattr(score, "choose", choose)
    plan = json.loads((corpus() / "plan.json").read_text())
    assert len(plan["shards"]) > 1
    assert len(asked) == len(plan["shards"])
    assert len(set(asked)) == 1
    assert asked[0] >= plan["corpus"]["tokens"]


TALKS = [
    {"text": TEXTS[i], "language": "fr" if i % 3 else "en", "year": 2000 + i, "id": f"d{i}",
     "Language": "x", "meta": {"a": 1}, "kl": 3, "prompt": "p", "n": None if i % 2 else i / 2}
    for i in range(14)
]  # fmt: skip


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_what_documents_say_of_themselves_are_conditions_of_their_cells(
    corpus, tmp_path, kind, capsys
):
    name = f"talks.{kind}"
    data = "".join(json.dumps(each) + "\n" for each in TALKS).encode()
    if kind == "parquet":
        import pandas

        pandas.DataFrame(TALKS).astype({"year": "int32"}).to_parquet(tmp_path / "t")
        data = (tmp_path / "t").read_bytes()
    folder = corpus("a", data, name=name, cells=True, shard_size=20)
    plan = json.loads((folder / "plan.json").read_text())
    assert plan["conditions"] == {"language": "string", "year": "int", "id": "string", "n": "float"}
    assert plan["corpus"]["left_out"] == {
        "Language": "it differs only in capitals from 'language'", "meta": "it holds lists, objects or bytes",
        "kl": "it is a column of the survey", "prompt": "it is a column of the survey",
    }  # fmt: skip
    assert len(plan["shards"]) > 3
    cells = pq.read_table(folder / "cells").to_pandas()
    for document, mine in cells.groupby("document"):
        said = TALKS[document]
        for column in plan["conditions"]:
            assert mine[column].nunique(dropna=False) == 1
            value = mine[column].iloc[0]
            assert (None if value != value else value) == said[column]
    wide = cells[(cells.block == 1) & (cells.language == "fr") & (cells.year > 2005)]
    rows = find(folder, "language = 'fr' and year > 2005 and kl_1 >= 0", limit=10_000)
    assert 0 < len(rows) == len(wide)
    assert {row["id"] for row in rows} == set(wide.id)
    with pytest.raises(
        FormatError, match="the columns are language, year, id, n, origin, document"
    ):
        find(folder, "langage = 'fr'")
    done = CliRunner().invoke(main, ["survey", "status", str(folder)], prog_name="logitlens")
    assert "conditions: language, year, id, n" in done.stdout
    assert "meta left out: it holds lists, objects or bytes" in done.stdout
    without = str(corpus("b", name=name))
    done = CliRunner().invoke(main, ["survey", "status", without], prog_name="logitlens")
    assert not re.search("conditions|left out", done.stdout), "without cells no table has them"


def test_intervals_over_few_documents_are_hardly_too_narrow():
    generator = np.random.default_rng(2)
    for N, least in ((2, 0.85), (3, 0.88), (10, 0.9)):
        held = 0
        for _ in range(400):
            n = generator.integers(80, 120, N).astype(float)
            s = n * generator.normal(2, 1, N)
            sums = s.sum(), (s * s).sum(), (s * n).sum(), n.sum(), (n * n).sum(), N
            mean, error = sketch.mean_and_error(*sums)
            held += abs(mean - 2) <= student(N - 1) * error
        assert least <= held / 400 <= 0.99


@pytest.mark.parametrize(
    ("documents", "share", "alike", "least"),
    [(3, 0.005, 5, 0.95), (10, 0.98, 200, 0.93), (46, 0.005, 200, 0.93), (10, 0.03, 5, 0.8)],
)
def test_intervals_of_shares_of_tokens_near_zero_and_one_hold_the_truth(
    documents, share, alike, least
):
    """Those of Student's t hold it 19, 92, 93 and 76 times in a hundred."""
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        n = generator.integers(20, 120, documents)
        s = generator.binomial(n, generator.beta(share * alike, (1 - share) * alike, documents))
        sums = (s.sum(), (s * s).sum(), (s * n).sum(), n.sum(), (n * n).sum(), documents)
        mean, error = sketch.mean_and_error(*(np.array([each], float) for each in sums))
        low, high = corpus_summary._ends("right", mean, error, np.array([documents]), (0, 1))
        assert 0 <= low[0] < high[0] <= 1
        held += bool(low[0] <= share <= high[0])
    assert held / 1000 >= least


def test_shares_of_documents_that_are_all_alike_have_a_width_but_of_the_final_layers_agreement(
    corpus,
):
    """Wilson's, of as many as there are documents, with Student's t."""
    found = corpus_summary.summarise({"s": corpus_summary.table(corpus(length=64, overlap=0))})
    (agree,) = (c for c in found.curves if (c.measure, c.group) == ("agree", "all positions"))
    assert (agree.mean[-1], agree.low[-1], agree.high[-1]) == (1, 1, 1)
    t2, zeros = student(len(TEXTS) - 1) ** 2, 0
    for curve in [c for c in found.curves if c.measure in ("agree", "right")] + found.exits:
        if curve.measure != "exit_layer" and curve.group == "all positions":
            none = curve.mean == 0
            np.testing.assert_allclose(curve.high[none], t2 / (len(TEXTS) + t2))
            zeros += none.sum()
    assert zeros


def test_odd_values_of_conditions_stop_nothing(corpus):
    lines = [
        {"text": "Paris is", "size": 2**53 + 1, "name": "a", "tags": "x", "when": "w" * 2000},
        {"text": "the tower", "size": 0.5, "name": "\ud800", "tags": [1], "\udfff": 1, "Tags": []},
        {"text": "is there", "size": 10**30, "name": None},
    ]
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    folder = corpus("a", data, name="odd.jsonl", cells=True)
    plan = json.loads((folder / "plan.json").read_text())
    assert plan["conditions"] == {"size": "string", "name": "string", "tags": "string"}
    assert set(plan["corpus"]["left_out"]) == {"name", "tags", "when", r"\udfff", "Tags"}
    data = "".join(json.dumps(line) + "\n" for line in lines[:2]).encode()
    cells = pq.read_table(corpus("b", data, name="two.jsonl", cells=True) / "cells").to_pandas()
    assert set(cells["size"]) == {float(2**53), 0.5}


def test_a_corpus_whose_files_were_renamed_is_said_to_be_so(tmp_path, model, saved):
    for name in ("a", "b"):
        (tmp_path / "texts" / name).mkdir(parents=True)
        (tmp_path / "texts" / name / "t.txt").write_text(f"the {name} tower")
    settings = Settings(length=8, threads=1)

    def go():
        run(
            tmp_path / "texts",
            tmp_path / "s",
            model,
            source=str(saved),
            loading={},
            settings=settings,
        )

    go()
    (tmp_path / "texts" / "a").rename(tmp_path / "texts" / "c")
    with pytest.raises(SurveyError, match="input: its files are the same, but their names"):
        go()
    (tmp_path / "texts" / "c" / "t.txt").write_text("the c tower")
    with pytest.raises(SurveyError, match=r"now [\d,]+ of other text"):
        go()


def test_a_survey_that_is_begun_while_another_corpus_is_tokenised_keeps_its_ids(
    corpus, tmp_path, monkeypatch
):
    """Two are begun in one new folder at one moment: one is the folder's, the other is refused."""
    write = documents._write

    def slowly(*args):
        monkeypatch.setattr(documents, "_write", write)
        done = write(*args)
        corpus("one", b"the tower is in Paris", name="quick.txt")
        return done

    monkeypatch.setattr(documents, "_write", slowly)
    with pytest.raises(SurveyError, match=r"the survey in \S+ is another: input: it was 21 bytes"):
        corpus("one", b"of the", name="slow.txt")
    assert not list((tmp_path / "one").glob(".*"))
    before = (tmp_path / "one" / "survey.parquet").read_bytes()
    corpus("one", name="quick.txt")  # has nothing to do, and its ids are there
    assert (tmp_path / "one" / "survey.parquet").read_bytes() == before
    corpus("other", name="quick.txt")
    assert (tmp_path / "other" / "tokens.bin").read_bytes() == (
        tmp_path / "one" / "tokens.bin"
    ).read_bytes()


def test_files_of_the_hub_are_called_as_they_are_there():
    from logitlens.survey.documents import _inside

    name = _inside("hf://datasets/owner/name")
    place = "/home/me/.cache/datasets--owner--name/snapshots/0123abc"
    assert name(f"{place}/en/train.parquet row 3") == "en/train.parquet row 3"
