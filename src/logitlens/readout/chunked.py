"""The default readout: exact statistics while the product with the unembedding streams by.

Tiles of rows × vocabulary are multiplied, looked at while they are still in the caches, and
overwritten by the next; extra memory does not grow with positions, depths or vocabulary. All depths
of a position share a tile with its final row, so that one pass over the unembedding serves every
statistic. Equal to `reference` up to float32 rounding.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from importlib.util import find_spec

import torch
from torch import Tensor

from logitlens.errors import MissingExtra
from logitlens.readout.head import Head
from logitlens.readout.online import Online
from logitlens.readout.product import Product, finish_, widens
from logitlens.readout.stats import Stats, check_request

ROWS = 1024  # rows of a tile: enough that packing the weights costs the product nothing
TILE = 4 << 20  # logits of a tile (16 MB): at most 4,096 tokens of many rows, 16,384 of few
CALLED = 4 << 20  # logits a head that may only be called is asked for at once
BLOCK_BYTES = 8 << 20  # residual rows handed over at once, in float32
SAME = 64  # tokens from which on a product's sums no longer depend on how many there are
WARM = 1 << 29  # logits read by a process before it pays to load what numba compiled
WIDENED = 128  # numbers of a widened token that cost as much as looking at one logit

_read = 0  # logits read by this process so far

FinalRows = dict[int, Tensor]  # position → (V,) float32, to be filled with its final row's logits


def tile_columns(rows: int, V: int) -> int:
    """Tokens of a tile of so many rows: a multiple of 64."""
    columns = min(16_384, TILE // rows, max(4096, (1 << 20) // rows), V + SAME - 1)
    return max(SAME, columns // SAME * SAME)


def positions_per_block(L: int, E: int, V: int, dtype: torch.dtype) -> int:
    """How many positions of L rows a caller should hand to `stats` at once.

    Enough to fill a tile, few enough that the rows of head input (and a norm's or a lens's
    temporaries of the same size) stay within a few times 8 MB.
    """
    return max(1, min(ROWS // L, BLOCK_BYTES // (4 * L * E)))


@torch.no_grad()
def stats(
    x_TLE: Tensor,
    head: Head,
    k: int,
    targets_TM: Tensor,
    *,
    rows: int | None = None,
    columns: int | None = None,
    kernel: str | None = None,
    precision: str = "exact",
    final: FinalRows | None = None,
) -> Stats:
    """Rows of head input (T, L, E), the final row last along L → `Stats`, in bounded memory.

    rows, columns: size of a tile; kernel: "torch" or "numba". All chosen by rule when None; none
    changes anything beyond rounding. precision: "exact", or "screened" for float32 weights by
    bfloat16 products, see `screened`. final: positions whose final logits are wanted whole; filled
    as the tiles pass, when exact. Raises PromptError for a k or a target id outside the
    vocabulary, MissingExtra for "numba" where it is not installed.
    """
    check_request(x_TLE, head, k, targets_TM)
    if precision == "screened":
        from logitlens.readout import screened

        return screened.stats(x_TLE, head, k, targets_TM, columns=columns, kernel=kernel).stats
    if precision != "exact":
        raise ValueError(f'precision must be "exact" or "screened"; got {precision!r}')
    T, L, _ = x_TLE.shape
    rows = rows or ROWS
    if head.weight_VE is None:
        rows = min(rows, max(1, CALLED // head.vocab))
        read = _called if rows >= L else _called_in_groups
    else:
        read = _multiplied
        targets_TM = targets_TM.to(head.weight_VE.device)
    way = Way(k, columns, kernel or choose_kernel(T * L, head))
    step = max(1, rows // L)
    parts = []
    for p in range(0, max(T, 1), step):
        mine = inside(final, p, p + step)
        parts.append(read(x_TLE[p : p + step], head, targets_TM[p : p + step], way, mine))
    return parts[0] if len(parts) == 1 else concatenated(parts, 0)


def inside(final: FinalRows | None, start: int, stop: int) -> FinalRows:
    """The same rows of logits, for a block of positions counted from 0."""
    return {p - start: z_V for p, z_V in (final or {}).items() if start <= p < stop}


def choose_kernel(rows: int, head: Head) -> str:
    """What is to read so many more rows: "numba" where installed and worth it.

    What numba compiled takes half a second to load (and once, after an installation, several to
    compile), so that a process stays with "torch" until it has read half a billion logits. Where
    torch alone must widen the weights, a logit costs more time, and counts for more.
    """
    global _read
    logits, weight_VE = rows * head.vocab, head.weight_VE
    if weight_VE is not None and widens(weight_VE):
        logits *= 1 + weight_VE.shape[1] // WIDENED
    _read += logits
    return "numba" if _read > WARM and find_spec("numba") else "torch"


@dataclass(frozen=True)
class Way:
    """How a call of `stats` reads: top k, tokens of a tile (None: by rule), kernel."""

    k: int
    columns: int | None
    kernel: str

    def online(self, targets_PM: Tensor, target_PLM: Tensor) -> Online:
        if self.kernel == "torch" or target_PLM.device.type != "cpu":
            return Online(self.k, targets_PM, target_PLM)
        if self.kernel != "numba":
            raise ValueError(f'kernel must be "torch" or "numba"; got {self.kernel!r}')
        if not find_spec("numba"):
            raise MissingExtra("numba", "fast", 'kernel="numba"')
        from logitlens.readout.fused import Fused

        return Fused(self.k, targets_PM, target_PLM)


def _multiplied(x_PLE: Tensor, head: Head, targets_PM: Tensor, way: Way, final: FinalRows) -> Stats:
    """A block of positions, by the head's weights."""
    P, L, E = x_PLE.shape
    product = Product(x_PLE.reshape(P * L, E), head, compiled=way.kernel == "numba")
    online = way.online(targets_PM, target_logits(product, targets_PM, L))
    stream(product, online, way.columns, final)
    return online.result()


