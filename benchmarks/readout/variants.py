"""Readings beside other readings, of GPT-2's shape: short prompts together and one after another, and a
prompt whose candidates are followed and the same without, each beside its floor."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import torch

import logitlens
from benchmarks.readout import floor, machine, shapes
from benchmarks.readout.measure import in_turn
from logitlens.readout import engine

ROOT = Path(__file__).resolve().parents[2]
SHAPE = "gpt2"
PROMPTS, SHORTEST, LONGEST = 32, 6, 12  # tokens, in turn
TOKENS = 128  # of the prompt with candidates
ROUNDS = 7
KERNELS = {"torch": 1 << 62, "numba": -1}  # what a reading must be worth for numba


def rows(weights: Path, threads: int) -> Iterator[dict]:
    """Rows of both comparisons, measured in a process of their own."""
    command = [sys.executable, "-m", "benchmarks.readout.variants", weights, threads]
    done = subprocess.run([str(c) for c in command], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    yield from map(json.loads, done.stdout.splitlines())


@torch.inference_mode()
def main(weights: str, threads: int) -> None:
    torch.set_num_threads(threads)
    model = shapes.load(SHAPE, Path(weights))
    for kind, ways in {"batch": _together(model), "candidates": _followed(model)}.items():
        for name, results in in_turn(ways, ROUNDS).items():
            row = {"kind": kind, "shape": SHAPE, "contender": name, "threads": threads}
            print(json.dumps(row | {"dtype": "float32"} | machine.summary(results)))


def _kernels() -> list[str]:
    return ["torch", *(["numba"] if find_spec("numba") else [])]


def _with(kernel: str, read: Callable[[], object]) -> Callable[[], object]:
    def call() -> object:
        engine.WORTH = KERNELS[kernel]
        return read()

    return call


def _named(kernel: str, what: str = "") -> str:
    return "logitlens" + (" (numba)" if kernel == "numba" else "") + what


def _together(model) -> dict[str, Callable[[], object]]:
    """The floor is one padded forward pass, and the product for every token that is none of padding."""
    loaded, body = logitlens.load(model), model.transformer
    sizes = [SHORTEST + n % (LONGEST - SHORTEST + 1) for n in range(PROMPTS)]
    prompts = [shapes.tokens(SHAPE, size).roll(n).tolist() for n, size in enumerate(sizes)]
    ids_BT = torch.zeros(PROMPTS, LONGEST, dtype=torch.long)
    mask_BT = torch.zeros(PROMPTS, LONGEST, dtype=torch.long)
    for b, prompt in enumerate(prompts):
        ids_BT[b, : len(prompt)], mask_BT[b, : len(prompt)] = torch.tensor(prompt), 1
    weight_VD, depths = model.lm_head.weight.detach(), len(body.h) + 1
    x_ND = torch.ones(sum(sizes) * depths, weight_VD.shape[1])
    product = floor.fastest(len(x_ND), weight_VD)

    def least() -> None:
        body(ids_BT, attention_mask=mask_BT, use_cache=False)
        product(x_ND, weight_VD)

    ways: dict[str, Callable[[], object]] = {"floor": least}
    for kernel in _kernels():
        ways[_named(kernel)] = _with(kernel, lambda: loaded.read_batch(prompts))
    one_by_one = _with("torch", lambda: [loaded.read(prompt) for prompt in prompts])
    return ways | {_named("torch", ", one after another"): one_by_one}


def _followed(model) -> dict[str, Callable[[], object]]:
    """With five candidates, as by default, and with none. The floor is a forward pass and the product."""
    loaded, ids, body = logitlens.load(model), shapes.tokens(SHAPE, TOKENS), model.transformer
    weight_VD = model.lm_head.weight.detach()
    x_ND = torch.ones(TOKENS * (len(body.h) + 1), weight_VD.shape[1])
    product = floor.fastest(len(x_ND), weight_VD)

    def least() -> None:
        body(ids[None], use_cache=False)
        product(x_ND, weight_VD)

    ways: dict[str, Callable[[], object]] = {"floor": least}
    for kernel in _kernels():
        for count in (0, 5):
            name = _named(kernel, f", {count} candidates")
            ways[name] = _with(kernel, lambda n=count: loaded.read(ids, candidates=n))
    return ways


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
