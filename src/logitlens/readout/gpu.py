"""The engine of GPUs: the library's product into slabs that stay in the second cache, and an epilogue.

A slab holds the raw logits of up to 4,096 rows (whole positions, all layers of each) × as many tokens as
fill 32 MB. cuBLAS or hipBLAS writes it, the kernels of `epilogue` look at each logit of it once, and the
next slab overwrites it. As large are, besides, a second slab while candidates are found and the logits of
final rows that are wanted whole. All slabs of a reading have one shape, so that the
library multiplies each with the same kernel. The targets, gathered, pass first: of 4,096 rows in that shape
too, so that a token ranks no lower than its twin; of fewer rows in fewer columns, for which the library may
choose a kernel that rounds otherwise. No step waits for the GPU.

Equal to `reference` up to float32 rounding; `proof` tries that on the machine at hand, once.
"""

# pyright: reportCallIssue=false, reportArgumentType=false
from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from math import log
from typing import Any

import torch
from torch import Tensor

from logitlens.readout.head import Head
from logitlens.readout.online import Online
from logitlens.readout.product import Product
from logitlens.readout.stats import Engine, FinalRows, Stats
from logitlens.readout.transfer import sent

ROWS = 4096  # rows of a slab at most: enough that reading the weights costs the product nothing
SLAB = 8 << 20  # logits of a slab (32 MB) …
SHARE = 2 / 3  # … and of a second cache that can hold slabs at all, …
LARGE = 24 << 20  # … of so many bytes
STEP = 512  # tokens of a slab are a multiple of this, so that only the last needs masks
PROGRAMS = 2048  # of the epilogue, where there is as much work: several for each scheduler
GATHERED = 2048  # targets multiplied together at most: as many as a slab of 4,096 rows has tokens
MOST = 256  # tokens that a row's list can hold
WIDEST = (
    1 << 17
)  # tokens of a slab at most: `merge` keeps the maxima of their blocks in its registers


@dataclass(frozen=True)
class Slabs(Engine):
    """logits: size of a slab (None: by the second cache); rows: of how many at most. Neither changes
    anything beyond rounding. Raises ValueError for a head that may only be called, or k beyond 256."""

    logits: int | None = None
    rows: int = ROWS

    name = "slabs (triton)"

    def positions(self, L: int, head: Head, candidates: int) -> int:
        return self.rows // L

    def block(
        self, x_PLE: Tensor, head: Head, k: int, targets_PM: Tensor, candidates: int, final: FinalRows
    ) -> Stats:  # fmt: skip
        if head.weight_VE is None or max(k, candidates) > MOST:
            raise ValueError(f"slabs need a head's weights, and k of at most {MOST}")
        device = head.weight_VE.device
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            rows = Rows(x_PLE, head, self.logits or slab_logits(device))
            targets_PM = sent(targets_PM, device)
            if candidates:
                targets_PM = torch.cat([targets_PM, rows.leading(candidates)], 1)
            passed = Pass(rows, k, targets_PM)
            passed.read(final)
            return passed.result(candidates)


