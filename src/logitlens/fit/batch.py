"""One batch of text → rows of residuals, shared by all depths, and the tail with a gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from logitlens.anatomy.readable import Readable
from logitlens.anatomy.tail import Tail
from logitlens.errors import FitError
from logitlens.model import capture
from logitlens.select import layer_label


def residual_rows(model: Readable, ids_BT: Tensor, depths: list[int]) -> dict[int, Tensor]:
    """Depth → (B · T, D) rows of the raw stream, for `depths` and the last depth N.

    From one forward pass. Raises FitError where the model's own stream is not finite.
    """
    wanted = sorted({*depths, len(model.anatomy.blocks)})
    residuals = capture.capture(model, ids_BT.tolist(), depths=wanted)
    rows: dict[int, Tensor] = {}
    for i, depth in enumerate(wanted):
        rows[depth] = torch.cat([r.h[i] for r in residuals])
        for r in residuals:
            r.h[i] = r.h[i].new_empty(0)  # freed: the rows are in one piece now
        if not bool(rows[depth].isfinite().all()):
            raise FitError(
                f"{model.name}: its own residual of layer {layer_label(depth)} is not finite on this "
                "text; load it with --dtype float32, or look at the corpus"
            )
    return rows


def pull_back(
    tail: Tail, y_ND: Tensor, gradient_of: Callable[[Tensor], tuple[Tensor, Any]]
) -> tuple[Tensor, Tensor]:
    """Loss per row at `y` and its gradient there.

    gradient_of   head input (N, E) → (loss per row (N,), ∂loss/∂input (N, E))

    Only rows are differentiated: no gradient reaches the model's parameters.
    """
    y_ND = y_ND.detach().requires_grad_(True)
    with torch.enable_grad():
        x_NE = tail.head_input(y_ND)
    loss_N, gradient_NE = gradient_of(x_NE.detach())
    (gradient_ND,) = torch.autograd.grad(x_NE, y_ND, gradient_NE.to(x_NE.device, x_NE.dtype))
    return loss_N, gradient_ND
