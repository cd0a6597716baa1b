"""Means and quantiles over prompts, with 95 % intervals of a seeded bootstrap (Efron 1979).

N prompts, L layers; U units, of prompts that are drawn together; B draws, b of them at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

MOST = 20_000_000  # draws × prompts of quantiles' intervals: of more prompts fewer draws are made
AT_ONCE = 10_000_000  # draws × units counted at a time (40 MB)


def interval(
    values_NL: np.ndarray, units_N: np.ndarray, seed: int, draws: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(L,) mean, 2.5 and 97.5 percentile of its bootstrap over units; nan values are left out."""
    there_NL = ~np.isnan(values_NL)
    U = int(units_N.max()) + 1
    sums_UL, counts_UL = np.zeros((U, values_NL.shape[1])), np.zeros((U, values_NL.shape[1]))
    np.add.at(sums_UL, units_N, np.where(there_NL, values_NL, 0.0))
    np.add.at(counts_UL, units_N, there_NL)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_L = sums_UL.sum(0) / counts_UL.sum(0)
        if U < 2 or draws < 2:
            return mean_L, mean_L * np.nan, mean_L * np.nan
        weights_BU = _weights(U, seed, draws)
        means_BL = (weights_BU @ sums_UL) / (weights_BU @ counts_UL)
    low_L, high_L = np.nanpercentile(means_BL, [2.5, 97.5], axis=0)
    return mean_L, low_L, high_L


def quantiles(
    values_NL: np.ndarray, units_N: np.ndarray, shares: Sequence[float], seed: int, draws: int
) -> np.ndarray:
    """(S, 3, L): for each share the least value that such a share of the others does not exceed, and the
    2.5 and 97.5 percentile of its bootstrap over units; nan values are left out.

    Of more than MOST / `draws` prompts fewer draws are made, at least 100.
    """
    N, L = values_NL.shape
    U = int(units_N.max()) + 1
    draws = min(draws, max(100, MOST // N))
    # A unit's draws side by side: each prompt takes those of its own.
    drawn_UB = np.empty((U, 0), np.int32)
    if U > 1 and draws > 1:
        drawn_UB = np.ascontiguousarray(_weights(U, seed, draws).T, np.int32)
    found_S3L = np.full((len(shares), 3, L), np.nan)
    for row, value_N in enumerate(values_NL.T):
        order_n = np.argsort(value_N, kind="stable")[: np.count_nonzero(~np.isnan(value_N))]
        value_n, unit_n = value_N[order_n], units_N[order_n]
        if not len(value_n):
            continue
        ranks_S = np.ceil(np.array(shares) * len(value_n)).astype(int) - 1
        found_S3L[:, 0, row] = value_n[np.maximum(ranks_S, 0)]
        several: list[list[np.ndarray]] = [[] for _ in shares]
        for drawn_Ub in np.array_split(drawn_UB, max(1, drawn_UB.size // AT_ONCE), axis=1):
            below_nb = drawn_Ub[unit_n].cumsum(0, dtype=np.int32)
            below_nb = below_nb[:, below_nb[-1] > 0]  # a draw may hold none of those with a value
            for share, some in zip(shares, several):
                wanted_b = np.ceil(share * below_nb[-1]).astype(np.int32)
                some.append(value_n[np.count_nonzero(below_nb < wanted_b, axis=0)])
        for s, some in enumerate(several):
            if len(values := np.concatenate(some)):
                found_S3L[s, 1:, row] = np.percentile(values, [2.5, 97.5])
    return found_S3L


@lru_cache(maxsize=2)
def _weights(U: int, seed: int, draws: int) -> np.ndarray:
    """(draws, U) how often each unit is drawn."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(U, np.full(U, 1 / U), size=draws).astype(np.float64)
