"""The readout of one position alone, its residual rows given: as in generation, token by token.

The unembedding is far larger than any cache, so what counts is how often it is read: once for all
layers together, or once for each.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import torch

from benchmarks.readout import floor, machine, plain, shapes
from benchmarks.readout.measure import in_turn

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 15


def rows(shape: str, weights: Path, threads: int) -> Iterator[dict]:
    """Rows of one shape, measured in a process of their own."""
    command = [sys.executable, "-m", "benchmarks.readout.single", shape, weights, threads]
    done = subprocess.run([str(c) for c in command], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    yield from map(json.loads, done.stdout.splitlines())


@torch.inference_mode()
def main(shape: str, weights: str, threads: int) -> None:
    torch.set_num_threads(threads)
    model = shapes.load(shape, Path(weights))
    blocks, norm, head = shapes.parts(model)
    rows = len(blocks) + 1
    generator = torch.Generator().manual_seed(0)
    h_LD = torch.randn(rows, head.in_features, generator=generator).to(head.weight.dtype)
    product = floor.fastest(rows, head.weight)
    ways = _ways(h_LD, norm, head, product)
    _same(ways)
    for name, results in in_turn(ways, ROUNDS).items():
        row = {"kind": "single", "shape": shape, "depths": rows, "contender": name}
        row |= {"threads": threads, "dtype": shapes.dtype_name(shape)} | machine.summary(results)
        print(json.dumps(row | ({"product": vars(product)} if name == "floor" else {})))


def _ways(h_LD, norm, head, product: floor.Product) -> dict[str, Callable]:
    """Each way to read the rows; all but the floor return the last row's likeliest token first."""
    from logitlens.readout.chunked import Chunked
    from logitlens.readout.head import Head

    ours, targets = Head(head.out_features, head.weight), torch.tensor([[7]])

    def streamed(kernel: str) -> Callable:
        return lambda: Chunked(kernel).stats(norm(h_LD)[None], ours, 10, targets)

    def each_layer():
        """What nnsight's tutorial, nnterp and logitlenskit do of every layer."""
        return [head(norm(h[None])).softmax(-1).topk(10, -1) for h in h_LD]

    def at_once():
        return plain.statistics(head(norm(h_LD)[:, None]).float(), torch.tensor([7]))

    ways: dict[str, Callable] = {"floor": lambda: product(h_LD, head.weight)}
    ways["logitlens"] = streamed("torch")
    if find_spec("numba"):
        ways["logitlens (numba)"] = streamed("numba")
    return ways | {"layer by layer: softmax, top 10": each_layer, "naive, all statistics": at_once}


def _same(ways: dict[str, Callable]) -> None:
    """All read the same likeliest tokens, up to one that rounding exchanges with the next."""
    found = []
    for name, read in ways.items():
        said = read()
        if name.startswith("logitlens"):
            found.append(said.top_ids[0, :, 0].tolist())
        elif name.startswith("layer"):
            found.append([int(top.indices[0, 0]) for top in said])
        elif name.startswith("naive"):
            found.append(said[0].indices[:, 0, 0].tolist())
    for other in found[1:]:
        wrong = sum(a != b for a, b in zip(found[0], other))
        assert wrong <= len(other) // 4, f"the ways read different tokens: {found}"


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
