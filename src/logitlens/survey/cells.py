"""The cells of a corpus: a row for each position × layer of a window, as `--keep cells` writes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from logitlens.model.score import Rows
from logitlens.select import layer_number
from logitlens.survey.documents import Window

CELLS = {  # the columns of a cell, which its document's conditions follow
    "document": "int64", "position": "int32", "seen": "int32", "token": "int32", "text": "string",
    "next": "int32", "lens": "string", "layer": "string", "block": "int32", "loss": "float32",
    "entropy": "float32", "kl": "float32", "rank": "int32", "agree": "bool", "top": "string",
    "top_ids": "list int32", "top_logprobs": "list float32",
}  # fmt: skip


def cell_columns(
    model: Any, lens: str, window: Window, rows: Rows, ids: Sequence[int]
) -> dict[str, Any]:
    """The counted positions of a window, a row for each position × layer; ids from `window.start` on."""
    arrays = rows.arrays
    L, P = arrays["finite"].shape
    position_P = np.arange(P) + window.offset + window.context
    inside_P = np.arange(P) + window.context
    next_P = [ids[i + 1] if window.start + i + 1 < window.end else None for i in inside_P.tolist()]
    blocks = [-1 if (b := layer_number(label)) is None else b for label in rows.layers]
    top_LP = arrays["top_ids"][..., 0]
    agree_LP = top_LP == top_LP[-1]
    tokens_P = [ids[i] for i in inside_P.tolist()]
    said = {-1: None} | {
        i: model.tokens.piece(i) for i in {*tokens_P, *top_LP.ravel().tolist()} if i >= 0
    }

    def each(values_P: Any) -> list[Any]:
        return np.repeat(np.asarray(values_P, dtype=object), L).tolist()

    def across(array_LP: np.ndarray) -> np.ndarray:
        return array_LP.swapaxes(0, 1).reshape(P * L, *array_LP.shape[2:])

    agree = across(agree_LP).astype(object)
    agree[~across(arrays["finite"] & arrays["finite"][-1])] = None
    number = {
        "loss": across(-arrays["target_logprobs"][..., 0]), "entropy": across(arrays["entropy"]),
        "kl": across(arrays["kl"]),
    }  # fmt: skip
    rank = across(arrays["target_ranks"][..., 0])
    return {
        "document": [window.document] * (P * L), "position": each(position_P),
        "seen": each(inside_P), "token": each(tokens_P), "text": each([said[i] for i in tokens_P]),
        "next": each(next_P), "lens": [lens] * (P * L), "layer": rows.layers * P,
        "block": blocks * P, **number, "rank": np.where(rank > 0, rank, np.nan),
        "agree": agree,
        "top": [said[i] for i in across(top_LP).tolist()],
        "top_ids": across(arrays["top_ids"]), "top_logprobs": across(arrays["top_logprobs"]),
    }  # fmt: skip
