"""Which readout engine reads."""

from __future__ import annotations

import sys
from functools import cache
from importlib.util import find_spec

import torch

from logitlens.readout.chunked import Chunked, give_up
from logitlens.readout.gpu import MOST, Slabs
from logitlens.readout.head import Head
from logitlens.readout.product import multiplies_bfloat16
from logitlens.readout.stats import Engine

WORTH = 1 << 27  # logits of a reading from which on it pays to load what numba compiled
SINGLE = 4  # times as much is saved on a logit where one position is read at a time
LARGE = 1 << 30  # logits from which on it is worth saying what is missing: seconds of work
FREED = 31 << 20  # bytes; of a block larger than 32 MB the C library learns nothing
WIDENED = 128  # numbers of a widened token that cost as much as looking at one logit


def choose(head: Head, rows: int, k: int = 1, *, single: int = 0) -> Engine:
    """The engine for a reading of so many rows (positions × layers) and k likeliest tokens.

    single: further rows, which come a position at a time, as a model writes them.

    A sharded head has its own. On a GPU the slabs, where triton is installed and they have proven
    there to be right and faster, or torch. On the CPU numba's kernel where it is installed and the
    reading is large enough to pay for loading it: half a second, and several the first time after
    an installation. Half-precision weights that torch would widen but numba might multiply as they
    are count for more. Nothing else decides, so that the same reading always takes the same kernel (on a
    GPU, in one process: there a clock decides, once). Where numba is missed, or cannot be used, that is
    said once, on stderr.
    """
    _keep_pages()
    if head.shard is not None:
        from logitlens.readout.sharded import Sharded  # torch.distributed is not in every build

        return Sharded()
    plain, weight_VE = (rows + SINGLE * single) * head.vocab, head.weight_VE
    if weight_VE is not None and not weight_VE.is_cpu:
        from logitlens.readout import proof  # of no use on the CPU

        return Slabs() if k <= MOST and proof.slabs(head, k) else Chunked("torch")
    bfloat16 = weight_VE is not None and weight_VE.dtype == torch.bfloat16
    wide = bfloat16 and _capability().startswith("AVX512")  # products of it may need no widening
    logits = (
        plain * (1 + weight_VE.shape[1] // WIDENED) if wide and weight_VE is not None else plain
    )
    if logits <= WORTH:
        return Chunked("torch")
    if find_spec("numba"):
        return Chunked("numba" if _numba_loads() else "torch")
    if plain > LARGE and weight_VE is not None and _capability().startswith("AVX"):
        widened = wide and not multiplies_bfloat16()
        _say_once("half the time" if widened else "a quarter less time")
    return Chunked("torch")


@cache
def _numba_loads() -> bool:
    """Whether what numba compiles can be loaded; else the reason on stderr, once: it is for another numpy,
    say, is told to compile nothing, or finds no folder to keep what it compiles in."""
    try:
        from numba import config

        from logitlens.readout import compiled, fused  # noqa: F401

        if config.DISABLE_JIT:  # pyright: ignore[reportAttributeAccessIssue]
            raise RuntimeError("NUMBA_DISABLE_JIT is set")
    except Exception as error:
        give_up(error)
        return False
    return True


@cache
def _keep_pages() -> None:
    """Let the C library keep what one reading frees for the next.

    glibc returns free memory to the system beyond twice the largest block that was freed so far, and
    maps larger blocks anew each time. A reading of 128 tokens frees some 50 MB in blocks of 25 MB at
    most; fresh pages for them cost a tenth of its time. This block is never touched, so it costs
    nothing; other C libraries take no notice.
    """
    torch.empty(FREED, dtype=torch.uint8, device="cpu")


@cache
def _say_once(saved: str) -> None:
    line = f"logitlens: the extra `fast` would read this in about {saved}: pip install 'logitlens[fast]'"
    print(line, file=sys.stderr)


def _capability() -> str:
    """The instructions that torch uses: AVX2 or AVX512…, and on other processors other names."""
    return torch.backends.cpu.get_cpu_capability()
