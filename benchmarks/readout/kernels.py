"""The readout alone, on made-up rows: how it scales with positions, depths, vocabulary and k."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import torch

from benchmarks.readout import floor, machine, plain
from benchmarks.readout.measure import measured

BASE = {"T": 64, "L": 13, "V": 50_257, "k": 10}
SWEEPS = {
    "T": [1, 8, 64, 256],
    "L": [1, 4, 13, 33],
    "V": [4_096, 50_257, 128_256, 262_144],
    "k": [1, 10, 64, 256],
}
WIDTH = 768
ROUNDS = 3


def rows(threads: int) -> Iterator[dict]:
    """A row for each point of each sweep and each way to read it."""
    torch.set_num_threads(threads)
    for axis, values in SWEEPS.items():
        for value in values:
            yield from _point(axis, BASE | {axis: value}, threads)


@torch.inference_mode()
def _point(axis: str, at: dict, threads: int) -> Iterator[dict]:
    from logitlens.readout.head import Head

    generator = torch.Generator().manual_seed(0)
    head = Head(at["V"], torch.randn(at["V"], WIDTH, generator=generator) * 0.05)
    x_TLE = torch.randn(at["T"], at["L"], WIDTH, generator=generator) * 3
    targets = torch.randint(0, at["V"], (at["T"], 1), generator=generator)
    seconds: dict[str, list[dict]] = {}
    ways = _ways(x_TLE, head, at["k"], targets)
    for turn in range(ROUNDS + 1):
        for name, read in ways.items():
            _, took = measured(read, None)
            if turn:
                seconds.setdefault(name, []).append(took)
    for name, said in seconds.items():
        row = {"kind": "kernel", "axis": axis, **at, "E": WIDTH, "dtype": "float32"}
        yield row | {"contender": name, "threads": threads} | machine.summary(said)


def _ways(x_TLE, head, k, targets):
    from logitlens.readout.chunked import Chunked

    def naive():
        z_LTV = (x_TLE @ head.weight_VE.T).transpose(0, 1)
        return plain.statistics(z_LTV, targets[:, 0])

    def ours(kernel):
        return lambda: Chunked(kernel).stats(x_TLE, head, k, targets)

    x_NE = x_TLE.flatten(0, 1)
    product = floor.fastest(len(x_NE), head.weight_VE)
    ways = {"product": lambda: product(x_NE, head.weight_VE)}
    ways["torch"] = ours("torch")
    if find_spec("numba"):
        ways["numba"] = ours("numba")
    if x_TLE.shape[0] * x_TLE.shape[1] * head.vocab <= 1 << 26:
        ways["naive"] = naive
    return ways
