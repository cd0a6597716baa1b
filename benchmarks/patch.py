"""A grid of patches beside TransformerLens and the plain loop: the same cells, equal values, seconds.

    python benchmarks/patch.py               # GPT-2's shape: a quarter of an hour
    python benchmarks/patch.py resid15       # one case of CASES: three minutes

All three run in the environment of transformer-lens (benchmarks/environments), in one process, one
after another in every round, on random weights of GPT-2's shape. The prompts differ in a few tokens, as
those of such experiments do. What is patched is the stream before each of the 12 blocks, at every
position; what is measured is a difference of two logits at the last one. Rows go to patch.jsonl.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

OUTPUT = Path(__file__).with_suffix(".jsonl")
TOKEN, VERSUS = 11, 42
# What is patched, tokens of the prompts, positions at which they differ, rounds.
CASES = {
    "resid15": ("resid", 15, (3, 4, 9), 3),
    "resid40": ("resid", 40, (30, 33), 1),
    "head5": ("head", 5, (2,), 1),
}


def main() -> None:
    from benchmarks.readout import environments

    inside = environments.python("transformer-lens")
    if Path(sys.prefix).resolve() != inside.parents[1].resolve():
        with tempfile.TemporaryDirectory() as folder:
            os.environ["FOLDER"] = folder
            subprocess.run([inside, __file__, *sys.argv[1:]], check=True)
        return
    measure(Path(os.environ["FOLDER"]), sys.argv[1:] or list(CASES))


def measure(folder: Path, cases: list[str]) -> None:
    """One row for each case."""
    import torch

    import logitlens
    from benchmarks.readout import machine, shapes
    from benchmarks.readout.libraries import _bridge

    hf = shapes.load("gpt2", shapes.write("gpt2", folder))
    model, bridge = logitlens.load(hf), _bridge(shapes.load("gpt2", folder / "gpt2.safetensors"))
    packages = ("torch", "transformers", "transformer-lens")
    for case in cases:
        stream, tokens, differ, rounds = CASES[case]
        clean = shapes.tokens("gpt2", tokens)
        corrupted = clean.clone()
        corrupted[list(differ)] = (corrupted[list(differ)] + 100) % 50_000
        prompts = clean, corrupted, stream
        contenders = {
            "logitlens": partial(ours, model, *prompts),
            "plain loop": partial(loop, hf, *prompts),
            "TransformerLens": partial(theirs, bridge, *prompts),
        }
        if stream == "head":
            del contenders["plain loop"]
        row = {"tokens": tokens, "differ": len(differ), "stream": stream}
        row |= {**timed(contenders, rounds), **machine.facts()}
        row |= {"versions": machine.versions(packages), "threads": torch.get_num_threads()}
        row |= {"load": round(os.getloadavg()[0], 1)}
        print(json.dumps(row))
        with OUTPUT.open("a") as file:
            file.write(json.dumps(row) + "\n")


def timed(contenders: dict[str, Callable[[], np.ndarray]], rounds: int) -> dict:
    """Medians of interleaved rounds, and how far the values are apart."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    values = {}
    for _ in range(rounds):
        for name, run in contenders.items():
            began = time.perf_counter()
            values[name] = run()
            seconds[name].append(time.perf_counter() - began)
    first = values["logitlens"]
    off = max(float(np.abs(first - v).max()) for v in values.values())
    assert off < 1e-3 * max(1.0, float(np.abs(first).max())), f"values differ by {off}"
    return {
        "cells": int(first.size),
        "largest_difference": off,
        "rounds": rounds,
        "seconds": {name: round(median(s), 4) for name, s in seconds.items()},
        "times_faster": {
            name: round(median(s) / median(seconds["logitlens"]), 2)
            for name, s in seconds.items()
            if name != "logitlens"
        },
    }


def ours(model, clean, corrupted, stream) -> np.ndarray:
    layers = None if stream == "head" else "embed,0:11"
    grid = model.patch_grid(
        clean.tolist(), corrupted.tolist(), TOKEN, VERSUS, stream=stream, layers=layers
    )
    return grid.logits


def loop(hf, clean, corrupted, stream) -> np.ndarray:
    """One forward pass for each cell, with a hook on the block it enters."""
    import torch

    blocks, kept, place = hf.transformer.h, {}, [0, 0]
    values = np.empty((len(blocks), len(clean)))

    def keep(layer):
        return lambda module, args: kept.__setitem__(layer, args[0].clone())

    def patch(module, args):
        h = args[0].clone()
        h[:, place[1]] = kept[place[0]][:, place[1]]
        return (h, *args[1:])

    with torch.inference_mode():
        handles = [b.register_forward_pre_hook(keep(i)) for i, b in enumerate(blocks)]
        hf(clean[None])
        for handle in handles:
            handle.remove()
        for i, block in enumerate(blocks):
            handle = block.register_forward_pre_hook(patch)
            for p in range(len(clean)):
                place[:] = i, p
                logits = hf(corrupted[None]).logits[0, -1]
                values[i, p] = float(logits[TOKEN] - logits[VERSUS])
            handle.remove()
    return values


def theirs(bridge, clean, corrupted, stream) -> np.ndarray:
    """`transformer_lens.patching.get_act_patch_resid_pre`, `get_act_patch_attn_head_out_by_pos`."""
    import torch
    from transformer_lens import patching

    def metric(logits):
        return logits[0, -1, TOKEN] - logits[0, -1, VERSUS]

    with torch.inference_mode():
        _, cache = bridge.run_with_cache(clean[None])
        if stream == "resid":
            found = patching.get_act_patch_resid_pre(bridge, corrupted[None], cache, metric)
            return found.double().numpy()
        found = patching.get_act_patch_attn_head_out_by_pos(bridge, corrupted[None], cache, metric)
    return found.transpose(1, 2).flatten(0, 1).double().numpy()  # layer, position, head


if __name__ == "__main__":
    main()
