"""Turn prose and facts into token arrays that `train.py` samples rows from.

One ``corpus.npz``: every wording of every fact as tokens, three times (at the start of a document,
after a space, and after a space in lower case, following an opening), the openings, and one token
stream per prose domain with the offsets where paragraphs start.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from facts import Fact, capitalised, load_facts, load_templates, openings, sentences
from tokenizers import Tokenizer
from train_tokenizer import END

KINDS = ("clause", "question", "also")
JOIN = {"book": "\n\n", "speech": "\n\n", "wordnet": "\n", "factbook": END}


def _flat(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    return np.concatenate([np.asarray(row, dtype=np.uint16) for row in rows]), offsets


def _encode(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    found: list[list[int]] = []
    for start in range(0, len(texts), 20_000):
        found += [e.ids for e in tokenizer.encode_batch_fast(texts[start : start + 20_000])]
    return found


def fact_weights(relations: list[str]) -> np.ndarray:
    """How often each fact is drawn: small relations, and landmarks, more often than their number."""
    count = {name: relations.count(name) for name in set(relations)}
    weights = np.array(
        [3.0 if count[r] < 40 else 1.5 if r == "landmark_city" else 1.0 for r in relations]
    )
    return weights / weights.sum()


def build(
    prose: dict[str, list[list[str]]],
    tokenizer: Tokenizer,
    out: Path,
    facts: list[Fact] | None = None,
) -> dict[str, int]:
    """Write the arrays to ``out`` and return how many tokens of each kind they hold."""
    templates, facts = load_templates(), facts or load_facts()
    texts: list[str] = []
    spans: list[tuple[int, int]] = []  # per fact and kind: first and last sentence
    for fact in facts:
        told = sentences(fact, templates)
        for kind in KINDS:
            start = len(texts)
            texts += [text for k, text in told if k == kind]
            spans.append((start, len(texts)))
    arrays: dict[str, np.ndarray] = {
        "fact_spans": np.array(spans, dtype=np.int64).reshape(len(facts), len(KINDS), 2),
        "fact_weights": fact_weights([fact.relation for fact in facts]),
    }
    answers = _encode(tokenizer, [" " + fact.answer for fact in facts])
    arrays["answer_lengths"] = np.array([len(ids) for ids in answers])
    before = openings(templates, "train")
    forms = {
        "first": [capitalised(text) for text in texts],
        "later": [" " + capitalised(text) for text in texts],
        "inner": [" " + text for text in texts],
        "open_first": [capitalised(text) for text in before],
        "open_later": [" " + capitalised(text) for text in before],
    }
    for form, told in forms.items():
        arrays[f"{form}_ids"], arrays[f"{form}_offsets"] = _flat(_encode(tokenizer, told))
    arrays["full_stop"] = np.array(tokenizer.encode("He is.").ids[-1])
    end = tokenizer.token_to_id(END)
    for domain, documents in prose.items():
        join = [end] if JOIN[domain] == END else tokenizer.encode(JOIN[domain]).ids
        rows: list[list[int]] = []
        for document in documents:
            encoded = _encode(tokenizer, document)
            rows += [ids + join for ids in encoded[:-1]] + [encoded[-1] + [end]]
        arrays[f"{domain}_ids"], offsets = _flat(rows)
        arrays[f"{domain}_starts"] = offsets[:-1]
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(out, **arrays)
    return {name: len(a) for name, a in arrays.items() if name.endswith("_ids")} | {
        "facts": len(facts),
        "sentences": len(texts),
    }
