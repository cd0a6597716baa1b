"""Rows × unembedding, summed in float32: by FMA, and bfloat16 by the processor's dot products.

For bfloat16, torch rounds the product back to bfloat16, and the function of MKL that does not leaves
AMD's instruction for it (AVX-512 BF16: two products and a float32 sum in each of 16 lanes) unused.
Intel's processors with AMX have matrix registers: see `amx`. Where there is neither, bfloat16 and
float16 are widened on their way into the cache: torch would write them to memory first. Needs numba
(extra `fast`) and an x86 processor with AVX2 or AVX-512.

Built as matrix products are (Van Zee and van de Geijn, "BLIS", 2015): a block of sums stays in
registers while one operand is read word by word, each spread over all lanes, and the other, its
lanes side by side, stays in the second cache. A word is a float32 or a pair of neighbouring
bfloat16. Of many rows, tokens are laid side by side, some panels of them at a time; of few, the rows
are, once, and the unembedding is read straight from memory.

A sum depends on its row and its token only, never on tile, threads or neighbours. Numbers below
1e-38 count as 0 in the dot product of bfloat16.
"""

# pyright: reportMissingImports=false, reportCallIssue=false
from __future__ import annotations

from functools import lru_cache

import llvmlite.binding as llvm
import numba
import numpy as np
import torch
from numba.core import config
from torch import Tensor

from logitlens.readout import amx, blocks
from logitlens.readout.blocks import LANES, ROWS, WIDE, WIDTH, block_of
from logitlens.readout.threads import pool

FEW = 64 if WIDE else 48  # rows up to which they, not tokens, are laid side by side
SIDE = 64 if WIDE else 24  # rows laid side by side at most: more are several groups
GROUP = 8 if WIDE else 12  # tokens multiplied by few rows together
RUN = 128  # words summed up in a row; such sums are added up in float32
ONE = RUN if WIDE else 160  # words up to which a row is one run
PANELS = 256 << 10  # bytes of tokens laid side by side: half of a second cache
AMD = llvm.get_host_cpu_name().startswith("znver")
# Intel's processors take twice the time for it. Before LLVM 16 the instruction had other operands.
DOTS = bool(
    AMD and llvm.get_host_cpu_features().get("avx512bf16") and llvm.llvm_version_info >= (16,)
)
# Distinguished by type: see `blocks`.
KINDS = {
    torch.float32: np.float32(0),
    torch.bfloat16: np.int16(0) if DOTS else np.uint16(0),
    torch.float16: np.uint32(0),
}


@lru_cache
def runs_here(dtype: torch.dtype) -> bool:
    """Whether this product of such numbers runs on this processor and is the fastest known for it.

    Tried on a small product whose result is known exactly before it is trusted.
    """
    return suits(dtype) and works(dtype)


def suits(dtype: torch.dtype) -> bool:
    """Whether the processor is one for it, and the compiler is to write for this processor.

    float32 on AMD's processors only: on others oneDNN's is taken to be as fast.
    """
    if config.CPU_NAME or config.CPU_FEATURES:  # pyright: ignore[reportAttributeAccessIssue]
        return False
    has = llvm.get_host_cpu_features()
    vectors = has.get("avx512f") or (has.get("avx2") and has.get("fma") and has.get("f16c"))
    fast = dtype != torch.float32 or AMD
    return bool(vectors) and fast and dtype in KINDS


def works(dtype: torch.dtype) -> bool:
    """Whether both ways give a small product exactly."""
    w = torch.arange(-70, 70, dtype=torch.long, device="cpu").view(10, 14).to(dtype)
    for n in (3, FEW + 1):
        x = (torch.arange(n * 14, dtype=torch.long, device="cpu") % 31 - 15).view(n, 14).to(dtype)
        rows = laid_out(x)
        out = torch.empty(rows.room(), 64, dtype=torch.float32, device="cpu")
        rows.times(w, out[:, :10])
        if not torch.equal(out[:n, :10], x.float() @ w.float().T):
            return False
    return True


def takes(weight_VE: Tensor) -> bool:
    """Whether a token's words can be read in place."""
    plain = weight_VE.dtype in KINDS and weight_VE.is_cpu and weight_VE.stride(1) == 1
    whole = weight_VE.shape[1] * weight_VE.itemsize % 4 == 0
    return plain and (whole or _widens(weight_VE.dtype))


