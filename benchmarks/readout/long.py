"""Long contexts: a random model of the bundled one's shape with its context extended.

Read out in chunks of positions as a cached forward pass proceeds, beside that pass alone and beside
a reading of the whole prompt at once. What must grow with the prompt is the cache of keys and
values and the Reading itself; the rest should not.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch

from benchmarks.readout import machine, shapes, worker
from benchmarks.readout.measure import measured, resident

ROOT = Path(__file__).resolve().parents[2]
LENGTHS = [2_048, 8_192, 32_768]
CHUNK = 512
WAYS = ("forward pass in chunks", "logitlens, in chunks", "logitlens, whole")
REPEATS = 3
LONGEST = 30.0  # seconds after which a reading is not repeated


def rows(weights: Path, threads: int, lengths: list[int] | None = None) -> Iterator[dict]:
    """A row for each length and way, each in a process of its own."""
    for tokens in lengths or LENGTHS:
        for way in WAYS:
            command = [
                sys.executable,
                "-m",
                "benchmarks.readout.long",
                weights,
                threads,
                tokens,
                way,
            ]
            done = subprocess.run(
                [str(c) for c in command], cwd=ROOT, capture_output=True, text=True
            )
            last = (done.stderr.strip().splitlines() or ["the process ended"])[-1]
            said = json.loads(done.stdout) if done.returncode == 0 else {"failed": last[:200]}
            row = {"kind": "long", "tokens": tokens, "contender": way, "threads": threads}
            yield row | {"chunk": CHUNK if "chunks" in way else tokens} | said


@torch.inference_mode()
def main(weights: str, threads: int, tokens: int, way: str) -> None:
    torch.set_num_threads(threads)
    model = shapes.load("long", Path(weights))
    ids = shapes.tokens("long", tokens)
    try:
        read = _way(way, model)
        read(ids[:16])
        before, said = resident(), []
        while len(said) < REPEATS and sum(s["seconds"] for s in said) < LONGEST:
            result, took = measured(lambda: read(ids), before)
            said.append(took)
    except Exception as error:
        print(json.dumps(worker.failure(error)))
        return
    config = model.config
    cache = 2 * config.n_layer * tokens * config.n_embd * 4 / 2**20
    kept = {"cache_mb": round(cache, 1) if "chunks" in way else 0.0}
    kept["reading_mb"] = round(_megabytes(result), 1)
    print(json.dumps(machine.summary(said) | kept))


def _way(way: str, model):
    if way == "forward pass in chunks":
        return lambda ids: forward(model, ids)
    import logitlens
    from logitlens.readout import engine

    engine.WORTH = 1 << 62  # numba's own library, 90 MB, is not a reading's memory
    loaded = logitlens.load(model)
    if way == "logitlens, whole":
        return lambda ids: loaded.read(ids, top=10)
    return lambda ids: loaded.read(ids, top=10, chunk=CHUNK)


def forward(model, ids: torch.Tensor) -> None:
    """The cached forward pass alone, without head."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    for chunk in ids.split(CHUNK):
        model.transformer(chunk[None], past_key_values=cache, use_cache=True)


def _megabytes(result) -> float:
    """The arrays of a Reading."""
    if result is None:
        return 0.0
    values = (getattr(result, field.name) for field in fields(result))
    return sum(v.nbytes for v in values if isinstance(v, np.ndarray)) / 2**20


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
