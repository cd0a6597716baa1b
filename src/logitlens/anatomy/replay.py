"""The exact slow path: the model's own code after the last block, run on rows of our choosing.

The model runs with the last block's output replaced by the rows, and its logits are the answer.
Earlier blocks are passed over where that changes nothing. It is the oracle in tests and the
fallback for a tail that does not come apart into modules (streams mixed by arithmetic, …).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from logitlens.anatomy.blocks import Anatomy
from logitlens.anatomy.forward import as_found, forward, logits_of
from logitlens.anatomy.watch import Slot, leaf, replace_leaf
from logitlens.errors import UnsupportedModel


class Replay:
    """Rows (N, D) → logits (N, V) by the model's own tail.

    Rows go in one after another as the positions of one sequence of the probe's own length, so
    nothing about the model's masks or caches is new to it. Raises UnsupportedModel where the model
    no longer returns one row of logits a position.
    """

    def __init__(
        self,
        model: nn.Module,
        anatomy: Anatomy,
        ids_T: Tensor,
        extra: dict[str, Any] | None = None,
        *,
        skip: bool = True,
        dtype: torch.dtype | None = None,
    ):
        self.model, self.anatomy, self.extra = model, anatomy, extra or {}
        self.ids_T, self.skip, self.dtype = ids_T, skip, dtype

    def __call__(self, h_ND: Tensor) -> Tensor:
        parts = [self._run(rows) for rows in h_ND.split(len(self.ids_T))]
        return torch.cat(parts)

    def _run(self, rows_nD: Tensor) -> Tensor:
        n, positions = len(rows_nD), len(self.ids_T)
        rows_TD = rows_nD
        differentiable = torch.is_grad_enabled() and rows_nD.requires_grad  # a lens is being fitted
        if n < positions:
            rows_TD = torch.cat([rows_nD, rows_nD[-1:].expand(positions - n, -1)])
        rows_BTD = rows_TD[None]
        with as_found(self.model), ExitStack() as stack:
            if self.skip:
                stack.enter_context(passing_over(self.anatomy.blocks[:-1], self.anatomy.entry[1]))
            stack.enter_context(substituting(self.anatomy, rows_BTD, self.dtype))
            stack.enter_context(torch.set_grad_enabled(differentiable))
            logits = logits_of(forward(self.model, self.ids_T[None], **self.extra))
        if logits.shape[:2] != (1, positions):
            raise UnsupportedModel(
                f"replaying {positions} rows gave logits of shape {tuple(logits.shape)}"
            )
        return logits[0, :n]


@contextmanager
def substituting(
    anatomy: Anatomy, rows_BTD: Tensor, dtype: torch.dtype | None = None
) -> Iterator[None]:
    """Inside, the last block returns `rows_BTD` in place of its stream."""
    slot = anatomy.exits[-1]

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        old = leaf(output, slot)
        new = anatomy.stream(rows_BTD).to(device=old.device, dtype=dtype or old.dtype)
        return replace_leaf(output, slot, new)

    handle = anatomy.blocks[-1].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def passing_over(blocks: list[nn.Module], slot: Slot) -> Iterator[None]:
    """Inside, each block returns the stream it is given, at once."""
    saved = [(block, block.__dict__.get("forward")) for block in blocks]

    def through(*args: Any, **kwargs: Any) -> Any:
        return leaf({"args": args, "kwargs": kwargs}, slot)

    try:
        for block in blocks:
            block.forward = through
        yield
    finally:
        for block, own in saved:
            if own is None:
                block.__dict__.pop("forward", None)
            else:
                block.forward = own