def _widens(dtype: torch.dtype) -> bool:
    """Whether a weight becomes a word of its own; else two bfloat16 are one."""
    return dtype == torch.float16 or (dtype == torch.bfloat16 and not DOTS)


def laid_out(x_NE: Tensor) -> Rows | amx.Rows:
    """Rows of head input (N, E), ready to be multiplied as fast as the processor can."""
    matrices = x_NE.dtype == torch.bfloat16 and x_NE.shape[1] % 2 == 0 and amx.runs_here()
    return amx.Rows(x_NE) if matrices else Rows(x_NE)


class Rows:
    """Rows of head input (N, E), laid out once for products with any slices of an unembedding."""

    def __init__(self, x_NE: Tensor):
        self.N, self.threads = x_NE.shape[0], torch.get_num_threads()
        self.kind, widens = KINDS[x_NE.dtype], _widens(x_NE.dtype)
        self.size = 2 if widens else 4  # bytes of a weight or a pair that becomes a word
        if widens:
            x_NE = x_NE.float()
        words = x_NE.shape[1] * x_NE.itemsize // 4
        self.few = self.N <= FEW
        groups = -(-self.N // (SIDE if self.few else ROWS))
        side = 8 * -(-self.N // (8 * max(1, groups))) if self.few else ROWS
        # (group, word, row): the rows of a group side by side, zeros where there are fewer
        self.x_GWR = torch.empty(groups, words, side, dtype=torch.int32, device="cpu")
        x_NW = x_NE.contiguous().view(torch.int32)
        whole = self.N // max(1, side) * side
        grouped_GWR = x_NW[:whole].view(-1, side or 1, words).transpose(1, 2)
        self.x_GWR[: len(grouped_GWR)] = grouped_GWR
        if whole < self.N:
            self.x_GWR[-1, :, self.N - whole :] = 0
            self.x_GWR[-1, :, : self.N - whole] = x_NW[whole:].T
        # Whole panels of tokens, as many as stay in the second cache.
        self.panels = max(1, min(64 // WIDTH, PANELS // max(1, 4 * words * WIDTH)))
        each = self.panels * words * WIDTH
        if self.few:
            each = GROUP * (groups * side + (words if widens else 0))
        self.work = torch.empty(self.threads, each + -each % 16, dtype=torch.int32, device="cpu")

    def room(self) -> int:
        """Rows the result needs room for: whole groups of them."""
        return self.N if self.few else len(self.x_GWR) * ROWS

    def times(self, weight_CE: Tensor, out_NC: Tensor) -> None:
        """out (`room()`, C) float32, each row with room for C rounded up to 64 := x wᵀ."""
        assert out_NC.stride(1) == 1
        assert weight_CE.stride(1) == 1
        if not self.N or not len(weight_CE):
            return
        if len(weight_CE) < GROUP:
            none = weight_CE.new_zeros(GROUP - len(weight_CE), weight_CE.shape[1])
            weight_CE = torch.cat([weight_CE, none])
        multiply, count = (_few, self.N) if self.few else (_many, self.panels)
        with pool(self.threads):
            multiply(
                self.kind, self.x_GWR.data_ptr(), count, *self.x_GWR.shape, self.size,
                weight_CE.data_ptr(), weight_CE.itemsize * weight_CE.stride(0), len(weight_CE),
                out_NC.data_ptr(), 4 * out_NC.stride(0),
                self.work.data_ptr(), 4 * self.work.stride(0), self.threads,
            )  # fmt: skip


_block_many = block_of(ROWS, WIDTH, 4 * ROWS)
# As many tokens of a group as leave enough registers for the operands.
_block_8 = block_of(GROUP, 8)
_block_16, _block_24 = (block_of(8 if WIDE else tokens, 96 // tokens) for tokens in (6, 4))
_block_32, _block_40 = block_of(8, 32), block_of(4, 40)  # from here on with AVX-512 only
_block_48, _block_56, _block_64 = (block_of(4, width) for width in (48, 56, 64))


@numba.njit(parallel=True, cache=True)
def _many(
    kind, x, panels, groups, words, side, size, weight, stride, C, out, out_stride, work, each,
    threads,
):  # fmt: skip
    """Groups of 6 rows × C tokens, some panels of them side by side in each thread's part of work."""
    panel, step = 4 * words * WIDTH, panels * WIDTH
    run = words if words <= ONE else RUN
    shares = (C + step - 1) // step
    for t in numba.prange(threads):
        mine = work + t * each
        for p in range(t * shares // threads, (t + 1) * shares // threads):
            first = p * step
            count = (min(step, C - first) + WIDTH - 1) // WIDTH
            blocks.pack_panels(kind, weight, size, stride, C, words, first, count, mine, panel)
            for g in range(groups):
                rows = x + g * words * side * 4
                to = out + g * side * out_stride + first * 4
                for w in range(0, words, run):
                    for s in range(count):
                        _block_many(
                            kind, rows + w * side * 4, 4, mine + s * panel + w * WIDTH * 4,
                            min(run, words - w), to + s * WIDTH * 4, out_stride, w,
                        )  # fmt: skip


@numba.njit(parallel=True, cache=True)
def _few(
    kind, x, N, groups, words, side, size, weight, stride, C, out, out_stride, work, each, threads
):
    """Few rows side by side × C tokens, a group of them at a time; the last may overlap those before."""
    shares = (C + GROUP - 1) // GROUP
    room = GROUP * groups * side * 4
    for t in numba.prange(threads):
        mine = work + t * each
        for s in range(t * shares // threads, (t + 1) * shares // threads):
            first = min(s * GROUP, C - GROUP)
            of, apart = weight + first * stride, stride
            if size == 2:
                of, apart = mine + room, 4 * words
                for c in range(GROUP):
                    _widened(kind, weight + (first + c) * stride, words, of + c * apart)
            for g in range(groups):
                rows, to = x + g * words * side * 4, mine + g * GROUP * side * 4
                for w in range(0, words, RUN):
                    count = min(RUN, words - w)
                    _run(kind, rows + 4 * w * side, side, count, of + 4 * w, apart, to, w)
                for n in range(min(side, N - g * side)):
                    for c in range(GROUP):
                        word = blocks.word_at(np.float32(0), to + (c * side + n) * 4)
                        blocks.set_word(out + (g * side + n) * out_stride + (first + c) * 4, word)


@numba.njit
def _widened(kind, weight, words, to):
    """A token's weights as words, one after another."""
    whole = words // LANES * LANES
    for w in range(0, whole, LANES):
        blocks.widen(kind, weight + 2 * w, to + 4 * w)
    for w in range(whole, words):
        blocks.set_word(to + 4 * w, blocks.word_at(kind, weight + 2 * w))


@numba.njit
def _run_512(kind, x, side, run, weight, stride, to, w):
    """A group of tokens × a group of rows, the rows side by side: `run` words from the w-th on."""
    line = 4 * side
    if side == 8:
        _block_8(kind, weight, stride, x, run, to, line, w)
    elif side == 16:
        _block_16(kind, weight, stride, x, run, to, line, w)
    elif side == 24:
        _block_24(kind, weight, stride, x, run, to, line, w)
    elif side == 32:
        _block_32(kind, weight, stride, x, run, to, line, w)
    else:
        for half in range(2):
            four, here = weight + 4 * half * stride, to + 4 * half * line
            if side == 40:
                _block_40(kind, four, stride, x, run, here, line, w)
            elif side == 48:
                _block_48(kind, four, stride, x, run, here, line, w)
            elif side == 56:
                _block_56(kind, four, stride, x, run, here, line, w)
            else:
                _block_64(kind, four, stride, x, run, here, line, w)


@numba.njit
def _run_256(kind, x, side, run, weight, stride, to, w):
    """The same with half as many registers of half the width: at most 24 rows side by side."""
    line = 4 * side
    if side == 8:
        _block_8(kind, weight, stride, x, run, to, line, w)
    elif side == 16:
        for t in range(0, GROUP, 6):
            _block_16(kind, weight + t * stride, stride, x, run, to + t * line, line, w)
    else:
        for t in range(0, GROUP, 4):
            _block_24(kind, weight + t * stride, stride, x, run, to + t * line, line, w)


_run = _run_512 if WIDE else _run_256
