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
from functools import lru_cache, partial
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from logitlens.readout.head import Head
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
            M = targets_PM.shape[1] + candidates
            ids = rows.ids(targets_PM, candidates)
            if candidates:
                rows.leading(candidates, ids, M)
            passed = Pass(rows, k, ids, M)
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

    def ids(self, targets_PM: Tensor, candidates: int) -> Tensor:
        """The targets of all positions, one position's after another, each with room for candidates; as
        many more of no token as fill the last product of those that are gathered."""
        ids = pad(targets_PM, (0, candidates), value=-1).flatten()
        return sent(pad(ids, (0, -len(ids) % self.gathered), value=-1), self.product.x_NE.device)

    @property
    def gathered(self) -> int:
        """How many targets are multiplied together; 1 where they are in the one slab with all others."""
        return min(self.columns, GATHERED) if self.columns < self.head.vocab else 1

    def leading(self, k: int, ids: Tensor, M: int) -> None:
        """The likeliest tokens of the final rows, as the last k of the M targets of each position. These
        rows are multiplied for it only where they do not fit into one slab with all others."""
        from logitlens.readout import epilogue

        one = self.N and self.columns == self.head.vocab
        whole = self.slab(0)[self.L - 1 :: self.L] if one else None
        finals = Pass(Rows(self.x_PLE[:, -1:], self.head, self.logits, whole), k, ids, 0)
        finals.read({})
        if self.P:
            epilogue.leading[(self.P,)](
                finals.keys_NK, ids, k=k, M=M, V=self.head.vocab, KP=power(k), num_warps=1
            )


class Pass:
    """One pass of all tokens by some rows: what the kernels of `epilogue` know of these so far.

    ids: M targets of each position, one after another (see `Rows.ids`). Nothing is filled before: the
    kernels write what they read later.
    """

    def __init__(self, rows: Rows, k: int, ids: Tensor, M: int):
        from logitlens.readout import epilogue

        self.rows, self.k, self.ids, self.M = rows, k, ids, M
        N, tiles = rows.N, -(-rows.columns // epilogue.TILE)
        new = partial(torch.empty, device=rows.product.x_NE.device)
        self.wanted_NM = new((N, M), dtype=torch.float32)
        self.above_NM = new((N, M), dtype=torch.int32)
        self.sums_4NG = new((4, N, tiles), dtype=torch.float32)
        self.maxima_NB = new((N, tiles * epilogue.TILE // epilogue.BLOCK), dtype=torch.float32)
        self.state_6N = new((6, N), dtype=torch.float64)
        self.keys_NK = new((N, power(k)), dtype=torch.long)
        self.least_N = new((N,), dtype=torch.long)

    def read(self, final: FinalRows) -> None:
        """All of the vocabulary, slab by slab; `final` rows are handed out whole."""
        rows = self.rows
        device, places_P = rows.product.x_NE.device, None
        whole_FV = torch.empty(len(final), rows.head.vocab, dtype=torch.float32, device=device)
        if final:
            place = {p: i for i, p in enumerate(final)}
            places = [place.get(p, -1) for p in range(rows.P)]
            places_P = sent(torch.tensor(places, dtype=torch.int32, device="cpu"), device)
        self._pick()
        for slab, begin, skip in rows.each():
            self._look(slab, begin, skip, places_P, whole_FV)
        if final:
            torch._foreach_copy_([*final.values()], [*whole_FV])  # pyright: ignore[reportPrivateImportUsage]

    def _pick(self) -> None:
        """The targets' logits."""
        from logitlens.readout import epilogue

        rows, M = self.rows, self.M
        step, count = rows.gathered, rows.P * M
        for first in range(0, count, step if step > 1 else max(count, 1)):
            gathered = step > 1
            slab = rows.product.raw(self.ids[first : first + step]) if gathered else rows.slab(0)
            epilogue.pick[(rows.N,)](
                slab, slab.stride(0), first, slab.shape[1], self.ids, self.wanted_NM, self.above_NM,
                L=rows.L, M=M, MP=power(M), GATHERED=gathered, **finish(rows.head, slab), num_warps=1,
            )  # fmt: skip

    def _look(
        self, slab: Tensor, begin: int, skip: int, places_P: Tensor | None, whole_FV: Tensor
    ) -> None:
        from logitlens.readout import epilogue

        rows, C = self.rows, slab.shape[1]
        N, G = self.sums_4NG.shape[1:]
        share = row_share(rows.P, rows.L, G)
        at = {"slab": slab, "stride": slab.stride(0), "begin": begin, "C": C, "skip": skip}
        at |= {"sums": self.sums_4NG, "maxima": self.maxima_NB, "L": rows.L, "R": N, "G": G}
        at |= finish(rows.head, slab) | {"num_warps": 1}
        epilogue.look[(G, rows.P, -(-rows.L // share))](
            **at, targets=self.ids, wanted=self.wanted_NM, above=self.above_NM, M=self.M,
            places=slab if places_P is None else places_P, whole=whole_FV, V=rows.head.vocab,
            share=share, WHOLE=C % epilogue.TILE == 0 and not skip, HELD=places_P is not None,
        )  # fmt: skip
        epilogue.merge[(N,)](
            **at, state=self.state_6N, keys=self.keys_NK, low=self.least_N, k=self.k,
            GP=power(G), BP=power(self.maxima_NB.shape[1]), KP=self.keys_NK.shape[1],
        )  # fmt: skip

    def result(self, candidates: int) -> Stats:
        """`Stats` once all tokens have passed; the last targets are the candidates."""
        from logitlens.readout import epilogue

        rows = self.rows
        stats = memory(rows.P, rows.L, self.k, self.M, candidates, self.state_6N.device)
        if rows.N:
            epilogue.result[(rows.N,)](
                self.state_6N, self.keys_NK, self.ids, self.wanted_NM, self.above_NM, **vars(stats),
                P=rows.P, L=rows.L, R=rows.N, k=self.k, M=self.M, candidates=candidates,
                KP=self.keys_NK.shape[1], num_warps=1,
            )  # fmt: skip
        return stats


def memory(P: int, L: int, k: int, M: int, candidates: int, device: torch.device) -> Stats:
    """Room for `Stats`, the layer first in memory: views of one tensor, which goes to the host at once."""
    ids, sums = torch.int32, torch.float32
    parts = {
        "top_ids": (ids, (L, P, k)),
        "top_logprobs": (sums, (L, P, k)),
        "entropy": (sums, (L, P)),
        "kl": (sums, (L, P)),
        "target_logprobs": (sums, (L, P, M)),
        "target_ranks": (ids, (L, P, M)),
        "candidate_ids": (ids, (P, candidates)),
        "finite": (torch.bool, (L, P)),
    }
    # Each from a multiple of 16 bytes on: triton compiles a kernel again for other addresses.
    sizes = [-(-prod(shape) // 4) * 4 for _, shape in parts.values()]
    whole = torch.empty(sum(sizes), dtype=torch.int32, device=device)
    views = {
        name: part.view(dtype)[: prod(shape)].view(shape)
        for part, (name, (dtype, shape)) in zip(whole.split(sizes), parts.items())
    }
    return Stats(**{n: v if n == "candidate_ids" else v.transpose(0, 1) for n, v in views.items()})


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
