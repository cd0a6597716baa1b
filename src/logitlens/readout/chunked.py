"""The default engine: exact statistics while the product with the unembedding streams by.

Tiles of rows × vocabulary are multiplied, looked at while they are still in the caches, and
overwritten by the next; extra memory does not grow with positions, layers or vocabulary. All layers
of a position share a tile with its final row, so that one pass over the unembedding serves every
statistic. Equal to `reference` up to float32 rounding.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from logitlens.errors import MissingExtra
from logitlens.readout.head import Head
from logitlens.readout.online import Online
from logitlens.readout.product import FEW, Packing, Product, Room, mkl_packing
from logitlens.readout.stats import Engine, FinalRows, Stats, inside
from logitlens.readout.topk import leading

ROWS = 1024  # rows of a tile: enough that packing the weights costs a product of our own nothing
LIBRARY = 2  # times as many with torch alone, whose product packs them more slowly
TILE = 4 << 20  # logits of a tile (16 MB): at most 4,096 tokens of many rows, 16,384 of few
WHOLE = 6 << 20  # logits up to which a block of rows is multiplied by all tokens in one tile
STEP = 2 << 20  # of rows that are all there, logits of a position looked at in one step (8 MB)
HELD = 8 << 20  # logits of final rows held while the other rows pass
CALLED = 4 << 20  # most logits asked of one call of a head that may only be called
TOGETHER = 16  # tiles' positions whose statistics are made of their sums in one step
SMALL = 8192  # tokens of which a thread multiplies whole rows, …
PACKED = 4 << 20  # … where their weights, packed for all threads, are no more numbers (16 MB)
SAME = 64  # tokens from which on a product's sums no longer depend on how many there are
KERNELS = ("torch", "numba")

# Tokens → their logits (N, C) in every row, those of a layer one position after another: the final
# rows are the last. Several tokens in order may be wanted in memory that is given for them.
Tile = Callable[..., Tensor]


given_up: list[str] = []  # why numba's kernel is not used any more in this process


def give_up(error: BaseException) -> None:
    """Let torch read from now on where numba might, and say why, once, on stderr."""
    why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    given_up.append(why)
    line = f"logitlens: the extra `fast` cannot be used, torch reads alone: {why}"
    with suppress(OSError, ValueError):  # stderr may be a log on the same full disk, or closed
        print(line, file=sys.stderr)


def _compiling(error: OSError) -> bool:
    """Whether the system refused numba something, say room for what it compiles; not whatever else a head,
    or a signal's handler, may raise."""
    frames = traceback.walk_tb(error.__traceback__)
    return error.errno is not None and any(
        f"{os.sep}numba{os.sep}" in frame.f_code.co_filename for frame, _ in frames
    )


