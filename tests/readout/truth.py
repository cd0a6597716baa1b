"""Judging a readout: against float64, relative to the naive float32 version's own error."""

from __future__ import annotations

import torch
from torch import Tensor

from logitlens.readout import reference
from logitlens.readout.head import Head
from logitlens.readout.stats import Stats

EPS = torch.finfo(torch.float32).eps
SUMS = ("top_logprobs", "entropy", "kl", "target_logprobs")


def judge(
    ours: Stats, x_TLE: Tensor, head: Head, k: int, targets_TM: Tensor, candidates: int = 0
) -> None:
    """Assert that `ours` is as true as float32 allows.

    For sums: error ≤ the naive float32 error + `slack`, where slack is 8 ulp of the largest logit
    and 2e-6 for the sums; of KL also what an error of 2 ulp in the final row's logits makes of it.
    For ids and ranks: equal wherever float64 separates neighbours by more than `apart`, the naive
    logits' own error + 8 ulp of the largest logit, on both sides.
    """
    assert ours.candidate_ids.shape == (len(x_TLE), candidates)
    targets_TM = torch.cat([targets_TM, ours.candidate_ids], 1)  # from here on targets like any
    truth = reference.stats(x_TLE, head, k, targets_TM)
    naive = reference.stats(x_TLE, head, k, targets_TM, dtype=torch.float32)
    z = reference.logits(x_TLE, head)
    z32 = reference.logits(x_TLE, head, torch.float32)
    good = truth.finite
    assert torch.equal(ours.finite, good)
    real = z.isfinite() & good[..., None]
    ulp = 8 * EPS * float(z[real].abs().max()) if bool(real.any()) else 0.0
    slack = 2e-6 + ulp
    slacks = dict.fromkeys(SUMS, slack)
    slacks["kl"] += 2 * EPS * _largest(z[:, -1]) * _largest(_steepness(z))
    apart = 2 * (ulp + (float((z32 - z)[real].abs().max()) if bool(real.any()) else 0.0))

    for name in SUMS:
        mine, yours, true = (getattr(s, name).double() for s in (ours, naive, truth))
        assert torch.equal(mine.isnan(), true.isnan()), f"{name}: NaN elsewhere"
        same = mine.isinf() & (mine == true)
        mask = ~true.isnan() & ~same
        if not bool(mask.any()):
            continue
        own = float((yours - true)[mask].abs().max())
        error = float((mine - true)[mask].abs().max())
        limit = own + slacks[name]
        assert error <= limit, f"{name}: error {error:.2e}, naive {own:.2e} + {slacks[name]:.1e}"

    _judge_ids(ours.top_ids, z, good, k, apart)
    if candidates:
        _judge_ids(ours.candidate_ids[:, None], z[:, -1:], good[:, -1:], candidates, apart)
    _judge_ranks(ours, z, good, targets_TM, apart)


def _largest(values: Tensor) -> float:
    finite = values[values.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def _steepness(z_TLV: Tensor) -> Tensor:
    """(T, L): how much KL(final ‖ row) changes at most where every final logit changes by 1: the mean distance,
    by the final row's probabilities, of log p_f − log p from its mean."""
    logp_TLV = z_TLV.log_softmax(-1)
    apart_TLV = logp_TLV[:, -1:] - logp_TLV
    p_T1V = logp_TLV[:, -1:].exp()
    mean_TL1 = (p_T1V * apart_TLV).nansum(-1, keepdim=True)
    return (p_T1V * (apart_TLV - mean_TL1).abs()).nansum(-1)


def _judge_ids(top_ids: Tensor, z: Tensor, good: Tensor, k: int, apart: float) -> None:
    top_ids = top_ids.long()
    assert bool((top_ids[~good] == -1).all())
    values, ids = z.sort(dim=-1, descending=True, stable=True)
    gap = torch.nn.functional.pad(
        values[..., :-1] - values[..., 1:], (1, 1), value=float("inf")
    ).nan_to_num(0.0, posinf=float("inf"))
    clear = (gap[..., :k] > apart) & (gap[..., 1 : k + 1] > apart) & good[..., None]
    assert torch.equal(top_ids[clear], ids[..., :k][clear]), "ids differ where they are clear"
    distinct = top_ids[good].sort(-1).values
    assert bool((distinct[:, 1:] > distinct[:, :-1]).all()), "an id stands twice in a top k"


def _judge_ranks(ours: Stats, z: Tensor, good: Tensor, targets_TM: Tensor, apart: float) -> None:
    for m in range(targets_TM.shape[1]):
        at = targets_TM[:, m, None].expand(-1, z.shape[1])
        absent = (at < 0) | ~good
        assert bool((ours.target_ranks[..., m][absent] == 0).all())
        own = z.gather(-1, at.clamp(min=0)[..., None])
        least = 1 + (z > own + apart).sum(-1)
        most = (z >= own - apart).sum(-1)
        rank = ours.target_ranks[..., m]
        assert bool(((rank >= least) & (rank <= most) | absent).all()), "a rank beyond rounding"
