"""Rows of head input × a slice of the unembedding → float32 sums, by the fastest exact way.

Weights in bfloat16 or float16 are multiplied as they are and summed in float32: `torch.mm` would
round the result back to half precision, which no statistic over a vocabulary survives (a bfloat16
logsumexp is off by a tenth of a nat). On a GPU torch has such a product, and on a CPU with AMX the MKL
inside it; elsewhere a slice of the weights at a time is widened to float32, unless `compiled`
multiplies, which is faster where it runs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WIDE = 2 << 20  # numbers of the weights copied to float32 in one step (8 MB)
LINE = 64  # floats; rows of a tile are a multiple of this apart
SPARE = 32  # rows: `amx` writes up to 31 behind the last, `compiled` up to 5: whole groups of them
FEW = 256  # rows up to which oneDNN's product is the faster one everywhere


class Room:
    """Float32 memory that every tile uses again, on a tensor's device."""

    def __init__(self, like: Tensor):
        self.space = like.new_empty(0, dtype=torch.float32)

    def tile(self, rows: int, columns: int) -> Tensor:
        """(rows, columns), good until the next call; with SPARE more rows behind."""
        # A multiple of 64 apart, but no power of two: the caches would map rows onto each other.
        stride = columns + LINE - columns % LINE
        size = (rows + SPARE) * stride
        if self.space.numel() < size:
            self.space = self.space.new_empty(size)
        return self.space[:size].view(-1, stride)[:rows, :columns]


