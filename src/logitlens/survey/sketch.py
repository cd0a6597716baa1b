"""What is kept of millions of numbers: sums whose error is known, and counts in logarithmic bins.

Both are merged by adding, in any grouping. A quantile read from the bins is within 2 % of the true one
(DDSketch, Masson, Rim and Lee 2019); what is below 0.0001 counts as 0. The standard error of a mean
takes documents as units, not tokens: with S_d the sum and n_d the number of document d of D, and m the
mean, its square is D / (D − 1) Σ (S_d − m n_d)² / (Σ n_d)² (the linearised ratio estimator, Cochran 1977,
chapter 6).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ACCURACY = 0.02
GAMMA = (1 + ACCURACY) / (1 - ACCURACY)
SMALLEST = 1e-4
BINS = 1 + int(np.ceil(np.log(1e7 / SMALLEST) / np.log(GAMMA)))
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
    place = int(np.searchsorted(np.cumsum(counts), share * (total - 1), side="right"))
    return 0.0 if place == 0 else float(2 * SMALLEST * GAMMA**place / (GAMMA + 1))


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
