"""Whether the slabs of `gpu` are right and faster on the machine at hand: tried once for each kind of head.

A driver, a compiler or a library that nobody has seen yet may get them wrong. So the first reading on a
GPU compares them with the torch path on a small product, and times both.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor

from logitlens.readout.chunked import Chunked
from logitlens.readout.gpu import Slabs, power
from logitlens.readout.head import Head
from logitlens.readout.stats import Stats

CLOSE = 1e-4  # nats, and of their size, between two float32 paths
SOME = 3  # candidates
TURNS = 3  # of timing


def slabs(head: Head, k: int) -> bool:
    """Whether `Slabs` reads this head, for k likeliest tokens: on a GPU, with triton, after it has proven
    itself there."""
    weight_VE = head.weight_VE
    if weight_VE is None or weight_VE.device.type != "cuda" or not find_spec("triton"):
        return False
    parts = (head.bias_V is not None, head.final_bias_V is not None, head.softcap is not None)
    try:
        return _proven(weight_VE.device, weight_VE.dtype, power(k), *parts)
    except torch.OutOfMemoryError:  # there may be room the next time
        return False


@lru_cache
def _proven(device: torch.device, dtype: torch.dtype, k: int, *parts: bool) -> bool:
    """For all k up to a power of two: the kernels are compiled for each apart."""
    try:
        small = request(3, 5, 3000, 64, device, dtype, *parts, k=k)
        # Cut into slabs, in one slab, and larger: each with candidates, as readings have them.
        large = request(16, 32, 16_384, 1024, device, dtype, *parts, k=k)
        tried = (Slabs(logits=15 * 1024), small), (Slabs(), small), (Slabs(), large)
        if not all(right(slabs, asked) for slabs, asked in tried):
            return False
        return seconds(lambda: Slabs().stats(*large)) < seconds(lambda: Chunked().stats(*large))
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever a compiler or a driver raises: torch reads as it always has
        return False


def request(
    T: int, L: int, vocab: int, width: int, device: torch.device, dtype: torch.dtype,
    bias: bool, final_bias: bool, softcap: bool, k: int = 10,
) -> tuple[Tensor, Head, int, Tensor]:  # fmt: skip
    """Rows, head, k and targets of eighths, whose products sum up without rounding in any order: both
    paths must find the same ids and ranks, ties included."""
    seed = torch.Generator(device="cpu").manual_seed(0)

    def eighths(*shape: int) -> Tensor:
        numbers = torch.randn(shape, generator=seed, dtype=torch.float32, device="cpu")
        return ((numbers * 8).round() / 8).to(device, dtype)

    head = Head(
        vocab,
        eighths(vocab, width),
        eighths(vocab) if bias else None,
        0.25,
        30.0 if softcap else None,
        eighths(vocab) if final_bias else None,
    )
    targets = torch.randint(vocab, (T, 3), generator=seed, dtype=torch.long, device="cpu")
    return eighths(T, L, width), head, k, targets


def right(slabs: Slabs, asked: tuple[Tensor, Head, int, Tensor]) -> bool:
    """Whether the torch path finds the same, with a final row that is handed out, which is the same, and
    without: kernels are compiled for each."""
    x_TLE, head = asked[:2]
    ours_V, theirs_V = torch.empty(2, head.vocab, dtype=torch.float32, device=x_TLE.device)
    theirs = Chunked().stats(*asked, candidates=SOME, final={0: theirs_V})
    ours = slabs.stats(*asked, candidates=SOME, final={0: ours_V})
    return (
        agree(ours, theirs)
        and agree(slabs.stats(*asked, candidates=SOME), theirs)
        and torch.allclose(ours_V, theirs_V, rtol=CLOSE, atol=CLOSE)
    )


def agree(ours: Stats, theirs: Stats) -> bool:
    """Whether two paths found the same ids and ranks, and sums that differ by rounding only."""
    same = all(
        torch.equal(getattr(ours, name).long(), getattr(theirs, name).long())
        for name in ("top_ids", "candidate_ids", "target_ranks", "finite")
    )
    return same and all(
        torch.allclose(getattr(ours, name), getattr(theirs, name), rtol=CLOSE, atol=CLOSE)
        for name in ("top_logprobs", "entropy", "kl", "target_logprobs")
    )


def seconds(read: Callable[[], Stats]) -> float:
    """The fastest of some turns, after one that warms up."""
    took = []
    for _ in range(1 + TURNS):
        began = time.perf_counter()
        read().finite.cpu()  # waits for the GPU
        took.append(time.perf_counter() - began)
    return min(took[1:])