class Product:
    """Rows of head input (N, E), ready to be multiplied with any slice of the weights (V, E).

    x_NE is rounded to the weights' dtype, as the model itself would have it. compiled: whether what
    numba compiles may be used; room: of other products, which are then no longer good.
    """

    def __init__(
        self,
        x_NE: Tensor,
        weight_VE: Tensor,
        bias_V: Tensor | None = None,
        *,
        compiled: bool = False,
        room: Room | None = None,
    ):
        self.weight_VE, self.bias_V = weight_VE, bias_V
        self.x_NE = x_NE.to(weight_VE.device, weight_VE.dtype).contiguous()
        self.way = _way(weight_VE, compiled, len(x_NE))
        if self.way == "widen":
            self.x_NE = self.x_NE.float()
        elif self.way == "compiled":
            from logitlens.readout.compiled import laid_out

            self.rows = laid_out(self.x_NE)
        self.room = room or Room(self.x_NE)
        self.wide = self.x_NE.new_empty(0, dtype=torch.float32)

    def raw(self, v: slice | Tensor, out_NC: Tensor | None = None) -> Tensor:
        """Float32 (N, len(v)): products with the tokens v, and their bias; good until the next call.

        out_NC   where they may go, with room behind for a whole line and SPARE more rows
        """
        weight_CE = self.weight_VE[v]
        bias_C = None if self.bias_V is None else self.bias_V[v].float()
        if self.way == "onednn":  # makes its own result; to copy it would cost a tenth of the time
            return _onednn(self.x_NE, weight_CE, bias_C)
        if out_NC is None:
            out_NC = self.room.tile(len(self.x_NE), len(weight_CE))
        if self.way == "cuda half":
            torch.mm(self.x_NE, weight_CE.T, out_dtype=torch.float32, out=out_NC)
        elif self.way == "compiled":
            self.rows.times(weight_CE, out_NC)
        elif self.way == "mkl half":
            _mkl_halves(self.x_NE, weight_CE, out_NC)
        elif self.way == "widen":
            self._widening(weight_CE, out_NC)
        else:
            torch.mm(self.x_NE, weight_CE.T, out=out_NC)
        return out_NC if bias_C is None else out_NC.add_(bias_C)

    def _widening(self, weight_CE: Tensor, out_NC: Tensor) -> None:
        """The product with weights copied to contiguous float32, some of the tokens at a time."""
        C, E = weight_CE.shape
        step = max(LINE, WIDE // E // LINE * LINE)
        if self.wide.numel() < min(step, C) * E:
            self.wide = self.wide.new_empty(min(step, C) * E)
        for c in range(0, C, step):
            part_cE = weight_CE[c : c + step]
            wide_cE = self.wide[: part_cE.numel()].view(part_cE.shape).copy_(part_cE)
            if wide_cE.is_cpu and _prefers_onednn(len(self.x_NE)):
                out_NC[:, c : c + step] = _onednn(self.x_NE, wide_cE)
            else:
                torch.mm(self.x_NE, wide_cE.T, out=out_NC[:, c : c + step])


def _way(weight_VE: Tensor, compiled: bool, rows: int) -> str:
    half = weight_VE.dtype in (torch.bfloat16, torch.float16)
    if weight_VE.device.type == "cpu" and compiled and _compiles(weight_VE):
        return "compiled"
    # Tokens gathered one by one are contiguous. Tiles must be too, or another kernel multiplies
    # them, whose sums differ in the last bit: a token would rank below its twin.
    if weight_VE.dtype == torch.float32 and weight_VE.is_contiguous():
        return "onednn" if weight_VE.is_cpu and _prefers_onednn(rows) else "mm"
    if (
        weight_VE.device.type == "cuda"
        and half
        and _multiplies_halves(weight_VE.device, weight_VE.dtype)
    ):
        return "cuda half"
    if weight_VE.is_cpu and weight_VE.dtype == torch.bfloat16 and weight_VE.stride(1) == 1:
        return "mkl half" if multiplies_bfloat16() else "widen"
    return "widen"


def _compiles(weight_VE: Tensor) -> bool:
    """Whether numba brings a product for these weights that is the fastest here; loads numba."""
    if not find_spec("numba"):
        return False
    from logitlens.readout import compiled

    return compiled.takes(weight_VE) and compiled.runs_here(weight_VE.dtype)


def _onednn(x_NE: Tensor, weight_CE: Tensor, bias_C: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x_NE, weight_CE, bias_C, "none", [], "")


def _prefers_onednn(rows: int) -> bool:
    return _has_onednn() and not (rows > FEW and _mkl_is_faster())


@lru_cache
def _mkl_is_faster() -> bool:
    """Of many rows, with AVX2 and on Intel's processors; it writes where it is told to, too."""
    if not torch.backends.mkl.is_available():
        return False
    intel = _processor().get("cpu_name", "").startswith("Intel")
    return intel or torch.backends.cpu.get_cpu_capability() == "AVX2"


def _processor() -> Mapping[str, Any]:
    """What torch says of it, from 2.11 on."""
    return getattr(torch.cpu, "get_capabilities", dict)()


@lru_cache
def _multiplies_halves(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch has a product of halves with float32 results: on CUDA from 2.8 on, on ROCm later."""
    try:
        ones = torch.ones(16, 16, dtype=dtype, device=device)
        out = torch.mm(ones, ones, out_dtype=torch.float32, out=ones.float())
        return bool((out == 16).all())
    except (TypeError, RuntimeError):
        return False


@lru_cache
def multiplies_bfloat16() -> bool:
    """Whether MKL has such a product on the CPU, and AMX for it: elsewhere widening is as fast."""
    if not _processor().get("amx_bf16"):
        return False
    ones = torch.ones(16, 16, dtype=torch.bfloat16, device="cpu")
    out = torch.empty(16, 16, dtype=torch.float32, device="cpu")
    try:
        _mkl_halves(ones, ones, out)
    except (AttributeError, OSError):  # torch without MKL, or with one that is elsewhere
        return False
    return bool((out == 16).all())


def _mkl_halves(x_NE: Tensor, weight_CE: Tensor, out_NC: Tensor) -> None:
    """out := x wᵀ, bfloat16 summed in float32; no function of torch leads to it.

    Sums run through a whole row: the error grows with its width, at 4,096 to twice float32's own.
    """
    (N, E), C = x_NE.shape, len(weight_CE)
    operands = (x_NE.data_ptr(), x_NE.stride(0), weight_CE.data_ptr(), weight_CE.stride(0))
    by_rows, as_is, turned = 101, 111, 112  # CBLAS's names
    _mkl()(
        by_rows, as_is, turned, N, C, E, 1.0, *operands, 0.0, out_NC.data_ptr(), out_NC.stride(0)
    )


Packing = tuple[int, int, int]  # addresses of functions; see `blas`


def mkl_packing(weight_VE: Tensor) -> Packing | None:
    """MKL's functions that pack operands, multiply packed ones and set how many threads these take,
    where many rows of these float32 weights take MKL's product, and all tokens of one are summed alike:
    with AVX2 the last ones are not, and a token would rank below its twin."""
    mkl = weight_VE.is_cpu and _way(weight_VE, True, FEW + 1) == "mm" and _mkl_is_faster()
    return _packing() if mkl and _sums_alike() else None


def _sums_alike() -> bool:
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


@lru_cache
def _packing() -> Packing | None:
    names = ("cblas_sgemm_pack", "cblas_sgemm_compute", "MKL_Set_Num_Threads_Local")
    try:
        _mkl_function("cblas_sgemm_pack_get_size")
        pack, compute, use_threads = (
            ctypes.cast(_mkl_function(name), ctypes.c_void_p).value or 0 for name in names
        )
    except (AttributeError, OSError):
        return None
    return pack, compute, use_threads


@lru_cache
def packed_bytes(side: int, rows: int, tokens: int, width: int) -> int:
    """Memory for one side of a product, packed, which begins at a multiple of 64."""
    size = _mkl_function("cblas_sgemm_pack_get_size")
    size.restype, size.argtypes = ctypes.c_size_t, [ctypes.c_int] * 4
    return size(side, rows, tokens, width)


def _mkl_function(name: str) -> Any:
    """A function of the MKL inside torch. Raises AttributeError or OSError where there is none."""
    return getattr(ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")), name)


@lru_cache
def _mkl() -> Callable[..., None]:
    multiply = _mkl_function("cblas_gemm_bf16bf16f32")
    number, scale, address = ctypes.c_int, ctypes.c_float, ctypes.c_void_p
    multiply.argtypes = [number] * 6 + [scale] + [address, number] * 2 + [scale, address, number]
    multiply.restype = None
    return multiply


@lru_cache
def _has_onednn() -> bool:
    try:
        one = torch.ones(1, 1, dtype=torch.float32, device="cpu")
        return bool(_onednn(one, one) == one)
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
