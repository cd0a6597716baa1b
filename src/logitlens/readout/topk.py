"""The k likeliest tokens of every row, kept while tiles of logits pass by.

After the first tile hardly any logit beats a row's running k-th value, so only the maxima of
blocks of 64 tokens are looked at, and only blocks whose maximum beats the threshold are opened.
Tiles come in ascending order of id, so an equal value never displaces one already kept: ties keep
the lower id.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 64
_OPENED = 1 << 18  # elements of opened blocks handled together: bounds the memory of a bad tile


class RunningTopK:
    """Values (N, K) highest first, and ids (N, K) int64, −1 while there are fewer."""

    def __init__(self, rows: int, k: int, device: torch.device):
        self.k = k
        self.values_NK = torch.full((rows, k), float("-inf"), device=device, dtype=torch.float32)
        self.ids_NK = torch.full((rows, k), -1, dtype=torch.long, device=device)
        self.seen = 0  # columns that have passed

    def update(self, z_NC: Tensor, maxima_NB: Tensor) -> None:
        """Take in the next C columns; maxima_NB are those of `block_maxima(z_NC)`."""
        if self.seen < self.k:
            self._fill(z_NC, maxima_NB)
        else:
            self._merge(z_NC, maxima_NB > self.values_NK[:, -1:], self.values_NK[:, -1:], False)
        self.seen += z_NC.shape[1]

    def _fill(self, z_NC: Tensor, maxima_NB: Tensor) -> None:
        """The first tiles, while fewer than k columns have been seen."""
        C = z_NC.shape[1]
        if self.seen == 0 and self.k <= C:
            source = maxima_NB if self.k <= maxima_NB.shape[1] else z_NC
            floor_N1 = source.topk(self.k, dim=-1, sorted=True).values[:, -1:]
            self._merge(z_NC, maxima_NB >= floor_N1, floor_N1, True)
            return
        new_ids = torch.arange(self.seen, self.seen + C, device=z_NC.device, dtype=torch.long)
        held = min(self.seen, self.k)
        step = max(1, _OPENED // (C + self.k))
        for start in range(0, z_NC.shape[0], step):
            r = slice(start, start + step)
            values = torch.cat([self.values_NK[r, :held], z_NC[r]], 1)
            ids = torch.cat([self.ids_NK[r, :held], new_ids.expand(values.shape[0], -1)], 1)
            values, order = values.sort(dim=-1, descending=True, stable=True)
            kept = min(self.k, values.shape[1])
            self.values_NK[r, :kept] = values[:, :kept]
            self.ids_NK[r, :kept] = ids.gather(1, order[:, :kept])

    def _merge(self, z_NC: Tensor, open_NB: Tensor, floor_N1: Tensor, inclusive: bool) -> None:
        """Open the blocks marked and merge what reaches the floor with what is held."""
        row, block = open_NB.nonzero(as_tuple=True)
        start, total = 0, row.numel()
        while start < total:
            stop = min(total, start + _OPENED // BLOCK)
            if stop < total:  # never split a row's blocks: its candidates are merged together
                last = int(row[stop - 1])
                first = int(torch.searchsorted(row, last))
                stop = first if first > start else int(torch.searchsorted(row, last, right=True))
            self._merge_blocks(z_NC, row[start:stop], block[start:stop], floor_N1, inclusive)
            start = stop

    def _merge_blocks(
        self, z_NC: Tensor, row_n: Tensor, block_n: Tensor, floor_N1: Tensor, inclusive: bool
    ) -> None:
        C = z_NC.shape[1]
        lane_b = torch.arange(BLOCK, dtype=torch.long, device=z_NC.device)
        column_nb = block_n[:, None] * BLOCK + lane_b
        stride = z_NC.stride(0)
        if stride % BLOCK == 0 and z_NC.storage_offset() == 0 and z_NC.is_cpu:
            blocks_nb = z_NC.as_strided((z_NC.shape[0] * stride // BLOCK, BLOCK), (BLOCK, 1))
            value_nb = blocks_nb.index_select(0, row_n * (stride // BLOCK) + block_n)
        else:
            value_nb = z_NC[row_n[:, None], column_nb.clamp(max=C - 1)]
        floor_n1 = floor_N1[row_n]
        beats_nb = (value_nb >= floor_n1) if inclusive else (value_nb > floor_n1)
        if C % BLOCK:
            beats_nb &= column_nb < C
        i, j = beats_nb.nonzero(as_tuple=True)
        row, column, value = row_n[i], column_nb[i, j], value_nb[i, j]

        rows_R, count_R = row.unique_consecutive(return_counts=True)
        if rows_R.numel() == 0:
            return
        first_R = count_R.cumsum(0) - count_R
        number_n = torch.arange(row.numel(), dtype=torch.long, device=row.device)
        which = number_n[: rows_R.numel()].repeat_interleave(count_R)
        place = number_n - first_R[which]
        held = 0 if inclusive else self.k
        width = held + max(int(count_R.max()), self.k - held)
        values = z_NC.new_full((rows_R.numel(), width), float("-inf"))
        ids = torch.full(values.shape, -1, dtype=torch.long, device=row.device)
        if held:
            values[:, :held], ids[:, :held] = self.values_NK[rows_R], self.ids_NK[rows_R]
        values[which, held + place] = value
        ids[which, held + place] = column + self.seen
        values, order = values.sort(dim=-1, descending=True, stable=True)
        self.values_NK[rows_R] = values[:, : self.k]
        self.ids_NK[rows_R] = ids.gather(1, order[:, : self.k])


def leading(z_NV: Tensor, k: int) -> RunningTopK:
    """The likeliest tokens of whole rows of logits."""
    top = RunningTopK(z_NV.shape[0], k, z_NV.device)
    if k and z_NV.numel():
        top.update(z_NV, block_maxima(z_NV))
    return top


def block_maxima(z_NC: Tensor, out_NB: Tensor | None = None) -> Tensor:
    """Maxima of blocks of 64 columns, (N, ceil(C / 64)); NaN where a block holds one. N may be several
    axes."""
    *N, C = z_NC.shape
    whole, rest = divmod(C, BLOCK)
    if out_NB is None:
        out_NB = z_NC.new_empty(*N, whole + (rest > 0))
    if whole:
        blocks_NBb = z_NC[..., : whole * BLOCK].unflatten(-1, (whole, BLOCK))
        torch.amax(blocks_NBb, -1, out=out_NB[..., :whole])
    if rest:
        torch.amax(z_NC[..., whole * BLOCK :], -1, out=out_NB[..., whole])
    return out_NB
