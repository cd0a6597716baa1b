"""One contender in its own process: loads the model, then reads what it is told to.

    python -m benchmarks.readout.worker SHAPE WEIGHTS CONTENDER THREADS STARTED

Reads a first prompt, says how long that took since STARTED (seconds of the epoch) and whether its
last depth is the model's own output. Then lines of JSON in ({"tokens", "last"}), lines of JSON out
({"seconds", "cpu", "peak_mb"} or {"failed"}). Peak memory is the most resident memory beyond the
loaded model, once it has run (Linux; else null). Needs torch, transformers, safetensors and numpy.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch

from benchmarks.readout import contenders, machine, shapes
from benchmarks.readout.measure import measured, resident

WARMING = 8  # tokens


def main(shape: str, weights: str, name: str, threads: str, started: str) -> None:
    out, sys.stdout = sys.stdout, sys.stderr
    torch.set_num_threads(int(threads))
    contender, path = contenders.named(name), Path(weights)
    read = loaded = None
    with torch.inference_mode():
        try:
            model = shapes.load(shape, path)
            model(torch.zeros(1, 8, dtype=torch.long))  # maps all weights into memory
            loaded = resident()
            read = contender.read(model)
            said = _first(read, shape, path, float(started), loaded)
        except Exception as error:  # whatever a library says is what the row says
            said = failure(error)
        print(json.dumps(said | _environment(contender)), file=out, flush=True)
        for line in sys.stdin:
            print(json.dumps(_once(read, shape, loaded, json.loads(line))), file=out, flush=True)


def _first(read, shape: str, path: Path, started: float, loaded: int | None) -> dict:
    """The first result, checked against the model's own output, and what stays in memory."""
    result = read(shapes.tokens(shape, shapes.CHECKED), False)
    first_s = time.time() - started
    for last in (False, True):
        result = read(shapes.tokens(shape, shapes.CHECKED), last)
        if result.top is not None:
            shapes.check(shape, path, result.top())
    del result
    standing = resident()
    known = loaded is not None and standing is not None
    return {"first_s": first_s, "standing_mb": (standing - loaded) / 1024 if known else None}


def _once(read, shape: str, loaded: int | None, case: dict) -> dict:
    tokens, last = case["tokens"], case["last"]
    try:
        if case.get("warm"):
            if hasattr(read, "choose"):
                read.choose(tokens, last)
            tokens = min(tokens, WARMING)
        ids = shapes.tokens(shape, tokens)
        result, said = measured(lambda: read(ids, last), loaded)
    except Exception as error:
        return failure(error)
    return said | result.said


def failure(error: Exception) -> dict:
    if isinstance(error, ModuleNotFoundError):
        return {"failed": f"not installed: {error.name}"}
    text = " ".join(str(error).split())
    return {"failed": f"{type(error).__name__}: {text}"[:200]}


def _environment(contender: contenders.Contender) -> dict:
    return {"versions": machine.versions(contender.packages)}


if __name__ == "__main__":
    main(*sys.argv[1:])
