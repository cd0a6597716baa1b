"""The compiled product: exact, whatever the shape, and nothing outside its place."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from logitlens.readout import product
from logitlens.readout.chunked import Chunked
from logitlens.readout.product import Product
from tests.readout.heads import make_head, make_rows, make_targets
from tests.readout.truth import EPS, judge

if not find_spec("numba"):
    pytest.skip("numba is not installed", allow_module_level=True)

from logitlens.readout import amx, compiled

HERE = [d for d in (torch.float32, torch.bfloat16) if compiled.suits(d)]
if not HERE:
    pytest.skip("this processor multiplies otherwise", allow_module_level=True)

if compiled.suits(torch.float16):  # another few seconds of compiling
    HERE.append(pytest.param(torch.float16, marks=pytest.mark.slow))

SENTINEL = 12345.0
LANES = ["bfloat16 by lanes"] if torch.bfloat16 in HERE and amx.runs_here() else []


@pytest.fixture(params=[*HERE, *LANES], ids=str)
def numbers(request, monkeypatch):
    """Random numbers of a dtype that is multiplied here; of bfloat16 also as where there is no AMX."""
    if request.param in LANES:
        monkeypatch.setattr(amx, "runs_here", lambda: False)

    def made(*shape, seed=0):
        generator = torch.Generator().manual_seed(seed)
        dtype = torch.bfloat16 if request.param in LANES else request.param
        return torch.randn(shape, generator=generator).to(dtype)

    return made


def times(x_NE, weight_CE):
    """(N, C) logits; what lies behind the room that was asked for must stay as it was."""
    rows, C = compiled.laid_out(x_NE), len(weight_CE)
    few = isinstance(rows, compiled.Rows) and rows.few
    width = max(compiled.GROUP, C) if few else -(-C // 64) * 64
    out = torch.full((rows.room() + 1, width + 8), SENTINEL)
    rows.times(weight_CE, out[: rows.room(), :C])
    assert bool((out[rows.room() :] == SENTINEL).all()), "rows behind the last were written"
    assert bool((out[:, width:] == SENTINEL).all()), "columns behind the last were written"
    return out[: len(x_NE), :C].clone()


@pytest.mark.parametrize("N", [1, 8, 9, 17, 25, 33, 41, 49, 57, 64, 65, 66, 131])
@pytest.mark.parametrize("E", [2, 32, 254, 2050] if compiled.DOTS else [1, 2, 33, 255, 2050])
def test_sums_are_those_of_float64(numbers, N, E):
    x = numbers(N, E)
    for C in (1, 7, 8, 63, 64, 65, 200):
        w = numbers(C, E, seed=C)
        truth = x.double() @ w.double().T
        size = x.double().abs() @ w.double().abs().T
        assert bool(((times(x, w) - truth).abs() <= 4 * EPS * size).all()), f"{C} tokens"


def test_long_sums_are_about_as_true_as_those_of_float32(numbers):
    x, w = numbers(100, 8192), numbers(1000, 8192, seed=1)
    truth = x.double() @ w.double().T
    naive = (x.float() @ w.float().T - truth).abs().max()
    assert (times(x, w) - truth).abs().max() <= 3 * naive


def test_a_sum_does_not_depend_on_its_neighbours(numbers):
    """Ranks count against targets multiplied apart: to the bit the same."""
    x, w = numbers(130, 300), numbers(500, 300, seed=1)
    whole = times(x, w)
    for rows in (slice(0, 1), slice(3, 20), slice(10, 74), slice(5, 130)):
        for columns in (slice(0, 1), slice(64, 77), slice(3, 500)):
            assert torch.equal(times(x[rows], w[columns]), whole[rows, columns])
    some = torch.tensor([499, 0, 63, 64])
    assert torch.equal(times(x, w[some]), whole[:, some])


@pytest.mark.parametrize("N", [5, 100])
def test_threads_change_nothing(numbers, N):
    x, w = numbers(N, 64), numbers(300, 64, seed=1)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(times(x, w))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("N", [3, 70])
@pytest.mark.parametrize(("width", "start"), [(200, 100), (201, 0), (200, 7)])
def test_weights_may_lie_apart(numbers, N, width, start):
    x, wide = numbers(N, 64), numbers(130, width, seed=1)
    w = wide[::2, start : start + 64]
    assert compiled.takes(w)
    assert torch.equal(times(x, w), times(x, w.contiguous()))


@pytest.mark.parametrize("N", [3, 70])
@pytest.mark.parametrize("byte", [1, 2])
def test_weights_may_begin_at_any_byte(numbers, N, byte):
    x, w = numbers(N, 64), numbers(70, 64, seed=1)
    file = bytearray(byte) + bytearray(w.view(torch.uint8).numpy().tobytes())
    mapped = torch.frombuffer(file, dtype=w.dtype, offset=byte).view(70, 64)
    assert mapped.data_ptr() % 4
    assert torch.equal(times(x, mapped), times(x, w))


PAIRS = [torch.ones(4, 5).bfloat16()] if compiled.DOTS else []  # an odd width has no pairs


@pytest.mark.parametrize(
    "weight", [*PAIRS, torch.ones(6, 4).bfloat16().T, torch.ones(6, 4).T, torch.ones(4, 6).double()]
)
def test_weights_it_cannot_take_go_another_way(weight):
    assert not compiled.takes(weight)
    x = torch.ones(2, weight.shape[1]).to(weight.dtype)
    ours = Product(x, weight, compiled=True)
    assert ours.way != "compiled"
    assert torch.equal(ours.raw(slice(0, 4)), x.float() @ weight.float().T)


@pytest.mark.parametrize("N", [3, 70])
def test_a_number_that_is_none_spoils_its_own_row_or_token_only(numbers, N):
    x, w = numbers(N, 64), numbers(70, 64, seed=1)
    whole = times(x, w)
    x[1, 3], w[5, 7], w[69, 0] = float("nan"), float("inf"), float("-inf")
    spoiled = times(x, w)
    touched = torch.zeros(N, 70, dtype=torch.bool)
    touched[1], touched[:, 5], touched[:, 69] = True, True, True
    assert torch.equal(spoiled[~touched], whole[~touched])
    assert not bool(spoiled[touched].isfinite().any())


@pytest.mark.parametrize("dtype", HERE, ids=str)
@pytest.mark.parametrize(("positions", "depths"), [(1, 1), (1, 17), (4, 16), (9, 13)])
@pytest.mark.parametrize("vocab", [191, 4099])
def test_the_readout_takes_it(dtype, positions, depths, vocab):
    head = make_head(vocab, 64, dtype=dtype, bias=True, softcap=30.0, scale=0.5)
    x, targets = make_rows(positions, depths, 64).to(dtype), make_targets(positions, vocab)
    assert head.weight_VE is not None
    assert Product(x[0], head.weight_VE, compiled=True).way == "compiled"
    assert Product(x[0], head.weight_VE).way in ("widen", "onednn", "mkl half")
    judge(Chunked("numba").stats(x, head, 10, targets), x, head, 10, targets)


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [
        (compiled, "works", lambda dtype: False),
        (compiled.llvm, "get_host_cpu_features", dict),
        (compiled.config, "CPU_NAME", "generic"),
        (product, "find_spec", lambda name: None),
    ],
    ids=["wrong result", "no instruction", "another processor asked for", "no numba"],
)
def test_it_is_not_used_where_it_does_not_run(numbers, where, name, value, monkeypatch):
    monkeypatch.setattr(where, name, value)
    compiled.runs_here.cache_clear()
    try:
        ours = Product(numbers(2, 8), numbers(9, 8), compiled=True)
    finally:
        compiled.runs_here.cache_clear()
    assert ours.way != "compiled"


AT_THE_END = """
import ctypes, mmap, sys, torch
from logitlens.readout.compiled import laid_out
C, E, dtype = 65, 34, getattr(torch, sys.argv[1])
room = mmap.mmap(-1, 64 * mmap.PAGESIZE)
begin = ctypes.addressof(ctypes.c_char.from_buffer(room))
assert not ctypes.CDLL(None).mprotect(ctypes.c_void_p(begin + 63 * mmap.PAGESIZE), mmap.PAGESIZE, 0)
before = 63 * mmap.PAGESIZE - C * E * dtype.itemsize
w = torch.frombuffer(room, dtype=dtype, count=C * E, offset=before).view(C, E).fill_(2)
for N in (3, 100):
    rows = laid_out(torch.ones(N, E, dtype=dtype))
    out = torch.empty(rows.room(), C + 64 - C % 64)
    rows.times(w, out[:, :C])
    assert bool((out[:N, :C] == 2 * E).all())
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="pages are shut by Linux's call")
@pytest.mark.parametrize("dtype", HERE, ids=str)
def test_nothing_behind_the_weights_is_read(dtype):
    """The last weight lies before a page that may not be touched: the process would die."""
    command = [sys.executable, "-c", AT_THE_END, str(dtype).split(".")[1]]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:] or f"ended by signal {-done.returncode}"


