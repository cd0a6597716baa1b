"""What the GPU path costs, in bytes, flops and instructions, before anybody has measured it.

`moved` counts the bytes of every tensor that the product and each kernel read and write; a test counts
them while the path runs, and finds the same. `seconds` divides by what a GPU's maker says it can do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from logitlens.readout.gpu import GATHERED, SLAB, row_share, slab_columns

TILE, BLOCK = 512, 64  # of `epilogue`, which needs triton to be imported
# Instructions for a logit, and for it and a target: counted by hand in the code for sm_90.
LOOKED, COUNTED = 16, 6.2
MERGED, OPENED = 400, 600  # instructions of a warp for a row of a slab, and for a block opened
ENDED = 450  # and for the end of a row, beside its likeliest tokens and its targets
BOUNDARY = 2e-6  # seconds from the end of one kernel to the start of the next
# torch's own operations, which a test counts: of a block (targets and the place of a final row are sent,
# that row is handed out and statistics fetched), and of final rows that are read for candidates, which are
# copied side by side.
BLOCKS, FINALS = 4, 1
ROWS = (1, 13, 512, 4096)


@dataclass(frozen=True)
class Card:
    """flops of half-precision products with float32 sums, bytes a second from memory and from the cache
    that holds a slab, 32-bit instructions a second over all lanes, bytes of a slab."""

    name: str
    flops: float
    memory: float
    cache: float
    lanes: float
    slab: int


CARDS = (
    Card("H100 SXM", 989e12, 3.35e12, 5.5e12, 132 * 128 * 1.755e9, SLAB),
    Card("A100 80 GB", 312e12, 2.04e12, 4.0e12, 108 * 64 * 1.41e9, int(40 * 2**20 * 2 / 3) // 4),
    Card("L4", 121e12, 0.3e12, 1.5e12, 58 * 128 * 2.04e9, int(48 * 2**20 * 2 / 3) // 4),
    Card("MI300X", 1307e12, 5.3e12, 10e12, 304 * 64 * 2.1e9, SLAB),
)


@dataclass(frozen=True)
class Work:
    """P positions × L rows of width E × V tokens; k likeliest, M targets, of which the last are candidates
    (no targets: final rows that are read for candidates); bytes of a weight; logits of a slab at most.
    opened: blocks that the top k opens in all rows; touched: rows of slabs that open any; counted: tiles of
    rows that hold something greater than a target, for all targets (None: all do).
    """

    P: int
    L: int
    V: int
    E: int
    k: int = 10
    M: int = 1
    candidates: int = 0
    size: int = 2
    slab: int = SLAB
    opened: int | None = None
    touched: int | None = None
    counted: int | None = None

    @property
    def N(self) -> int:
        return self.P * self.L

    @property
    def C(self) -> int:
        return slab_columns(self.N, self.V, self.slab)

    @property
    def slabs(self) -> int:
        return -(-self.V // self.C)

    @property
    def gathered(self) -> int:
        """Tokens gathered because they are targets: whole slabs, but narrower ones."""
        return self.parts * min(self.C, GATHERED)

    @property
    def parts(self) -> int:
        """In how many products."""
        return -(-self.P * self.M // min(self.C, GATHERED)) if self.slabs > 1 else 0

    @property
    def KP(self) -> int:
        """Places of a row's list."""
        return 1 << max(0, self.k - 1).bit_length()

    def expected(self) -> tuple[float, float]:
        """Blocks opened and rows touched where likely tokens are spread evenly over the ids: of slab i
        a share 1 / i of the k likeliest so far is new."""
        new = [min(self.k / i, self.C / BLOCK) for i in range(1, self.slabs + 1)]
        return self.N * sum(new), self.N * sum(1 - math.exp(-n) for n in new)


