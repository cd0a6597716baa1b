"""Rows of head input × a slice of the unembedding → float32 logits, by the fastest exact way.

Weights in bfloat16 or float16 are multiplied as they are and summed in float32: `torch.mm` would
round the result back to half precision, which no statistic over a vocabulary survives (a bfloat16
logsumexp is off by a tenth of a nat). On x86 the library torch is linked with has that product
(`cblas_gemm_bf16bf16f32` of Intel MKL), but on processors of other makers it is slower than widening
a slice of the weights at a time, which is done wherever that is faster. The product of `compiled` is
faster than all of these where it runs.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from logitlens.readout.head import Head

FEW_HALF_ROWS = 128
WIDE = 2 << 20  # numbers of half-precision weights widened at once (8 MB)
CLEARLY = 1.4  # times as fast as float32, the product of half-precision numbers is worth taking
LINE = 64  # floats; rows of a tile lie a multiple of this apart


class Product:
    """Rows of head input, ready to be multiplied with any slice of the unembedding.

    x_NE is rounded to the weights' dtype, as the model itself would have it. compiled: whether what
    numba compiles may be used.
    """

    def __init__(self, x_NE: Tensor, head: Head, compiled: bool = False):
        assert head.weight_VE is not None
        self.head, self.weight_VE = head, head.weight_VE
        self.x_NE = x_NE.to(self.weight_VE.device, self.weight_VE.dtype).contiguous()
        self.way = _way(self.weight_VE, compiled)
        if self.way == "widen":
            self.x_NE = self.x_NE.float()
        elif self.way == "compiled":
            from logitlens.readout.compiled import Rows

            self.rows = Rows(self.x_NE)
        self.space, self.wide = (self.x_NE.new_empty(0, dtype=torch.float32) for _ in range(2))

    def tile(self, v: slice | Tensor) -> Tensor:
        """Finished float32 logits (N, len(v)) of the tokens v; good until the next call."""
        return finish_(self.raw(v), self.head, v)

    def raw(self, v: slice | Tensor) -> Tensor:
        """The same before scale, cap and final bias."""
        weight_CE = self.weight_VE[v]
        bias_C = None if self.head.bias_V is None else self.head.bias_V[v].float()
        if self.way == "onednn":  # makes its own result; to copy it would cost a tenth of the time
            return _onednn(self.x_NE, weight_CE, bias_C)
        out_NC = self._room(weight_CE.shape[0])
        if self.way == "mkl half":
            _half_gemm(self.x_NE.dtype)(self.x_NE, weight_CE, out_NC)
        elif self.way == "cuda half":
            torch.mm(self.x_NE, weight_CE.T, out_dtype=torch.float32, out=out_NC)
        elif self.way == "compiled":
            self.rows.times(weight_CE, out_NC)
        elif self.way == "widen":
            self._widening(weight_CE, out_NC)
        else:
            torch.mm(self.x_NE, weight_CE.T, out=out_NC)
        return out_NC if bias_C is None else out_NC.add_(bias_C)

    def _widening(self, weight_CE: Tensor, out_NC: Tensor) -> None:
        """The product with weights of another dtype, a few of them in float32 at a time."""
        C, E = weight_CE.shape
        step = max(LINE, WIDE // E // LINE * LINE)
        if self.wide.numel() < min(step, C) * E:
            self.wide = self.wide.new_empty(min(step, C) * E)
        for c in range(0, C, step):
            part_cE = weight_CE[c : c + step]
            wide_cE = self.wide[: part_cE.numel()].view(part_cE.shape).copy_(part_cE)
            if wide_cE.is_cpu and _has_onednn():
                out_NC[:, c : c + step] = _onednn(self.x_NE, wide_cE)
            else:
                torch.mm(self.x_NE, wide_cE.T, out=out_NC[:, c : c + step])

    def _room(self, columns: int) -> Tensor:
        """(N, columns) of memory that every tile uses again."""
        # A multiple of 64 apart, but no power of two: the caches would map rows onto each other.
        stride = columns + LINE - columns % LINE
        N = self.x_NE.shape[0]
        size = (self.rows.room() if self.way == "compiled" else N) * stride
        if self.space.numel() < size:
            self.space = self.space.new_empty(size)
        return self.space[:size].view(-1, stride)[:N, :columns]


class SplitProduct(Product):
    """The same logits of float32 weights from three bfloat16 products, nearly as exact.

    x = x₁ + x₂ + …, w = w₁ + w₂ + … with bfloat16 parts, each 2⁻⁸ of the one before:
    x w ≈ x₁w₁ + x₁w₂ + x₂w₁ (Henry, Tang and Heinecke, "Leveraging the bfloat16 Artificial
    Intelligence Datatype For Higher-Precision Computations", 2019).
    """

    def __init__(self, x_NE: Tensor, head: Head):
        super().__init__(x_NE, head)
        self.gemm = _half_gemm(torch.bfloat16)
        self.high_NE, self.low_NE = _Split()(self.x_NE)
        self.split = _Split()
        self.norm_N = torch.linalg.vector_norm(self.x_NE, dim=-1)
        self.bound_N = torch.zeros_like(self.norm_N)

    @staticmethod
    def possible(head: Head) -> bool:
        """Whether this processor multiplies bfloat16 faster than float32, and the head allows it."""
        weight = head.weight_VE
        return (
            weight is not None
            and weight.device.type == "cpu"
            and weight.dtype == torch.float32
            and _has_bfloat16()
            and _half_gemm(torch.bfloat16) is not None
        )

    def tile(self, v: slice | Tensor) -> Tensor:
        """As `Product.tile`; and widens `bound_N`, how far any logit so far may be off.

        Three parts are dropped, each at most 2⁻¹⁶ |x| |w|, and 3E + 8 sums are rounded to float32;
        by Cauchy and Schwarz Σ |x| |w| ≤ ‖x‖ ‖w‖. The cap bends no logit away from another.
        """
        weight_CE = self.weight_VE[v]
        out_NC = self._room(weight_CE.shape[0])
        high_CE, low_CE = self.split(weight_CE)
        self.gemm(self.high_NE, high_CE, out_NC)
        self.gemm(self.high_NE, low_CE, out_NC, True)
        self.gemm(self.low_NE, high_CE, out_NC, True)
        if self.head.bias_V is not None:
            out_NC.add_(self.head.bias_V[v].float())
        share = 3.01 * 2**-16 + (3 * weight_CE.shape[1] + 8) * 2**-24
        longest = torch.linalg.vector_norm(weight_CE, dim=-1).amax()
        bound_N = share * abs(self.head.scale) * self.norm_N * longest
        self.bound_N = torch.maximum(self.bound_N, bound_N)
        return finish_(out_NC, self.head, v)


class _Split:
    """float32 → its bfloat16, and the bfloat16 of what that leaves; overwritten by the next."""

    def __init__(self) -> None:
        self.rest = torch.empty(0)
        self.parts = torch.empty(2, 0, dtype=torch.bfloat16)

    def __call__(self, a: Tensor) -> tuple[Tensor, Tensor]:
        # Fresh memory for every tile would cost more than the arithmetic.
        if self.rest.numel() < a.numel():
            self.rest, self.parts = a.new_empty(a.numel()), self.parts.new_empty(2, a.numel())
        rest = self.rest[: a.numel()].view(a.shape)
        high, low = (part[: a.numel()].view(a.shape) for part in self.parts)
        high.copy_(a)
        rest.copy_(high)
        low.copy_(torch.sub(a, rest, out=rest))
        return high, low


@lru_cache
def _has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself (AMX or AVX-512), faster than float32."""
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, probe, bool)() for probe in probes)