def stream(
    product: Product, online: Online, columns: int | None = None, final: FinalRows | None = None
) -> None:
    """All of the vocabulary, tile by tile, from the product to the statistics."""
    rows, V = product.x_NE.shape[0], product.head.vocab
    columns = columns or tile_columns(max(1, rows), V)
    for v in range(0, V if rows else 0, columns):
        z_NC = product.tile(slice(v, min(V, v + columns)))
        for p, z_V in (final or {}).items():
            z_V[v : v + columns] = z_NC[(p + 1) * online.L - 1]
        online.update(z_NC)


def target_logits(product: Product, targets_PM: Tensor, L: int) -> Tensor:
    """Logits (P, L, M) of the targets, before any tile has passed: ranks count against them."""
    P, M = targets_PM.shape
    unique_U, place = targets_PM.clamp(min=0).unique(return_inverse=True)
    same = SAME if product.x_NE.shape[1] <= 1024 else 8 * SAME  # long sums are cut by the width too
    unique_U = torch.nn.functional.pad(unique_U, (0, -unique_U.numel() % same))
    z_PLU = product.tile(unique_U).unflatten(0, (P, L))
    return z_PLU.gather(-1, place.view(P, 1, M).expand(-1, L, -1))


def _called(x_PLE: Tensor, head: Head, targets_PM: Tensor, way: Way, final: FinalRows) -> Stats:
    """A block of positions, through a head that may only be called."""
    P, L, E = x_PLE.shape
    z_PLV = finish_(head.raw(x_PLE.reshape(P * L, E)), head).unflatten(0, (P, L))
    for p, z_V in final.items():
        z_V.copy_(z_PLV[p, -1])
    return _given(z_PLV, targets_PM, way)


def _called_in_groups(
    x_1LE: Tensor, head: Head, targets_1M: Tensor, way: Way, final: FinalRows
) -> Stats:
    """One position whose depths are too many to call for at once: its final row goes with each."""
    L = x_1LE.shape[1]
    if L == 1:
        return _called(x_1LE, head, targets_1M, way, final)
    z_1V = finish_(head.raw(x_1LE[0, -1:]), head)
    for z_V in final.values():
        z_V.copy_(z_1V[0])
    parts = []
    group = max(1, CALLED // head.vocab - 1)
    for start in range(0, L - 1, group):
        x_NE = x_1LE[0, start : min(L - 1, start + group)]
        z_1LV = torch.cat([finish_(head.raw(x_NE), head), z_1V])[None]
        part = _given(z_1LV, targets_1M, way)
        last = start + group >= L - 1
        parts.append(Stats(*(f if last else f[:, :-1] for f in fields_of(part))))
    return concatenated(parts, 1)


def _given(z_PLV: Tensor, targets_PM: Tensor, way: Way) -> Stats:
    P, L, V = z_PLV.shape
    targets_PM = targets_PM.to(z_PLV.device)
    wanted_PLM = targets_PM.clamp(min=0)[:, None].expand(-1, L, -1)
    online = way.online(targets_PM, z_PLV.gather(-1, wanted_PLM))
    if P:
        for z_NC in z_PLV.flatten(0, 1).split(way.columns or tile_columns(P * L, V), dim=1):
            online.update(z_NC)
    return online.result()


def fields_of(part: Stats) -> list[Tensor]:
    return [getattr(part, field.name) for field in fields(part)]


def concatenated(parts: list[Stats], dim: int) -> Stats:
    return Stats(*(torch.cat(columns, dim) for columns in zip(*map(fields_of, parts))))
