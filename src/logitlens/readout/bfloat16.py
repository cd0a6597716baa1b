"""Rows × unembedding in bfloat16, summed in float32, by the processor's own dot products; compiled.

torch rounds such a product back to bfloat16, and the function of MKL that does not leaves the
instruction for it (AVX-512 BF16: two products and a float32 sum in each of 16 lanes) unused on other
makers' processors. Numbers below 1e-38 count as 0, in the instruction. Needs numba (extra `fast`).

Built as matrix products are (Van Zee and van de Geijn, "BLIS", 2015): a block of sums stays in
registers while one operand is read number by number, each spread over all lanes, and the other, its
lanes side by side, stays in the second cache. Of many rows, 64 tokens at a time are laid side by
side; of few, the rows are, once, and the unembedding is read straight from memory.
"""

# pyright: reportMissingImports=false, reportCallIssue=false
from __future__ import annotations

from functools import lru_cache

import llvmlite.binding as llvm
import llvmlite.ir as ir
import numba
import torch
from numba import types
from numba.core import config
from numba.extending import intrinsic
from torch import Tensor

ROWS, LINES = 6, 4  # of 32 registers 24 hold sums: 6 rows × 4 lines of 16 tokens
WIDTH = 16 * LINES  # tokens side by side
FEW = 64  # rows up to which they, not tokens, lie side by side
STRIP = 64  # tokens multiplied by few rows before they are put in their places
RUN = 128  # pairs of numbers summed up in a row; such sums are added up in float32


def runs_here() -> bool:
    """Whether this processor has the instruction, and the compiler at hand is to use it.

    Tried on a small product whose result is known exactly before it is trusted.
    """
    chosen = config.CPU_NAME or config.CPU_FEATURES  # pyright: ignore[reportAttributeAccessIssue]
    has = llvm.get_host_cpu_features().get("avx512bf16", False)
    return has and not chosen and _works()


def takes(weight_VE: Tensor) -> bool:
    """Whether pairs of neighbours can be read as they lie."""
    plain = weight_VE.dtype == torch.bfloat16 and weight_VE.is_cpu and weight_VE.stride(1) == 1
    even = (weight_VE.shape[1], weight_VE.stride(0), weight_VE.storage_offset())
    return plain and not any(number % 2 for number in even)


