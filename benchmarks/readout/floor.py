"""The floor: the product with the unembedding alone, by the fastest way here, and one forward pass.

MKL and oneDNN differ by up to a half, and which is faster depends on processor, dtype, rows and
tile; so does whether weights in half precision are multiplied as they are or copied to float32 first,
which where a processor has no instructions for them is the faster by far. A short measurement chooses
before anything is timed; the choice is written into the row.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from benchmarks.readout.contenders import Result
from benchmarks.readout.shapes import parts

ROWS = (256, 512, 1024)
COLUMNS = (2048, 4096, 8192, 16_384)
SAMPLE_ROWS, SAMPLE_COLUMNS = 1024, 16_384  # what a way is tried on
FEW = 256  # rows up to which all of the vocabulary is tried, also in one piece
AGAIN, TRIES = 4, 3
HOPELESS = 3  # times as slow as the fastest on a small sample: not tried any further


@dataclass(frozen=True)
class Product:
    """One way to multiply: by MKL's mm, by oneDNN's linear, or by mm with a tile's weights copied to
    float32, in tiles of rows × columns."""

    way: str
    rows: int
    columns: int

    def __call__(self, x_ND: Tensor, weight_VD: Tensor) -> None:
        columns = min(self.columns, len(weight_VD))
        if self.way == "widened":
            x_ND = x_ND.float()
            wide_CD = x_ND.new_empty(columns, weight_VD.shape[1])
        out = x_ND.new_empty(min(self.rows, len(x_ND)), columns)
        for w in weight_VD.split(self.columns):
            if self.way == "widened":
                w = wide_CD[: len(w)].copy_(w)
            for x in x_ND.split(self.rows):
                if self.way == "linear":
                    linear(x, w)
                else:
                    torch.mm(x, w.T, out=out[: len(x), : len(w)])

    def seconds(self, x_ND: Tensor, weight_VD: Tensor, tries: int) -> float:
        """The fastest of some tries."""
        times = []
        for _ in range(tries):
            began = time.perf_counter()
            self(x_ND, weight_VD)
            times.append(time.perf_counter() - began)
        return min(times)


def linear(x_ND: Tensor, weight_VD: Tensor) -> Tensor:
    """oneDNN's product: `torch.nn.functional.linear` goes to MKL for float32."""
    if weight_VD.dtype == torch.float32:
        return torch.ops.mkldnn._linear_pointwise(x_ND, weight_VD, None, "none", [], "")
    return torch.nn.functional.linear(x_ND, weight_VD)


_found: dict[tuple, Product] = {}


def fastest(rows: int, weight_VD: Tensor) -> Product:
    """The fastest way to multiply so many rows with these weights; measured once a process."""
    rows = min(rows, SAMPLE_ROWS)
    key = (rows, tuple(weight_VD.shape), weight_VD.dtype)
    if key not in _found:
        _found[key] = _measured(rows, weight_VD)
    return _found[key]


@torch.inference_mode()
def _measured(rows: int, weight_VD: Tensor) -> Product:
    """Every way once, then the best of them again: the fastest of a few tries is what it can do."""
    x_ND = torch.randn(rows, weight_VD.shape[1]).to(weight_VD.dtype)
    sample = weight_VD if rows <= FEW else weight_VD[:SAMPLE_COLUMNS]
    ways = list(_ways(_promising(x_ND, weight_VD), rows, len(weight_VD)))
    ways[0].seconds(x_ND, sample, 2)  # threads and caches
    best = sorted(ways, key=lambda way: way.seconds(x_ND, sample, 1))[:AGAIN]
    return min(best, key=lambda way: way.seconds(x_ND, sample, TRIES))


def _promising(x_ND: Tensor, weight_VD: Tensor) -> list[str]:
    """The ways but for those far behind on one tile: some take minutes for a sample."""
    ways = ["mm", "linear"] + ["widened"] * (weight_VD.dtype != torch.float32)
    one = x_ND[:FEW], weight_VD[: COLUMNS[0]]
    took = {way: Product(way, FEW, COLUMNS[0]).seconds(*one, TRIES) for way in ways}
    return [way for way in ways if took[way] <= HOPELESS * min(took.values())]


def _ways(ways: list[str], rows: int, vocab: int) -> Iterator[Product]:
    for way in ways:
        for tile in ROWS if rows > FEW else (FEW,):
            for columns in COLUMNS if rows > FEW else (*COLUMNS, vocab):
                yield Product(way, tile, columns)


class Floor:
    """`read` of the floor: nothing is looked at, so there is nothing to check."""

    def __init__(self, model):
        blocks, _norm, head = parts(model)
        self.depths, self.weight_VD = len(blocks) + 1, head.weight.detach()
        self.body = model.transformer if hasattr(model, "transformer") else model.model
        self.ways: dict[int, Product] = {}

    def rows(self, tokens: int, last: bool) -> int:
        return (1 if last else tokens) * self.depths

    def choose(self, tokens: int, last: bool) -> None:
        """Before a case is timed: find the fastest way for its rows."""
        rows = self.rows(tokens, last)
        if rows not in self.ways:
            self.ways[rows] = fastest(rows, self.weight_VD)

    def __call__(self, ids: Tensor, last: bool) -> Result:
        rows = self.rows(len(ids), last)
        self.choose(len(ids), last)
        began = time.perf_counter()
        self.body(ids[None], use_cache=False)
        passed = time.perf_counter()
        x_ND = torch.ones(rows, self.weight_VD.shape[1], dtype=self.weight_VD.dtype)
        self.ways[rows](x_ND, self.weight_VD)
        done = time.perf_counter()
        said = {"forward_s": passed - began, "product_s": done - passed}
        return Result(None, None, said | {"product": asdict(self.ways[rows])})
