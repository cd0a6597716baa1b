"""The proof: the tail's logits against the model's own, at every position of a probe.

The law of the package is that a model is read exactly or refused. In float32 the largest
difference of a log-probability may be 1e-4 nats. In a coarser dtype the bound is measured, on the
same logits: the error that storing them in that dtype makes, times the roundings a head does.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

FLOAT32_TOLERANCE = 1e-4
ROUNDINGS = 4  # the matrix product, scale, softcap and bias each round once in the model's dtype


@dataclass(frozen=True)
class Check:
    """One comparison of log-probabilities: ours against the model's own.

    max_abs_diff  largest |Δ log-probability| in nats, over all positions and the whole vocabulary
    tolerance     what it may be: 1e-4 in float32, measured for coarser dtypes
    top1_agree    the likeliest token is the same at every position (or tied with it)
    """

    max_abs_diff: float
    tolerance: float
    positions: int
    top1_agree: bool
    dtype: str
    method: str = "weights"

    @property
    def ok(self) -> bool:
        return self.max_abs_diff <= self.tolerance  # False for nan

    def widened(self, difference: float) -> Check:
        """The same check with one more observed difference."""
        worst = difference if difference != difference else max(self.max_abs_diff, difference)
        return replace(self, max_abs_diff=worst)

    def line(self) -> str:
        """One sentence for people."""
        where = "1 position" if self.positions == 1 else f"{self.positions} positions"
        verdict = "equals" if self.ok else "DIFFERS from"
        return (
            f"last row {verdict} the model's own logits at {where}: "
            f"max |Δ log-prob| {self.max_abs_diff:.1e} (tolerance {self.tolerance:.1e}, "
            f"{self.dtype})"
        )

    def to_meta(self) -> dict[str, Any]:
        """JSON-able, for `Reading.meta["check"]`."""
        return {**asdict(self), "ok": self.ok, "line": self.line()}


def compare(
    model_PV: Tensor,
    ours_PV: Tensor,
    dtype: torch.dtype,
    *,
    tolerance: float | None = None,
    method: str = "weights",
) -> Check:
    """Compare P rows of logits. `tolerance` can only widen the measured bound, never narrow it."""
    model_PV = model_PV.detach().float()
    ours_PV = ours_PV.detach().float().to(model_PV.device)
    model_logp, ours_logp = model_PV.log_softmax(-1), ours_PV.log_softmax(-1)
    # A column at −inf (or the dtype's minimum) is one the model forbids: probability 0 on both sides.
    forbidden = (model_logp < -1e30) & (ours_logp < -1e30)
    difference = (model_logp - ours_logp).abs().masked_fill(forbidden, 0.0)
    bound = max(FLOAT32_TOLERANCE, tolerance or 0.0, dtype_error(model_PV, dtype))
    best = ours_PV.argmax(-1, keepdim=True)
    near = model_PV.amax(-1) - model_PV.gather(-1, best)[:, 0]
    return Check(
        max_abs_diff=float(difference.max()) if difference.numel() else 0.0,
        tolerance=bound,
        positions=len(model_PV),
        top1_agree=bool((near <= 2 * bound).all()),
        dtype=str(dtype).removeprefix("torch."),
        method=method,
    )


def dtype_error(logits_PV: Tensor, dtype: torch.dtype) -> float:
    """What computing these logits in `dtype` may cost: measured by rounding them a little off."""
    if dtype not in (torch.float16, torch.bfloat16):
        return 0.0
    # Values already in the dtype round to themselves; half a step away they round as fresh ones do.
    nudged = logits_PV * (1 + torch.finfo(dtype).eps / 3)
    rounded = nudged.to(dtype).float()
    error = (rounded.log_softmax(-1) - nudged.log_softmax(-1)).abs()
    error = error.masked_fill(~error.isfinite(), 0.0)
    return ROUNDINGS * float(error.max())
