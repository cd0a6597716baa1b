"""A corpus's statistics → one row for each lens × layer × band of positions, and optionally every cell.

A position is the number of tokens before it that the model sees (its place in the window). Bands are
0, 1–3, 4–15, 16–63, … and all of them together. Of every band: how many tokens, and of

    loss      −log-probability of the token that really follows, nats       entropy   nats
    right     whether that token is on top                                  kl        KL(final ‖ layer), nats
    agree     whether the layer's top token is the final one

the sums by which `sketch.mean_and_error` gives a mean and its error; bins (`sketch.bins_of`) of loss,
rank, entropy and kl; how many positions settle at the layer; and for each threshold how many would exit
there if reading stopped at the first layer whose top token has at least that probability, with how many
of them agree with the final layer and how many are right.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from logitlens.model.score import Rows
from logitlens.select import layer_number
from logitlens.survey import sketch
from logitlens.survey.documents import Window

if TYPE_CHECKING:
    import pyarrow as pa

MEANS = ("loss", "right", "agree", "entropy", "kl")
SKETCHED = ("loss", "rank", "entropy", "kl")
OF_NEXT = ("loss", "right", "rank")  # of positions after which a token follows
THRESHOLDS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
KEYS = ("lens", "layer", "block", "band", "first", "last")


def edges(length: int) -> list[int]:
    """Where bands begin in windows of so many tokens: 0, 1, 4, 16, …"""
    out = [0, 1]
    while out[-1] * 4 < length:
        out.append(out[-1] * 4)
    return [edge for edge in out if edge < length]


class Bands:
    """What has been added up of one lens. D documents, L layers, B bands, E exits' thresholds."""

    def __init__(self, layers: list[str], length: int, documents: Sequence[int]):
        self.layers, self.length = layers, length
        self.edges = edges(length)
        self.place = {document: n for n, document in enumerate(documents)}
        L, B, D, E = len(layers), len(self.edges), len(documents), len(THRESHOLDS)
        self.sums = {m: np.zeros((D, L, B)) for m in MEANS}
        self.counts = {"tokens": np.zeros((D, L, B)), "next": np.zeros((D, L, B))}
        self.bins = {q: np.zeros((L, B, sketch.BINS), np.int64) for q in SKETCHED}
        self.settled_LB = np.zeros((L, B), np.int64)
        self.nonfinite_LB = np.zeros((L, B), np.int64)
        self.exits = {what: np.zeros((L, B, E), np.int64) for what in ("", "_agree", "_right")}

    def add(self, window: Window, arrays: dict[str, np.ndarray]) -> None:
        """The counted positions of a window; arrays as in `Rows`, of P positions."""
        top_LP = arrays["top_ids"][..., 0]
        P = top_LP.shape[1]
        band_P = np.searchsorted(self.edges, np.arange(P) + window.context, side="right") - 1
        starts = np.flatnonzero(np.diff(band_P, prepend=-1))
        bands = band_P[starts]
        good_LP = arrays["finite"] & arrays["finite"][-1]
        rank_LP = arrays["target_ranks"][..., 0]
        next_LP = good_LP & (rank_LP > 0)
        agree_LP, right_LP = top_LP == top_LP[-1], rank_LP == 1
        values = {
            "loss": -arrays["target_logprobs"][..., 0].astype(np.float64), "right": right_LP,
            "agree": agree_LP, "entropy": arrays["entropy"].astype(np.float64),
            "kl": arrays["kl"].astype(np.float64), "rank": rank_LP.astype(np.float64),
        }  # fmt: skip
        d = self.place[window.document]
        for name, there_LP in (("tokens", good_LP), ("next", next_LP)):
            self.counts[name][d][:, bands] += np.add.reduceat(there_LP.astype(float), starts, 1)
        self.nonfinite_LB[:, bands] += np.add.reduceat((~good_LP).astype(np.int64), starts, 1)
        row_LP = np.broadcast_to(np.arange(len(self.layers))[:, None], top_LP.shape)
        band_LP = np.broadcast_to(band_P, top_LP.shape)
        for name, value_LP in values.items():
            there_LP = next_LP if name in OF_NEXT else good_LP
            if name in MEANS:
                kept_LP = np.where(there_LP, value_LP, 0.0)
                self.sums[name][d][:, bands] += np.add.reduceat(kept_LP, starts, 1)
            if name in SKETCHED:
                bins = sketch.bins_of(value_LP[there_LP])
                np.add.at(self.bins[name], (row_LP[there_LP], band_LP[there_LP], bins), 1)
        whole_P = good_LP.all(0)
        self._leave(
            agree_LP,
            right_LP,
            arrays["top_logprobs"][..., 0],
            band_P,
            np.flatnonzero(whole_P),
            next_LP,
        )

    def _leave(
        self,
        agree_LP: np.ndarray,
        right_LP: np.ndarray,
        sure_LP: np.ndarray,
        band_P: np.ndarray,
        whole: np.ndarray,
        next_LP: np.ndarray,
    ) -> None:
        """Where positions settle, and where they would exit; of those that are finite everywhere."""
        L, bands = len(agree_LP), band_P[whole]
        run_P = np.cumprod(agree_LP[::-1, whole], axis=0).sum(0)
        np.add.at(self.settled_LB, (L - run_P, bands), 1)
        for e, threshold in enumerate(THRESHOLDS):
            sure = sure_LP[:, whole] >= np.log(threshold)
            sure[-1] = True
            layer_P = sure.argmax(0)
            np.add.at(self.exits[""][..., e], (layer_P, bands), 1)
            np.add.at(self.exits["_agree"][..., e], (layer_P, bands), agree_LP[layer_P, whole])
            right = right_LP[layer_P, whole] & next_LP[layer_P, whole]
            np.add.at(self.exits["_right"][..., e], (layer_P, bands), right)

    def columns(self, lens: str) -> dict[str, list[Any]]:
        """A row for each layer × band, "all" first."""
        out: dict[str, list[Any]] = {}
        for b in range(-1, len(self.edges)):
            some = slice(None) if b < 0 else slice(b, b + 1)
            first = self.edges[max(b, 0)]
            last = (self.edges[b + 1] if b + 1 < len(self.edges) and b >= 0 else self.length) - 1
            for row, layer in enumerate(self.layers):
                number = layer_number(layer)
                values: dict[str, Any] = {
                    "lens": lens, "layer": layer, "block": -1 if number is None else number,
                    "band": "all" if b < 0 else f"{first}–{last}" if last > first else f"{first}",
                    "first": first, "last": last,
                }  # fmt: skip
                values |= self._numbers(row, some)
                for name, value in values.items():
                    out.setdefault(name, []).append(value)
        return out

    def _numbers(self, row: int, some: slice) -> dict[str, Any]:
        n = {name: count_DLB[:, row, some].sum(-1) for name, count_DLB in self.counts.items()}
        out: dict[str, Any] = {
            "documents": int((n["tokens"] > 0).sum()),
            "nonfinite": int(self.nonfinite_LB[row, some].sum()),
        }
        for name, count_D in n.items():
            out |= {name: int(count_D.sum()), f"{name}_squares": float((count_D**2).sum())}
        for name, sum_DLB in self.sums.items():
            sum_D, count_D = (
                sum_DLB[:, row, some].sum(-1),
                n["next" if name in OF_NEXT else "tokens"],
            )
            out |= {
                f"{name}_sum": float(sum_D.sum()), f"{name}_squares": float((sum_D**2).sum()),
                f"{name}_cross": float((sum_D * count_D).sum()),
            }  # fmt: skip
        for name, counts in self.bins.items():
            out[f"{name}_bins"] = np.trim_zeros(counts[row, some].sum(0), "b").tolist()
        out["settled"] = int(self.settled_LB[row, some].sum())
        for what, counts in self.exits.items():
            out[f"exits{what}"] = counts[row, some].sum(0).tolist()
        return out


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

    missing = ~across(arrays["finite"])
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
        "agree": np.where(missing, False, across(agree_LP)),
        "top": [said[i] for i in across(top_LP).tolist()],
        "top_ids": across(arrays["top_ids"]), "top_logprobs": across(arrays["top_logprobs"]),
    }  # fmt: skip


