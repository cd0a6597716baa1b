"""Older processors, as far as libraries can be told to do without what this one has."""

from __future__ import annotations

import torch
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__


def _numpy_without(*kept: str) -> str:
    """What numpy would choose on this processor beside the features kept. It warns of any other name."""
    return " ".join(f for f in __cpu_dispatch__ if __cpu_features__.get(f) and f not in kept)


# Choices of an order of summation: torch's own loops, oneDNN's and numpy's products, numba's code.
RESTRICTED: dict[str, dict[str, str]] = {
    "SSE4": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "NPY_DISABLE_CPU_FEATURES": _numpy_without(),
        "OPENBLAS_CORETYPE": "Nehalem",
        "NUMBA_CPU_NAME": "generic",
    },
    "AVX2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "NPY_DISABLE_CPU_FEATURES": _numpy_without("X86_V3", "AVX2", "FMA3"),
        "OPENBLAS_CORETYPE": "Haswell",
        "NUMBA_CPU_NAME": "haswell",
    },
}
if torch.backends.cpu.get_cpu_capability() != "AVX512":  # this processor is one of AVX2 itself
    del RESTRICTED["AVX2"]
