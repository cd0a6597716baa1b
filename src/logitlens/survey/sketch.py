"""What is kept of millions of numbers: sums whose error is known, and counts in logarithmic bins.

Both are merged by adding, in any grouping. A quantile read from the bins is within 2 % of the true one
(DDSketch, Masson, Rim and Lee 2019); what is below 0.0001 counts as 0. The standard error of a mean
takes documents as units, not tokens: with S_d the sum and n_d the number of document d of D, and m the
mean, its square is D / (D − 1) Σ (S_d − m n_d)² / (Σ n_d)² (the linearised ratio estimator, Cochran 1977,
chapter 6).

The interval of a share is Wilson's with Student's t, of as many tokens as would have its error if each were a
document of its own (Korn and Graubard 1998, Survey Methodology 24:2), and of as many as there are documents
where all are alike. That of a quantile holds the values up to which the share of tokens has such an interval
with the quantile's share in it (Woodruff 1952, Journal of the American Statistical Association 47; by the error
of each value's own share Francisco and Fuller 1991, The Annals of Statistics 19:1).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from logitlens.survey.bootstrap import score, student

ACCURACY = 0.02
GAMMA = (1 + ACCURACY) / (1 - ACCURACY)
SMALLEST = 1e-4
BINS = 1 + int(np.ceil(np.log(1e7 / SMALLEST) / np.log(GAMMA)))
LEAST = 3  # documents of an interval: Student's t of two is 12.7, and such an interval says nothing
QUANTILES = {"p10": 0.1, "p50": 0.5, "p90": 0.9}

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def bins_of(values: np.ndarray) -> Ints:
    """The bin of each value: 0 up to SMALLEST, then i for SMALLEST·γ^(i−1) < x ≤ SMALLEST·γ^i."""
    with np.errstate(divide="ignore"):
        places = np.ceil(np.log(np.maximum(values, SMALLEST) / SMALLEST) / np.log(GAMMA))
    return np.clip(places, 0, BINS - 1).astype(np.int64)


def quantile(counts: Ints, share: float) -> float:
    """From counts by bin, which may lack empty ones at the end; nan where there are none."""
    total = int(counts.sum())
    if not total:
        return float("nan")
    return _value(int(np.searchsorted(np.cumsum(counts), share * (total - 1), side="right")))


def _value(place: int) -> float:
    """The middle of a bin."""
    return 0.0 if place == 0 else float(2 * SMALLEST * GAMMA**place / (GAMMA + 1))


def _edge(place: int) -> float:
    """The greatest number of a bin."""
    return 0.0 if place <= 0 else SMALLEST * GAMMA**place


class ByDocument:
    """Of N numbers the unit of each: a document's band, document · B + band. Of a unit's n numbers c are in the
    bins up to x: what gives Σ c² and Σ c·n over documents when it is added up over bins, whole numbers."""

    def __init__(self, unit_N: np.ndarray, bands: int):
        n_U = np.bincount(unit_N)
        n_u = n_U[n_U > 0]
        unit_N = unit_N.astype(np.int32 if len(n_U) * BINS < 2**31 else np.int64)
        unit_n = np.repeat(np.flatnonzero(n_U).astype(unit_N.dtype), n_u)  # in their order
        self.bands, self._start_N = bands, unit_N * BINS
        self._place_n = unit_n % bands * BINS - unit_n * BINS
        # the k-th of a unit's numbers makes its c² larger by k² − (k − 1)²
        before_n = np.arange(len(unit_n)) - np.repeat(np.cumsum(n_u) - n_u, n_u)
        self._square_n, self._n_n = 2.0 * before_n + 1, np.repeat(n_u, n_u).astype(np.float64)

    def sums(self, bins_N: np.ndarray) -> Ints:
        """(2, B, BINS)"""
        key_n = self._start_N + bins_N.astype(self._start_N.dtype)
        key_n.sort()
        place_n, size = key_n + self._place_n, self.bands * BINS
        each = [np.bincount(place_n, more_n, size) for more_n in (self._square_n, self._n_n)]
        return np.stack(each).astype(np.int64).reshape(2, self.bands, BINS)


def mean_and_error(
    total: Floats,
    squares: Floats,
    cross: Floats,
    count: Floats,
    count_squares: Floats,
    units: Floats,
) -> tuple[Floats, Floats]:
    """Mean and standard error over documents, from ΣS, ΣS², ΣS·n, Σn, Σn² and D; nan where Σn is 0.

    The error is nan where all is from one document (Σn² = (Σn)²).
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / count
        variance = squares - 2 * mean * cross + mean * mean * count_squares
        error = np.sqrt(np.maximum(variance, 0) * units / (units - 1)) / count
    return mean, np.where(count_squares >= count * count, np.nan, error)


def share_ends(share: Floats, error: Floats, documents: Floats | float) -> tuple[Floats, Floats]:
    """Where the 95 % interval of a share ends, by its standard error over so many documents; nan of fewer than
    LEAST."""
    documents = np.broadcast_to(documents, np.shape(share))
    t_of = {n: student(n - 1) if n >= LEAST else np.nan for n in set(documents.ravel().tolist())}
    t = np.array([t_of[n] for n in documents.ravel().tolist()]).reshape(documents.shape)
    with np.errstate(invalid="ignore", divide="ignore"):
        tokens = share * (1 - share) / error**2
    differ = np.isfinite(tokens) & (tokens > 0)
    return score(share, np.where(differ, tokens, documents), t)


def quantile_ends(
    counts: Ints, squares: Ints, cross: Ints, documents: float, share: float
) -> tuple[float, float]:
    """Where the 95 % interval of a quantile ends, by counts in bins and what `ByDocument` gives of them; nan
    where so few documents cannot tell it."""
    total = int(counts.sum())
    if not total or documents < LEAST:
        return float("nan"), float("nan")
    places = np.flatnonzero(counts)
    below = [
        np.append(0, each[places]).cumsum().astype(np.float64) for each in (counts, squares, cross)
    ]
    others = (np.array(float(each)) for each in (total, below[1][-1], documents))
    p, error = mean_and_error(*below, *others)
    low, high = share_ends(p, error, documents)
    first = int(np.argmax(high >= share))  # the least that may be the quantile; 0 is below all
    last = int(np.flatnonzero(low < share)[-1])  # the value after it is the highest
    return (  # what is in a bin may be anywhere in it
        _edge(int(places[first - 1]) - 1) if first else float("nan"),
        _edge(int(places[last])) if last < len(places) else float("nan"),
    )
