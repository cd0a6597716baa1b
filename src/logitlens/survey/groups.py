"""The prompts of one group as arrays: their curves over layers, where things happen, and the differences of
two groups.

N prompts, L layers, M moments (see `Group.moments`), S shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from logitlens.errors import FormatError, SettingError
from logitlens.survey.bootstrap import interval, paired_shares, quantiles, wilson
from logitlens.survey.curves import QUANTILES, RANKS, SETTLED, Curve, Histogram, ordered

if TYPE_CHECKING:
    import pandas

SHARES = ("correct", *(f"top{k}" for k in RANKS), "agree")
QUANTILED = ("logprob", "first_logprob", "rank", "margin", "kl", "entropy")


@dataclass(frozen=True)
class Group:
    """Of one survey, lens and group, which `key` names.

    values   measure → (N, L), nan where it is missing      units   (N,): prompts that belong together
    """

    key: tuple[str, str, str]
    layers: list[str]
    values: dict[str, np.ndarray]
    rank_NL: np.ndarray
    units: np.ndarray
    ids: list[str]

    def moments(self) -> dict[str, np.ndarray]:
        """What happens at some layer → the row of that layer for each prompt (N,): L where it never does,
        −1 where it cannot, as there is no answer."""
        L = len(self.layers)
        run_N = np.cumprod(self.values["agree"][:, ::-1] == 1, axis=1).sum(1).astype(int)
        out = {SETTLED: np.where(run_N > 0, L - run_N, L)}
        for k in RANKS if "top1" in self.values else ():
            hits_NL = self.values[f"top{k}"] == 1
            row_N = np.where(hits_NL.any(1), hits_NL.argmax(1), L)
            absent_N = np.isnan(self.values[f"top{k}"]).all(1)
            place = f"at rank ≤ {k}" if k > 1 else "on top"
            out[f"first layer with the answer {place}"] = np.where(absent_N, -1, row_N)
        return out

    def numbers(self) -> np.ndarray:
        """(N, M) for each of `moments` the layer's number, embed being −1; nan where there is none."""
        number_L = [-1.0 if layer == "embed" else float(layer) for layer in self.layers]
        number_R = np.array([*number_L, np.nan, np.nan])  # never, and what cannot
        return np.stack([number_R[row_N] for row_N in self.moments().values()], 1)

    def curves(self, seed: int, draws: int) -> list[Curve]:
        """The mean of every measure."""
        out = []
        for measure, values_NL in self.values.items():
            if measure in SHARES:
                mean_L, low_L, high_L = wilson(values_NL, self.units)
            else:
                mean_L, low_L, high_L = interval(values_NL, self.units, seed, draws)
            if measure == "agree":  # the final layer agrees with itself, whatever the prompts
                low_L[-1] = high_L[-1]
            n = _having(values_NL)
            out.append(Curve(*self.key, measure, self.layers, mean_L, low_L, high_L, n))
        return out

    def quantiles(self, seed: int, draws: int) -> list[Curve]:
        """QUANTILES of those measures that have them."""
        out = []
        for measure in QUANTILED:
            values_NL = self.rank_NL if measure == "rank" else self.values.get(measure)
            if values_NL is not None and not np.isnan(values_NL).all():
                key = (*self.key, measure)
                out += _quantiles(key, self.layers, values_NL, self.units, seed, draws)
        return out

    def histograms(self, seed: int, draws: int) -> list[Histogram]:
        """Where it happens at how many prompts, and the mean and quantiles of these layers."""
        numbers_NM, L = self.numbers(), len(self.layers)
        mean_3M = np.stack(interval(numbers_NM, self.units, seed, draws))
        several_S3M = quantiles(numbers_NM, self.units, QUANTILES, seed, draws)
        out = []
        for m, (what, row_N) in enumerate(self.moments().items()):
            spread = {"mean": tuple(mean_3M[:, m].tolist())}
            spread |= {f"{s:.0%}": tuple(x[:, m].tolist()) for s, x in zip(QUANTILES, several_S3M)}
            counts = np.bincount(row_N[row_N >= 0], minlength=L + 1)
            there_N1 = row_N[:, None] >= 0
            _, low, high = wilson(
                np.where(there_N1, row_N[:, None] == np.arange(L + 1), np.nan), self.units
            )
            if what == SETTLED:  # the final layer agrees with itself, whatever the prompts
                low[-1] = high[-1] = np.nan
            out.append(Histogram(*self.key, what, self.layers, counts, low, high, spread))
        return out


def _quantiles(
    key: tuple[str, str, str, str],
    layers: list[str],
    values_NL: np.ndarray,
    units_N: np.ndarray,
    seed: int,
    draws: int,
) -> list[Curve]:
    """A curve for each of QUANTILES."""
    several_S3L = quantiles(values_NL, units_N, QUANTILES, seed, draws)
    n = _having(values_NL)
    return [
        Curve(*key, layers, value_L, low_L, high_L, n, share)
        for share, (value_L, low_L, high_L) in zip(QUANTILES, several_S3L)
    ]


def _having(values_NL: np.ndarray) -> int:
    """How many prompts have a value at any layer."""
    return int((~np.isnan(values_NL)).any(1).sum())


