"""Judging lenses: every measure against its definition, intervals, facts and published evaluations."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import torch

import logitlens
from logitlens.errors import FormatError, PromptError
from logitlens.fit import evaluate as judging
from logitlens.fit import facts as reading
from logitlens.fit.facts import Fact, Facts
from logitlens.lenses import LogitLens
from logitlens.view import evaluation as view
from tests.fit import words
from tests.lenses import tiny
from tests.lenses.test_store import tuned


@pytest.fixture(scope="module")
def worded(tmp_path_factory):
    return logitlens.load(words.directory(tmp_path_factory.mktemp("model")))


def sequences(n=6, length=12, seed=0):
    return torch.randint(tiny.VOCAB, (n, length), generator=torch.Generator().manual_seed(seed))


def test_text_measures_equal_their_definitions():
    model = tiny.gpt2()
    ids_CT = sequences()
    lens = tuned(model)
    found = judging.evaluate(model, ["logit", lens], sequences=ids_CT, token_budget=30)
    residuals = [model.capture(row) for row in ids_CT]
    for name, own in [("logit", LogitLens()), ("tuned", lens)]:
        for d in range(model.n_blocks + 1):
            kl, loss, top1, top10 = [], [], [], []
            for ids, r in zip(ids_CT, residuals):
                p = model.tail.logits(r.h[-1]).double().log_softmax(-1)
                h = r.h[d] if d == model.n_blocks else own.apply(r.h[d], d)
                q = model.tail.logits(h).double().log_softmax(-1)
                kl.append((p.exp() * (p - q)).sum(-1).mean())
                loss.append(-q[:-1].gather(1, ids[1:, None]).mean())
                top1.append((p.argmax(-1) == q.argmax(-1)).double().mean())
                tens = [set(x.topk(10).indices.tolist()) for x in (*p, *q)]
                pairs = zip(tens[: len(ids)], tens[len(ids) :])
                top10.append(np.mean([len(a & b) / 10 for a, b in pairs]))
            truth = {"kl": kl, "next": loss, "top1": top1, "top10": top10}
            for measure, values in truth.items():
                got = found.column(name, measure)[d]
                assert got == pytest.approx(float(np.mean(values)), rel=1e-4, abs=1e-6), (
                    name,
                    measure,
                )
    assert found.column("logit", "kl")[-1] == 0
    assert found.column("logit", "top1")[-1] == found.column("logit", "top10")[-1] == 1
    assert math.isnan(found.column("logit", "fact1")[0])
    assert [row["layer"] for row in found.rows[:4]] == ["embed", "0", "1", "2"]


def test_intervals_hold_the_mean_and_shrink():
    values = np.random.default_rng(0).normal(3, 1, (400, 2))
    few = judging._interval(values[:25], np.random.default_rng(1), 2000)
    many = judging._interval(values, np.random.default_rng(1), 2000)
    for mean, low, high in (few, many):
        assert (low < mean).all()
        assert (mean < high).all()
    width = (many[2] - many[1]) / (few[2] - few[1])
    assert np.allclose(width, 0.25, atol=0.08)
    assert np.allclose(many[2] - many[1], 2 * 1.96 / 20, rtol=0.15)
    one = judging._interval(values[:1], np.random.default_rng(1), 2000)
    assert np.isnan(one[1:]).all()


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),  # of Brown, Cai & DasGupta (2001), and where nothing or all hit
    [(0, 5, 0, 0.4345), (5, 5, 0.5655, 1), (1, 5, 0.0362, 0.6245), (8, 10, 0.4902, 0.9433)],
)
def test_the_interval_of_a_share_is_inside_it_and_has_a_width(hits, n, low, high):
    values = (np.arange(n) < hits).astype(float)[:, None]
    np.testing.assert_allclose(judging._wilson(values)[:, 0], [hits / n, low, high], atol=1e-4)


def test_fact_ranks_equal_a_reading():
    model = tiny.llama()
    generator = torch.Generator().manual_seed(2)
    facts = []
    for n in (3, 9, 5, 5, 7):
        ids = torch.randint(tiny.VOCAB, (n,), generator=generator).tolist()
        targets = ((int(ids[0]),), (4, 5, 6))
        facts.append(Fact(tuple(ids), n - 1, targets[: 1 + n % 2]))
    found = judging.evaluate(model, ["logit"], facts=Facts("f", facts), token_budget=20)
    for k, limit in enumerate(judging.RANKS):
        truth = np.zeros((len(facts), model.n_blocks + 1))
        for i, fact in enumerate(facts):
            for target in fact.targets:
                ranks = model.read(list(fact.ids), track=list(target)).track_ranks[:, -1].min(-1)
                truth[i] += (ranks <= limit) / len(fact.targets)
        np.testing.assert_allclose(found.column("logit", judging.FACTS[k]), truth.mean(0))
        best = next(row for row in found.rows if row["layer"] == "any")
        assert best[judging.FACTS[k]] == pytest.approx(truth[:, :-1].max(1).mean())
    assert found.meta["facts"] == 5


def test_a_row_that_is_not_finite_hits_nothing():
    """Its rank is 0, which is not among the first."""
    ranks_LFM = np.array([[[0, 3]], [[0, 0]]])
    assert judging._hits(ranks_LFM, np.array([[0, 0]]))[0].tolist() == [[0, 1, 1], [0, 0, 0]]


def test_a_rank_counts_as_a_hit_up_to_the_limit_itself():
    ranks_LFM = np.array([[[1]], [[2]], [[5]], [[6]], [[10]], [[11]]])
    hits_FLK = judging._hits(ranks_LFM, np.array([[0]]))
    assert judging.RANKS == (1, 5, 10)
    assert hits_FLK[0].tolist() == [
        [1, 1, 1],
        [0, 1, 1],
        [0, 1, 1],
        [0, 0, 1],
        [0, 0, 1],
        [0, 0, 0],
    ]


def test_own_facts(tmp_path, worded):
    path = tmp_path / "facts.jsonl"
    path.write_text(
        '{"prompt": "In the city of", "answer": " Paris", "relation": "city"}\n\n'
        '{"prompt": "In", "answer": ""}\n'
    )
    found = reading.read(path, worded)
    (paris,) = worded.tokenizer(" Paris")["input_ids"]
    assert found.unsupported == 1
    assert found.facts[0].targets == ((paris,),)
    assert found.facts[0].position == len(found.facts[0].ids) - 1
    assert found.facts[0].relation == "city"


def test_published_evaluations(tmp_path, worded):
    items = [
        {
            "name": "a",
            "prompt": "The tower is in",
            "target": "France",
            "intermediates": ["Paris", "qqqq"],
        },
        {"name": "b", "prompt": "In", "intermediates": ["zzzz"]},
    ]
    path = tmp_path / "lens-eval-multihop.json"
    path.write_text(json.dumps({"metadata": {}, "items": items}))
    found = reading.read(path, worded)
    assert len(found.facts) == found.unsupported == 1
    assert found.facts[0].targets == (tuple(worded.tokenizer(" Paris")["input_ids"]),)
    poem = tmp_path / "lens-eval-poetry.json"
    verse = [{"prompt": "The city\nof Paris", "intermediates": ["Paris"]}]
    poem.write_text(json.dumps({"items": verse}))
    (fact,) = reading.read(poem, worded).facts
    assert worded.tokens.piece(fact.ids[fact.position]) == "\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("f.jsonl", '{"prompt": 3}', "expected an object with a prompt"),
        ("f.jsonl", '{"prompt": "In"}', "an answer, or a list of intermediates"),
        ("f.jsonl", "{", "lines of JSON"),
        ("f.json", "[]", "JSON with items"),
        (
            "f.json",
            '{"items": [{"prompt": "In", "intermediates": ["qqq"]}]}',
            "no item has an answer",
        ),
    ],
)
def test_bad_facts_are_one_line(tmp_path, worded, name, content, message):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises((FormatError, PromptError), match=message) as error:
        reading.read(path, worded)
    assert "\n" not in str(error.value)
    with pytest.raises(PromptError, match="no facts at"):
        reading.read(tmp_path / "none.jsonl", worded)


def test_nothing_to_judge_on():
    with pytest.raises(PromptError, match="nothing to judge on"):
        judging.evaluate(tiny.gpt2(), ["logit"])


def test_parquet_holds_the_table_and_its_provenance(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    found = judging.evaluate(tiny.gpt2(), ["logit"], sequences=sequences())
    found.save(tmp_path / "e.parquet")
    table = pq.read_table(tmp_path / "e.parquet")
    assert table.column_names == found.columns
    assert table.column("kl").to_pylist() == [row["kl"] for row in found.rows]
    assert json.loads(table.schema.metadata[b"logitlens"])["tokens"] == 72


def test_the_table_in_words():
    found = judging.evaluate(
        tiny.gpt2(),
        ["logit"],
        facts=Facts("f", [Fact((1, 2), 1, ((3,),)), Fact((2, 2), 1, ((5,),))]),
        sequences=sequences(3),
    )
    rows = found.rows
    for row in rows:
        for name in row:
            if name not in ("lens", "layer"):
                row[name] = {"low": 0.25, "high": 0.75}.get(name.rpartition("_")[2], 0.5)
    head, *lines = view.text(rows[:2], found.meta).splitlines()
    names = ["KL", "next", "top-1", "top-10", "fact@1", "fact@5", "fact@10"]
    heads = [f"{name}, n = {3 if n < 4 else 2}" for n, name in enumerate(names)]
    assert re.split(r"  +", head) == ["lens", "layer", *heads]
    cells = ["0.500 [0.250, 0.750]"] * 2 + ["0.50 [0.25, 0.75]"] * 5
    assert lines[:2] == ["  ".join(["logit", label.ljust(5), *cells]) for label in ("embed", "0")]
    assert "any:" in view.text(rows, found.meta)
    drawing = view.figure(rows, title="Lenses of tiny")
    assert len(drawing.axes) == 7
    assert [line.get_label() for line in drawing.axes[0].lines] == ["logit"]
    assert [t.get_text() for t in drawing.axes[0].get_xticklabels()] == ["embed", "0", "1", "2"]
