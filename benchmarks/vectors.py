"""Directions read through the tail: memory of a million of them, and seconds beside the plain product.

    python benchmarks/vectors.py             # four minutes on two cores; appends rows to vectors.jsonl

A process of its own reads N random vectors of the bundled model's width from a file that is mapped, and
reports the most anonymous memory that it held beyond the loaded model, and how much of that is the table
returned. The seconds are of GPT-2's shape (width 768, vocabulary 50,257, random weights), beside
`torch.topk` of norm and head over the same batches; tokens are compared.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

OUTPUT = Path(__file__).with_suffix(".jsonl")
COUNTS, TOP = (10_000, 100_000, 1_000_000), 10
TIMED, BATCH, ROUNDS = 4_000, 256, 3


def main() -> None:
    from benchmarks.readout.machine import facts

    added(timed() | facts())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vectors.npy"
        for count in COUNTS:
            command = [sys.executable, __file__, str(count), str(path)]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            added(json.loads(out.splitlines()[-1]) | facts())


def added(row: dict) -> None:
    print(json.dumps(row))
    with OUTPUT.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def measured(count: int, path: Path) -> dict:
    """Megabytes of one reading of so many vectors of the bundled model."""
    import logitlens

    model = logitlens.load()
    out = np.lib.format.open_memmap(path, "w+", np.float32, (count, model.width))
    random = np.random.default_rng(0)
    for start in range(0, count, 10_000):
        out[start : start + 10_000] = random.standard_normal(out[start : start + 10_000].shape)
    del out
    model.read_vectors(np.load(path, mmap_mode="r")[:2000], top=TOP)  # buffers of the libraries
    before, most, done = _anonymous_mb(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            most[0] = max(most[0], _anonymous_mb())

    thread = threading.Thread(target=watch)
    thread.start()
    began = time.perf_counter()
    table = model.read_vectors(np.load(path, mmap_mode="r"), top=TOP)
    seconds = time.perf_counter() - began
    done.set()
    thread.join()
    arrays = (table.top_ids, table.top_logits, table.low_ids, table.low_logits)
    return {
        "vectors": count, "width": model.width, "vocab": model.vocab_size, "top": TOP,
        "seconds": round(seconds, 1), "peak_mb": round(most[0] - before, 1),
        "table_mb": round(sum(a.nbytes for a in arrays) / 1e6, 1),
    }  # fmt: skip


def _anonymous_mb() -> float:
    text = Path("/proc/self/status").read_text()
    return int(text.split("RssAnon:")[1].split()[0]) * 1024 / 1e6


def timed() -> dict:
    """Median seconds of GPT-2's shape, interleaved with the plain product."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    import logitlens

    torch.manual_seed(0)
    hf = GPT2LMHeadModel(GPT2Config()).eval()
    model = logitlens.load(hf)
    h_ND = torch.randn(TIMED, model.width)

    @torch.inference_mode()
    def plain() -> np.ndarray:
        out = []
        for part in h_ND.split(BATCH):
            for sign in (1, -1):
                z_NV = hf.lm_head(hf.transformer.ln_f(part * sign))
                out.append(z_NV.topk(TOP).indices.sort(-1).values)
        return torch.stack([torch.cat(out[::2]), torch.cat(out[1::2])]).numpy()

    def ours() -> np.ndarray:
        table = model.read_vectors(h_ND, top=TOP)
        return np.sort(np.stack([table.top_ids, table.low_ids]), -1)

    seconds: dict[str, list[float]] = {"logitlens": [], "plain product": []}
    found = {}
    for _ in range(ROUNDS):
        for name, run in (("logitlens", ours), ("plain product", plain)):
            began = time.perf_counter()
            found[name] = run()
            seconds[name].append(time.perf_counter() - began)
    same = float((found["logitlens"] == found["plain product"]).mean())
    assert same > 0.999, f"only {same:.2%} of the tokens are the same"
    medians = {name: round(float(np.median(each)), 2) for name, each in seconds.items()}
    ratio = medians["plain product"] / medians["logitlens"]
    return {
        "vectors": TIMED, "width": model.width, "vocab": model.vocab_size, "top": TOP,
        "seconds": medians, "times_faster": round(ratio, 2), "same_tokens": same,
        "a_million_minutes": round(medians["logitlens"] * 1e6 / TIMED / 60, 1),
    }  # fmt: skip


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measured(int(sys.argv[1]), Path(sys.argv[2]))))
    else:
        main()