def finish_(z_NC: Tensor, head: Head, v: slice | Tensor = slice(None)) -> Tensor:
    """`Head.finish` in place."""
    if head.scale != 1.0:
        z_NC.mul_(head.scale)
    if head.softcap is not None:
        z_NC.div_(head.softcap).tanh_().mul_(head.softcap)
    if head.final_bias_V is not None:
        z_NC.add_(head.final_bias_V[v].float())
    return z_NC


def widens(weight_VE: Tensor) -> bool:
    """Whether torch alone multiplies these weights on the CPU no faster than in float32."""
    half = weight_VE.dtype in (torch.bfloat16, torch.float16)
    return half and weight_VE.is_cpu and not _half_is_fast(weight_VE.dtype)


def compiles(weight_VE: Tensor) -> bool:
    """Whether numba brings a product for these weights that is the fastest here; loads numba."""
    if not find_spec("numba"):
        return False
    from logitlens.readout import compiled

    return compiled.takes(weight_VE) and compiled.runs_here(weight_VE.dtype)


def _way(weight_VE: Tensor, compiled: bool) -> str:
    half = weight_VE.dtype in (torch.bfloat16, torch.float16)
    if weight_VE.device.type == "cpu":
        if half and not widens(weight_VE):
            return "mkl half"
        if compiled and compiles(weight_VE):
            return "compiled"
        if weight_VE.dtype == torch.float32:
            return "onednn" if _has_onednn() else "mm"
    if weight_VE.device.type == "cuda" and half and torch.__version__ >= "2.8":
        return "cuda half"
    return "widen"


