"""Rows × unembedding, summed in float32: float32 by FMA, bfloat16 by the processor's dot products.

For bfloat16, torch rounds the product back to bfloat16, and the function of MKL that does not leaves
the instruction for it (AVX-512 BF16: two products and a float32 sum in each of 16 lanes) unused on
other makers' processors. For float32 it is a tenth faster than oneDNN on AMD's. Needs numba (extra
`fast`) and AVX-512.

Built as matrix products are (Van Zee and van de Geijn, "BLIS", 2015): a block of sums stays in
registers while one operand is read word by word, each spread over all lanes, and the other, its
lanes side by side, stays in the second cache. A word is a float32 or a pair of neighbouring
bfloat16. Of many rows, 64 tokens at a time are laid side by side; of few, the rows are, once, and
the unembedding is read straight from memory.

A sum depends on its row and its token only, never on tile, threads or neighbours. Numbers below
1e-38 count as 0 in the dot product of bfloat16.
"""

# pyright: reportMissingImports=false, reportCallIssue=false
from __future__ import annotations

from functools import lru_cache

import llvmlite.binding as llvm
import llvmlite.ir as ir
import numba
import numpy as np
import torch
from numba import types
from numba.core import config
from numba.extending import intrinsic
from torch import Tensor

from logitlens.readout.threads import pool

ROWS, WIDTH = 6, 64  # of 32 registers 24 hold sums: 6 rows × 64 tokens side by side
FEW = 64  # rows up to which they, not tokens, are laid side by side
GROUP = 8  # tokens multiplied by few rows together
RUN = 128  # words summed up in a row; such sums are added up in float32
KINDS = {torch.float32: np.float32(0), torch.bfloat16: np.int16(0)}  # distinguished by type


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
    has, name = llvm.get_host_cpu_features(), llvm.get_host_cpu_name()
    fast = {
        torch.float32: has.get("avx512f") and name.startswith("znver"),
        # before LLVM 16 the instruction had other operands
        torch.bfloat16: has.get("avx512bf16") and llvm.llvm_version_info >= (16,),
    }
    return bool(fast.get(dtype))


def works(dtype: torch.dtype) -> bool:
    """Whether both ways give a small product exactly."""
    w = torch.arange(-70, 70, dtype=torch.long, device="cpu").view(10, 14).to(dtype)
    for n in (3, FEW + 1):
        x = (torch.arange(n * 14, dtype=torch.long, device="cpu") % 31 - 15).view(n, 14).to(dtype)
        rows = Rows(x)
        out = torch.empty(rows.room(), WIDTH, dtype=torch.float32, device="cpu")
        rows.times(w, out[:, :10])
        if not torch.equal(out[:n, :10], x.float() @ w.float().T):
            return False
    return True


def takes(weight_VE: Tensor) -> bool:
    """Whether a token's words can be read in place."""
    plain = weight_VE.dtype in KINDS and weight_VE.is_cpu and weight_VE.stride(1) == 1
    return plain and weight_VE.shape[1] * weight_VE.itemsize % 4 == 0


