"""A row of logits in vector registers: what `fused` is made of, written for LLVM.

What LLVM makes of loops keeps maxima in memory, with a store and a load for every vector, knows no
instruction for a power of two, and fetches no row while it computes with the one before. Rows may
begin at any float.

numba keeps what it compiled of `fused` for as long as that file is unchanged: whoever changes this one
touches that one, or an old kernel is run.
"""

# pyright: reportMissingImports=false, reportCallIssue=false, reportAttributeAccessIssue=false
from __future__ import annotations

from functools import reduce

import llvmlite.binding as llvm
import llvmlite.ir as ir
import numpy as np
from numba import types
from numba.core import config
from numba.extending import intrinsic

LANES = 64  # columns looked at side by side
LENGTH = 16  # columns a lane covers
SPAN = LANES * LENGTH
STEP = 32  # columns of which sums are taken at a time
LOG2E = float(np.float32(np.log2(np.e)))  # as float32 arithmetic has it, for both directions
# 2^r on [0, 1]: interpolated at Chebyshev's points; off by 3e-9, and by an ulp in float32.
POLY = [
    float(c)
    for c in np.polynomial.Chebyshev.interpolate(np.exp2, 6, domain=[0, 1])
    .convert(kind=np.polynomial.Polynomial)
    .coef.astype(np.float32)
]
_HAS = llvm.get_host_cpu_features()
# Instructions for the parts of 2^d; not where the compiler is to write for another processor.
SCALES = bool(
    _HAS.get("avx512f")
    and _HAS.get("avx512dq")
    and config.ENABLE_AVX
    and not (config.CPU_NAME or config.CPU_FEATURES)
)
_WIDTH = 16
_I32, _I64, _FLOAT = ir.IntType(32), ir.IntType(64), ir.FloatType()
_VECTOR, _WORDS = ir.VectorType(_FLOAT, _WIDTH), ir.VectorType(_I32, _WIDTH)
_LINE = ir.VectorType(_FLOAT, LANES)


def _all(value: float) -> ir.Constant:
    return ir.Constant(_VECTOR, [value] * _WIDTH)


def _spread(builder, value):
    vector = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), value, _I32(0))
    return builder.shuffle_vector(vector, vector, ir.Constant(_WORDS, [0] * _WIDTH))


def _call(builder, name, result, operands):
    function = ir.FunctionType(result, [operand.type for operand in operands])
    return builder.call(builder.module.declare_intrinsic(name, (), function), operands)


def _fma(builder, a, b, c):
    return _call(builder, f"llvm.fma.v{_WIDTH}f32", _VECTOR, [a, b, c])


def _greater(builder, old, new):
    """The greater of each pair of lanes; a NaN among the new is not."""
    return builder.select(builder.fcmp_ordered(">", new, old), new, old)


def _folded(builder, vector, together):
    """One number of all lanes."""
    width = vector.type.count
    while width > 1:
        width //= 2
        halves = [
            builder.shuffle_vector(
                vector, vector, ir.Constant(ir.VectorType(_I32, width), list(places))
            )
            for places in (range(width), range(width, 2 * width))
        ]
        vector = together(*halves)
    return builder.extract_element(vector, _I32(0))


def _exp2(builder, d):
    """2^d to about an ulp, for d ≤ 127; exactly 0 below −126, as processors are slow with smaller ones."""
    as_always = [_all(0.0), ir.IntType(16)(-1), _I32(4)]
    if SCALES:
        r = _call(builder, "llvm.x86.avx512.mask.reduce.ps.512", _VECTOR, [d, _I32(9), *as_always])
    else:
        d = builder.select(builder.fcmp_unordered("<=", d, _all(-127.0)), _all(-127.0), d)
        whole = _call(builder, f"llvm.floor.v{_WIDTH}f32", _VECTOR, [d])
        r = builder.fsub(d, whole)
    q = _all(POLY[-1])
    for coefficient in POLY[-2::-1]:
        q = _fma(builder, q, r, _all(coefficient))
    if SCALES:
        large = builder.fcmp_unordered(">=", d, _all(-126.0))
        as_always[1] = builder.bitcast(large, ir.IntType(16))
        return _call(builder, "llvm.x86.avx512.mask.scalef.ps.512", _VECTOR, [q, d, *as_always])
    bits = builder.add(builder.fptosi(whole, _WORDS), ir.Constant(_WORDS, [127] * _WIDTH))
    bits = builder.shl(bits, ir.Constant(_WORDS, [23] * _WIDTH))
    return builder.fmul(q, builder.bitcast(bits, _VECTOR))


@intrinsic
def span_maxima(typingctx, to, of):
    """Write the lane maxima of a whole span at `of`: lane b holds columns b, b + 64, … NaN is skipped."""

    def generate(context, builder, signature, args):
        to, of = (builder.inttoptr(address, _LINE.as_pointer()) for address in args)
        highest = ir.Constant(_LINE, [float("-inf")] * LANES)
        for n in range(LENGTH):
            here = builder.gep(of, [_I64(n)])
            highest = _greater(builder, highest, builder.load(here, align=4))
        builder.store(highest, to, align=4)
        return context.get_dummy_value()

    return types.none(types.int64, types.int64), generate


