"""Means and quantiles over prompts, with 95 % intervals of a seeded bootstrap (Efron 1979).

Percentiles of a bootstrap are too narrow for few units. These are the expanded ones of Hesterberg 2015 ("What
teachers should know about the bootstrap", The American Statistician 69:4), wider by √(U / (U − 1)) and
Student's t: 0.9 and 99.1 for ten units, 2.3 and 97.7 for a hundred. Of fewer than five units even the lowest
and the highest draw are too near.

Shares near 0 and 1 would be far too narrow, and of no width where all prompts are alike: theirs are Wilson's,
and those of their paired differences Bonett and Price's.

N prompts, L layers; U units, of prompts that are drawn together; B draws, b of them at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np

MOST = 20_000_000  # draws × prompts of quantiles' intervals: of more prompts fewer draws are made
Z = 1.959964  # the 97.5 percentile of the normal distribution
AT_ONCE = 10_000_000  # draws × units counted at a time (40 MB)


def interval(
    values_NL: np.ndarray, units_N: np.ndarray, seed: int, draws: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(L,) mean, and the ends of its interval over units; nan values are left out."""
    there_NL = ~np.isnan(values_NL)
    U = int(units_N.max()) + 1
    sums_UL, counts_UL = np.zeros((U, values_NL.shape[1])), np.zeros((U, values_NL.shape[1]))
    np.add.at(sums_UL, units_N, np.where(there_NL, values_NL, 0.0))
    np.add.at(counts_UL, units_N, there_NL)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_L = sums_UL.sum(0) / counts_UL.sum(0)
        if U < 2 or draws < 2:
            return mean_L, mean_L * np.nan, mean_L * np.nan
        means_BL = np.concatenate(
            [(w_bU @ sums_UL) / (w_bU @ counts_UL) for w_bU in _weights(U, seed, draws)]
        )
    ends_2L = np.full((2, len(mean_L)), np.nan)
    for row, there in enumerate((counts_UL > 0).sum(0).tolist()):
        if there > 1:
            ends_2L[:, row] = np.nanpercentile(means_BL[:, row], _ends(there))
    return mean_L, ends_2L[0], ends_2L[1]


