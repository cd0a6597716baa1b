"""The readout alone on a GPU, beside its product and the naive way; for a machine that has one."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator

import torch

from benchmarks.readout import gpu_model, machine, plain

TURNS = 5
HELD = 1 << 30  # logits up to which the naive way's memory is affordable


def rows(threads: int) -> Iterator[dict]:
    """A row for each number of rows and each way to read them; one line where there is no GPU."""
    if not torch.cuda.is_available():
        print("gpu: skipped, torch sees no GPU here", file=sys.stderr)
        return
    for count in gpu_model.ROWS:
        yield from _point(count, threads)


@torch.inference_mode()
def _point(count: int, threads: int) -> Iterator[dict]:
    from logitlens.readout.head import Head

    work = gpu_model.work_on(gpu_model.CARDS[0], count)
    seed = torch.Generator(device="cuda").manual_seed(0)
    made = {"generator": seed, "device": "cuda", "dtype": torch.bfloat16}
    head = Head(work.V, torch.randn(work.V, work.E, **made) * 0.05)
    x_TLE = torch.randn(work.P, work.L, work.E, **made)
    targets = torch.randint(work.V, (work.P, work.M), generator=seed, device="cuda")
    at = {"T": work.P, "L": work.L, "V": work.V, "E": work.E, "k": work.k, "dtype": "bfloat16"}
    where = {"gpu": torch.cuda.get_device_name(), "threads": threads}
    for name, read in _ways(x_TLE, head, work.k, targets).items():
        said = [_measured(read) for _ in range(1 + TURNS)][1:]
        yield {"kind": "gpu", "contender": name, **at} | machine.summary(said) | where


def _ways(x_TLE, head, k, targets) -> dict[str, Callable[[], object]]:
    from logitlens.readout.chunked import Chunked
    from logitlens.readout.gpu import Slabs

    following = targets[:, 0]

    def naive():
        z_PLV = (x_TLE @ weight_EV).float()
        return plain.statistics(z_PLV.transpose(0, 1), following)

    x_NE, weight_EV = x_TLE.flatten(0, 1), head.weight_VE.T
    ways = {
        "product": lambda: torch.mm(x_NE, weight_EV),
        "slabs": lambda: Slabs().stats(x_TLE, head, k, targets),
        "slabs, 5 candidates": lambda: Slabs().stats(x_TLE, head, k, targets, candidates=5),
        "torch": lambda: Chunked().stats(x_TLE, head, k, targets),
    }
    if len(x_NE) * head.vocab <= HELD:
        ways["naive"] = naive
    return ways


def _measured(read: Callable[[], object]) -> dict:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before, began = torch.cuda.memory_allocated(), time.perf_counter()
    read()
    torch.cuda.synchronize()
    took = time.perf_counter() - began
    return {"seconds": took, "peak_mb": (torch.cuda.max_memory_allocated() - before) / 1e6}
