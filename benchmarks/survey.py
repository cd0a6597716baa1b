"""Surveys: tokens per second and peak memory, beside what a survey cannot do without.

    python benchmarks/survey.py                       # every case; rows are added to benchmarks/survey.jsonl
    python benchmarks/survey.py --only corpus --shapes demo --tokens 20000

One process per contender and repeat, interleaved. A row holds the wall and processor seconds (median),
tokens or prompts per second, and the peak resident memory beyond the loaded model, all after two
batches of the same; "whole_mb" is this peak with the libraries and the model. It is written as soon as
its last repeat has run. Ray Data's memory is that of its actor, whose own first two batches come before
("peak_of" in the row; rows of Ray Data without it have that of the process that asks).

corpus    windows of 256 tokens, 16 at a time (8 in rows without "batch"), every layer, of the bundled
          model, of GPT-2's shape, and of one between (6 layers, width 512, 32,000 tokens), both random:
    forward    the model's own forward passes and nothing else
    product    these, and the product of every layer's normed residual with the unembedding
    naive      these, and full logits per layer with log-softmax: loss, rank, entropy, KL, top token
    survey     `logitlens survey run --corpus`
    ray data   `naive` as a Ray Data pipeline that writes Parquet, with the loading of its actor's model
jobs      the corpus again, by one and by two processes of one thread; the second starts both
memory    the corpus at three sizes, layers 6 and 7: what a survey holds does not grow with it
prompts   300 prompts of 20 tokens with four answers of one or two tokens (--prompts for more):
    loop       a pass for each answer, full logits per layer
    survey     `logitlens survey run`
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import logitlens
from logitlens.survey.plan import Settings
from logitlens.survey.run import run

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.readout import machine  # noqa: E402

ROWS = Path(__file__).with_suffix(".jsonl")
LENGTH, SHARD = 256, 10_000
BATCH = Settings().token_budget // LENGTH  # windows of a pass: by the command's default
ROWS_AT_ONCE = 512
TOKENS = {"demo": 100_000, "middle": 32_768, "gpt2": 8_192}
CORPUS = ("forward", "product", "naive", "survey", "ray data")
MEMORY = (10_240, 102_400, 1_024_000)


def load(shape: str) -> logitlens.LensModel:
    if shape == "demo":
        return logitlens.load()
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"gpt2": {}, "middle": {"n_layer": 6, "n_embd": 512, "n_head": 8, "vocab_size": 32_000}}
    torch.manual_seed(0)
    return logitlens.load(GPT2LMHeadModel(GPT2Config(**sizes[shape])).eval())


def documents(model: logitlens.LensModel, tokens: int) -> Tensor:
    """(documents, LENGTH) made-up ids."""
    generator = np.random.default_rng(7)
    return torch.from_numpy(generator.integers(0, model.vocab_size, (tokens // LENGTH, LENGTH)))


def batches(model: logitlens.LensModel, ids_NT: Tensor) -> Any:
    for ids_BT in ids_NT.split(BATCH):
        with torch.inference_mode():
            yield ids_BT, model.hf(ids_BT, output_hidden_states=True)


def forward(model: logitlens.LensModel, ids_NT: Tensor) -> None:
    for ids_BT in ids_NT.split(BATCH):
        with torch.inference_mode():
            model.hf(ids_BT)


def product(model: logitlens.LensModel, ids_NT: Tensor) -> None:
    norm, head = model.hf.transformer.ln_f, model.hf.lm_head
    z_tV = torch.empty(ROWS_AT_ONCE, model.vocab_size, dtype=torch.float32)
    for _, out in batches(model, ids_NT):
        with torch.inference_mode():
            for h_BTD in out.hidden_states[:-1]:
                for h_tD in h_BTD.flatten(0, 1).split(ROWS_AT_ONCE):
                    torch.mm(norm(h_tD), head.weight.T, out=z_tV[: len(h_tD)])


def naive(model: logitlens.LensModel, ids_NT: Tensor) -> None:
    for ids_BT, out in batches(model, ids_NT):
        with torch.inference_mode():
            naive_statistics(model.hf, ids_BT, out)


def naive_statistics(hf: Any, ids_BT: Tensor, out: Any) -> dict[str, np.ndarray]:
    norm, head = hf.transformer.ln_f, hf.lm_head
    final_BTV = out.logits.log_softmax(-1)
    next_BT1 = ids_BT[:, 1:, None]
    found: dict[str, list[Tensor]] = {}
    for n, h_BTD in enumerate(out.hidden_states):
        last = n == len(out.hidden_states) - 1
        log_BTV = (out.logits if last else head(norm(h_BTD))).log_softmax(-1)
        own_BT1 = log_BTV[:, :-1].gather(-1, next_BT1)
        for name, value in {
            "loss": -own_BT1[..., 0],
            "rank": 1 + (log_BTV[:, :-1] > own_BT1).sum(-1),
            "entropy": -(log_BTV.exp() * log_BTV).sum(-1),
            "kl": (final_BTV.exp() * (final_BTV - log_BTV)).sum(-1),
            "top": log_BTV.argmax(-1),
        }.items():
            found.setdefault(name, []).append(value.mean((-1,), dtype=torch.float32))
    return {name: torch.stack(values, 1).numpy() for name, values in found.items()}


def survey(
    model: logitlens.LensModel,
    ids_NT: Tensor,
    jobs: int = 0,
    layers: str | None = None,
    shard_size: int = 100_000,  # the default of the command
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ids.jsonl"
        with path.open("w") as file:
            for ids_T in ids_NT:
                file.write(json.dumps({"ids": ids_T.tolist()}) + "\n")
        settings = Settings(
            layers, token_budget=BATCH * LENGTH, shard_size=SHARD if jobs else shard_size, length=LENGTH,
            threads=1 if jobs else torch.get_num_threads(),
        )  # fmt: skip
        found = run(path, Path(folder) / "survey", model, source="demo", loading={}, settings=settings,
                    jobs=jobs or 1)  # fmt: skip
        assert found.done


class Actor:
    """What Ray Data runs."""

    def __init__(self, shape: str):
        torch.set_num_threads(os.cpu_count() or 1)
        self.model = load(shape)
        self.peaks: list[float] = []  # in MB, after each batch

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        ids_BT = torch.from_numpy(batch["data"].copy())
        with torch.inference_mode():
            out = self.model.hf(ids_BT, output_hidden_states=True)
            found = naive_statistics(self.model.hf, ids_BT, out)
        self.peaks.append(_peak_mb())
        memory = {"peak_mb": self.peaks[-1], "before_mb": self.peaks[:2][-1]}
        return found | {name: np.full(len(ids_BT), value) for name, value in memory.items()}


def ray_data(model: logitlens.LensModel, ids_NT: Tensor) -> tuple[float, float]:
    """Returns the peak resident memory of its actor (of the largest, were there several), and what
    this was after two batches."""
    import pyarrow.parquet
    import ray

    shape = {4_096: "demo", 32_000: "middle", 50_257: "gpt2"}[model.vocab_size]
    with tempfile.TemporaryDirectory() as folder:
        # Blocks, as Ray Data ends a pipeline that has finished none for half an hour.
        blocks = [ids_nT.numpy() for ids_nT in ids_NT.split(3 * BATCH)]
        ray.data.from_numpy(blocks).map_batches(
            Actor, fn_constructor_args=(shape,), batch_size=BATCH, concurrency=1, num_cpus=2
        ).write_parquet(folder)
        said = pyarrow.parquet.read_table(folder, columns=["peak_mb", "before_mb"]).to_pylist()
    return max((row["peak_mb"], row["before_mb"]) for row in said)


def prompts(model: logitlens.LensModel, count: int) -> list[dict[str, Any]]:
    """Prompts of 20 tokens of held-out prose, and four answers."""
    text = (ROOT / "recipes/demo_model/heldout_prose.jsonl").read_text().splitlines()
    ids = [i for line in text for i in model.tokens.encode(json.loads(line)["text"])]
    answers = [" the", " of the", " a house", " Paris is"]
    return [
        {"prompt": ids[7 * n : 7 * n + 20], "answer": answers[n % 4],
         "wrong": [a for a in answers if a != answers[n % 4]]}
        for n in range(count)
    ]  # fmt: skip


def loop(model: logitlens.LensModel, items: list[dict[str, Any]]) -> None:
    """What one would write in an afternoon."""
    norm, head = model.hf.transformer.ln_f, model.hf.lm_head
    for item in items:
        for text in [item["answer"], *item["wrong"]]:
            answer = model.tokens.plain(text)
            ids_1T = torch.tensor([[*item["prompt"], *answer]])
            with torch.inference_mode():
                out = model.hf(ids_1T, output_hidden_states=True)
                final_TV = out.logits[0].log_softmax(-1)
                for h_1TD in (*out.hidden_states[:-1], None):
                    log_TV = final_TV if h_1TD is None else head(norm(h_1TD))[0].log_softmax(-1)
                    n = len(item["prompt"])
                    log_TV[range(n - 1, n - 1 + len(answer)), answer].sum().item()
                    row_V = log_TV[n - 1]
                    (row_V > row_V[answer[0]]).sum().item()
                    (-(row_V.exp() * row_V).sum()).item()
                    (final_TV[n - 1].exp() * (final_TV[n - 1] - row_V)).sum().item()


def survey_prompts(model: logitlens.LensModel, items: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prompts.jsonl"
        path.write_text("".join(json.dumps(item) + "\n" for item in items))
        settings = Settings(threads=torch.get_num_threads(), shard_size=256)
        assert run(
            path, Path(folder) / "s", model, source="demo", loading={}, settings=settings
        ).done


def last_layers(model: logitlens.LensModel, ids_NT: Tensor) -> None:
    survey(model, ids_NT, layers="6:", shard_size=SHARD)


DO: dict[str, Callable[..., tuple[float, float] | None]] = {
    "forward": forward, "product": product, "naive": naive, "survey": survey, "ray data": ray_data,
    "loop": loop, "survey of prompts": survey_prompts,
    "survey of two layers": last_layers,
}  # fmt: skip


def once(name: str, shape: str, count: int, jobs: int) -> None:
    """In a process of its own: do it and print what it took."""
    model = load(shape)
    work: Any
    if name in ("loop", "survey of prompts"):
        work = prompts(model, count)
        DO[name](model, work[:8])
    else:
        work = documents(model, count)
        first = forward if name == "ray data" else DO[name]
        first(model, work[: 2 * BATCH])  # so many that the survey loads what numba compiled
        if name == "ray data":
            os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (Ray reads this name; it lowers priorities)
            import ray

            path = os.pathsep.join(map(str, (ROOT / "src", ROOT)))
            ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False,
                     runtime_env={"env_vars": {"PYTHONPATH": path}})  # fmt: skip
    options = {"jobs": jobs} if jobs else {}
    before = _peak_mb()
    wall, cpu = time.perf_counter(), _cpu()
    actor = DO[name](model, work, **options)
    took, used = time.perf_counter() - wall, _cpu() - cpu
    peak, before = actor or (_peak_mb(), before)
    print(json.dumps({"seconds": took, "cpu": used, "peak_mb": peak - before, "whole_mb": peak}))


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _cpu() -> float:
    return sum(
        sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )


def cases(options: argparse.Namespace) -> list[tuple[str, str, str, int, int]]:
    """(part, contender, shape, tokens or prompts, jobs)"""
    out = []
    if "corpus" in options.only:
        for shape in options.shapes:
            tokens = options.tokens or TOKENS[shape]
            out += [("corpus", name, shape, tokens, 0) for name in options.contenders]
    if "jobs" in options.only:
        out += [("jobs", "survey", "demo", options.tokens or TOKENS["demo"], j) for j in (1, 2)]
    if "memory" in options.only:
        out += [("memory", "survey of two layers", "demo", tokens, 0) for tokens in MEMORY]
    if "prompts" in options.only:
        out += [
            ("prompts", name, "demo", options.prompts, 0) for name in ("loop", "survey of prompts")
        ]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=["corpus", "prompts", "jobs"],
                        choices=["corpus", "prompts", "jobs", "memory"])  # fmt: skip
    parser.add_argument("--shapes", nargs="*", default=list(TOKENS))
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--contenders", nargs="*", default=CORPUS, choices=CORPUS)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--once", nargs=4)
    options = parser.parse_args()
    if options.once:
        name, shape, count, jobs = options.once
        once(name, shape, int(count), int(jobs))
        return
    wanted = cases(options)
    said: dict[Any, list[dict[str, float]]] = {case: [] for case in wanted}
    for n in range(options.repeat):
        for case in wanted:
            words = [str(word) for word in case[1:]]
            done = subprocess.run([sys.executable, __file__, "--once", *words], stdout=subprocess.PIPE,
                                  text=True, check=True)  # fmt: skip
            said[case].append(json.loads(done.stdout.splitlines()[-1]))
            print(case, said[case][-1], file=sys.stderr)
            if n == options.repeat - 1:
                write(case, said[case])


def write(case: tuple[str, str, str, int, int], each: list[dict[str, float]]) -> None:
    """Add a row for what was measured of one case."""
    part, name, shape, count, jobs = case
    seconds = statistics.median(e["seconds"] for e in each)
    row = {
        "benchmark": f"survey {part}", "contender": name, "shape": shape, "count": count,
        **({} if part == "prompts" else {"batch": BATCH}),
        **({"jobs": jobs} if jobs else {}), "repeats": len(each), "p50": round(seconds, 3),
        "cpu_p50": round(statistics.median(e["cpu"] for e in each), 3),
        "per_second": round(count / seconds, 1),
        **{most: round(max(e[most] for e in each), 1) for most in ("peak_mb", "whole_mb")},
        **({"peak_of": "actor"} if name == "ray data" else {}), "load": round(os.getloadavg()[0], 1),
    }  # fmt: skip
    with ROWS.open("a") as file:
        file.write(json.dumps(machine.facts() | row) + "\n")


if __name__ == "__main__":
    main()
