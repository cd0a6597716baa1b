"""Speed of reading while a model writes, beside plain generate and beside reading it all for every token.

    python benchmarks/generation.py          # two minutes on two cores; appends a row to generation.jsonl
    python benchmarks/generation.py 128k     # a Llama of 4 blocks in bfloat16, 128,256 tokens
    python benchmarks/generation.py memory   # peak memory after 128, 256 and 512 tokens, beyond that after 64

Greedy, 64 new tokens after 32, GPT-2's shape in float32 with random weights: all layers, top 10, five
candidates. Repeats are interleaved. The floor is plain generate plus one pass over the unembedding for
each token. Beside them: how long after its token the first column of the bundled model is there.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import logitlens  # noqa: E402
from benchmarks.readout.machine import facts  # noqa: E402

PROMPT, NEW, ROUNDS = 32, 64, 5
CELL = {"top": 10, "candidates": 5}


def gpt2() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config()).eval()


def large() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=4,
        num_attention_heads=32, num_key_value_heads=8, dtype="bfloat16",
    )  # fmt: skip
    return LlamaForCausalLM(config).to(torch.bfloat16).eval()


def speed(shape: str) -> dict[str, Any]:
    hf = gpt2() if shape == "gpt2" else large()
    model = logitlens.load(hf)
    ids = torch.randint(0, hf.config.vocab_size, (1, PROMPT)).tolist()[0]
    settings = GenerationConfig(max_new_tokens=NEW, min_new_tokens=NEW, pad_token_id=0)

    def plain() -> None:
        ids_1T = torch.tensor([ids])
        hf.generate(ids_1T, attention_mask=torch.ones_like(ids_1T), generation_config=settings)

    @torch.no_grad()
    def floor() -> None:
        plain()
        x_1E = torch.ones(1, hf.config.hidden_size, dtype=hf.dtype)
        for _ in range(NEW):
            hf.get_output_embeddings()(x_1E)

    def watched() -> None:
        model.generate(ids, generation_config=settings, **CELL)

    def column_by_column() -> None:
        model.generate(ids, generation_config=settings, each=lambda column: None, **CELL)

    def read_again() -> None:
        text = list(ids)
        for _ in range(NEW):
            text.append(int(model.read(text, positions=-1, **CELL).top_ids[-1, -1, 0]))

    for run in (plain, floor, watched):  # the first of each compiles and measures
        run()
    seconds: dict[str, list[float]] = {"generate": [], "floor": [], "logitlens": []}
    seconds |= {"column by column": [], "a read for each token": []}
    for n in range(ROUNDS if shape == "gpt2" else 3):
        seconds["generate"].append(timed(plain))
        seconds["floor"].append(timed(floor))
        seconds["logitlens"].append(timed(watched))
        seconds["column by column"].append(timed(column_by_column))
        if n < (2 if shape == "gpt2" else 1):
            seconds["a read for each token"].append(timed(read_again))
    medians = {name: round(statistics.median(each), 3) for name, each in seconds.items()}

    def ratio(name: str) -> float:
        """Of a run to the plain one just before it: the median."""
        pairs = zip(seconds[name], seconds["generate"])
        return round(statistics.median(one / plain for one, plain in pairs), 2)

    return {
        "shape": shape, "dtype": str(hf.dtype).removeprefix("torch."), "tokens": [PROMPT, NEW],
        "seconds": medians, "ratio": ratio("logitlens"), "floor_ratio": ratio("floor"),
        "column_ratio": ratio("column by column"),
        "first_column_ms": round(1000 * first_column(), 1),
    }  # fmt: skip


def memory() -> dict[str, Any]:
    """Peak memory in MB after ever longer generations, beyond that after the first and shortest, and
    how much of it the KV cache takes."""
    hf = gpt2()
    model, config = logitlens.load(hf), hf.config
    ids = torch.randint(0, config.vocab_size, (1, PROMPT)).tolist()[0]
    peaks, caches = {}, {}
    for new in (64, 128, 256, 512):  # shorter ones stay below the peak of loading
        settings = GenerationConfig(max_new_tokens=new, min_new_tokens=new, pad_token_id=0)
        model.generate(ids, generation_config=settings, **CELL)
        peaks[new] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        caches[new] = 2 * config.n_layer * config.n_embd * 4 * (PROMPT + new) / 2**20
    beyond = {new: round(peaks[new] - peaks[64], 1) for new in peaks}
    cache = {new: round(caches[new] - caches[64], 1) for new in caches}
    return {"shape": "gpt2", "dtype": "float32", "peak_mb": beyond, "cache_mb": cache}


def main() -> None:
    asked = sys.argv[1] if len(sys.argv) > 1 else "gpt2"
    if asked not in ("gpt2", "128k", "memory"):
        raise SystemExit(f"{asked}: expected gpt2, 128k or memory")
    torch.manual_seed(0)
    row = (memory() if asked == "memory" else speed(asked)) | facts()
    with (Path(__file__).parent / "generation.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row, indent=2))


def timed(run: Callable[[], None]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def first_column() -> float:
    """Seconds from the end of the pass that a token is chosen from to its column: the median."""
    model, passed, found = logitlens.load(), [0.0], []
    hook = model.hf.register_forward_hook(lambda *_: passed.__setitem__(0, time.perf_counter()))
    for _ in range(ROUNDS):
        columns: list[float] = []
        model.generate(
            "The Eiffel Tower is in the city of", max_new_tokens=1,
            each=lambda _, to=columns: to.append(time.perf_counter() - passed[0]), **CELL,
        )  # fmt: skip
        found += columns[:1]
    hook.remove()
    return statistics.median(found)


if __name__ == "__main__":
    main()
