"""One frame for several readings: columns by aligned tokens, rows by layer.

Tokens are aligned by their text (ids of two tokenizers do not compare); where prompts differ, the
differing stretches are put opposite each other. Layers are aligned by label where the models have
equally many blocks, else by their share of the way through the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any

from logitlens.reading import Reading
from logitlens.select import layer_number

ABSENT = -1


def frame(readings: Sequence[Reading]) -> dict[str, Any] | None:
    """{"layers": labels, "columns": [runs for each reading], "rows": [[row or -1] for each reading]}.

    A run is [first position or -1, length]. None where there is nothing to align: one reading.
    """
    if len(readings) < 2:
        return None
    places = columns([reading.pieces for reading in readings])
    labels, rows = layers([reading.layers for reading in readings])
    return {"layers": labels, "columns": [_runs(own) for own in places], "rows": rows}


def columns(pieces: Sequence[Sequence[str]]) -> list[list[int]]:
    """For each token list the position in every column, -1 where it has none there.

    Every list is aligned with the first; where it has tokens that the first lacks, a column is
    slotted in.
    """
    table: list[tuple[int, ...]] = [(i,) for i in range(len(pieces[0]))]
    for tokens in pieces[1:]:
        width = len(table[0])
        merged: list[tuple[int, ...]] = []
        at = 0
        for i, j in _pairs(pieces[0], tokens):
            if i == ABSENT:
                merged.append((ABSENT,) * width + (j,))
                continue
            while table[at][0] != i:  # columns that an earlier list brought
                merged.append((*table[at], ABSENT))
                at += 1
            merged.append((*table[at], j))
            at += 1
        merged += [(*row, ABSENT) for row in table[at:]]
        table = merged
    return [list(column) for column in zip(*table)]


def _pairs(a: Sequence[str], b: Sequence[str]) -> list[tuple[int, int]]:
    pairs: list[tuple[int, int]] = []
    for _, i0, i1, j0, j1 in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        for k in range(max(i1 - i0, j1 - j0)):
            pairs.append(
                (i0 + k if i0 + k < i1 else ABSENT, j0 + k if j0 + k < j1 else ABSENT),
            )
    return pairs


def vocabularies(readings: Sequence[Reading]) -> list[int]:
    """For each reading the number of its tokenizer: the same where the ids both name agree."""
    groups: list[dict[int, str]] = []
    out = []
    for reading in readings:
        for number, known in enumerate(groups):
            both = known.keys() & reading.vocab.keys()
            same = sum(known[i] == reading.vocab[i] for i in both)
            if same >= 0.95 * len(both) and both:
                known.update(reading.vocab)
                out.append(number)
                break
        else:
            groups.append(dict(reading.vocab))
            out.append(len(groups) - 1)
    return out


def order(label: str) -> float:
    """How many blocks a layer's state has been through: embed → 0, i → i + 1, i.mlp → i + ½."""
    block = layer_number(label)
    if block is None:
        return 0
    return block + (0.5 if "." in label else 1)


def layers(labels: Sequence[Sequence[str]]) -> tuple[list[str], list[list[int]]]:
    """(labels of the common rows, for each reading its row there or -1)."""
    deepest = max(order(own[-1]) for own in labels)
    union = {label for own in labels if order(own[-1]) == deepest for label in own}
    common = sorted(union, key=lambda label: (order(label), label))
    rows = []
    for own in labels:
        last = order(own[-1])
        if last == deepest:
            rows.append([own.index(label) if label in own else ABSENT for label in common])
            continue
        row = []
        for label in common:
            want = order(label) / max(deepest, 1) * last
            near = min(range(len(own)), key=lambda i: abs(order(own[i]) - want))
            row.append(near if abs(order(own[near]) - want) <= 0.5 else ABSENT)
        rows.append(row)
    return common, rows


def _runs(positions: Sequence[int]) -> list[list[int]]:
    runs: list[list[int]] = []
    for p in positions:
        if runs:
            start, length = runs[-1]
            if (p == ABSENT and start == ABSENT) or (start != ABSENT and p == start + length):
                runs[-1][1] += 1
                continue
        runs.append([p, 1])
    return runs