@pytest.mark.parametrize("dtype", HERE, ids=str)
def test_it_works_where_the_processor_suits(dtype):
    assert compiled.works(dtype)


@pytest.mark.parametrize("dtype", HERE, ids=str)
def test_a_wrong_sum_is_found_before_it_is_trusted(dtype, monkeypatch):
    for rows in (compiled.Rows, amx.Rows):
        monkeypatch.setattr(rows, "times", lambda rows, w, out: out.fill_(1.0))
    assert not compiled.works(dtype)


@pytest.mark.skipif(not amx.runs_here(), reason="this processor has no AMX")
def test_bfloat16_takes_the_matrix_registers_where_there_are_any():
    pairs, odd = torch.ones(2, 6).bfloat16(), torch.ones(2, 5).bfloat16()
    assert isinstance(compiled.laid_out(pairs), amx.Rows)
    assert isinstance(compiled.laid_out(odd), compiled.Rows)
    assert isinstance(compiled.laid_out(pairs.half()), compiled.Rows)


def test_a_process_that_may_not_use_them_multiplies_by_lanes(monkeypatch):
    class Linux:
        def syscall(self, *call):
            return -1

    monkeypatch.setattr(amx.llvm, "get_host_cpu_features", lambda: {"amx-bf16": 1, "amx-tile": 1})
    monkeypatch.setattr(amx.ctypes, "CDLL", lambda name: Linux())
    assert not amx.runs_here.__wrapped__()