class Rows:
    """Rows of head input (N, E), laid out once for products with any slices of an unembedding."""

    def __init__(self, x_NE: Tensor):
        self.N, self.threads = x_NE.shape[0], torch.get_num_threads()
        self.kind = KINDS[x_NE.dtype]
        words = x_NE.shape[1] * x_NE.itemsize // 4
        self.few = self.N <= FEW
        side = 8 * -(-self.N // 8) if self.few else ROWS
        groups = -(-self.N // side) if self.N else 0
        x = x_NE.new_zeros(groups * side, x_NE.shape[1])
        x[: self.N] = x_NE
        # (group, word, row): the rows of a group side by side
        self.x_GWR = x.view(torch.int32).view(groups, side, words).transpose(1, 2).contiguous()
        each = GROUP * side if self.few else words * WIDTH
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
        groups, words, side = self.x_GWR.shape
        multiply, rows = (_few, self.N) if self.few else (_many, groups)
        with pool(self.threads):
            multiply(
                self.kind, self.x_GWR.data_ptr(), rows, side, words,
                weight_CE.data_ptr(), weight_CE.itemsize * weight_CE.stride(0), len(weight_CE),
                out_NC.data_ptr(), 4 * out_NC.stride(0),
                self.work.data_ptr(), 4 * self.work.stride(0), self.threads,
            )  # fmt: skip


class _BFloat(ir.Type):
    """LLVM's name for bfloat16, which llvmlite does not know."""

    def _to_string(self):
        return "bfloat"


_I32, _I64, _BF16 = ir.IntType(32), ir.IntType(64), _BFloat()


def _words(lanes: int) -> ir.VectorType:
    return ir.VectorType(_I32, lanes)


def _sums(lanes: int) -> ir.VectorType:
    return ir.VectorType(ir.FloatType(), lanes)


def _at(builder, address, offset, what):
    """A pointer to `what`, offset bytes behind an address."""
    return builder.inttoptr(builder.add(address, offset), what.as_pointer())


def _spread(builder, word, lanes):
    """A vector with the same word in every lane."""
    nothing = ir.Constant(_words(lanes), ir.Undefined)
    vector = builder.insert_element(nothing, word, _I32(0))
    return builder.shuffle_vector(vector, nothing, ir.Constant(_words(lanes), [0] * lanes))


def _dot(builder, kind, sums, a, b):
    """sums + a b, lane by lane; a and b are vectors of words."""
    lanes = sums.type.count
    if kind == types.float32:
        name, operand, order = f"llvm.fma.v{lanes}f32", _sums(lanes), (1, 2, 0)
    else:
        name = f"llvm.x86.avx512bf16.dpbf16ps.{32 * lanes}"
        operand, order = ir.VectorType(_BF16, 2 * lanes), (0, 1, 2)
    given = sums, builder.bitcast(a, operand), builder.bitcast(b, operand)
    given = [given[i] for i in order]
    function = ir.FunctionType(sums.type, [operand.type for operand in given])
    return builder.call(builder.module.declare_intrinsic(name, (), function), given)


def _block(rows: int, width: int, step: int = 4):
    """An operation: rows × width sums of products, all of them in registers.

    one: the operand read word by word, its rows `stride` apart, words `step` apart; other: width
    words side by side for each of them. Stored at out or, where add is not 0, added to what is
    there. Addresses and strides in bytes; kind: a number of the type in `KINDS`. Weights mapped from
    a file may begin at any byte.
    """
    lines = [(lane, 16 if lane + 16 <= width else 8) for lane in range(0, width, 16)]
    each = [(row, lane, lanes) for row in range(rows) for lane, lanes in lines]

    @intrinsic
    def block(typingctx, kind, one, stride, other, words, out, out_stride, add):
        def generate(context, builder, signature, args):
            one, stride, other, words, out, out_stride, add = args[1:]
            start, loop, done = builder.block, *map(builder.append_basic_block, ("word", "done"))
            builder.branch(loop)
            builder.position_at_end(loop)
            number = builder.phi(_I64)
            sums = {place: builder.phi(_sums(place[2])) for place in each}
            here = builder.add(other, builder.mul(number, _I64(4 * width)))
            side_by_side = {
                lane: builder.load(_at(builder, here, _I64(4 * lane), _words(lanes)), align=32)
                for lane, lanes in lines
            }
            here = builder.add(one, builder.mul(number, _I64(step)))
            after = {}
            for row in range(rows):
                away = builder.mul(stride, _I64(row))
                word = builder.load(_at(builder, here, away, _I32), align=1)
                for lane, lanes in lines:
                    place, same = (row, lane, lanes), _spread(builder, word, lanes)
                    after[place] = _dot(builder, kind, sums[place], side_by_side[lane], same)
            following = builder.add(number, _I64(1))
            number.add_incoming(_I64(0), start)
            number.add_incoming(following, loop)
            for place in each:
                zero = ir.Constant(_sums(place[2]), [0.0] * place[2])
                sums[place].add_incoming(zero, start)
                sums[place].add_incoming(after[place], loop)
            builder.cbranch(builder.icmp_unsigned("<", following, words), loop, done)

            builder.position_at_end(done)
            # All ones or all zeros to be laid over what is at out: `select` would branch each time.
            keep = builder.sext(builder.icmp_unsigned("!=", add, _I64(0)), _I32)
            for row, lane, lanes in each:
                here = builder.add(out, builder.mul(out_stride, _I64(row)))
                pointer = _at(builder, here, _I64(4 * lane), _words(lanes))
                before = builder.and_(builder.load(pointer, align=4), _spread(builder, keep, lanes))
                before = builder.bitcast(before, _sums(lanes))
                total = builder.fadd(before, after[row, lane, lanes])
                builder.store(builder.bitcast(total, _words(lanes)), pointer, align=4)
            return context.get_dummy_value()

        return types.none(kind, *(types.int64,) * 7), generate

    return block


_block_many = _block(ROWS, WIDTH, 4 * ROWS)
# As many tokens of a group as leave enough registers for the operands.
_block_8, _block_16, _block_24, _block_32 = (_block(8, width) for width in (8, 16, 24, 32))
_block_40, _block_48, _block_56, _block_64 = (_block(4, width) for width in (40, 48, 56, 64))


@intrinsic
def _word(typingctx, address):
    """The 32 bits at an address."""

    def generate(context, builder, signature, args):
        return builder.load(builder.inttoptr(args[0], _I32.as_pointer()), align=1)

    return types.int32(types.int64), generate


@intrinsic
def _set_word(typingctx, address, word):
    def generate(context, builder, signature, args):
        builder.store(args[1], builder.inttoptr(args[0], _I32.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.none(types.int64, types.int32), generate


@intrinsic
def _turn(typingctx, weight, stride, panel):
    """16 words of each of 16 tokens, from a token's side by side to the tokens' side by side."""

    def generate(context, builder, signature, args):
        weight, stride, panel = args

        def place(base, step, i):
            address = builder.add(base, builder.mul(step, _I64(i)))
            return builder.inttoptr(address, _words(16).as_pointer())

        words = [builder.load(place(weight, stride, i), align=1) for i in range(16)]
        for d in (8, 4, 2, 1):  # exchange the off-diagonal quarters, then those of each quarter
            low = ir.Constant(_words(16), [i if not i & d else 16 + i - d for i in range(16)])
            high = ir.Constant(_words(16), [i + d if not i & d else 16 + i for i in range(16)])
            for i in range(16):
                if not i & d:
                    a, b = words[i], words[i + d]
                    words[i] = builder.shuffle_vector(a, b, low)
                    words[i + d] = builder.shuffle_vector(a, b, high)
        for i in range(16):
            builder.store(words[i], place(panel, _I64(4 * WIDTH), i), align=64)
        return context.get_dummy_value()

    return types.none(*(types.int64,) * 3), generate


@numba.njit
def _pack(weight, stride, tokens, words, panel):
    """Lay up to 64 tokens side by side, word by word; zeros where there are fewer."""
    whole = words // 16 * 16
    for t in range(0, WIDTH, 16):
        if t + 16 <= tokens:
            for w in range(0, whole, 16):  # a cache line of every token
                _turn(weight + t * stride + 4 * w, stride, panel + 4 * (w * WIDTH + t))
        for token in range(t, t + 16):
            for w in range(whole if t + 16 <= tokens else 0, words):
                word = _word(weight + token * stride + 4 * w) if token < tokens else 0
                _set_word(panel + 4 * (w * WIDTH + token), numba.int32(word))


@numba.njit(parallel=True, cache=True)
def _many(kind, x, groups, side, words, weight, stride, C, out, out_stride, work, each, threads):
    """Groups of 6 rows × C tokens, 64 of them laid side by side in each thread's part of work."""
    panels = (C + WIDTH - 1) // WIDTH
    for t in numba.prange(threads):
        panel = work + t * each
        for p in range(t * panels // threads, (t + 1) * panels // threads):
            first = p * WIDTH
            _pack(weight + first * stride, stride, min(WIDTH, C - first), words, panel)
            for g in range(groups):
                rows = x + g * words * side * 4
                to = out + g * side * out_stride + first * 4
                for w in range(0, words, RUN):
                    _block_many(
                        kind, rows + w * side * 4, 4, panel + w * WIDTH * 4,
                        min(RUN, words - w), to, out_stride, w,
                    )  # fmt: skip


@numba.njit(parallel=True, cache=True)
def _few(kind, x, N, side, words, weight, stride, C, out, out_stride, work, each, threads):
    """Up to 64 rows side by side × C ≥ 8 tokens, 8 at a time; the last 8 may overlap those before."""
    groups = (C + GROUP - 1) // GROUP
    for t in numba.prange(threads):
        mine = work + t * each
        for g in range(t * groups // threads, (t + 1) * groups // threads):
            first = min(g * GROUP, C - GROUP)
            _eight(kind, x, side, words, weight + first * stride, stride, mine)
            for n in range(N):
                for c in range(GROUP):
                    word = _word(mine + (c * side + n) * 4)
                    _set_word(out + n * out_stride + (first + c) * 4, word)


@numba.njit
def _eight(kind, x, side, words, weight, stride, to):
    """8 tokens × all rows, the rows side by side."""
    for w in range(0, words, RUN):
        one, other, run, line = weight + 4 * w, x + 4 * w * side, min(RUN, words - w), 4 * side
        if side == 8:
            _block_8(kind, one, stride, other, run, to, line, w)
        elif side == 16:
            _block_16(kind, one, stride, other, run, to, line, w)
        elif side == 24:
            _block_24(kind, one, stride, other, run, to, line, w)
        elif side == 32:
            _block_32(kind, one, stride, other, run, to, line, w)
        else:
            for half in range(2):
                four, here = one + 4 * half * stride, to + 4 * half * line
                if side == 40:
                    _block_40(kind, four, stride, other, run, here, line, w)
                elif side == 48:
                    _block_48(kind, four, stride, other, run, here, line, w)
                elif side == 56:
                    _block_56(kind, four, stride, other, run, here, line, w)
                else:
                    _block_64(kind, four, stride, other, run, here, line, w)
