"""A function of BLAS, called by its address from what numba compiles.

numba keeps what it compiled of `fused` for as long as that file is unchanged: whoever changes this one
touches that one, or an old kernel is run.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

import llvmlite.ir as ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_LETTER, _NUMBER, _FLOAT = ir.IntType(8), ir.IntType(32), ir.FloatType()
_ADDRESS = _LETTER.as_pointer()


@intrinsic
def multiply(typingctx, sgemm, tokens, rows, width, weight, apart, x, out, stride):
    """out (rows, tokens) := x (rows, width) · weight (tokens, width)ᵀ in float32, by the function at the
    address `sgemm`. Rows of weight are `apart` numbers apart, those of out `stride`."""

    def generate(context, builder, signature, args):
        sgemm, tokens, rows, width, weight, apart, x, out, stride = args

        def given(value):  # everything is handed over by reference
            return builder.bitcast(cgutils.alloca_once_value(builder, value), _ADDRESS)

        tokens, rows, width, apart, stride = (
            given(builder.trunc(n, _NUMBER)) for n in (tokens, rows, width, apart, stride)
        )
        weight, x, out = (builder.inttoptr(address, _ADDRESS) for address in (weight, x, out))
        turned, as_is = (given(_LETTER(ord(name))) for name in "TN")
        one, none = (given(_FLOAT(value)) for value in (1.0, 0.0))
        # BLAS counts down columns where we count along rows: the operands change places.
        operands = [
            turned, as_is, tokens, rows, width, one, weight, apart, x, width, none, out, stride,
        ]  # fmt: skip
        function = ir.FunctionType(ir.VoidType(), [_ADDRESS] * len(operands)).as_pointer()
        builder.call(builder.inttoptr(sgemm, function), operands)
        return context.get_dummy_value()

    return types.none(*(types.int64,) * 9), generate