@lru_cache
def slab_logits(device: torch.device) -> int:
    """Logits of a slab that the second cache holds beside the weights that stream by.

    Where that cache is small, a larger one may follow (AMD's holds 256 MB); where none does, a slab
    goes through memory, which costs less than a product of few tokens would.
    """
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
    return min(SLAB, int(cache * SHARE) // 4) if cache >= LARGE else SLAB


class Rows:
    """Rows of head input (P, L, E), and the slabs of their raw logits."""

    def __init__(self, x_PLE: Tensor, head: Head, logits: int, whole: Tensor | None = None):
        assert head.weight_VE is not None
        self.x_PLE, self.head, self.logits = x_PLE, head, logits
        self.P, self.L, E = x_PLE.shape
        self.N, V = self.P * self.L, head.vocab
        self.product = Product(x_PLE.reshape(self.N, E), head.weight_VE)
        self.columns = slab_columns(self.N, V, logits)
        self.whole = whole  # the one slab, where one holds all tokens

    def slab(self, begin: int) -> Tensor:
        """(N, columns) of the tokens from `begin` on; good until the next call."""
        if self.columns < self.head.vocab:
            return self.product.raw(slice(begin, begin + self.columns))
        if self.whole is None:
            self.whole = self.product.raw(slice(0, self.columns))
        return self.whole

    def each(self) -> Iterator[tuple[Tensor, int, int]]:
        """Every slab, its first token, and how many of its tokens were in the one before: the last
        is as large as the others."""
        V, C = self.head.vocab, self.columns
        for v in range(0, V if self.N else 0, C):
            begin = min(v, V - C)
            yield self.slab(begin), begin, v - begin

    def leading(self, k: int) -> Tensor:
        """The likeliest tokens (P, k) of the final rows, which are multiplied for it only where they
        do not fit into one slab with all others."""
        one = self.N and self.columns == self.head.vocab
        whole = self.slab(0)[self.L - 1 :: self.L] if one else None
        finals = Rows(self.x_PLE[:, -1:], self.head, self.logits, whole)
        passed = Pass(finals, k, finals.product.x_NE.new_empty((self.P, 0), dtype=torch.long))
        passed.read({})
        ids_PC = passed.leading()[1]
        # The keys of a row of NaN are still those it began with, of no token.
        return ids_PC.masked_fill(ids_PC >= self.head.vocab, -1)

    def target_logits(self, targets_PM: Tensor) -> Tensor:
        """(N, M) logits of the targets; +inf, which nothing exceeds, where there is none."""
        out_NM = self.product.x_NE.new_full(
            (self.N, targets_PM.shape[1]), float("inf"), dtype=torch.float32
        )
        count = targets_PM.numel() if self.N else 0
        if self.columns == self.head.vocab and count:
            self._pick(self.slab(0), targets_PM, targets_PM, out_NM)
            return out_NM
        C = min(self.columns, GATHERED)
        ids = torch.nn.functional.pad(targets_PM.flatten().clamp(min=0), (0, -count % C))
        place_PM = torch.arange(count, dtype=torch.long, device=ids.device).view_as(targets_PM)
        for i in range(0, count, C):
            here_PM = (place_PM >= i) & (place_PM < i + C)
            slab = self.product.raw(ids[i : i + C])
            self._pick(slab, place_PM - i, targets_PM.masked_fill(~here_PM, -1), out_NM)
        return out_NM

    def _pick(self, slab: Tensor, place_PM: Tensor, ids_PM: Tensor, out_NM: Tensor) -> None:
        from logitlens.readout import epilogue

        M = ids_PM.shape[1]
        epilogue.pick[(self.N,)](
            slab, slab.stride(0), place_PM.int(), ids_PM.int(), out_NM, L=self.L, M=M,
            MP=power(M), **finish(self.head, slab), num_warps=1,
        )  # fmt: skip


class Pass(Online):
    """`Online` with the state that the kernels of `epilogue` update."""

    def __init__(self, rows: Rows, k: int, targets_PM: Tensor):
        from logitlens.readout import epilogue

        wanted_NM = rows.target_logits(targets_PM)
        super().__init__(k, targets_PM, wanted_NM.unflatten(0, (rows.P, rows.L)))
        self.rows, self.k, N, new = rows, k, rows.N, wanted_NM.new_zeros
        tiles = -(-rows.columns // epilogue.TILE)
        self.ids_PM = targets_PM.int()
        self.above_NM = new((N, self.M), dtype=torch.int32)
        self.sums_4NG = new((4, N, tiles))
        self.maxima_NB = new((N, tiles * epilogue.TILE // epilogue.BLOCK))
        self.state_6N = new((6, N), dtype=torch.float64)
        self.state_6N[0::4] = float("-inf")
        self.keys_NK = new((N, power(k)), dtype=torch.long)
        self.keys_NK[:, :k] = (
            epilogue.LOWEST + 1 + torch.arange(k, dtype=torch.long, device=wanted_NM.device)
        )
        self.keys_NK[:, k:] = epilogue.HIGHEST
        self.least_N = self.keys_NK[:, 0].clone()

    def read(self, final: FinalRows) -> None:
        """All of the vocabulary, slab by slab; `final` rows are handed out whole."""
        head, x_NE = self.rows.head, self.rows.product.x_NE
        rows = [(p + 1) * self.L - 1 for p in final]
        rows_F = sent(torch.tensor(rows, dtype=torch.long, device="cpu"), x_NE.device)
        held_FV = x_NE.new_empty((len(final), head.vocab), dtype=torch.float32)
        for slab, begin, skip in self.rows.each():
            self._look(slab, begin, skip)
            if final:
                here = slab[rows_F] if len(final) > 1 else slab[rows[0]][None]
                held_FV[:, begin : begin + slab.shape[1]] = here
        if final and head.bias_V is not None:
            held_FV += head.bias_V.to(held_FV)
        for z_V, held_V in zip(final.values(), head.finish_(held_FV)):
            z_V.copy_(held_V)

    def _look(self, slab: Tensor, begin: int, skip: int) -> None:
        from logitlens.readout import epilogue

        N, B = self.maxima_NB.shape
        C, G = slab.shape[1], self.sums_4NG.shape[2]
        share = row_share(self.P, self.L, G)
        at = {"slab": slab, "stride": slab.stride(0), "begin": begin, "C": C, "skip": skip}
        at |= {"sums": self.sums_4NG, "maxima": self.maxima_NB, "L": self.L, "R": N, "G": G}
        at |= finish(self.rows.head, slab) | {"num_warps": 1}
        epilogue.look[(G, self.P, -(-self.L // share))](
            **at, targets=self.ids_PM, wanted=self.target_PLM, above=self.above_NM, M=self.M,
            share=share, WHOLE=C % epilogue.TILE == 0 and not skip,
        )  # fmt: skip
        epilogue.merge[(N,)](
            **at, state=self.state_6N, keys=self.keys_NK, low=self.least_N, B=B, GP=power(G),
            BP=power(B), KP=self.keys_NK.shape[1],
        )  # fmt: skip

    def leading(self) -> tuple[Tensor, Tensor]:
        """Values and ids (N, k) of the likeliest tokens so far, from their keys."""
        keys_NK = self.keys_NK[:, : self.k].sort(dim=-1, descending=True).values
        ordered = (keys_NK >> 32).int()
        bits = ordered ^ ((ordered >> 31) & 0x7FFFFFFF)
        return bits.view(torch.float32), 0x7FFFFFFF - (keys_NK & 0xFFFFFFFF)

    def _by_position(self, rows_N: Tensor) -> Tensor:
        return rows_N.unflatten(0, (self.P, self.L))  # as a slab has them

    def result(self, candidates: int = 0) -> Stats:
        """See `Online.result`."""
        self.top.values_NK, self.top.ids_NK = self.leading()
        # The kernels' sums are of powers of two.
        c, self.s_PL, a_PL, x_PL = self.state_6N[:4].view(4, self.P, self.L)
        self.a_PL, self.x_PL = a_PL * log(2), x_PL * log(2)
        self.c_PL = c.float()
        self.above_PLM = self.above_NM.view_as(self.target_PLM).double()
        self.own_PLM = self.target_PLM.clone()
        for m in range(self.M):  # a token among the top k has its logit there
            here_NK = self.top.ids_NK == self.targets_PM[:, m].repeat_interleave(self.L)[:, None]
            value_N = self.top.values_NK.masked_fill(~here_NK, float("-inf")).amax(-1)
            own_N = self.own_PLM[..., m].reshape(-1)
            own_N = torch.where(here_NK.any(-1), value_N, own_N)
            self.own_PLM[..., m] = own_N.view(self.P, self.L)
        return super().result(candidates)


def slab_columns(rows: int, vocab: int, logits: int) -> int:
    """Tokens of each slab of so many rows: all, or a share that fills whole tiles and leaves the last
    slab little to repeat."""
    most = min(WIDEST, max(STEP, logits // max(rows, 1) // STEP * STEP))
    even = -(-vocab // -(-vocab // most))
    return vocab if vocab <= most else min(most, -(-even // STEP) * STEP)


def row_share(P: int, L: int, tiles: int) -> int:
    """Rows of a position that one program looks at, so that there are enough programs."""
    return -(-L // min(L, max(1, PROGRAMS // max(1, P * tiles))))


def finish(head: Head, slab: Tensor) -> dict[str, Any]:
    """What a kernel needs to make logits of raw products."""
    bias, final_bias = head.bias_V, head.final_bias_V
    return {
        "bias": slab if bias is None else bias.to(slab.device),
        "final_bias": slab if final_bias is None else final_bias.to(slab.device),
        "scale": float(head.scale),
        "cap": float(head.softcap or 1.0),
        "BIAS": bias is not None,
        "FINAL": final_bias is not None,
        "CAP": head.softcap is not None,
    }


def power(number: int) -> int:
    """The next power of two."""
    return 1 << max(0, number - 1).bit_length()
