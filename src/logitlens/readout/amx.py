"""bfloat16 rows × unembedding by AMX: matrix registers of 16 rows × 32 numbers, summed in float32.

Intel's processors have it from the Xeons of 2023 on, and multiply several times faster with it than
lane by lane; torch rounds what it multiplies so back to bfloat16. Needs numba (extra `fast`).

One operand is 16 rows of 16 words (a word: two neighbouring bfloat16), the other 16 words of 16 tokens
side by side, as `blocks.pack` lays them. Four of the eight registers hold sums, of 32 rows × 32 tokens
or of 16 × 64 (Intel's Optimization Reference Manual, chapter on AMX).

A sum depends on its row and its token only, never on tile, threads or neighbours. Numbers below 1e-38
count as 0.
"""

# pyright: reportMissingImports=false, reportCallIssue=false
from __future__ import annotations

import ctypes
import sys
from functools import lru_cache

import llvmlite.binding as llvm
import llvmlite.ir as ir
import numba
import numpy as np
import torch
from numba import types
from numba.extending import intrinsic
from torch import Tensor

from logitlens.readout.blocks import WIDTH, pack_panels
from logitlens.readout.threads import pool

SIDE = 16  # rows, words and tokens of a matrix register
LINE = 4 * SIDE  # bytes of one of its rows
RUN = 32 * SIDE  # words summed up in a register; such sums are added up in float32
PANELS = 512 << 10  # bytes of tokens laid side by side: a quarter of a second cache
PAIRS = np.int16(0)  # the kind of a weight; see `blocks`
ARCH_PRCTL, PERMISSION, TILEDATA = 158, 0x1023, 18  # Linux: arch_prctl(ARCH_REQ_XCOMP_PERM, …)

# What a thread says before it begins: eight registers of 16 rows × 64 bytes.
SHAPES = np.zeros(64, np.uint8)
SHAPES[0], SHAPES[48:56] = 1, SIDE
SHAPES[16:32:2] = LINE


@lru_cache
def runs_here() -> bool:
    """Whether the processor has it and Linux lets this process use it."""
    has = llvm.get_host_cpu_features()
    if not (has.get("amx-bf16") and has.get("amx-tile")) or llvm.llvm_version_info < (16,):
        return False
    if sys.platform != "linux":
        return False
    return ctypes.CDLL(None).syscall(ARCH_PRCTL, PERMISSION, TILEDATA) == 0


