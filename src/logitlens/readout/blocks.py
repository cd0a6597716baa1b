"""Blocks of sums that stay in registers: what `compiled` is made of, written for LLVM.

A *kind* says what a weight is and how it is multiplied; numbers of different types stand for them, so
that numba compiles each apart:

    float32   words of float32, multiplied and added in one step (FMA)
    PAIRS     words of two neighbouring bfloat16, by the processor's dot product (AVX-512 BF16)
    BFLOAT    bfloat16, widened to float32 where they are laid side by side or copied
    HALF      float16, likewise

numba keeps what it compiled of `compiled` and `amx` for as long as those files are unchanged: whoever
changes this one touches them, or an old kernel is run.
"""

# pyright: reportMissingImports=false, reportCallIssue=false
from __future__ import annotations

import llvmlite.binding as llvm
import llvmlite.ir as ir
import numba
from numba import types
from numba.extending import intrinsic

FLOAT, PAIRS, BFLOAT, HALF = types.float32, types.int16, types.uint16, types.uint32
WIDE = bool(llvm.get_host_cpu_features().get("avx512f"))
LANES = 16 if WIDE else 8  # words of a vector
ROWS, WIDTH = 6, 4 * LANES if WIDE else 2 * LANES  # 24 of 32 registers hold sums, or 12 of 16


class _BFloat(ir.Type):
    """LLVM's name for bfloat16, which llvmlite does not know."""

    def _to_string(self):
        return "bfloat"


_I16, _I32, _I64, _BF16 = ir.IntType(16), ir.IntType(32), ir.IntType(64), _BFloat()


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


def _load(builder, kind, address, lanes):
    """Words from neighbouring weights at any byte: as they are, or widened."""

    def vector(of):
        pointer = builder.inttoptr(address, ir.VectorType(of, lanes).as_pointer())
        return builder.load(pointer, align=1)

    if kind == BFLOAT:
        sixteen = ir.Constant(_words(lanes), [16] * lanes)
        return builder.shl(builder.zext(vector(_I16), _words(lanes)), sixteen)
    if kind == HALF:
        half = builder.bitcast(vector(_I16), ir.VectorType(ir.HalfType(), lanes))
        return builder.bitcast(builder.fpext(half, _sums(lanes)), _words(lanes))
    return vector(_I32)


def _dot(builder, kind, sums, a, b):
    """sums + a b, lane by lane; a and b are vectors of words."""
    lanes = sums.type.count
    if kind == PAIRS:
        name = f"llvm.x86.avx512bf16.dpbf16ps.{32 * lanes}"
        operand, order = ir.VectorType(_BF16, 2 * lanes), (0, 1, 2)
    else:
        name, operand, order = f"llvm.fma.v{lanes}f32", _sums(lanes), (1, 2, 0)
    given = sums, builder.bitcast(a, operand), builder.bitcast(b, operand)
    given = [given[i] for i in order]
    function = ir.FunctionType(sums.type, [operand.type for operand in given])
    return builder.call(builder.module.declare_intrinsic(name, (), function), given)


def block_of(rows: int, width: int, step: int = 4):
    """An operation: rows × width sums of products, all of them in registers.

    one: the operand read word by word, its rows `stride` apart, words `step` apart; other: width
    words side by side for each of them. Stored at out or, where add is not 0, added to what is
    there. Addresses and strides in bytes; kind: a number of the type in `KINDS`. Weights mapped from
    a file may begin at any byte.
    """
    lines = [(lane, min(LANES, width - lane)) for lane in range(0, width, LANES)]
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


@intrinsic
def word_at(typingctx, kind, address):
    """The word of a weight at an address."""

    def generate(context, builder, signature, args):
        vector = _load(builder, kind, args[1], 1)
        return builder.extract_element(vector, _I32(0))

    return types.int32(kind, types.int64), generate


@intrinsic
def set_word(typingctx, address, word):
    def generate(context, builder, signature, args):
        builder.store(args[1], builder.inttoptr(args[0], _I32.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.none(types.int64, types.int32), generate


@intrinsic
def widen(typingctx, kind, weight, to):
    """`LANES` neighbouring weights as words."""

    def generate(context, builder, signature, args):
        _, weight, to = args
        pointer = builder.inttoptr(to, _words(LANES).as_pointer())
        builder.store(_load(builder, kind, weight, LANES), pointer, align=4)
        return context.get_dummy_value()

    return types.none(kind, *(types.int64,) * 2), generate


@intrinsic
def turn(typingctx, kind, weight, stride, panel):
    """`LANES` words of each of as many tokens, from a token's side by side to the tokens' side by
    side."""

    def generate(context, builder, signature, args):
        _, weight, stride, panel = args
        each = range(LANES)
        words = [
            _load(builder, kind, builder.add(weight, builder.mul(stride, _I64(i))), LANES)
            for i in each
        ]
        for d in [1 << i for i in reversed(range(LANES.bit_length() - 1))]:
            # exchange the off-diagonal quarters, then those of each quarter
            low = ir.Constant(_words(LANES), [i if not i & d else LANES + i - d for i in each])
            high = ir.Constant(_words(LANES), [i + d if not i & d else LANES + i for i in each])
            for i in each:
                if not i & d:
                    a, b = words[i], words[i + d]
                    words[i] = builder.shuffle_vector(a, b, low)
                    words[i + d] = builder.shuffle_vector(a, b, high)
        for i in each:
            pointer = _at(builder, panel, _I64(4 * WIDTH * i), _words(LANES))
            builder.store(words[i], pointer, align=4 * LANES)
        return context.get_dummy_value()

    return types.none(kind, *(types.int64,) * 3), generate


@numba.njit
def pack(kind, weight, size, stride, tokens, words, panel):
    """Lay up to `WIDTH` tokens side by side, word by word; zeros where there are fewer."""
    whole = words // LANES * LANES
    for t in range(0, WIDTH, LANES):
        if t + LANES <= tokens:
            for w in range(0, whole, LANES):  # a cache line of every token, or half of one
                turn(kind, weight + t * stride + size * w, stride, panel + 4 * (w * WIDTH + t))
        for token in range(t, t + LANES):
            for w in range(whole if t + LANES <= tokens else 0, words):
                word = word_at(kind, weight + token * stride + size * w) if token < tokens else 0
                set_word(panel + 4 * (w * WIDTH + token), types.int32(word))


@numba.njit
def pack_panels(kind, weight, size, stride, C, words, first, count, to, panel):
    """Lay the tokens from the first on, of C, into `count` panels of so many bytes, one after another."""
    for s in range(count):
        tokens = min(WIDTH, C - first - s * WIDTH)
        of = weight + (first + s * WIDTH) * stride
        pack(kind, of, size, stride, tokens, words, to + s * panel)
