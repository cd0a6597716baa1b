"""A corpus's statistics → one row for each lens × layer × band of positions.

A position is the number of tokens before it that the model sees (its place in the window). Bands are
0, 1–3, 4–15, 16–63, … and all of them together. Of every band: how many tokens, and of

    loss      −log-probability of the token that really follows, nats       entropy   nats
    right     whether that token is on top                                  kl        KL(final ‖ layer), nats
    agree     whether the layer's top token is the final one

the sums by which `sketch.mean_and_error` gives a mean and its error; bins (`sketch.bins_of`) of loss,
rank, entropy and kl, and by documents what gives the error of a share of them (`sketch.ByDocument`); how
many positions settle at the layer, with such sums; and for each threshold how many would exit there if
reading stopped at the first layer whose top token has at least that probability: all, those that agree with
the final layer, those after which a token follows, and those that are right.

Of all layers together, and so the same in each of their rows, are the means over those positions of a band
that are finite at every layer, with their sums by document:

    settled_layer    where positions settle (embed −1)
    exit_layer, exit_agree, exit_right    for each threshold where they would exit, how many of these agree,
                                          and how many are right of those after which a token follows
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from logitlens.select import layer_number
from logitlens.survey import sketch
from logitlens.survey.documents import Window

if TYPE_CHECKING:
    import pyarrow as pa

MEANS = ("loss", "right", "agree", "entropy", "kl")
SKETCHED = ("loss", "rank", "entropy", "kl")
OF_NEXT = ("loss", "right", "rank")  # of positions after which a token follows
THRESHOLDS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
EXITS = ("", "_agree", "_next", "_right")
LEFT = ("settled_layer", "exit_layer", "exit_agree", "exit_right")  # lists of E numbers, or of one
KEYS = ("lens", "layer", "block", "band", "first", "last")


def units_of(measure: str) -> str:
    """The column that counts the documents behind a mean."""
    if measure in LEFT:
        return f"{_counted_by(measure)}_documents"
    return "next_documents" if measure in OF_NEXT else "documents"


def _counted_by(measure: str) -> str:
    """Of LEFT, the column that counts the positions."""
    return "whole_next" if measure == "exit_right" else "whole"


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
        self.read: list[tuple[np.ndarray, dict[str, np.ndarray]]] = []
        self.settled_DLB = np.zeros((D, L, B), np.int64)
        self.nonfinite_LB = np.zeros((L, B), np.int64)
        self.exits = {what: np.zeros((L, B, E), np.int64) for what in EXITS}
        numbers = [layer_number(layer) for layer in layers]
        self.number_L = np.array([-1 if number is None else number for number in numbers])
        self.left = {
            name: np.zeros((D, B, 1 if name == "settled_layer" else E), np.int64) for name in LEFT
        }
        self.whole = {name: np.zeros((D, B), np.int64) for name in ("whole", "whole_next")}

    def add(self, read: Sequence[tuple[Window, dict[str, np.ndarray]]]) -> None:
        """The counted positions of some windows, N together; arrays as in `Rows`."""
        top_LN, rank_LN, logprob_LN, sure_LN = (
            np.concatenate([arrays[name][..., 0] for _, arrays in read], 1)
            for name in ("top_ids", "target_ranks", "target_logprobs", "top_logprobs")
        )
        finite_LN, entropy_LN, kl_LN = (
            np.concatenate([arrays[name] for _, arrays in read], 1)
            for name in ("finite", "entropy", "kl")
        )
        band_N, starts_S, document_S = self._runs(read)
        document_N = np.repeat(document_S, np.diff(starts_S, append=len(band_N)))
        good_LN = finite_LN & finite_LN[-1]
        next_LN = good_LN & (rank_LN > 0)
        agree_LN, right_LN = top_LN == top_LN[-1], rank_LN == 1

        def add(sums_DLB: np.ndarray, values_LN: np.ndarray) -> None:
            sums_LS = np.add.reduceat(values_LN.astype(float), starts_S, 1)
            places: Any = (document_S, slice(None), band_N[starts_S])
            np.add.at(sums_DLB, places, sums_LS.T)

        add(self.counts["tokens"], good_LN)
        add(self.counts["next"], next_LN)
        values = {
            "loss": -logprob_LN, "right": right_LN, "agree": agree_LN, "entropy": entropy_LN,
            "kl": kl_LN, "rank": rank_LN,
        }  # fmt: skip
        found: dict[str, np.ndarray] = {}
        cell_LN = np.arange(len(self.layers))[:, None] * len(self.edges) + band_N
        self.nonfinite_LB += _counted(self.nonfinite_LB, cell_LN[~good_LN])
        for name, value_LN in values.items():
            there_LN = next_LN if name in OF_NEXT else good_LN
            if name in MEANS:
                add(self.sums[name], np.where(there_LN, value_LN, 0.0))
            if name in SKETCHED:
                bins = sketch.bins_of(value_LN[there_LN].astype(np.float64))
                places = cell_LN[there_LN] * sketch.BINS + bins
                self.bins[name] += _counted(self.bins[name], places)
                found[name] = np.full(there_LN.shape, -1, np.int16)
                found[name][there_LN] = bins
        self.read.append((document_N * len(self.edges) + band_N, found))
        whole_N = good_LN.all(0)
        self._leave(
            agree_LN[:, whole_N], right_LN[:, whole_N], next_LN[-1, whole_N], sure_LN[:, whole_N],
            band_N[whole_N], document_N[whole_N],
        )  # fmt: skip

    def _runs(
        self, read: Sequence[tuple[Window, dict[str, np.ndarray]]]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The band of every position (N,); where runs of one window and band start, whose documents."""
        bands, starts, documents, before = [], [], [], 0
        for window, arrays in read:
            P = arrays["finite"].shape[1]
            band_P = np.searchsorted(self.edges, np.arange(P) + window.context, side="right") - 1
            own = np.flatnonzero(np.diff(band_P, prepend=-1))
            bands.append(band_P)
            starts.append(own + before)
            documents.append(np.full(len(own), self.place[window.document]))
            before += P
        return np.concatenate(bands), np.concatenate(starts), np.concatenate(documents)

    def _leave(
        self,
        agree_LN: np.ndarray,
        right_LN: np.ndarray,
        next_N: np.ndarray,
        sure_LN: np.ndarray,
        band_N: np.ndarray,
        document_N: np.ndarray,
    ) -> None:
        """Where positions settle, and where they would exit; of those that are finite everywhere."""
        (L, N), B = agree_LN.shape, len(self.edges)

        def add(sums_DB: np.ndarray, values_N: np.ndarray | int) -> None:
            np.add.at(sums_DB, (document_N, band_N), values_N)

        run_N = np.cumprod(agree_LN[::-1], axis=0).sum(0)
        np.add.at(self.settled_DLB, (document_N, L - run_N, band_N), 1)
        add(self.whole["whole"], 1)
        add(self.whole["whole_next"], next_N.astype(int))
        add(self.left["settled_layer"][..., 0], self.number_L[L - run_N])
        for e, threshold in enumerate(THRESHOLDS):
            sure = sure_LN >= np.log(threshold)
            sure[-1] = True
            layer_N = sure.argmax(0)
            cell_N, at = layer_N * B + band_N, (layer_N, np.arange(N))
            add(self.left["exit_layer"][..., e], self.number_L[layer_N])
            add(self.left["exit_agree"][..., e], agree_LN[at].astype(int))
            add(self.left["exit_right"][..., e], (next_N & right_LN[at]).astype(int))
            those = (slice(None), agree_LN[at], next_N, next_N & right_LN[at])
            for what, those_N in zip(EXITS, those):
                exits_LB = self.exits[what][..., e]
                exits_LB += _counted(exits_LB, cell_N[those_N])

    def columns(self, lens: str) -> dict[str, list[Any]]:
        """A row for each layer × band, "all" first."""
        out: dict[str, list[Any]] = {}
        moments = self._moments()
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
                for name, each_LBK in moments.items():
                    values[name] = np.trim_zeros(each_LBK[row, b + 1], "b").tolist()
                for name, value in values.items():
                    out.setdefault(name, []).append(value)
        return out

    def _moments(self) -> dict[str, np.ndarray]:
        """Of SKETCHED what `sketch.ByDocument` gives, (L, 1 + B, BINS): of all positions, then of each band."""
        unit_N = np.concatenate([unit_n for unit_n, _ in self.read])
        L, B, out = len(self.layers), len(self.edges), dict[str, np.ndarray]()
        there_N, units = np.zeros(0, bool), []  # of one layer mostly those of the one before
        for name in SKETCHED:
            bins_LN = np.concatenate([found[name] for _, found in self.read], 1)
            both = np.zeros((2, L, 1 + B, sketch.BINS), np.int64)
            for row, bins_N in enumerate(bins_LN):
                if not np.array_equal(there_N, bins_N >= 0):
                    there_N = bins_N >= 0
                    unit_n = unit_N[there_N]
                    units = [sketch.ByDocument(unit_n // B, 1), sketch.ByDocument(unit_n, B)]
                sums = [each.sums(bins_N[there_N]) for each in units]
                both[:, row] = np.concatenate(sums, 1)
            out |= {f"{name}_bins_squares": both[0], f"{name}_bins_cross": both[1]}
        return out

    def _numbers(self, row: int, some: slice) -> dict[str, Any]:
        n = {name: count_DLB[:, row, some].sum(-1) for name, count_DLB in self.counts.items()}
        out: dict[str, Any] = {
            "documents": int((n["tokens"] > 0).sum()),
            "next_documents": int((n["next"] > 0).sum()),
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
        settled_D, whole_D = (
            each_DB[:, some].sum(-1) for each_DB in (self.settled_DLB[:, row], self.whole["whole"])
        )
        out |= {
            "settled": int(settled_D.sum()), "settled_squares": float((settled_D**2).sum()),
            "settled_cross": float((settled_D * whole_D).sum()),
        }  # fmt: skip
        for what, counts in self.exits.items():
            out[f"exits{what}"] = counts[row, some].sum(0).tolist()
        return out | self._left(some)

    def _left(self, some: slice) -> dict[str, Any]:
        """The sums of LEFT."""
        n = {name: count_DB[:, some].sum(-1) for name, count_DB in self.whole.items()}
        out: dict[str, Any] = {}
        for name, count_D in n.items():
            out |= {
                name: int(count_D.sum()), f"{name}_squares": float((count_D**2).sum()),
                f"{name}_documents": int((count_D > 0).sum()),
            }  # fmt: skip
        for name, sum_DBE in self.left.items():
            sum_DE, count_D1 = sum_DBE[:, some].sum(1), n[_counted_by(name)][:, None]
            out |= {
                f"{name}_sum": sum_DE.sum(0).tolist(), f"{name}_squares": (sum_DE**2).sum(0).tolist(),
                f"{name}_cross": (sum_DE * count_D1).sum(0).tolist(),
            }  # fmt: skip
        return out


def _counted(like: np.ndarray, places: np.ndarray) -> np.ndarray:
    """How often each place of a flattened array occurs, in its shape."""
    return np.bincount(places, minlength=like.size).reshape(like.shape)


def merged(tables: Iterable[pa.Table]) -> pa.Table:
    """Parts added up in their order, with means, errors and quantiles of the whole."""
    import pyarrow as pa

    columns: dict[str, Any] = {}
    for table in tables:
        for name in table.column_names:
            if "_bins" in name:
                _add_lists(columns.setdefault(name, np.zeros((len(table), sketch.BINS), np.int64)),
                           table[name].combine_chunks())  # fmt: skip
                continue
            values = table[name].to_pylist()
            if name not in columns or name in KEYS:
                columns[name] = values
            else:
                columns[name] = [_plus(a, b) for a, b in zip(columns[name], values, strict=True)]
    whole: dict[str, Any] = {
        name: [np.trim_zeros(row, "b").tolist() for row in values] if "_bins" in name else values
        for name, values in columns.items()
    }
    whole |= _means(columns)
    for name in SKETCHED:
        sums = [columns[f"{name}_bins{of}"] for of in ("", "_squares", "_cross")]
        for word, share in sketch.QUANTILES.items():
            each = [
                (sketch.quantile(n_K, share), *sketch.quantile_ends(n_K, c2_K, cn_K, D, share))
                for n_K, c2_K, cn_K, D in zip(*sums, columns[units_of(name)], strict=True)
            ]
            for column, values in zip(("", "_low", "_high"), zip(*each)):
                whole[f"{name}_{word}{column}"] = list(values)
    return pa.table(whole, schema=schema(list(whole)))


def _means(columns: dict[str, Any]) -> dict[str, list[Any]]:
    """Means and their standard errors, and that of the share of positions that settle at each layer."""

    def number(name: str) -> np.ndarray:
        return np.array(columns[name], np.float64)

    def of(name: str, total: str, counted: str, documents: str) -> tuple[np.ndarray, np.ndarray]:
        return sketch.mean_and_error(
            number(total).T, number(f"{name}_squares").T, number(f"{name}_cross").T,
            number(counted), number(f"{counted}_squares"), number(documents),
        )  # fmt: skip

    out: dict[str, list[Any]] = {}
    for name in (*MEANS, *LEFT):
        counted = _counted_by(name) if name in LEFT else "next" if name in OF_NEXT else "tokens"
        mean, error = of(name, f"{name}_sum", counted, units_of(name))
        out |= {name: mean.T.tolist(), f"{name}_error": error.T.tolist()}
    out["settled_error"] = of("settled", "settled", "whole", "whole_documents")[1].tolist()
    return out


def _add_lists(sums_RK: np.ndarray, lists: pa.ListArray) -> None:
    """Lists of whole numbers, a row each, whose last zeros are left out."""
    ends, values = lists.offsets.to_numpy().tolist(), lists.values.to_numpy()
    for row, (start, stop) in enumerate(itertools.pairwise(ends)):
        sums_RK[row, : stop - start] += values[start:stop]


def _plus(a: Any, b: Any) -> Any:
    return [x + y for x, y in zip(a, b, strict=True)] if isinstance(a, list) else a + b


def schema(names: Sequence[str]) -> pa.Schema:
    """The types of a corpus's table."""
    import pyarrow as pa

    def kind(name: str) -> pa.DataType:
        if name in ("lens", "layer", "band"):
            return pa.string()
        if name in ("block", "first", "last"):
            return pa.int32()
        if name.startswith(LEFT):
            mean = name.removesuffix("_error") in LEFT
            return pa.list_(pa.float64() if mean else pa.int64())
        if "_bins" in name or name.startswith("exits"):
            return pa.list_(pa.int64())
        whole = name in (
            "documents", "next_documents", "nonfinite", "tokens", "next", "settled", "whole", "whole_next",
            "whole_documents", "whole_next_documents",
        )  # fmt: skip
        return pa.int64() if whole else pa.float64()

    return pa.schema([(name, kind(name)) for name in names])