def _onednn(x_NE: Tensor, weight_CE: Tensor, bias_C: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x_NE, weight_CE, bias_C, "none", [], "")


@lru_cache
def _has_onednn() -> bool:
    try:
        one = torch.ones(1, 1)
        return bool(_onednn(one, one) == one)
    except (AttributeError, RuntimeError, NotImplementedError):
        return False


@lru_cache
def _half_is_fast(dtype: torch.dtype) -> bool:
    """Whether MKL's product of half-precision numbers clearly beats one of float32 here.

    Measured once, in a few milliseconds: MKL takes the processor's own instructions for it on
    Intel's processors only, and says nowhere whether it does. With them it is twice as fast or more;
    without, about as fast, and several times slower for few rows.
    """
    gemm = _half_gemm(dtype)
    if gemm is None:
        return False
    x_NE, w_CE, out_NC = torch.ones(256, 512), torch.ones(512, 512), torch.empty(256, 512)
    x_half, w_half = x_NE.to(dtype), w_CE.to(dtype)

    def seconds(multiply: Callable[[], object]) -> float:
        times = []
        for _ in range(4):
            began = time.perf_counter()
            multiply()
            times.append(time.perf_counter() - began)
        return min(times)

    half = seconds(lambda: gemm(x_half, w_half, out_NC))
    return CLEARLY * half < seconds(lambda: torch.mm(x_NE, w_CE.T, out=out_NC))


@lru_cache
def _half_gemm(dtype: torch.dtype) -> Any:
    """out (N, C) float32 := x wᵀ (+ out) for x (N, E), w (C, E) of dtype; None where there is none.

    A documented function of MKL, found in the library torch ships. Tried on a small product whose
    result is known exactly before it is trusted.
    """
    name = {torch.bfloat16: "bf16bf16f32", torch.float16: "f16f16f32"}[dtype]
    try:
        library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
        function = getattr(ctypes.CDLL(str(library)), f"cblas_gemm_{name}")
    except (OSError, AttributeError):
        return None
    i, f, p = ctypes.c_int, ctypes.c_float, ctypes.c_void_p
    function.argtypes = [i, i, i, i, i, i, f, p, i, p, i, f, p, i]
    function.restype = None
    row_major, plain, transposed = 101, 111, 112

    def gemm(x_NE: Tensor, w_CE: Tensor, out_NC: Tensor, add: bool = False) -> None:
        if 1 < x_NE.shape[0] < FEW_HALF_ROWS and not add:
            # Packing the weights would cost more than the product: let the rows be what is packed.
            out_CN = torch.empty(w_CE.shape[0], x_NE.shape[0])
            multiply(w_CE, x_NE, out_CN)
            out_NC.copy_(out_CN.T)
        else:
            multiply(x_NE, w_CE, out_NC, add)

    def multiply(x_NE: Tensor, w_CE: Tensor, out_NC: Tensor, add: bool = False) -> None:
        w_CE = (
            w_CE if w_CE.stride(1) == 1 and w_CE.stride(0) >= w_CE.shape[1] else w_CE.contiguous()
        )
        x_NE = x_NE.contiguous()
        assert out_NC.stride(1) == 1, "columns of the result must be contiguous"
        (n, e), c = x_NE.shape, w_CE.shape[0]
        function(
            row_major, plain, transposed, n, c, e, 1.0, x_NE.data_ptr(), x_NE.stride(0),
            w_CE.data_ptr(), w_CE.stride(0), float(add), out_NC.data_ptr(), out_NC.stride(0),
        )  # fmt: skip

    x = torch.arange(-17, 18).view(5, 7).to(dtype)
    w = torch.arange(-30, 33).view(9, 7).to(dtype)
    out = torch.full((5, 12), 7.0)
    gemm(x, w, out[:, :9])
    known = bool((out[:, :9] == x.float() @ w.float().T).all()) and bool((out[:, 9:] == 7).all())
    return gemm if known else None
