"""A faster readout of float32 heads on processors that multiply bfloat16: screen, then rescore.

All logits come from three bfloat16 products, each off by no more than a bound that is proven while
they are made. A few more candidates than k are kept and multiplied again in float32; where the
bound cannot rule out that another token belongs among the k, the position is read again exactly.
So ids, their order and their logits are those of float32. logsumexp, and with it log-probabilities,
entropy and KL, are off by less than `bound` (in practice a thousandth of it); ranks below the top k
may miss ties closer than the bound.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from logitlens.readout import chunked
from logitlens.readout.head import Head
from logitlens.readout.product import SplitProduct, finish_
from logitlens.readout.stats import Stats, check_request

SPARE = 16  # candidates beyond k


@dataclass(frozen=True, eq=False)
class Screened:
    """stats; bound (T, L) float32: no logit, and so no logsumexp, is off by more; again (T,) bool:
    positions the bound could not settle, read exactly instead."""

    stats: Stats
    bound: Tensor
    again: Tensor


@torch.no_grad()
def stats(
    x_TLE: Tensor,
    head: Head,
    k: int,
    targets_TM: Tensor,
    *,
    columns: int | None = None,
    kernel: str | None = None,
) -> Screened:
    """Rows of head input (T, L, E), the final row last along L → statistics and their bound.

    Where the head or the processor does not allow it, all is read exactly and the bound is 0.
    Raises PromptError for a k or a target id outside the vocabulary.
    """
    check_request(x_TLE, head, k, targets_TM)
    T, L, _ = x_TLE.shape
    if not SplitProduct.possible(head) or T == 0:
        exact = chunked.stats(x_TLE, head, k, targets_TM, columns=columns, kernel=kernel)
        zero = torch.zeros(T, L)
        return Screened(exact, zero, torch.ones(T, dtype=torch.bool))
    spare = min(k + SPARE, head.vocab)
    way = chunked.Way(spare, columns, kernel or chunked.choose_kernel(T * L, head))
    step = max(1, chunked.ROWS // L)
    parts = [
        _block(x_TLE[p : p + step], head, k, targets_TM[p : p + step], way)
        for p in range(0, T, step)
    ]
    screened = chunked.concatenated([part.stats for part in parts], 0)
    bound = torch.cat([part.bound for part in parts])
    again = torch.cat([part.again for part in parts])
    if bool(again.any()):
        exact = chunked.stats(
            x_TLE[again], head, k, targets_TM[again], columns=columns, kernel=kernel
        )
        for mine, theirs in zip(chunked.fields_of(screened), chunked.fields_of(exact)):
            mine[again] = theirs
    return Screened(screened, bound, again)


def _block(x_PLE: Tensor, head: Head, k: int, targets_PM: Tensor, way: chunked.Way) -> Screened:
    P, L, E = x_PLE.shape
    x_NE = x_PLE.reshape(P * L, E)
    product = SplitProduct(x_NE, head)
    online = way.online(targets_PM, chunked.target_logits(product, targets_PM, L))
    chunked.stream(product, online, way.columns)
    bound_PL = product.bound_N.view(P, L)
    lse_PL1 = online.logsumexp()[..., None]
    stats = online.result()

    ids_NJ = stats.top_ids.flatten(0, 1).clamp(min=0)
    exact_NJ = _rescored(product.x_NE, head, ids_NJ)
    screened_NJ = online.top.values_NK
    # Ascending ids, then a stable sort by logit: ties keep the lower id.
    ids_NJ, order_NJ = ids_NJ.sort(dim=-1)
    exact_NJ = exact_NJ.gather(1, order_NJ)
    exact_NJ, order_NJ = exact_NJ.sort(dim=-1, descending=True, stable=True)
    ids_NJ = ids_NJ.gather(1, order_NJ)

    # No token left out is above the last candidate; the factor covers rescoring's own rounding.
    least_N, highest_N = exact_NJ[:, k - 1], screened_NJ[:, -1] + 1.5 * product.bound_N
    unsettled_N = ~(least_N > highest_N) & (way.k < head.vocab)
    lost_PL1 = ~stats.finite[..., None]
    logprobs_PLK = (exact_NJ[:, :k].unflatten(0, (P, L)) - lse_PL1).float()
    logprobs_PLK = logprobs_PLK.clamp(max=0).masked_fill(lost_PL1, float("nan"))
    top_ids_PLK = ids_NJ[:, :k].unflatten(0, (P, L)).masked_fill(lost_PL1, -1)
    again_P = unsettled_N.view(P, L).any(-1) | ~stats.finite.all(-1)
    return Screened(
        replace(stats, top_ids=top_ids_PLK, top_logprobs=logprobs_PLK), bound_PL, again_P
    )


def _rescored(x_NE: Tensor, head: Head, ids_NJ: Tensor) -> Tensor:
    """Float32 logits (N, J) of each row's own tokens."""
    weight_VE = head.weight_VE
    assert weight_VE is not None
    out = []
    slab = max(1, (1 << 20) // (ids_NJ.shape[1] * x_NE.shape[1]))  # 4 MB of gathered weights
    for x_nE, ids_nJ in zip(x_NE.split(slab), ids_NJ.split(slab)):
        z_nJ = torch.bmm(weight_VE[ids_nJ], x_nE[:, :, None]).squeeze(-1)
        if head.bias_V is not None:
            z_nJ = z_nJ + head.bias_V[ids_nJ].float()
        out.append(finish_(z_nJ, head, ids_nJ))
    return torch.cat(out)
