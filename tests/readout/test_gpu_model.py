"""The cost model of the GPU path: its bytes are those that the path moves."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

pytest.importorskip("triton")
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from benchmarks.readout import gpu as benchmark
from benchmarks.readout import gpu_model, report
from benchmarks.readout.gpu_model import Work
from logitlens.readout import epilogue, gpu, read
from logitlens.readout.gpu import Slabs
from logitlens.readout.head import Head
from logitlens.readout.product import Product
from tests.readout.heads import eighths, make_targets
from tests.readout.interpreter import Moved, patched_once

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of infinities

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("pick", "look", "merge", "leading", "result")


class Counted(Product):
    """A product that adds up the bytes of what it reads and writes."""

    bytes = 0

    def raw(self, v: slice | Tensor) -> Tensor:
        out_NC = super().raw(v)
        weight_CE = self.weight_VE[v]
        copied = 3 if isinstance(v, Tensor) else 1  # read, written in order, and read again
        read = copied * weight_CE.numel() + self.x_NE.numel()
        Counted.bytes += read * self.x_NE.element_size() + out_NC.numel() * 4
        return out_NC


def moved(work: Work, monkeypatch, candidates: int = 0) -> int:
    """Bytes that the path moves. Logits fall with the id, so that the top k is in the first block, opened
    once, in the first slab; nothing is greater than the targets but in the first tile. No sum is rounded.
    """
    monkeypatch.setattr(gpu, "Product", Counted)
    monkeypatch.setattr(Counted, "bytes", 0)
    weight = torch.arange(work.V, 0, -1.0)[:, None].expand(-1, work.E).contiguous()
    x = eighths(torch.rand(work.P, work.L, work.E, generator=torch.Generator().manual_seed(0)))
    targets = torch.arange(work.P * work.M).view(work.P, work.M) * 70 + 1
    with patched_once(), monkeypatch.context() as patch:
        kernels = Moved(patch)
        given = x + 0.125, Head(work.V, weight), work.k, targets
        Slabs(work.slab).stats(*given, candidates=candidates)
    return kernels.read + kernels.written + Counted.bytes


@pytest.mark.parametrize(
    "work",
    [
        Work(2, 3, 1500, 8, k=5, M=2, size=4, slab=6 * 512),
        Work(1, 2, 300, 8, k=5, M=1, size=4, slab=1 << 20),
    ],
    ids=["slabs", "one slab"],
)
def test_the_path_moves_the_bytes_that_the_model_says(work, monkeypatch):
    found = moved(work, monkeypatch)
    work = replace(work, opened=work.N, touched=work.N, counted=work.N * work.M)
    assert found == sum(gpu_model.moved(work).values())


def test_candidates_move_the_bytes_that_the_model_says(monkeypatch):
    work = Work(2, 3, 1500, 8, k=5, M=2, size=4, slab=6 * 512)
    found = moved(work, monkeypatch, candidates=3)
    rest, finals = (
        replace(w, opened=w.N, touched=w.N, counted=0) for w in gpu_model.followed(work, 3)
    )
    rest = replace(rest, counted=rest.N * (rest.M - 1))  # nothing is greater than the likeliest
    assert found == sum(sum(gpu_model.moved(w).values()) for w in (rest, finals))


@pytest.mark.slow
def test_every_kernel_compiles_for_every_gpu_without_a_spill_and_the_page_says_so():
    command = [sys.executable, "-m", "benchmarks.readout.gpu_kernels", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_page_has_the_models_tables():
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert gpu_model.table() in page
    assert gpu_model.bytes_table() in page


def test_rows_of_a_gpu_have_a_table():
    row = {
        "kind": "gpu",
        "gpu": "NVIDIA H100",
        "contender": "slabs",
        "T": 124,
        "L": 33,
        "p50": 0.0061,
        "peak_mb": 40.2,
    }
    assert "| 4,092 | slabs | 0.00610 | 40 |" in report.on_gpu([row])
    assert "NVIDIA H100" in report.on_gpu([row])
    assert report.on_gpu([]) == ""


def test_a_machine_without_a_gpu_measures_nothing_and_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert list(benchmark.rows(1)) == []
    assert capsys.readouterr().err == "gpu: skipped, torch sees no GPU here\n"


@torch.inference_mode()
def test_every_way_of_the_benchmark_runs_and_reads_the_same(monkeypatch):
    seed = torch.Generator().manual_seed(0)
    head = Head(300, torch.randn(300, 8, generator=seed))
    x_TLE, targets = torch.randn(2, 3, 8, generator=seed), torch.tensor([[3], [70]])
    with patched_once():
        read = {n: way() for n, way in benchmark._ways(x_TLE, head, 5, targets).items()}
    product = read.pop("product")
    assert product.shape == (6, 300)
    naive = read.pop("naive")[0].indices[..., :5].transpose(0, 1)
    assert torch.equal(naive, product.topk(5, -1).indices.view(2, 3, 5))
    assert set(read) == {"slabs", "slabs, 5 candidates", "torch"}
    assert read["slabs, 5 candidates"].candidate_ids.shape == (2, 5)
    for stats in read.values():
        assert torch.equal(stats.top_ids.long(), product.topk(5, -1).indices.view(2, 3, 5))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 0)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 2e6)
    assert benchmark._measured(lambda: None)["peak_mb"] == 2


def test_a_large_reading_on_an_h100_reaches_most_of_the_products_rate():
    card = gpu_model.CARDS[0]
    took = gpu_model.seconds(gpu_model.work_on(card, 4096), card)
    assert took["product"] / sum(took.values()) > 0.78


class Small(TorchDispatchMode):
    """Counts torch's operations on what is on a GPU (here on none, device "meta"): all but views, memory
    that is taken, and products."""

    FREE = (
        "view slice select unsqueeze expand transpose t permute _unsafe_view empty new_empty unbind split "
        "split_with_sizes as_strided alias detach empty_like _reshape_alias squeeze mm"
    )
    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        there = any(t.is_meta for t in tree_leaves((args, found)) if isinstance(t, Tensor))
        self.count += (
            there and function.name().split("::")[1].split(".")[0] not in self.FREE.split()
        )
        return found


@pytest.mark.parametrize(
    ("P", "M", "candidates"), [(1, 1, 0), (1, 3, 0), (1, 1, 5), (4, 1, 0), (4, 2, 5)]
)
@torch.no_grad()
def test_small_operations_are_as_many_as_the_model_says(P, M, candidates, monkeypatch):
    class Nothing:
        def __getitem__(self, grid):
            return lambda *args, **kwargs: None

    for name in NAMES:
        monkeypatch.setattr(epilogue, name, Nothing())
    L, V = 5, 4096
    work = Work(P, L, V, 8, M=M, slab=P * L * (V if P == 1 else 512))
    final = {p: torch.empty(V, device="meta") for p in range(P)}  # handed out together
    head = Head(V, torch.empty(V, 8, device="meta"))
    given = torch.empty(P, L, 8, device="meta"), head, 10, make_targets(P, V, M)
    with Small() as small:
        stats = Slabs(work.slab).stats(*given, candidates=candidates, final=final)
        arrays = read._narrowed(stats, candidates)
    # One copy to the host:
    assert len({array.untyped_storage()._cdata for array in arrays.values()}) == 1
    works = gpu_model.followed(work, candidates) if candidates else [work]
    assert small.count + 1 == sum(map(gpu_model.small_operations, works))


class Variants:
    """Stands in for a kernel: runs nothing, and keeps what triton would compile it for on an H100."""

    def __init__(self, kernel):
        jit = JITFunction(kernel.fn, do_not_specialize=kernel.kwargs["do_not_specialize"])
        backend = make_backend(GPUTarget("cuda", 90, 32))
        self.bind = create_function_from_signature(jit.signature, jit.params, backend)
        self.found = set()

    def __getitem__(self, grid):
        return lambda *args, **kwargs: self.found.add(str(self.bind(*args, **kwargs)[1:]))


@pytest.mark.parametrize(
    ("columns", "follow", "found"),
    [
        (4096, True, {"pick": 1, "look": 1, "merge": 1, "leading": 1, "result": 1}),
        (512, False, {"pick": 1, "look": 1, "merge": 1, "leading": 0, "result": 1}),
    ],
    ids=["one slab", "slabs"],
)
@torch.no_grad()
def test_no_kernel_is_compiled_again_for_other_counts(columns, follow, found, monkeypatch):
    """Of positions, layers, targets and top tokens: 1, multiples of 16, and others."""
    kernels = {name: Variants(getattr(epilogue, name)) for name in NAMES}
    for name, kernel in kernels.items():
        monkeypatch.setattr(epilogue, name, kernel)
    V = 4096
    head = Head(V, torch.empty(V, 8, device="meta"))
    for P, L, k, M in [(1, 1, 16, 16), (1, 7, 10, 10), (3, 16, 11, 11), (16, 5, 16, 10)]:
        given = torch.empty(P, L, 8, device="meta"), head, k, make_targets(P, V, 0 if follow else M)
        Slabs(P * L * columns).stats(*given, candidates=M if follow else 0)
    assert {name: len(kernel.found) for name, kernel in kernels.items()} == found


def test_no_slab_is_larger_than_its_share_of_the_cache():
    for card in gpu_model.CARDS:
        work = gpu_model.work_on(card, 4096)
        assert work.N * work.C <= card.slab
