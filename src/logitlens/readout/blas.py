"""Functions of MKL, called by their addresses from what numba compiles.

A product of two operands that were packed before, once for all products they are part of, is a
twentieth faster than one that packs them itself, and as fast with a quarter of the rows.

numba keeps what it compiled of `fused` for as long as that file is unchanged: whoever changes this one
touches that one, or an old kernel is run.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

import llvmlite.ir as ir
from numba import types
from numba.extending import intrinsic

_LETTER, _NUMBER, _FLOAT = ir.IntType(8), ir.IntType(32), ir.FloatType()
_ADDRESS = _LETTER.as_pointer()
# CBLAS's names.
BY_ROWS, AS_IS, TURNED, PACKED, LEFT, RIGHT = 101, 111, 112, 151, 161, 162


def _call(builder, address, operands):
    function = ir.FunctionType(ir.VoidType(), [o.type for o in operands]).as_pointer()
    builder.call(builder.inttoptr(address, function), operands)


def _named(*names):
    return [ir.Constant(_NUMBER, name) for name in names]


def _pack(side, way):
    """An operation: one side of products of `rows` with `tokens` → the memory at `to`."""

    @intrinsic
    def pack(typingctx, function, rows, tokens, width, of, to):
        def generate(context, builder, signature, args):
            function, *sizes, of, to = args
            rows, tokens, width = (builder.trunc(n, _NUMBER) for n in sizes)
            of, to = (builder.inttoptr(address, _ADDRESS) for address in (of, to))
            shape = [rows, tokens, width, ir.Constant(_FLOAT, 1.0), of, width, to]
            _call(builder, function, [*_named(BY_ROWS, side, way), *shape])
            return context.get_dummy_value()

        return types.none(*(types.int64,) * 6), generate

    return pack


pack_rows, pack_tokens = _pack(LEFT, AS_IS), _pack(RIGHT, TURNED)


@intrinsic
def use_threads(typingctx, function, number):
    """How many the calling thread's products take from now on (0: as all do) → how many before."""

    def generate(context, builder, signature, args):
        address, number = args
        function = ir.FunctionType(_NUMBER, [_NUMBER]).as_pointer()
        before = builder.call(builder.inttoptr(address, function), [builder.trunc(number, _NUMBER)])
        return builder.sext(before, ir.IntType(64))

    return types.int64(types.int64, types.int64), generate


@intrinsic
def multiply(typingctx, function, rows, tokens, width, x, weight, out, stride):
    """out (rows, tokens) := x (rows, width) · weight (tokens, width)ᵀ in float32, both packed; rows of
    out are `stride` numbers apart."""

    def generate(context, builder, signature, args):
        function, *sizes, x, weight, out, stride = args
        rows, tokens, width, stride = (builder.trunc(n, _NUMBER) for n in (*sizes, stride))
        x, weight, out = (builder.inttoptr(address, _ADDRESS) for address in (x, weight, out))
        none = ir.Constant(_FLOAT, 0.0)
        shape = [rows, tokens, width, x, width, weight, width, none, out, stride]
        _call(builder, function, [*_named(BY_ROWS, PACKED, PACKED), *shape])
        return context.get_dummy_value()

    return types.none(*(types.int64,) * 8), generate
