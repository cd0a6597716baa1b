"""Residuals + lens + tail → statistics as numpy arrays: the middle of the arrow.

Rows go through the lens and the tail's norm a block of positions at a time, so that what is held
beside the residuals does not grow with the prompt, the layers or the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from logitlens.readout import chunked, transfer
from logitlens.readout.engine import Engine, choose
from logitlens.readout.gpu import ROWS
from logitlens.readout.head import Head
from logitlens.readout.stats import FinalRows, Stats, inside
from logitlens.readout.transfer import Arriving

BLOCK_BYTES = 8 << 20  # rows of head input handed to an engine in one call, in float32
ON_GPU = 8  # times as many there, where a larger product is a faster one


class TailLike(Protocol):
    """What a readout needs of a tail; see `logitlens.anatomy.tail.Tail`."""

    @property
    def head(self) -> Head: ...
    def head_input(self, h_ND: Tensor) -> Tensor: ...


class LensLike(Protocol):
    """What a readout needs of a lens; see `logitlens.lenses.Lens`."""

    def apply(self, h_ND: Tensor, depth: int) -> Tensor: ...


class Table:
    """Arrays (L, T, …) of T positions (and candidate_ids (T, C)), filled some positions at a time.

    Written into place: small arrays kept from every block would sit between the large ones that
    come and go, and the allocator would take new memory for each of these.
    """

    def __init__(self, T: int):
        self.T = T
        self.filled = 0
        self.arrays: dict[str, np.ndarray] = {}

    def add(self, block: dict[str, np.ndarray]) -> None:
        """The next positions."""
        t = block["finite"].shape[1]
        for name, part in block.items():
            before = part.shape[: _axis(name)]  # the axes before positions
            if name not in self.arrays:
                shape = (*before, self.T, *part.shape[len(before) + 1 :])
                self.arrays[name] = np.empty(shape, part.dtype)
            whole = (slice(None),) * len(before)
            self.arrays[name][*whole, self.filled : self.filled + t] = part
        self.filled += t

    def part(self, positions: slice) -> dict[str, np.ndarray]:
        """Views of the arrays at some positions."""
        return {
            name: array[(slice(None),) * _axis(name) + (positions,)]
            for name, array in self.arrays.items()
        }


def _axis(name: str) -> int:
    """Which axis of an array counts positions."""
    return 0 if name == "candidate_ids" else 1


def statistics(
    h_LTD: Sequence[Tensor],
    depths: Sequence[int],
    tail: TailLike,
    lens: LensLike,
    *,
    k: int,
    targets_TM: Tensor,
    candidates: int = 0,
    engine: Engine | None = None,
    into: Table | None = None,
    final: FinalRows | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, np.ndarray]:
    """Statistics of L layers × T positions; the last of `h_LTD` is the model's own final row.

    h_LTD        L tensors (T, D), the raw residuals at `depths`
    targets_TM   (T, M) int64 ids whose log-probability and rank are wanted; −1: none
    candidates   C: follow the C tokens that the final row puts first through every layer
    engine       what reads them; None: chosen for so many rows
    into         a table whose next T positions these are; None: they are all there is
    final        rows of memory (V,), by position, for the final logits there
    progress     called with (positions done, positions of the table) after every block

    Returns the table's arrays, the layer first: top_ids (L, T, K) int32, top_logprobs (L, T, K),
    entropy (L, T), kl (L, T), target_logprobs (L, T, M) float32, target_ranks (L, T, M) int32, and
    finite (L, T) bool, False where a logit was nan or +inf. With candidates also candidate_ids (T, C)
    int32, likeliest first, candidate_logprobs (L, T, C) float32 and candidate_ranks (L, T, C) int32.
    """
    return begin(
        h_LTD, depths, tail, lens, k=k, targets_TM=targets_TM, candidates=candidates, engine=engine,
        into=into, final=final, progress=progress,
    )()  # fmt: skip


@torch.no_grad()
def begin(
    h_LTD: Sequence[Tensor],
    depths: Sequence[int],
    tail: TailLike,
    lens: LensLike,
    *,
    k: int,
    targets_TM: Tensor,
    candidates: int = 0,
    engine: Engine | None = None,
    into: Table | None = None,
    final: FinalRows | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Callable[[], dict[str, np.ndarray]]:
    """`statistics`, begun: what is returned ends them. Until it is called, a GPU may still be reading the
    last block; on the CPU all are read."""
    T, L = len(h_LTD[0]), len(h_LTD)
    engine = engine or choose(tail.head, T * L, max(k, candidates))
    table = Table(T) if into is None else into
    arriving: list[Arriving] = []

    def arrive() -> dict[str, np.ndarray]:
        if arriving:
            table.add(arriving.pop().arrays())
            if progress:
                progress(table.filled, table.T)
        return table.arrays

    start, step = 0, 1  # the first position tells the width of a row of head input
    while start < T:
        stop = min(T, start + step)
        x_TLE = _head_input(h_LTD, depths, tail, lens, slice(start, stop))
        if start == 0 and T > 1:
            most = positions_per_block(L, x_TLE.shape[-1], gpu=x_TLE.is_cuda)
            # A GPU's engine would cut a little more into one piece more.
            step = chunked.evenly(T, most, most if x_TLE.is_cuda else T)
            stop = min(T, step)
            if stop > 1:
                x_TLE = _head_input(h_LTD, depths, tail, lens, slice(0, stop))
        stats = engine.stats(
            x_TLE,
            tail.head,
            k,
            targets_TM[start:stop],
            candidates=candidates,
            final=inside(final, start, stop),
        )
        arrive()  # the block before
        arriving.append(Arriving(_narrowed(stats, candidates), stats.finite.device))
        if not transfer.overlaps(h_LTD[-1].device):
            arrive()
        start = stop
    return arrive


def positions_per_block(L: int, E: int, *, gpu: bool = False) -> int:
    """How many positions of L rows to hand to an engine in one call.

    Enough to fill a tile, few enough that the rows of head input (and a norm's or a lens's
    temporaries of the same size) stay within a few times 8 MB, or 64 MB on a GPU.
    """
    if gpu:
        return max(1, min(ROWS // L, ON_GPU * BLOCK_BYTES // (4 * L * E)))
    whole = chunked.LIBRARY * (chunked.ROWS // L)  # one or more blocks of either kernel
    most = BLOCK_BYTES // (4 * L * E)
    return max(1, most // whole * whole if whole and most > whole else most)


def _head_input(
    h_LTD: Sequence[Tensor], depths: Sequence[int], tail: TailLike, lens: LensLike, block: slice
) -> Tensor:
    """(t, L, E): the lens, then the model's own norm, over one block of positions."""
    last = len(h_LTD) - 1
    rows = []
    for i, (h_TD, depth) in enumerate(zip(h_LTD, depths)):
        h_tD = h_TD[block]
        # The final row is the model's own: no lens is ever laid over it.
        rows.append(h_tD if i == last else lens.apply(h_tD, depth).to(h_tD.dtype))
    h_tLD = torch.stack([row.to(rows[-1].device) for row in rows], dim=1)
    t, L = h_tLD.shape[:2]
    return tail.head_input(h_tLD.flatten(0, 1)).unflatten(0, (t, L))


def _narrowed(stats: Stats, candidates: int) -> dict[str, Tensor]:
    """Layer first, and in the dtypes of a Reading; views where they are so in memory."""

    def out(tensor: Tensor) -> Tensor:
        narrow = torch.int32 if tensor.dtype == torch.long else tensor.dtype
        return tensor.transpose(0, 1).to(narrow)

    M = stats.target_ranks.shape[-1] - candidates
    arrays = {
        "top_ids": out(stats.top_ids),
        "top_logprobs": out(stats.top_logprobs),
        "entropy": out(stats.entropy),
        "kl": out(stats.kl),
        "target_logprobs": out(stats.target_logprobs[..., :M]),
        "target_ranks": out(stats.target_ranks[..., :M]),
        "finite": out(stats.finite),
    }
    if candidates:
        arrays |= {
            "candidate_ids": stats.candidate_ids.int(),
            "candidate_logprobs": out(stats.target_logprobs[..., M:]),
            "candidate_ranks": out(stats.target_ranks[..., M:]),
        }
    return arrays