@intrinsic
def raise_lanes(typingctx, to, of):
    """Raise 64 numbers to those of another 64 that are greater; a NaN is not."""

    def generate(context, builder, signature, args):
        to, of = (builder.inttoptr(address, _LINE.as_pointer()) for address in args)
        higher = _greater(builder, builder.load(to, align=4), builder.load(of, align=4))
        builder.store(higher, to, align=4)
        return context.get_dummy_value()

    return types.none(types.int64, types.int64), generate


@intrinsic
def highest(typingctx, of):
    """The highest of 64 numbers, none of them NaN."""

    def generate(context, builder, signature, args):
        line = builder.load(builder.inttoptr(args[0], _LINE.as_pointer()), align=4)
        return _folded(builder, line, lambda low, high: _greater(builder, low, high))

    return types.float32(types.int64), generate


def _totals(builder, n, names, step):
    """Add vectors up while v runs from 0 to n (a multiple of STEP): `step(v, sums)`, emitted once for each
    _WIDTH columns of a STEP, gives new sums for old ones. Returns one number for each name."""
    start, loop, done = builder.block, *map(builder.append_basic_block, ("step", "done"))
    builder.cbranch(builder.icmp_signed(">", n, _I64(0)), loop, done)
    builder.position_at_end(loop)
    v = builder.phi(_I64)
    # Sums of their own for every part of a step: an addition takes longer than to begin the next.
    old = [{name: builder.phi(_VECTOR) for name in names} for _ in range(0, STEP, _WIDTH)]
    new = [step(builder.add(v, _I64(_WIDTH * k)), sums) for k, sums in enumerate(old)]
    following = builder.add(v, _I64(STEP))
    for phi, none, next in [
        (v, _I64(0), following),
        *((o[name], _all(0.0), w[name]) for o, w in zip(old, new) for name in names),
    ]:
        phi.add_incoming(none, start)
        phi.add_incoming(next, loop)
    builder.cbranch(builder.icmp_signed("<", following, n), loop, done)
    builder.position_at_end(done)
    totals = []
    for name in names:
        parts = [builder.phi(_VECTOR) for _ in new]
        for part, sums in zip(parts, new):
            part.add_incoming(_all(0.0), start)
            part.add_incoming(sums[name], loop)
        totals.append(parts)
    return [_folded(builder, reduce(builder.fadd, parts), builder.fadd) for parts in totals]


def _vector_at(builder, base, v):
    return builder.inttoptr(builder.add(base, builder.mul(v, _I64(4))), _VECTOR.as_pointer())


def _exceed(builder, z, target, counted):
    one = builder.select(builder.fcmp_ordered(">", z, target), _all(1.0), _all(0.0))
    return builder.fadd(counted, one)


def _fetch(builder, base, v):
    """Have a vector brought into the second cache."""
    operands = [ir.IntType(8).as_pointer(), _I32, _I32, _I32]
    function = ir.FunctionType(ir.VoidType(), operands)
    prefetch = builder.module.declare_intrinsic("llvm.prefetch.p0i8", (), function)
    place = builder.bitcast(_vector_at(builder, base, v), operands[0])
    builder.call(prefetch, [place, _I32(0), _I32(2), _I32(1)])


def _sums_of(final: bool):
    """An operation: n columns (a multiple of STEP) at z → Σ 2^d, Σ 2^d d, Σ 2^(d_f) d, and how many
    exceed the target, where d = z log₂e − c.

    other   where the 2^(d_f) are; of the final row, where they are written
    ahead   as many columns that are wanted next
    """

    @intrinsic
    def sums(typingctx, z, n, c, target, other, ahead):
        def generate(context, builder, signature, args):
            z, n, c, target, other, ahead = args
            minus_c_W, target_W = _spread(builder, builder.fneg(c)), _spread(builder, target)

            def step(v, old):
                _fetch(builder, ahead, v)
                z_W = builder.load(_vector_at(builder, z, v), align=4)
                d_W = _fma(builder, z_W, _all(LOG2E), minus_c_W)
                e_W = _exp2(builder, d_W)
                if final:
                    builder.store(e_W, _vector_at(builder, other, v), align=4)
                    final_W = e_W
                else:
                    final_W = builder.load(_vector_at(builder, other, v), align=4)
                return {
                    "s": builder.fadd(old["s"], e_W),
                    "a": _fma(builder, e_W, d_W, old["a"]),
                    "x": _fma(builder, final_W, d_W, old["x"]),
                    "above": _exceed(builder, z_W, target_W, old["above"]),
                }

            totals = _totals(builder, n, ("s", "a", "x", "above"), step)
            return context.make_tuple(builder, signature.return_type, totals)

        four = types.UniTuple(types.float32, 4)
        given = types.int64, types.int64, types.float32, types.float32, types.int64, types.int64
        return four(*given), generate

    return sums


row_sums, final_sums = _sums_of(final=False), _sums_of(final=True)


@intrinsic
def count(typingctx, z, n, target):
    """How many of n columns (a multiple of STEP) exceed the target."""

    def generate(context, builder, signature, args):
        z, n, target = args
        target_W = _spread(builder, target)

        def step(v, old):
            z_W = builder.load(_vector_at(builder, z, v), align=4)
            return {"above": _exceed(builder, z_W, target_W, old["above"])}

        return _totals(builder, n, ("above",), step)[0]

    return types.float32(types.int64, types.int64, types.float32), generate