def wilson(values_NL: np.ndarray, units_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(L,) share of ones among zeros and ones, and the ends of its 95 % score interval (Wilson 1927); nan
    values are left out. It is as wide as that of as many prompts as there are units, whose prompts may all be
    alike."""
    there_NL = ~np.isnan(values_NL)
    with np.errstate(invalid="ignore", divide="ignore"):
        share_L = np.where(there_NL, values_NL, 0.0).sum(0) / there_NL.sum(0)
        units_L = np.array([len(np.unique(units_N[there_N])) for there_N in there_NL.T])
    return share_L, *score(share_L, units_L)


def score(
    share_L: np.ndarray, units_L: np.ndarray, z: np.ndarray | float = Z
) -> tuple[np.ndarray, np.ndarray]:
    """The ends of Wilson's interval of shares of so many units."""
    with np.errstate(invalid="ignore", divide="ignore"):
        z2_L = z**2 / units_L
        middle_L = (share_L + z2_L / 2) / (1 + z2_L)
        half_L = np.sqrt(z2_L * (share_L * (1 - share_L) + z2_L / 4)) / (1 + z2_L)
    return (middle_L - half_L).clip(0), (middle_L + half_L).clip(max=1)


def paired_shares(differences_NL: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(L,) mean of paired differences of zeros and ones, or of shares, and the ends of its 95 % interval: that
    of the mean of these pairs and of two more, 1 and −1 (Bonett and Price 2012, Journal of Educational and
    Behavioral Statistics 37:4); nan values are left out."""
    n_L = (~np.isnan(differences_NL)).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_L = np.nansum(differences_NL, 0) / n_L
        middle_L = np.nansum(differences_NL, 0) / (n_L + 2)
        square_L = (np.nansum(differences_NL**2, 0) + 2) / (n_L + 2)
        half_L = Z * np.sqrt((square_L - middle_L**2) / (n_L + 2)) * np.where(n_L, 1, np.nan)
    return mean_L, (middle_L - half_L).clip(-1), (middle_L + half_L).clip(max=1)


def quantiles(
    values_NL: np.ndarray, units_N: np.ndarray, shares: Sequence[float], seed: int, draws: int
) -> np.ndarray:
    """(S, 3, L): for each share the least value that at least such a share does not exceed, and the ends of
    its interval over units; nan values are left out. An end is nan where too few units can tell it:
    with ten, one time in three none lies below the 10 % quantile.

    Of more than MOST / `draws` prompts fewer draws are made, at least 100.
    """
    N, L = values_NL.shape
    U = int(units_N.max()) + 1
    draws = min(draws, max(100, MOST // N))
    # A unit's draws side by side: each prompt takes those of its own.
    drawn_UB = np.empty((U, 0), np.int32)
    if U > 1 and draws > 1:
        drawn_UB = np.concatenate([w_bU.astype(np.int32) for w_bU in _weights(U, seed, draws)]).T
        drawn_UB = np.ascontiguousarray(drawn_UB)
    found_S3L = np.full((len(shares), 3, L), np.nan)
    for row, value_N in enumerate(values_NL.T):
        order_n = np.argsort(value_N, kind="stable")[: np.count_nonzero(~np.isnan(value_N))]
        value_n, unit_n = value_N[order_n], units_N[order_n]
        if not len(value_n):
            continue
        ranks_S = np.ceil(np.array(shares) * len(value_n)).astype(int) - 1
        found_S3L[:, 0, row] = value_n[np.maximum(ranks_S, 0)]
        if (units := len(np.unique(unit_n))) < 2:
            continue
        several: list[list[np.ndarray]] = [[] for _ in shares]
        for drawn_Ub in np.array_split(drawn_UB, max(1, drawn_UB.size // AT_ONCE), axis=1):
            below_nb = drawn_Ub[unit_n].cumsum(0, dtype=np.int32)
            below_nb = below_nb[:, below_nb[-1] > 0]  # a draw may hold none of those with a value
            for share, some in zip(shares, several):
                wanted_b = np.ceil(share * below_nb[-1]).astype(np.int32)
                some.append(value_n[np.count_nonzero(below_nb < wanted_b, axis=0)])
        for s, some in enumerate(several):
            if len(values := np.concatenate(some)):
                beyond = np.array([(1 - shares[s]) ** units, shares[s] ** units]) > 0.025
                ends_2 = np.percentile(values, _ends(units))
                found_S3L[s, 1:, row] = np.where(beyond, np.nan, ends_2)
    return found_S3L


def _weights(U: int, seed: int, draws: int) -> Iterable[np.ndarray]:
    """(b, U) how often each unit is drawn, `draws` times in all."""
    if U * draws <= 2 * AT_ONCE:
        return (_drawn(U, seed, draws),)
    generator = np.random.default_rng(seed)
    step = max(1, AT_ONCE // U)
    return (
        generator.multinomial(U, np.full(U, 1 / U), size=min(step, draws - n)).astype(np.float64)
        for n in range(0, draws, step)
    )


@lru_cache(maxsize=2)
def _drawn(U: int, seed: int, draws: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.multinomial(U, np.full(U, 1 / U), size=draws).astype(np.float64)


def _ends(U: int) -> list[float]:
    """The percentiles of the bootstrap over U units at which a 95 % interval ends."""
    beyond = 50 * math.erfc(student(U - 1) * math.sqrt(U / (U - 1) / 2))
    return [beyond, 100 - beyond]


def student(freedom: float) -> float:
    """The 97.5 percentile of Student's t: exact for one and two degrees of freedom, else within 0.5 %
    (Abramowitz and Stegun 1964, 26.7.5)."""
    if freedom < 1:
        return math.nan
    if freedom < 3:
        return {1: 12.7062, 2: 4.3027}[int(freedom)]
    z, n = Z, freedom
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / n**power for power, term in enumerate(terms, 1))