class Rows:
    """Rows of head input (N, E), laid out once for products with any slices of an unembedding."""

    def __init__(self, x_NE: Tensor):
        self.N, E = x_NE.shape
        self.pairs, self.threads = E // 2, torch.get_num_threads()
        self.lines = -(-self.N // 16) if self.N <= FEW else 0
        side = 16 * self.lines or ROWS
        self.groups = -(-self.N // side)
        x = x_NE.new_zeros(self.groups * side, E)
        x[: self.N] = x_NE
        # (group, pair, row): the rows of a group side by side, a pair of numbers as one of 32 bits
        self.x_GPR = x.view(torch.int32).view(-1, side, self.pairs).transpose(1, 2).contiguous()
        each = STRIP * side if self.lines else self.pairs * WIDTH
        self.work = torch.empty(self.threads, each, dtype=torch.int32)

    def room(self) -> int:
        """Rows the result needs room for: whole groups of them."""
        return self.N if self.lines else self.groups * ROWS

    def times(self, weight_CE: Tensor, out_NC: Tensor) -> None:
        """out (`room()`, C) float32, each row with room for C rounded up to 64 := x wᵀ."""
        assert out_NC.stride(1) == 1
        assert weight_CE.stride(1) == 1
        C = weight_CE.shape[0]
        if not self.N or not C:
            return
        numba.set_num_threads(min(self.threads, config.NUMBA_NUM_THREADS))  # pyright: ignore[reportAttributeAccessIssue]
        weight = (weight_CE.data_ptr(), 2 * weight_CE.stride(0), C)
        out = (out_NC.data_ptr(), 4 * out_NC.stride(0))
        work = (self.work.data_ptr(), 4 * self.work.stride(0), self.threads)
        x = self.x_GPR.data_ptr()
        if self.lines:
            _few(x, self.N, self.lines, self.pairs, *weight, *out, *work)
        else:
            _many(x, self.groups, self.pairs, *weight, *out, *work)


@lru_cache
def _works() -> bool:
    """Whether both ways give a small product exactly."""
    if llvm.llvm_version_info < (16,):  # the instruction had other operands
        return False
    w = torch.arange(-35, 35).view(5, 14).bfloat16()
    for n in (3, FEW + 1):
        x = (torch.arange(n * 14) % 31 - 15).view(n, 14).bfloat16()
        rows = Rows(x)
        out = torch.empty(rows.room(), WIDTH)
        rows.times(w, out[:, :5])
        if not torch.equal(out[:n, :5], x.float() @ w.float().T):
            return False
    return True


class _BFloat(ir.Type):
    """LLVM's name for bfloat16, which llvmlite does not know."""

    def _to_string(self):
        return "bfloat"


_I32, _I64 = ir.IntType(32), ir.IntType(64)
_SUMS, _WORDS = ir.VectorType(ir.FloatType(), 16), ir.VectorType(_I32, 16)
_HALVES = ir.VectorType(_BFloat(), 32)
_DOT = ir.FunctionType(_SUMS, [_SUMS, _HALVES, _HALVES])


def _block(rows: int, lines: int, step: int = 4):
    """An operation: rows × 16 · lines sums of products of pairs, all of them in registers.

    one: the operand read number by number, its rows `stride` apart, pairs `step` apart; other: lines
    of 16 pairs side by side. Stored at out or, where add is not 0, added to what is there. Addresses
    and strides in bytes.
    """
    each = [(row, line) for row in range(rows) for line in range(lines)]
    zero, nothing = ir.Constant(_SUMS, [0.0] * 16), ir.Constant(_WORDS, ir.Undefined)

    @intrinsic
    def block(typingctx, one, stride, other, pairs, out, out_stride, add):
        def generate(context, builder, signature, args):
            one, stride, other, pairs, out, out_stride, add = args
            dot = builder.module.declare_intrinsic("llvm.x86.avx512bf16.dpbf16ps.512", (), _DOT)

            def at(address, offset, kind):
                return builder.inttoptr(builder.add(address, offset), kind.as_pointer())

            def spread(address, offset):
                word = builder.load(at(address, offset, _I32), align=4)
                words = builder.insert_element(nothing, word, _I32(0))
                words = builder.shuffle_vector(words, nothing, ir.Constant(_WORDS, [0] * 16))
                return builder.bitcast(words, _HALVES)

            def side_by_side(address, line):
                words = builder.load(at(address, _I64(64 * line), _WORDS), align=64)
                return builder.bitcast(words, _HALVES)

            start, loop, done = builder.block, *map(builder.append_basic_block, ("pair", "done"))
            builder.branch(loop)
            builder.position_at_end(loop)
            pair = builder.phi(_I64)
            sums = {place: builder.phi(_SUMS) for place in each}
            line_at = builder.add(other, builder.mul(pair, _I64(64 * lines)))
            halves = [side_by_side(line_at, line) for line in range(lines)]
            row_at = builder.add(one, builder.mul(pair, _I64(step)))
            numbers = [spread(row_at, builder.mul(stride, _I64(row))) for row in range(rows)]
            after = {
                (row, line): builder.call(dot, [sums[row, line], halves[line], numbers[row]])
                for row, line in each
            }
            following = builder.add(pair, _I64(1))
            for now, first, then in [
                (pair, _I64(0), following),
                *((sums[place], zero, after[place]) for place in each),
            ]:
                now.add_incoming(first, start)
                now.add_incoming(then, loop)
            builder.cbranch(builder.icmp_unsigned("<", following, pairs), loop, done)

            builder.position_at_end(done)
            # All ones or all zeros to be laid over what is at out: `select` would branch each time.
            adds = builder.sext(builder.icmp_unsigned("!=", add, _I64(0)), _I32)
            keep = builder.insert_element(nothing, adds, _I32(0))
            keep = builder.shuffle_vector(keep, nothing, ir.Constant(_WORDS, [0] * 16))
            for row, line in each:
                row_at = builder.add(out, builder.mul(out_stride, _I64(row)))
                place = at(row_at, _I64(64 * line), _WORDS)
                before = builder.and_(builder.load(place, align=4), keep)
                total = builder.fadd(builder.bitcast(before, _SUMS), after[row, line])
                builder.store(builder.bitcast(total, _WORDS), place, align=4)
            return context.get_dummy_value()

        return types.none(*(types.int64,) * 7), generate

    return block


_block_many = _block(ROWS, LINES, 4 * ROWS)
_eight_1, _eight_2, _four_3, _four_4 = _block(8, 1), _block(8, 2), _block(4, 3), _block(4, 4)
_one_1, _one_2, _one_3, _one_4 = _block(1, 1), _block(1, 2), _block(1, 3), _block(1, 4)


@intrinsic
def _word(typingctx, address):
    """The 32 bits at an address."""

    def generate(context, builder, signature, args):
        return builder.load(builder.inttoptr(args[0], _I32.as_pointer()), align=4)

    return types.int32(types.int64), generate


@intrinsic
def _set_word(typingctx, address, word):
    def generate(context, builder, signature, args):
        builder.store(args[1], builder.inttoptr(args[0], _I32.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.none(types.int64, types.int32), generate


@intrinsic
def _turn(typingctx, weight, stride, panel):
    """16 pairs of each of 16 tokens, from a token's side by side to the tokens' side by side."""

    def generate(context, builder, signature, args):
        weight, stride, panel = args

        def place(base, step, i):
            address = builder.add(base, builder.mul(step, _I64(i)))
            return builder.inttoptr(address, _WORDS.as_pointer())

        words = [builder.load(place(weight, stride, i), align=4) for i in range(16)]
        for d in (8, 4, 2, 1):  # exchange the off-diagonal quarters, then those of each quarter
            low = ir.Constant(_WORDS, [i if not i & d else 16 + i - d for i in range(16)])
            high = ir.Constant(_WORDS, [i + d if not i & d else 16 + i for i in range(16)])
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
def _pack(weight, stride, tokens, pairs, panel):
    """Lay up to 64 tokens side by side, pair by pair; zeros where there are fewer."""
    whole = pairs // 16 * 16
    for t in range(0, WIDTH, 16):
        if t + 16 <= tokens:
            for pair in range(0, whole, 16):  # a cache line of every token
                _turn(weight + t * stride + 4 * pair, stride, panel + 4 * (pair * WIDTH + t))
        for token in range(t, t + 16):
            for pair in range(whole if t + 16 <= tokens else 0, pairs):
                word = _word(weight + token * stride + 4 * pair) if token < tokens else 0
                _set_word(panel + 4 * (pair * WIDTH + token), numba.int32(word))


@numba.njit(parallel=True, cache=True)
def _many(x, groups, pairs, weight, stride, C, out, out_stride, work, each, threads):
    panels = (C + WIDTH - 1) // WIDTH
    for t in numba.prange(threads):
        panel = work + t * each
        for p in range(t * panels // threads, (t + 1) * panels // threads):
            first = p * WIDTH
            _pack(weight + first * stride, stride, min(WIDTH, C - first), pairs, panel)
            for g in range(groups):
                rows = x + g * pairs * ROWS * 4
                to = out + g * ROWS * out_stride + first * 4
                for k in range(0, pairs, RUN):
                    _block_many(
                        rows + k * ROWS * 4, 4, panel + k * WIDTH * 4, min(RUN, pairs - k), to,
                        out_stride, k,
                    )  # fmt: skip


@numba.njit(parallel=True, cache=True)
def _few(x, N, lines, pairs, weight, stride, C, out, out_stride, work, each, threads):
    strips = (C + STRIP - 1) // STRIP
    for t in numba.prange(threads):
        strip = work + t * each
        for s in range(t * strips // threads, (t + 1) * strips // threads):
            first = s * STRIP
            tokens = min(STRIP, C - first)
            _strip(x, lines, pairs, weight + first * stride, stride, tokens, strip)
            for n in range(N):
                to = out + n * out_stride + first * 4
                for c in range(tokens):
                    _set_word(to + 4 * c, _word(strip + (c * lines * 16 + n) * 4))


@numba.njit
def _strip(x, lines, pairs, weight, stride, tokens, strip):
    """A few tokens × all rows, the rows side by side; 8 tokens at a time, then the rest."""
    side = lines * 64
    c = 0
    while c < tokens:
        eight = c + 8 <= tokens
        for k in range(0, pairs, RUN):
            w, other, to = weight + c * stride + 4 * k, x + k * side, strip + c * side
            run = min(RUN, pairs - k)
            if eight:
                if lines == 1:
                    _eight_1(w, stride, other, run, to, side, k)
                elif lines == 2:
                    _eight_2(w, stride, other, run, to, side, k)
                elif lines == 3:
                    _four_3(w, stride, other, run, to, side, k)
                    _four_3(w + 4 * stride, stride, other, run, to + 4 * side, side, k)
                else:
                    _four_4(w, stride, other, run, to, side, k)
                    _four_4(w + 4 * stride, stride, other, run, to + 4 * side, side, k)
            elif lines == 1:
                _one_1(w, stride, other, run, to, side, k)
            elif lines == 2:
                _one_2(w, stride, other, run, to, side, k)
            elif lines == 3:
                _one_3(w, stride, other, run, to, side, k)
            else:
                _one_4(w, stride, other, run, to, side, k)
        c += 8 if eight else 1