class Rows:
    """Rows of head input (N, E), E even, laid out once for products with any slices of an unembedding."""

    def __init__(self, x_NE: Tensor):
        self.N, self.threads = x_NE.shape[0], torch.get_num_threads()
        self.side = SIDE if self.N <= SIDE else 2 * SIDE
        self.words = x_NE.shape[1] // 2
        steps, groups = -(-self.words // SIDE), -(-self.N // self.side)
        x_NW = torch.zeros(groups * self.side, steps * SIDE, dtype=torch.int32, device="cpu")
        x_NW[: self.N, : self.words] = x_NE.contiguous().view(torch.int32)
        # (group, step, row, word): what a register takes is one piece
        self.x_GSRW = x_NW.view(groups, self.side, steps, SIDE).transpose(1, 2).contiguous()
        panel = steps * SIDE * WIDTH
        self.panels = max(1, PANELS // (4 * panel))
        # zeros: the words behind a token's last are never laid out
        self.work = torch.zeros(self.threads, self.panels * panel, dtype=torch.int32, device="cpu")
        self.sums = torch.empty(self.threads, 4 * SIDE * SIDE, dtype=torch.float32, device="cpu")

    def room(self) -> int:
        """Rows the result needs room for: whole groups of them."""
        return len(self.x_GSRW) * self.side

    def times(self, weight_CE: Tensor, out_NC: Tensor) -> None:
        """out (`room()`, C) float32, each row with room for C rounded up to 64 := x wᵀ."""
        assert out_NC.stride(1) == 1
        assert weight_CE.stride(1) == 1
        if not self.N or not len(weight_CE):
            return
        groups, steps = self.x_GSRW.shape[:2]
        with pool(self.threads):
            _times(
                self.x_GSRW.data_ptr(), groups, steps, self.side,
                weight_CE.data_ptr(), 2 * weight_CE.stride(0), len(weight_CE), self.words,
                out_NC.data_ptr(), 4 * out_NC.stride(0), self.panels,
                self.work.data_ptr(), 4 * self.work.stride(0),
                self.sums.data_ptr(), 4 * self.sums.stride(0), SHAPES.ctypes.data, self.threads,
            )  # fmt: skip


_I8, _I64, _VOID = ir.IntType(8), ir.IntType(64), ir.VoidType()
_ROW = ir.VectorType(ir.FloatType(), SIDE)


def _call(builder, name, *args):
    """An instruction: numbers are registers, everything else is as it is."""
    given = [_I8(arg) if isinstance(arg, int) else arg for arg in args]
    function = ir.FunctionType(_VOID, [arg.type for arg in given])
    builder.call(builder.module.declare_intrinsic(f"llvm.x86.{name}", (), function), given)


def _at(builder, address, offset=0, what: ir.Type = _I8):
    """A pointer to `what`, offset bytes behind an address."""
    return builder.inttoptr(builder.add(address, _I64(offset)), what.as_pointer())


@intrinsic
def _begin(typingctx, shapes):
    """Set the registers up on this thread."""

    def generate(context, builder, signature, args):
        _call(builder, "ldtilecfg", _at(builder, args[0]))
        return context.get_dummy_value()

    return types.none(types.int64), generate


@intrinsic
def _end(typingctx):
    """Leave no state behind that every change of threads would have to save."""

    def generate(context, builder, signature, args):
        _call(builder, "tilerelease")
        return context.get_dummy_value()

    return types.none(), generate


def _block_of(high: int):
    """An operation: sums of 16·high rows × 64/high tokens, all of them in registers.

    rows: `steps` pieces of 16·high rows × 16 words; tokens: words of a panel, side by side. Stored at
    out or, where add is not 0, laid down at sums and added to what is at out. Addresses and strides in
    bytes.
    """
    broad = 4 // high
    each = [(i, j, i * broad + j) for i in range(high) for j in range(broad)]

    @intrinsic
    def block(typingctx, rows, tokens, steps, out, out_stride, add, sums):
        def generate(context, builder, signature, args):
            rows, tokens, steps, out, out_stride, add, sums = args
            start, names = builder.block, ("step", "summed", "store", "lay", "row", "done")
            step, summed, store, lay, row, done = map(builder.append_basic_block, names)
            for _, _, sum_ in each:
                _call(builder, "tilezero", sum_)
            builder.branch(step)

            builder.position_at_end(step)
            number = builder.phi(_I64)
            x = builder.add(rows, builder.mul(number, _I64(high * SIDE * LINE)))
            w = builder.add(tokens, builder.mul(number, _I64(SIDE * 4 * WIDTH)))
            for i in range(high):
                _call(builder, "tileloadd64", 4 + i, _at(builder, x, i * SIDE * LINE), _I64(LINE))
            for j in range(broad):
                other = 4 + high + j % (4 - high)
                _call(builder, "tileloadd64", other, _at(builder, w, j * LINE), _I64(4 * WIDTH))
                for i in range(high):
                    _call(builder, "tdpbf16ps", i * broad + j, 4 + i, other)
            following = builder.add(number, _I64(1))
            number.add_incoming(_I64(0), start)
            number.add_incoming(following, step)
            builder.cbranch(builder.icmp_unsigned("<", following, steps), step, summed)

            builder.position_at_end(summed)
            builder.cbranch(builder.icmp_unsigned("==", add, _I64(0)), store, lay)

            def put(to, stride):
                for i, j, sum_ in each:
                    here = builder.add(to, builder.mul(stride, _I64(i * SIDE)))
                    _call(builder, "tilestored64", sum_, _at(builder, here, j * LINE), stride)

            builder.position_at_end(store)
            put(out, out_stride)
            builder.branch(done)

            builder.position_at_end(lay)
            put(sums, _I64(broad * LINE))
            builder.branch(row)

            builder.position_at_end(row)
            number = builder.phi(_I64)
            here = builder.add(out, builder.mul(number, out_stride))
            new = builder.add(sums, builder.mul(number, _I64(broad * LINE)))
            for j in range(broad):
                total = _at(builder, here, j * LINE, _ROW)
                before = builder.load(total, align=4)
                part = builder.load(_at(builder, new, j * LINE, _ROW), align=LINE)
                builder.store(builder.fadd(before, part), total, align=4)
            following = builder.add(number, _I64(1))
            number.add_incoming(_I64(0), lay)
            number.add_incoming(following, row)
            more = builder.icmp_unsigned("<", following, _I64(high * SIDE))
            builder.cbranch(more, row, done)

            builder.position_at_end(done)
            return context.get_dummy_value()

        return types.none(*(types.int64,) * 7), generate

    return block


_block_32, _block_16 = _block_of(2), _block_of(1)


@numba.njit(parallel=True, cache=True)
def _times(
    x, groups, steps, side, weight, stride, C, words, out, out_stride, panels, work, each, sums,
    sums_each, shapes, threads,
):  # fmt: skip
    """Groups of 16 or 32 rows × C tokens, some panels of them side by side in each thread's part of
    work."""
    panel = SIDE * steps * 4 * WIDTH
    share = max(1, min(panels, C // (WIDTH * threads))) * WIDTH
    shares = (C + share - 1) // share
    run = RUN // SIDE
    for t in numba.prange(threads):
        mine, scratch = work + t * each, sums + t * sums_each
        _begin(shapes)
        for p in range(t * shares // threads, (t + 1) * shares // threads):
            first = p * share
            count = (min(share, C - first) + WIDTH - 1) // WIDTH
            pack_panels(PAIRS, weight, 4, stride, C, words, first, count, mine, panel)
            for g in range(groups):
                to = out + g * side * out_stride + first * 4
                for k in range(0, steps, run):
                    rows, now = x + (g * steps + k) * side * LINE, min(run, steps - k)
                    for s in range(count):
                        of, here = mine + s * panel + k * SIDE * 4 * WIDTH, to + s * WIDTH * 4
                        if side == SIDE:
                            _block_16(rows, of, now, here, out_stride, k, scratch)
                        else:
                            for half in range(0, WIDTH * 4, 2 * LINE):
                                _block_32(rows, of + half, now, here + half, out_stride, k, scratch)
        _end()
