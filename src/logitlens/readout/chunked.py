"""The default engine: exact statistics while the product with the unembedding streams by.

Tiles of rows × vocabulary are multiplied, looked at while they are still in the caches, and
overwritten by the next; extra memory does not grow with positions, layers or vocabulary. All layers
of a position share a tile with its final row, so that one pass over the unembedding serves every
statistic. Equal to `reference` up to float32 rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from logitlens.errors import MissingExtra
from logitlens.readout.head import Head
from logitlens.readout.online import Online
from logitlens.readout.product import Product
from logitlens.readout.stats import FinalRows, Stats, check_request, inside

ROWS = 1024  # rows of a tile: enough that packing the weights costs the product nothing
TILE = 4 << 20  # logits of a tile (16 MB): at most 4,096 tokens of many rows, 16,384 of few
CALLED = 4 << 20  # logits a head that may only be called is asked for at once
SAME = 64  # tokens from which on a product's sums no longer depend on how many there are
KERNELS = ("torch", "numba")

Tile = Callable[[slice | Tensor], Tensor]  # tokens → their logits (N, C) in every row


@dataclass(frozen=True)
class Chunked:
    """kernel: what looks at a tile, "torch" or "numba" (extra `fast`); rows, columns: size of a
    tile (None: by rule). Neither changes anything beyond rounding.

    Raises MissingExtra for "numba" where it is not installed.
    """

    kernel: str = "torch"
    rows: int | None = None
    columns: int | None = None

    def __post_init__(self) -> None:
        if self.kernel not in KERNELS:
            raise ValueError(f'kernel must be "torch" or "numba"; got {self.kernel!r}')
        if self.kernel == "numba" and not find_spec("numba"):
            raise MissingExtra("numba", "fast", 'kernel="numba"')

    @property
    def name(self) -> str:
        return f"chunked ({self.kernel})"

    @torch.no_grad()
    def stats(
        self,
        x_TLE: Tensor,
        head: Head,
        k: int,
        targets_TM: Tensor,
        *,
        final: FinalRows | None = None,
    ) -> Stats:
        """See `Engine.stats`."""
        check_request(x_TLE, head, k, targets_TM)
        T, L, _ = x_TLE.shape
        rows = self.rows or ROWS
        if head.weight_VE is None:
            rows = min(rows, max(1, CALLED // head.vocab))
            read = self._called if rows >= L else self._called_in_groups
        else:
            read = self._multiplied
            targets_TM = targets_TM.to(head.weight_VE.device)
        step = max(1, rows // L)
        return Stats.joined(
            [
                read(x_TLE[p:q], head, k, targets_TM[p:q], inside(final, p, q))
                for p, q in ((p, p + step) for p in range(0, max(T, 1), step))
            ]
        )

    def _multiplied(
        self, x_PLE: Tensor, head: Head, k: int, targets_PM: Tensor, final: FinalRows
    ) -> Stats:
        """A block of positions, by the head's weights."""
        L = x_PLE.shape[1]
        tile = tiles(x_PLE, head, compiled=self.kernel == "numba")
        columns = self.columns or tile_columns(x_PLE.shape[0] * L, head.vocab)
        online = self._online(k, targets_PM, target_logits(tile, x_PLE, targets_PM))
        stream(tile, head.vocab, columns, online, final)
        if online.own_PLM.is_cpu and online.differs():
            # Another kernel multiplied the targets, gathered, than the tiles: count against the tiles'
            # own numbers. (Seen on no processor yet; on a GPU it would be all too common.)
            online = self._online(k, targets_PM, online.own_PLM)
            stream(tile, head.vocab, columns, online)
        return online.result()

    def _called(
        self, x_PLE: Tensor, head: Head, k: int, targets_PM: Tensor, final: FinalRows
    ) -> Stats:
        """A block of positions, through a head that may only be called."""
        z_PLV = head.finish_(head.raw(x_PLE.flatten(0, 1))).unflatten(0, x_PLE.shape[:2])
        for p, z_V in final.items():
            z_V.copy_(z_PLV[p, -1])
        return self._given(z_PLV, k, targets_PM)

    def _called_in_groups(
        self, x_1LE: Tensor, head: Head, k: int, targets_1M: Tensor, final: FinalRows
    ) -> Stats:
        """One position whose rows are too many to call for together: its final row goes with each."""
        L = x_1LE.shape[1]
        if L == 1:
            return self._called(x_1LE, head, k, targets_1M, final)
        z_1V = head.finish_(head.raw(x_1LE[0, -1:]))
        for z_V in final.values():
            z_V.copy_(z_1V[0])
        parts = []
        group = max(1, CALLED // head.vocab - 1)
        for start in range(0, L - 1, group):
            stop = min(L - 1, start + group)
            z_NV = head.finish_(head.raw(x_1LE[0, start:stop]))
            part = self._given(torch.cat([z_NV, z_1V])[None], k, targets_1M)
            parts.append(part if stop == L - 1 else part.rows(slice(-1)))
        return Stats.joined(parts, 1)

    def _given(self, z_PLV: Tensor, k: int, targets_PM: Tensor) -> Stats:
        P, L, V = z_PLV.shape
        targets_PM = targets_PM.to(z_PLV.device)
        wanted_PLM = targets_PM.clamp(min=0)[:, None].expand(-1, L, -1)
        online = self._online(k, targets_PM, z_PLV.gather(-1, wanted_PLM))
        z_NV = z_PLV.flatten(0, 1)
        stream(lambda v: z_NV[:, v], V, self.columns or tile_columns(P * L, V), online)
        return online.result()

    def _online(self, k: int, targets_PM: Tensor, target_PLM: Tensor) -> Online:
        if self.kernel == "torch" or target_PLM.device.type != "cpu":
            return Online(k, targets_PM, target_PLM)
        from logitlens.readout.fused import Fused

        return Fused(k, targets_PM, target_PLM)


def tile_columns(rows: int, V: int) -> int:
    """Tokens of a tile of so many rows: a multiple of 64."""
    rows = max(1, rows)
    columns = min(16_384, TILE // rows, max(4096, (1 << 20) // rows), V + SAME - 1)
    return max(SAME, columns // SAME * SAME)


def tiles(x_PLE: Tensor, head: Head, *, compiled: bool = False) -> Tile:
    """Tokens → their float32 logits (P · L, C), good until the next call; by the head's weights."""
    assert head.weight_VE is not None
    x_NE = x_PLE.reshape(-1, x_PLE.shape[-1])
    product = Product(x_NE, head.weight_VE, head.bias_V, compiled=compiled)
    return lambda v: head.finish_(product.raw(v), v)


def stream(
    tile: Tile, vocab: int, columns: int, online: Online, final: FinalRows | None = None
) -> None:
    """All of the vocabulary, tile by tile, from the product to the statistics."""
    for v in range(0, vocab if online.P else 0, columns):
        z_NC = tile(slice(v, min(vocab, v + columns)))
        for p, z_V in (final or {}).items():
            z_V[v : v + columns] = z_NC[(p + 1) * online.L - 1]
        online.update(z_NC)


def target_logits(tile: Tile, x_PLE: Tensor, targets_PM: Tensor) -> Tensor:
    """Logits (P, L, M) of the targets, before any tile has passed: ranks count against them."""
    P, L, E = x_PLE.shape
    M = targets_PM.shape[1]
    unique_U, place = targets_PM.clamp(min=0).unique(return_inverse=True)
    same = SAME if E <= 1024 else 8 * SAME  # long sums are cut by the width too
    unique_U = torch.nn.functional.pad(unique_U, (0, -unique_U.numel() % same))
    z_PLU = tile(unique_U).unflatten(0, (P, L))
    return z_PLU.gather(-1, place.view(P, 1, M).expand(-1, L, -1))
