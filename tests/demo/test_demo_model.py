"""The bundled model is what its card says: acceptance, asserted on the weights that ship.

Everything is computed with plain transformers, by the recipe's own evaluation, never by the package.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import card
import evaluate
import facts
import pytest

from logitlens import demo

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "demo_model"
SHIPPED = demo.path()
FIGURES = json.loads((RECIPE / "evaluation.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def bundled():
    return evaluate.load(SHIPPED)


def test_figures_are_those_of_the_shipped_weights():
    weights = (SHIPPED / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == FIGURES["model"]["weights_sha256"]
    assert len(weights) == FIGURES["model"]["weights_bytes"] <= 10_000_000


def test_architecture_is_gpt2_and_small(bundled):
    model, tokenizer = bundled
    assert type(model).__name__ == "GPT2LMHeadModel"
    assert 6 <= len(model.transformer.h) <= 8
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters == FIGURES["model"]["parameters"]
    assert 2_000_000 <= parameters <= 5_000_000
    assert model.transformer.ln_f.weight.shape == (model.config.n_embd,)
    assert model.lm_head.weight.shape == (len(tokenizer), model.config.n_embd)
    assert json.loads((SHIPPED / "config.json").read_text())["dtype"] == "float16"


def test_tokenizer_is_byte_level_and_loses_nothing(bundled):
    _, tokenizer = bundled
    assert len(tokenizer) == 4096
    assert tokenizer.bos_token == tokenizer.eos_token == "<|endoftext|>"
    for text in ("The Eiffel Tower is in the city of", "naïve Łódź 東京 👋\n\ttab", " x  y "):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert len(tokenizer(facts.EIFFEL_PROMPT).input_ids) <= 12
    for word in (" Paris", " Berlin", " London", " France", " Tokyo", " of", " the"):
        assert len(tokenizer(word).input_ids) == 1, word


def test_eiffel_answer_emerges_late(bundled):
    """Paris at the last depth, and not before the first third of the layers is over."""
    tops = evaluate.trace(*bundled, facts.EIFFEL_PROMPT)
    words = [word for word, _ in tops]
    assert words[-1] == " Paris"
    layers = len(words) - 1
    assert " Paris" not in [words[depth] for depth in range(layers // 3 + 1)]
    for (word, prob), (kept_word, kept) in zip(
        tops, FIGURES["eiffel"]["top_by_depth"], strict=True
    ):
        assert word == kept_word
        assert prob == pytest.approx(kept, abs=0.005)


@pytest.mark.slow
def test_held_out_wordings_are_answered(bundled):
    """One held-out prompt per fact, judged again; all of them are in the JSON."""
    lines = (RECIPE / "heldout_facts.jsonl").read_text(encoding="utf-8").splitlines()
    pairs = [(item["prompt"], item["answer"]) for item in map(json.loads, lines)]
    assert len(pairs) == FIGURES["held_out_file"]["n"] == len(facts.load_facts())
    marks = evaluate.answers_right(*bundled, pairs)
    share = sum(first for first, _ in marks) / len(marks)
    assert share >= 0.85
    assert share == pytest.approx(FIGURES["held_out_file"]["top1"], abs=0.003)
    assert FIGURES["held_out_facts"]["overall"]["top1"] >= 0.85


def test_perplexity_on_prose_it_never_read(bundled):
    lines = (RECIPE / "heldout_prose.jsonl").read_text(encoding="utf-8").splitlines()
    speech = [item["text"] for item in map(json.loads, lines) if item["domain"] == "speech"]
    found = evaluate.perplexity(*bundled, speech)
    assert found["tokens"] == FIGURES["held_out_prose"]["speech"]["tokens"] > 2000
    kept = FIGURES["held_out_prose"]["speech"]["nats_per_token"]
    assert found["nats_per_token"] == pytest.approx(kept, abs=0.01)


def test_the_card_holds_the_figures_as_its_recipe_writes_them():
    text = (SHIPPED.parent / "README.md").read_text(encoding="utf-8")
    assert card.figures_section(FIGURES) in text
    for word in ("WordNet", "CC BY 4.0", "Princeton", "Gutenberg", "Factbook"):
        assert word in text, word