def merged(tables: Iterable[pa.Table]) -> pa.Table:
    """Parts added up in their order, with means, errors and quantiles of the whole."""
    import pyarrow as pa

    columns: dict[str, list[Any]] = {}
    for table in tables:
        for name, values in table.to_pydict().items():
            if name not in columns or name in KEYS:
                columns[name] = values
            else:
                columns[name] = [_plus(a, b) for a, b in zip(columns[name], values, strict=True)]
    whole = {name: columns[name] for name in columns}
    for name in MEANS:
        counted = "next" if name in OF_NEXT else "tokens"
        said = [f"{name}_sum", f"{name}_squares", f"{name}_cross", counted, f"{counted}_squares"]
        mean, error = sketch.mean_and_error(*(np.array(columns[c], np.float64) for c in said))
        whole |= {name: mean.tolist(), f"{name}_error": error.tolist()}
    for name in SKETCHED:
        for word, share in sketch.QUANTILES.items():
            whole[f"{name}_{word}"] = [
                sketch.quantile(np.array(counts, np.int64), share)
                for counts in columns[f"{name}_bins"]
            ]
    return pa.table(whole, schema=schema(list(whole)))


def _plus(a: Any, b: Any) -> Any:
    if not isinstance(a, list):
        return a + b
    long, short = (a, b) if len(a) >= len(b) else (b, a)
    return [x + (short[i] if i < len(short) else 0) for i, x in enumerate(long)]


def schema(names: Sequence[str]) -> pa.Schema:
    """The types of a corpus's table."""
    import pyarrow as pa

    def kind(name: str) -> pa.DataType:
        if name in ("lens", "layer", "band"):
            return pa.string()
        if name in ("block", "first", "last"):
            return pa.int32()
        if name.endswith("_bins") or name.startswith("exits"):
            return pa.list_(pa.int64())
        whole = name in ("documents", "nonfinite", "tokens", "next", "settled")
        return pa.int64() if whole else pa.float64()

    return pa.schema([(name, kind(name)) for name in names])
