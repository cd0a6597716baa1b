"""The kernels alone under pytest-benchmark: `make bench-kernels`; no test of `make test`.

    make bench-kernels
    make bench-kernels ARGS="-k numba --benchmark-compare"    # any option of pytest-benchmark

Smaller than the sweeps of run.py, for the minute between two changes of a kernel.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.readout import floor
from logitlens.readout import reference
from logitlens.readout.chunked import Chunked
from logitlens.readout.head import Head

T, L, E, K = 16, 13, 768, 10
VOCABULARIES = {"GPT-2": (50_257, torch.float32), "128k": (128_256, torch.bfloat16)}


@pytest.fixture(params=list(VOCABULARIES), scope="module")
def given(request):
    """(rows of head input, head, targets) of a vocabulary."""
    vocab, dtype = VOCABULARIES[request.param]
    generator = torch.Generator().manual_seed(0)
    weight_VE = (torch.randn(vocab, E, generator=generator) * 0.05).to(dtype)
    x_TLE = (torch.randn(T, L, E, generator=generator) * 3).to(dtype)
    targets_T1 = torch.randint(0, vocab, (T, 1), generator=generator)
    return x_TLE, Head(vocab, weight_VE), targets_T1


@pytest.fixture(params=[1, T], ids=["one position", f"{T} positions"])
def positions(request):
    return request.param


@pytest.mark.parametrize("kernel", ["torch", "numba"])
def test_readout(benchmark, given, positions, kernel):
    x_TLE, head, targets_TM = given
    x_TLE, targets_TM = x_TLE[:positions], targets_TM[:positions]
    if kernel == "numba":
        pytest.importorskip("numba")
    read = benchmark(lambda: Chunked(kernel).stats(x_TLE, head, K, targets_TM))
    truth = reference.stats(x_TLE[:1], head, 1, targets_TM[:1])
    assert torch.equal(read.top_ids[0, :, 0], truth.top_ids[0, :, 0])


def test_product(benchmark, given, positions):
    """The floor of the above."""
    x_TLE, head, _ = given
    x_NE = x_TLE[:positions].flatten(0, 1)
    product = floor.fastest(len(x_NE), head.weight_VE)
    benchmark.extra_info |= vars(product)
    benchmark(lambda: product(x_NE, head.weight_VE))