def moved(work: Work) -> dict[str, float]:
    """Bytes of each term."""
    N, C, E, M, n = work.N, work.C, work.E, work.M, work.slabs
    G = -(-C // TILE)
    B, KP, k = G * TILE // BLOCK, work.KP, work.k
    shares = -(-work.L // row_share(work.P, work.L, G))
    opened, touched = work.expected()
    opened = opened if work.opened is None else work.opened
    touched = touched if work.touched is None else work.touched
    counted = n * N * G * M if work.counted is None else work.counted
    targets, parts = work.gathered, work.parts
    sums, ids = 7 * 8 + 4 + 4 + 1, k * (4 + 4) + M * (8 + 4 + 4 + 4 + 4)
    ended = N * (sums + ids) + work.P * work.candidates * 4 if M else N * k * 8
    return {
        "weights": (n * C + 3 * targets) * E * work.size,  # gathered ones: read, copied, read
        "head input": (n + parts) * N * E * work.size,
        "slabs written": (n * C + targets) * N * 4,
        "slabs looked at": n * C * 4 * (N + work.P * shares),
        "picked": N * M * (max(parts, 1) * 8 + 4 + 4 + 4),
        "counted": n * N * G * M * 4 + counted * (8 + 8) + min(counted, N * M) * 4,
        "sums": n * N * G * 16 * 2 + n * N * G * 8,
        "maxima": n * N * B * 4 * 2,
        "merged": n * N * 6 * 8 + (n - 1) * N * (6 + 1) * 8,  # nothing is read for the first slab
        "opened": opened * BLOCK * 4 + (touched * (2 * KP + 1) - N * KP) * 8,
        "ended": ended + N * 2 * k * 8,
    }


def seconds(work: Work, card: Card) -> dict[str, float]:
    """Seconds of each term: the product alone, the epilogue, the merge and the end, and gaps between these
    kernels and between torch's operations besides."""
    N, C, n = work.N, work.C, work.slabs
    by = moved(work)

    def product(tokens: int) -> float:
        weights = tokens * work.E * work.size / card.memory
        return max(2 * N * work.E * tokens / card.flops, weights)

    looked = by["slabs looked at"] + by["counted"] + 0.4 * by["sums"] + 0.5 * by["maxima"]
    lanes = n * N * C * (LOOKED + COUNTED * work.M)
    merged = 0.6 * by["sums"] + 0.5 * by["maxima"] + by["merged"] + by["opened"] + by["ended"]
    opened, _ = work.expected()
    wide = -(-work.KP // 32)  # tokens of the list for each thread
    ended = ENDED + work.k * (3 + 4 * wide) + work.M * (70 + 10 * wide)
    warps = 32 * (n * N * MERGED + opened * OPENED + N * ended)
    return {
        "product": product(work.V),
        "repeated": product(n * C - work.V),
        "targets": product(work.gathered) + 2 * work.gathered * work.E * work.size / card.memory,
        "epilogue": max(looked / card.cache, lanes / card.lanes),
        "merge": max(merged / card.cache, warps / card.lanes),
        "gaps": kernels(work) * BOUNDARY,
        "small": small_operations(work) * BOUNDARY,
    }


def kernels(work: Work) -> int:
    """Products, looks and merges of the slabs, a product and `pick` for targets, and the end."""
    return 3 * work.slabs + 2 * work.parts + (work.slabs == 1 and work.M > 0) + 1


def small_operations(work: Work) -> int:
    """How many of torch's own operations a block takes, beside its products: of the targets that are
    gathered, their weights are copied side by side."""
    return (BLOCKS if work.M else FINALS * (work.P > 1)) + work.parts


def followed(work: Work, count: int) -> tuple[Work, Work]:
    """The same work with so many candidates more, and the final rows that are read for them before."""
    return (
        replace(work, M=work.M + count, candidates=count),
        replace(work, L=1, k=count, M=0, opened=None, touched=None),
    )


def with_candidates(work: Work, card: Card, count: int = 5) -> float:
    """The product's share where so many candidates are followed, as a reading does by default."""
    rest, finals = (seconds(each, card) for each in followed(work, count))
    if work.slabs == 1:  # the final rows are in the one slab
        finals["product"] = 0.0
    return rest["product"] / (sum(rest.values()) + sum(finals.values()))


def work_on(card: Card, rows: int, k: int = 10) -> Work:
    """So many rows of a model of 32 blocks, 4,096 wide, 128,256 tokens."""
    L = min(rows, 33) if rows > 13 else rows
    return Work(max(1, rows // L), L, 128_256, 4096, k=k, slab=card.slab)


def table() -> str:
    """Markdown: the share of the product's rate that can be reached, and what each term costs."""
    lines = [
        "| | rows | slabs | product | repeated | targets | epilogue | merge | gaps | small | reachable "
        "| 5 candidates | k = 256 |",
        "| --- |" + " ---: |" * 12,
    ]
    for card in CARDS:
        for rows in ROWS:
            work = work_on(card, rows)
            took = seconds(work, card)
            shares = [took["product"] / sum(took.values()), with_candidates(work, card)]
            more = seconds(work_on(card, rows, 256), card)
            shares.append(more["product"] / sum(more.values()))
            cells = [card.name, f"{rows:,}", str(work.slabs)]
            cells += [f"{1e3 * t:.3f}" for t in took.values()] + [f"{s:.0%}" for s in shares]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def bytes_table() -> str:
    """Markdown: megabytes of each term on an H100."""
    works = [work_on(CARDS[0], rows) for rows in ROWS]
    terms = [moved(work) for work in works]
    lines = [f"| rows | {' | '.join(f'{r:,}' for r in ROWS)} |", "| --- |" + " ---: |" * len(ROWS)]
    for name in terms[0]:
        lines.append(f"| {name} | {' | '.join(f'{t[name] / 1e6:,.1f}' for t in terms)} |")
    flops = [f"{2 * w.N * w.E * w.V / 1e12:.3g}" for w in works]
    return "\n".join([*lines, f"| Tflop of the product | {' | '.join(flops)} |"])
