"""The lenses that come with the bundled model: small, found by name, and better than the raw stream."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

import logitlens
from logitlens.fit import corpus, evaluate
from logitlens.lenses import find, resolve

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "demo_lenses"
HELD_OUT = ROOT / "recipes" / "demo_model" / "heldout_prose.jsonl"


@pytest.fixture(scope="module")
def model():
    return logitlens.load()


@pytest.mark.parametrize("kind", ["tuned", "jacobian"])
def test_found_by_name_and_whole(model, kind, tmp_path, monkeypatch):
    monkeypatch.setenv("LOGITLENS_HOME", str(tmp_path))  # nothing but the bundle
    lens = resolve(kind, model)
    assert Path(lens.path).parent == find.BUNDLED
    assert lens.depths() == set(range(model.n_blocks))
    reading = model.read("The Eiffel Tower is in the city of", lens=kind)
    assert len(reading.layers) == model.n_blocks + 1
    assert reading.meta["lens"]["name"] == kind
    assert (reading.kl[-1] == 0).all()


def test_both_fit_into_four_megabytes():
    assert sum(f.stat().st_size for f in find.BUNDLED.glob("*.safetensors")) <= 4_000_000


@pytest.mark.slow
def test_the_tuned_lens_is_nearer_the_end_at_every_depth(model):
    """On prose that neither the model nor the lens was trained on."""
    held = corpus.read(HELD_OUT, model)
    found = evaluate.evaluate(
        model, ["logit", "tuned", "jacobian"], sequences=held.chunks(128)[:24], bootstrap=0
    )
    logit, tuned = found.column("logit", "kl")[:-1], found.column("tuned", "kl")[:-1]
    assert all(ours < raw for ours, raw in zip(tuned, logit)), (logit, tuned)
    assert not any(math.isnan(kl) for kl in found.column("jacobian", "kl"))


def test_the_card_shows_the_figures_of_the_evaluation(model):
    figures = json.loads((RECIPE / "evaluation.json").read_text(encoding="utf-8"))
    for kind in ("tuned", "jacobian"):
        assert figures["meta"]["lenses"][kind]["hash"] == resolve(kind, model).hash
    card = (ROOT / "src" / "logitlens" / "demo" / "README.md").read_text(encoding="utf-8")
    for row in figures["rows"]:
        if row["lens"] == "tuned" and row["layer"] != "any":
            line = next(
                s
                for s in card.splitlines()
                if s.startswith(f"| {row['layer']} | ") and s.count("|") == 11
            )
            assert f" {row['kl']:.2f} " in line
            assert f" {row['fact1']:.3f} " in line