@dataclass(frozen=True)
class Chunked(Engine):
    """kernel: what looks at a tile, "torch" or "numba" (extra `fast`); rows, columns: size of a
    tile (None: by rule). Neither changes anything beyond rounding.

    Raises MissingExtra for "numba" where it is not installed.
    """

    kernel: str = "torch"
    rows: int | None = None
    columns: int | None = None
    # Devices other than the CPU on which a called head gave its logits, where numba's kernel was asked for.
    _elsewhere: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.kernel not in KERNELS:
            raise ValueError(f'kernel must be "torch" or "numba"; got {self.kernel!r}')
        if self.kernel == "numba" and not find_spec("numba"):
            raise MissingExtra("numba", "fast", 'kernel="numba"')

    @property
    def name(self) -> str:
        """Of what looks at tiles. Where a called head gives its logits, its first call tells: on a GPU torch
        looks at them, whatever was asked for."""
        return f"chunked ({'numba' if self._compiled and not self._elsewhere else 'torch'})"

    @property
    def _compiled(self) -> bool:
        """Whether numba's kernel looks at tiles: it was asked for, and has not been given up."""
        return self.kernel == "numba" and not given_up

    def stats(self, *args: Any, **kwargs: Any) -> Stats:
        if self._compiled:
            try:
                return super().stats(*args, **kwargs)
            except OSError as error:
                if not _compiling(error):
                    raise
                give_up(error)
        return super().stats(*args, **kwargs)

    def positions(self, L: int, head: Head, candidates: int) -> int:
        return TOGETHER * self._step(L, head, candidates)

    def _step(self, L: int, head: Head, candidates: int) -> int:
        """How many positions' rows a tile has."""
        if not self._compiled:
            tiles = LIBRARY
        elif not self._strips(L, head, candidates):
            tiles = 1
        else:  # a small vocabulary is packed once for all of them
            tiles = torch.get_num_threads() * (TOGETHER if _small(head) else 1)
        step = self.rows // L if self.rows else tiles * (ROWS // L)
        return min(step, self._most(L, head, candidates)) or 1

    def _most(self, L: int, head: Head, candidates: int) -> int:
        """How many a tile may have for what is held beside it."""
        if head.weight_VE is None:
            return CALLED // head.vocab // L or 1
        return (HELD // head.vocab or 1) if candidates else sys.maxsize

    def _strips(self, L: int, head: Head, candidates: int) -> Packing | None:
        """MKL's functions where threads multiply rows of their own with them: plain heads of float32,
        which no product of our own reads faster, and enough rows in a block for each thread."""
        weight_VE = head.weight_VE
        if not self._compiled or self.columns:
            return None
        rows = min(self._most(L, head, candidates) * L, LIBRARY * ROWS)
        if L == 1 or rows <= FEW * torch.get_num_threads():
            return None
        return mkl_packing(weight_VE) if weight_VE is not None and head.plain else None

    def block(
        self, x_PLE: Tensor, head: Head, k: int, targets_PM: Tensor, candidates: int, final: FinalRows
    ) -> Stats:  # fmt: skip
        (P, L), parts = x_PLE.shape[:2], []
        room = Room(x_PLE if head.weight_VE is None else head.weight_VE)
        step = self._step(L, head, candidates)
        if not self.rows:
            step = evenly(P, step, self._most(L, head, candidates))
        for p in range(0, max(P, 1), step):
            x_pLE, targets_pM = x_PLE[p : p + step], targets_PM[p : p + step]
            here = inside(final, p, p + step)
            parts.append(self._part(x_pLE, head, k, targets_pM, candidates, here, room))
            if step < P:  # one part's is freed with its tile, as it was taken
                parts[-1].work = parts[-1].work.new_empty(2, 0)
        return Online.joined(parts).result(candidates)

    def _part(
        self, x_PLE: Tensor, head: Head, k: int, targets_PM: Tensor, candidates: int,
        final: FinalRows, room: Room,
    ) -> Online:  # fmt: skip
        """The sums of as many positions as a tile has rows of."""
        P, L = x_PLE.shape[:2]
        if FEW * torch.get_num_threads() < P * L and (mkl := self._strips(L, head, candidates)):
            return _by_strips(mkl, x_PLE, head, k, targets_PM, candidates, final)
        tile, leading_PC = self._tiles(x_PLE, head, candidates, room)
        if leading_PC is not None:
            targets_PM = torch.cat([targets_PM.to(leading_PC.device), leading_PC], 1)
        shape = (len(x_PLE), x_PLE.shape[1], head.vocab)
        # A called head may give its logits on a GPU of its own.
        there = tile.z_NV.device if isinstance(tile, _Held) else room.space.device
        return self._look(tile, shape, k, targets_PM.to(there), final)

    def _tiles(
        self, x_PLE: Tensor, head: Head, candidates: int, room: Room
    ) -> tuple[Tile, Tensor | None]:
        """The rows of some positions, and the candidates (P, C) of their final rows."""
        P, L = x_PLE.shape[:2]
        compiled = self._compiled
        few = P * L * head.vocab <= WHOLE and not self.columns
        if head.weight_VE is None or few:
            z_NV = whole(by_layer(x_PLE), head, compiled=compiled, room=room)
            return _Held(z_NV), leading(
                z_NV[(L - 1) * P :], candidates
            ).ids_NK if candidates else None
        if not candidates:
            return tiles(by_layer(x_PLE), head, compiled=compiled, room=room), None
        # The final rows first, held while the others pass: no row is multiplied twice.
        final_PV = whole(x_PLE[:, -1], head, compiled=compiled)
        others = tiles(by_layer(x_PLE[:, :-1]), head, compiled=compiled)
        return beside(others, final_PV, L, room), leading(final_PV, candidates).ids_NK

    def _look(
        self,
        tile: Tile,
        shape: tuple[int, int, int],
        k: int,
        targets_PM: Tensor,
        final: FinalRows,
    ) -> Online:
        """All of P positions × L rows × V tokens, tile by tile."""
        P, L, V = shape
        held = isinstance(tile, _Held)
        at_once = held and not self._compiled
        columns = self.columns or (held_columns(L, V) if at_once else tile_columns(P * L, V))
        online = self._online(k, targets_PM, target_logits(tile, L, targets_PM))
        stream(tile, V, columns, online, final)
        if online.own_PLM.is_cpu and not held and online.differs():
            # Another kernel multiplied the targets, gathered, than the tiles: count against the tiles'
            # own numbers. (Seen on no processor yet; on a GPU it would be all too common.)
            online = self._online(k, targets_PM, online.own_PLM)
            stream(tile, V, columns, online)
        return online

    def _online(self, k: int, targets_PM: Tensor, target_PLM: Tensor) -> Online:
        if not self._compiled:
            return Online(k, targets_PM, target_PLM)
        if target_PLM.device.type != "cpu":
            self._elsewhere.add(target_PLM.device.type)
            return Online(k, targets_PM, target_PLM)
        from logitlens.readout.fused import Fused

        return Fused(k, targets_PM, target_PLM)


def _small(head: Head) -> bool:
    """Whether all tokens are multiplied, and packed, together."""
    return head.weight_VE is not None and head.vocab <= SMALL and head.weight_VE.numel() <= PACKED


def evenly(positions: int, step: int, most: int = sys.maxsize) -> int:
    """How many to take at a time, of `step` or so: a little more rather than one time more for a few."""
    # A rest of a quarter of a step or more makes one more of them.
    count = max(1, (4 * positions + 3 * step) // (4 * step), -(-positions // most))
    return max(1, -(-positions // count))


def _by_strips(
    mkl: Packing, x_PLE: Tensor, head: Head, k: int, targets_PM: Tensor, candidates: int,
    final: FinalRows,
) -> Online:  # fmt: skip
    """By threads of their own; see `Fused.multiply`. Candidates are found in the final rows first."""
    from logitlens.readout.fused import Fused

    assert head.weight_VE is not None
    there = head.weight_VE.device
    x_PLE, L, held_PV = x_PLE.to(there, torch.float32), x_PLE.shape[1], None
    targets_PM = targets_PM.to(there)
    if candidates:
        held_PV = whole(x_PLE[:, -1], head, compiled=True)
        targets_PM = torch.cat([targets_PM, leading(held_PV, candidates).ids_NK], 1)
        x_PLE = x_PLE[:, :-1]
    x_PRE, weight_VE = x_PLE.contiguous(), head.weight_VE.detach()
    given = (mkl, x_PRE, weight_VE, final, held_PV, _small(head))
    online = Fused(k, targets_PM, x_PRE.new_empty(len(x_PRE), L, targets_PM.shape[1]))
    online.multiply(*given)
    if online.differs():
        online = Fused(k, targets_PM, online.own_PLM)
        online.multiply(*given, known=True)
    return online


@dataclass(frozen=True, eq=False)
class _Held:
    """The tile of logits that are all there."""

    z_NV: Tensor

    def __call__(self, v: slice | Tensor) -> Tensor:
        return self.z_NV[:, v]


def by_layer(x_PLE: Tensor) -> Tensor:
    """Rows (L · P, E) as a tile has them."""
    return x_PLE.transpose(0, 1).flatten(0, 1)


def tile_columns(rows: int, V: int) -> int:
    """Tokens of a tile of so many rows: a multiple of 64."""
    rows = max(1, rows)
    columns = min(16_384, TILE // rows, max(4096, (1 << 20) // rows), V + SAME - 1)
    return max(SAME, columns // SAME * SAME)


def held_columns(L: int, V: int) -> int:
    """Tokens that torch looks at in one step where all logits are there: many, for its operations on a few
    rows take longer to call than to compute."""
    return min(V, max(SAME, STEP // L // SAME * SAME))


def tiles(x_NE: Tensor, head: Head, *, compiled: bool = False, room: Room | None = None) -> Tile:
    """Tokens → their float32 logits (N, C), good until the next call; by the head's weights."""
    assert head.weight_VE is not None
    product = Product(x_NE, head.weight_VE, head.bias_V, compiled=compiled, room=room)
    same = SAME if x_NE.shape[1] <= 1024 else 8 * SAME  # long sums are cut by the width too

    def tile(v: slice | Tensor, out_NC: Tensor | None = None) -> Tensor:
        if isinstance(v, slice):
            return head.finish_(product.raw(v, out_NC), v)
        u = torch.nn.functional.pad(v, (0, -v.numel() % same))
        return head.finish_(product.raw(u), u)[:, : v.numel()]

    return tile


def whole(x_NE: Tensor, head: Head, *, compiled: bool = False, room: Room | None = None) -> Tensor:
    """The logits (N, V) of a few rows."""
    if head.weight_VE is None:  # its module's own product, never of many rows together
        parts = [head.raw(x_nE) for x_nE in x_NE.split(max(1, CALLED // head.vocab))]
        z_NV = parts[0].contiguous() if len(parts) == 1 else torch.cat(parts)
        return head.finish(z_NV)  # not in place: whoever watches the module may have kept it
    return tiles(x_NE, head, compiled=compiled, room=room)(slice(0, head.vocab))


def beside(others: Tile, final_PV: Tensor, L: int, room: Room) -> Tile:
    """Tiles of all rows of P positions: L − 1 that are multiplied now, and the final one."""
    if L == 1:
        return lambda v: final_PV[:, v]

    def tile(v: slice | Tensor) -> Tensor:
        final_PC = final_PV[:, v]
        P, C = final_PC.shape
        z_NC = room.tile(P * L, C)
        others_NC = z_NC[: P * (L - 1)]
        found_NC = others(v, others_NC) if isinstance(v, slice) else others(v)
        if found_NC.data_ptr() != others_NC.data_ptr():
            others_NC.copy_(found_NC)
        z_NC[P * (L - 1) :] = final_PC
        return z_NC

    return tile


def stream(
    tile: Tile, vocab: int, columns: int, online: Online, final: FinalRows | None = None
) -> None:
    """All of the vocabulary, tile by tile, from the product to the statistics."""
    for v in range(0, vocab if online.P else 0, columns):
        z_NC = tile(slice(v, min(vocab, v + columns)))
        for p, z_V in (final or {}).items():
            z_V[v : v + columns] = z_NC[(online.L - 1) * online.P + p]
        online.update(z_NC)


def target_logits(tile: Tile, L: int, targets_PM: Tensor) -> Tensor:
    """Logits (P, L, M) of the targets, before any tile has passed: ranks count against them."""
    P, M = targets_PM.shape
    if isinstance(tile, _Held):
        return _own_logits(tile.z_NV, L, targets_PM.clamp(min=0))
    unique_U, place = targets_PM.clamp(min=0).unique(return_inverse=True)
    return _own_logits(tile(unique_U), L, place.view(P, M))


def _own_logits(z_NC: Tensor, L: int, columns_PM: Tensor) -> Tensor:
    """(P, L, M): of each position's rows, the logits in its own columns."""
    P, M = columns_PM.shape
    return z_NC.unflatten(0, (L, P)).gather(-1, columns_PM.expand(L, P, M)).transpose(0, 1)