def group(key: tuple[str, str, str], rows: pandas.DataFrame) -> Group:
    """The rows of a table by one lens."""
    blocks = sorted(set(rows["block"]))
    layers = ["embed" if b < 0 else str(b) for b in blocks]
    rows = rows.sort_values(["prompt_index", "block"], kind="stable")
    L = len(blocks)
    values: dict[str, np.ndarray] = {}
    for name in ("logprob", "first_logprob", "margin", "kl", "entropy", "correct", "agree"):
        values[name] = rows[name].astype("float64").to_numpy().reshape(-1, L)
    rank_NL = rows["rank"].astype("float64").to_numpy().reshape(-1, L)
    for k in RANKS:
        values[f"top{k}"] = np.where(np.isnan(rank_NL), np.nan, rank_NL <= k)
    for name in sets(rows):
        logprob_NL = rows[f"set_{name}"].astype("float64").to_numpy().reshape(-1, L)
        values[f"P({name})"] = np.exp(logprob_NL)
    ids = rows["id"].to_numpy()[::L].tolist()
    units = np.unique(np.array(ids, dtype=str), return_inverse=True)[1]
    kept = {m: v for m, v in values.items() if not np.isnan(v).all() or m == "agree"}
    return Group(key, layers, {m: kept[m] for m in ordered(kept)}, rank_NL, units, ids)


def without_repeats(groups: Sequence[Group]) -> list[Group]:
    """Groups of one report without the measures that repeat another in all of them: log-probabilities of first
    tokens where all answers are one token, what is answered correctly where there are no wrong answers."""
    repeated = {
        name
        for name, other in (("first_logprob", "logprob"), ("correct", "top1"))
        if all(_same(each.values.get(name), each.values.get(other)) for each in groups)
    }
    return [
        replace(each, values={m: v for m, v in each.values.items() if m not in repeated})
        for each in groups
    ]


def _same(a_NL: np.ndarray | None, b_NL: np.ndarray | None) -> bool:
    if a_NL is None or b_NL is None:
        return a_NL is b_NL
    return np.array_equal(a_NL, b_NL, equal_nan=True)


def sets(rows: pandas.DataFrame) -> list[str]:
    """The names of the sets of tokens in a table: a set has a rank beside its probability."""
    names = {str(name) for name in rows.columns}
    return [n[4:] for n in map(str, rows.columns) if n.startswith("set_") and f"{n}_rank" in names]


def contrasts(
    survey: str,
    lens: str,
    groups: dict[str, Group],
    contrast: tuple[str, str],
    seed: int,
    draws: int,
) -> tuple[list[Curve], list[Curve], list[Curve]]:
    """b − a over the ids that both groups have: of every measure, QUANTILES of it, and of the layers of
    `moments`."""
    contrast = _whole(contrast[0], groups), _whole(contrast[1], groups)
    for name in contrast:
        if name not in groups:
            raise SettingError(f"no prompts of {name!r}: expected two of {', '.join(groups)}")
    a, b = (groups[name] for name in contrast)
    if a.layers != b.layers:
        raise FormatError(f"{contrast[0]} and {contrast[1]} were read at other layers")
    places_a, places_b = _places(a.ids), _places(b.ids)
    shared = [i for i in places_a if i in places_b]
    if not shared:
        raise FormatError(
            f"{contrast[0]} and {contrast[1]} share no id: give paired prompts the same id"
        )

    def paired(of_a: np.ndarray, of_b: np.ndarray) -> np.ndarray:
        pairs = ((of_a[places_a[i]], of_b[places_b[i]]) for i in shared)
        return np.stack([_mean(several_b) - _mean(several_a) for several_a, several_b in pairs])

    def mean(measure: str, names: list[str], values_NL: np.ndarray) -> Curve:
        if measure in SHARES:
            mean_L, low_L, high_L = paired_shares(values_NL)
        else:
            mean_L, low_L, high_L = interval(values_NL, units_N, seed, draws)
        if measure == "agree":  # as above
            low_L[-1] = high_L[-1] = mean_L[-1]
        return Curve(*key, measure, names, mean_L, low_L, high_L, _having(values_NL))

    key, units_N = (survey, lens, f"{contrast[1]} − {contrast[0]}"), np.arange(len(shared))
    both = ordered(m for m in a.values if m in b.values)
    differences = {m: paired(a.values[m], b.values[m]) for m in both}
    moments = zip(a.moments(), a.numbers().T, b.numbers().T)  # of one of them maybe the first alone
    return (
        [mean(m, a.layers, values_NL) for m, values_NL in differences.items()],
        [
            curve
            for m, values_NL in differences.items()
            if m in QUANTILED
            for curve in _quantiles((*key, m), a.layers, values_NL, units_N, seed, draws)
        ],
        [
            mean(name, ["layer"], paired(of_a[:, None], of_b[:, None]))
            for name, of_a, of_b in moments
        ],
    )


def _whole(name: str, groups: dict[str, Group]) -> str:
    """A group's name, of a whole number also as a fraction: 2.0 for 2."""
    whole = name.removesuffix(".0")
    return whole if name not in groups and whole in groups else name


def _mean(several_NL: np.ndarray) -> np.ndarray:
    """(L,) over those of an id's prompts that have a value; nan where none has."""
    having_L = (~np.isnan(several_NL)).sum(0)
    return np.nansum(several_NL, 0) / np.where(having_L, having_L, np.nan)


def _places(ids: list[str]) -> dict[str, list[int]]:
    """id → where it occurs."""
    out: dict[str, list[int]] = {}
    for n, name in enumerate(ids):
        out.setdefault(name, []).append(n)
    return out
