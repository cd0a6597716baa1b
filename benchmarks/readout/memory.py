"""Peak memory of a readout as prompts grow: made-up residuals, one process each."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

LENGTHS = [1024, 4096, 16_384]


def rows(threads: int) -> Iterator[dict]:
    """A row for each length."""
    for tokens in LENGTHS:
        command = [sys.executable, "-m", "benchmarks.readout.memory", str(tokens), str(threads)]
        root = Path(__file__).resolve().parents[2]
        said = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
        yield {"kind": "memory", "tokens": tokens, "threads": threads} | json.loads(said)


def main(tokens: int, threads: int) -> None:
    import torch
    from torch import nn

    from benchmarks.readout.measure import measured, resident
    from logitlens.lenses import LogitLens
    from logitlens.readout import engine
    from logitlens.readout.head import Head
    from logitlens.readout.read import statistics

    torch.set_num_threads(threads)
    engine.WORTH = 1 << 62  # numba's own library, 90 MB, is not a reading's memory
    L, D, V = 13, 768, 8_192  # the vocabulary adds time, not memory
    norm = nn.LayerNorm(D)

    class Tail:
        head = Head(V, torch.randn(V, D) * 0.05)

        def head_input(self, h_ND):
            return norm(h_ND)

    h_LTD = list(torch.randn(L, tokens, D))

    @torch.inference_mode()
    def read(length: int) -> None:
        statistics(
            [h[:length] for h in h_LTD], range(L), Tail(), LogitLens(), k=10,
            targets_TM=torch.zeros(length, 1, dtype=torch.long),
        )  # fmt: skip

    read(16)
    before = resident()
    _, said = measured(lambda: read(tokens), before)
    assert said["peak_mb"] is not None, "peak memory is read from /proc, which this system has not"
    kept = tokens * L * (10 * 8 + 4 * 4 + 1) / 2**20  # the statistics themselves
    print(json.dumps({"peak_mb": round(said["peak_mb"], 1), "result_mb": round(kept, 1)}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
