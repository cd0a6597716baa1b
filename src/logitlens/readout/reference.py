"""The specification of a readout: every statistic as its definition says, one row set at a time.

Small, slow and meant to be read. It holds all logits of the rows it is given; every engine must
agree with it. In float64 (the default) it is the truth they are judged against, in
float32 it is what a careful person would write by hand, whose own error is the yardstick.
"""

from __future__ import annotations

import torch
from torch import Tensor

from logitlens.readout.head import Head
from logitlens.readout.stats import Stats, check_request


@torch.no_grad()
def stats(
    x_TLE: Tensor,
    head: Head,
    k: int,
    targets_TM: Tensor,
    *,
    candidates: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Stats:
    """Rows of head input (T, L, E), the final row last along L → `Stats`.

    Raises PromptError for a k, a target id or candidates outside the vocabulary.
    """
    check_request(x_TLE, head, k, targets_TM, candidates)
    z_TLV = logits(x_TLE, head, dtype)
    lse_TL = torch.logsumexp(z_TLV, -1)
    finite_TL = lse_TL.isfinite()  # NaN, +inf anywhere, or nothing above −inf
    logp_TLV = z_TLV - lse_TL[..., None]
    p_TLV = logp_TLV.exp()

    entropy_TL = -torch.where(p_TLV > 0, p_TLV * logp_TLV, 0).sum(-1)
    p_T1V, logp_T1V = p_TLV[:, -1:], logp_TLV[:, -1:]
    kl_TL = torch.where(p_T1V > 0, p_T1V * (logp_T1V - logp_TLV), 0).sum(-1)
    kl_TL = kl_TL.clamp(min=0)  # rounding may leave −1e-17; NaN stays NaN

    order_TLV = z_TLV.argsort(dim=-1, descending=True, stable=True)  # stable: ties by lower id
    top_ids_TLK = order_TLV[..., :k]
    candidates_TC = order_TLV[:, -1, :candidates].masked_fill(~finite_TL[:, -1:], -1)
    targets_TM = torch.cat([targets_TM, candidates_TC], 1)

    wanted_TLM = targets_TM.clamp(min=0)[:, None, :].expand(-1, x_TLE.shape[1], -1)
    target_TLM = z_TLV.gather(-1, wanted_TLM)
    ranks_TLM = (
        torch.stack(
            [1 + (z_TLV > target_TLM[..., m, None]).sum(-1) for m in range(targets_TM.shape[1])], -1
        )
        if targets_TM.shape[1]
        else torch.zeros_like(target_TLM, dtype=torch.long)
    )

    absent_TLM = (targets_TM < 0)[:, None, :] | ~finite_TL[..., None]
    nan = float("nan")
    return Stats(
        top_ids=top_ids_TLK.masked_fill(~finite_TL[..., None], -1),
        top_logprobs=logp_TLV.gather(-1, top_ids_TLK)
        .masked_fill(~finite_TL[..., None], nan)
        .to(dtype),
        entropy=entropy_TL.masked_fill(~finite_TL, nan),
        kl=kl_TL.masked_fill(~(finite_TL & finite_TL[:, -1:]), nan),
        target_logprobs=(target_TLM - lse_TL[..., None]).masked_fill(absent_TLM, nan),
        target_ranks=ranks_TLM.masked_fill(absent_TLM, 0),
        candidate_ids=candidates_TC,
        finite=finite_TL,
    )


def logits(x_NE: Tensor, head: Head, dtype: torch.dtype = torch.float64) -> Tensor:
    """Rows (…, E) of head input → (…, V) logits, every step in `dtype`.

    The input is first rounded to the dtype of the weights, as the model itself would have it.
    """
    if head.weight_VE is None:
        assert head.call is not None, "a Head needs weights or a callable"
        z_NV = head.call(x_NE.reshape(-1, x_NE.shape[-1])).to(dtype).unflatten(0, x_NE.shape[:-1])
    else:
        z_NV = x_NE.to(head.weight_VE.dtype).to(dtype) @ head.weight_VE.to(dtype).T
        if head.bias_V is not None:
            z_NV = z_NV + head.bias_V.to(dtype)
    return head.finish(z_NV)
