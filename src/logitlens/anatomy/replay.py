"""The exact slow path: the model's own code after the last block, run on rows of our choosing.

The model runs with the last block's output replaced by the rows, and its logits are the answer.
Earlier blocks are skipped where that changes nothing. It is the oracle in tests and the fallback
for a tail that does not come apart into modules (streams mixed by arithmetic, …).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from logitlens.anatomy.blocks import Anatomy
from logitlens.anatomy.forward import logits
from logitlens.anatomy.watch import Slot, leaf
from logitlens.errors import UnsupportedModel


class Replay:
    """Rows (N, D) → logits (N, V) by the model's own tail.

    Rows go in one after another as the positions of one sequence of the probe's own length, so
    nothing about the model's masks or caches is new to it. Raises UnsupportedModel where the model
    no longer returns one row of logits a position.
    """

    def __init__(self, model: nn.Module, anatomy: Anatomy, ids_T: Tensor, *, skip: bool = True):
        self.model, self.anatomy, self.ids_T, self.skip = model, anatomy, ids_T, skip

    def __call__(self, h_ND: Tensor) -> Tensor:
        parts = [self._run(rows) for rows in h_ND.split(len(self.ids_T))]
        return torch.cat(parts)

    def _run(self, rows_nD: Tensor) -> Tensor:
        n, positions = len(rows_nD), len(self.ids_T)
        wanted = rows_nD.requires_grad and torch.is_grad_enabled()  # a lens is being fitted
        rows_TD = torch.cat([rows_nD, rows_nD[-1:].expand(positions - n, -1)])
        blocks = self.anatomy.blocks

        def substitute(depth: int, stream: Tensor) -> Tensor:
            return self.anatomy.stream(rows_TD[None]).to(stream.device, stream.dtype)

        logits_1TV = logits(
            self.model,
            self.ids_T[None],
            skipping(blocks[:-1] if self.skip else [], self.anatomy.entry[1]),
            self.anatomy.following([len(blocks)], substitute),
            gradient=wanted,
        )
        if logits_1TV.shape[:2] != (1, positions):
            raise UnsupportedModel(
                f"replaying {positions} rows gave logits of shape {tuple(logits_1TV.shape)}"
            )
        return logits_1TV[0, :n]


@contextmanager
def skipping(blocks: list[nn.Module], slot: Slot) -> Iterator[None]:
    """Inside, each block returns the stream it is given and computes nothing."""
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
