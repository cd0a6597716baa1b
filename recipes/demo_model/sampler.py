"""Draw training rows: facts and prose, mixed, every row starting where a document starts.

A row is never the middle of a packed stream, so a bare prompt at position 0, with no end-of-text
before it, is what the model has seen most.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

DOMAIN_SHARE = {"book": 0.48, "wordnet": 0.25, "factbook": 0.14, "speech": 0.13}
KIND_SHARE = np.array([0.34, 0.34, 0.22, 0.10])  # clause, clause after an opening, question, also
AFTER_PROSE = 0.15  # of the fact documents begin with a sentence of prose
ONLY_FACTS, ONLY_PROSE = 0.40, 0.15  # of the rows; the rest begin with facts and end in prose
ANSWER_WEIGHT = 4.0  # of an answer's tokens in the loss; every other token counts once
ALONE = 0.6  # of the fact documents are one sentence, the others two to five


class Sampler:
    """``rows(n, length)`` → (n, length) int64 tokens and (n, length) float32 loss weights."""

    def __init__(self, corpus: Path, end: int, seed: int) -> None:
        loaded = np.load(corpus)
        self.arrays = {name: loaded[name] for name in loaded.files}
        self.end = end
        self.random = np.random.default_rng(seed)
        self.cumulative = np.cumsum(self.arrays["fact_weights"])
        self.domains = list(DOMAIN_SHARE)
        self.fact_tokens = self.tokens = 0

    def _sentence(self, first: bool) -> tuple[np.ndarray, np.ndarray]:
        fact = min(np.searchsorted(self.cumulative, self.random.random()), len(self.cumulative) - 1)
        drawn = self.random.choice(len(KIND_SHARE), p=KIND_SHARE)
        kind = max(drawn - 1, 0)
        start, stop = self.arrays["fact_spans"][fact, kind]
        if start == stop:
            kind = 0
            start, stop = self.arrays["fact_spans"][fact, kind]
        which = self.random.integers(start, stop)
        opened = drawn == 1
        form = "inner" if opened else "first" if first else "later"
        ids = self._told(form, which)
        weights = np.ones(len(ids), dtype=np.float32)
        if kind < 2:  # all but "also" end in the answer and one mark
            weights[-1 - self.arrays["answer_lengths"][fact] : -1] = ANSWER_WEIGHT
        if opened:
            form = "open_first" if first else "open_later"
            opening = self._told(
                form, self.random.integers(len(self.arrays["open_first_offsets"]) - 1)
            )
            ids = np.concatenate([opening, ids])
            weights = np.concatenate([np.ones(len(opening), dtype=np.float32), weights])
        return ids, weights

    def _told(self, form: str, which: int) -> np.ndarray:
        begin, finish = self.arrays[f"{form}_offsets"][which : which + 2]
        return self.arrays[f"{form}_ids"][begin:finish]

    def _snippet(self) -> np.ndarray:
        """One to a few sentences of prose, at most 40 tokens; empty where none ends in time."""
        ids, _ = self._prose(40)
        stops = np.flatnonzero(ids == self.arrays["full_stop"])
        ids = ids[: stops[-1] + 1] if len(stops) else ids[:0]
        return ids if self.end not in ids else ids[:0]

    def _facts(self, length: int) -> list[tuple[np.ndarray, np.ndarray]]:
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        size = 0
        while size < length:
            count = 1 if self.random.random() < ALONE else self.random.integers(2, 6)
            prose = (
                self._snippet()
                if self.random.random() < AFTER_PROSE
                else self._told("first", 0)[:0]
            )
            document = [self._sentence(first=i == 0 and not len(prose)) for i in range(count)]
            document.insert(0, (prose, np.ones(len(prose), dtype=np.float32)))
            document.append((np.array([self.end], dtype=np.uint16), np.ones(1, dtype=np.float32)))
            parts += document
            size += sum(len(ids) for ids, _ in document)
        self.fact_tokens += min(size, length)
        return parts

    def _prose(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        domain = self.random.choice(self.domains, p=list(DOMAIN_SHARE.values()))
        starts, ids = self.arrays[f"{domain}_starts"], self.arrays[f"{domain}_ids"]
        start = starts[self.random.integers(len(starts))]
        found = ids[start : start + length]
        return found, np.ones(len(found), dtype=np.float32)

    def row(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        draw = self.random.random()
        if draw < ONLY_FACTS:
            facts = length
        elif draw < ONLY_FACTS + ONLY_PROSE:
            facts = 0
        else:
            facts = int(self.random.integers(1, length))
        parts = self._facts(facts) if facts else []
        size = sum(len(ids) for ids, _ in parts)
        while size < length:
            parts.append(self._prose(length - size))
            size += len(parts[-1][0])
        self.tokens += length
        ids = np.concatenate([ids for ids, _ in parts])[:length].astype(np.int64)
        return ids, np.concatenate([weights for _, weights in parts])[:length]

    def rows(self, n: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        drawn = [self.row(length) for _ in range(n)]
        return np.stack([ids for ids, _ in drawn]), np.stack([weights for _, weights in drawn])
