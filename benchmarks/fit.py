"""Fitting lenses: seconds and peak memory per 1,000 tokens, beside the originals' own arithmetic.

    python benchmarks/fit.py                       # every case; rows are added to benchmarks/fit.jsonl
    python benchmarks/fit.py --models tiny --repeat 5

One process per case, so that peaks do not mix. A row holds: commit, device, model, case, tokens,
wall and CPU seconds per 1,000 tokens (20/50/80 percentiles of the repeats), peak resident memory above what the
loaded model took, and, for the Jacobian, the error against the original's result.

The originals
  tuned     the training step of tuned-lens (AlignmentResearch, `scripts/train_loop.py`): hidden states
            of one forward pass, final log-softmax kept, per layer logits of the whole batch, KL by
            autograd, clipping at 1, SGD with Nesterov; in float32, and under its bfloat16 autocast.
            Re-created, because the package's loader does not run on this transformers.
  jacobian  the loop of anthropics/jacobian-lens: one prompt replicated 8 times, d / 8 backward
            passes with one-hot cotangents; here through the blocks only, without its logits.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
ROWS = Path(__file__).with_suffix(".jsonl")
MODELS = {  # layers, width, heads, vocabulary; tokens of a tuned step, length, Jacobian directions
    "tiny": (4, 64, 4, 8192, 4096, 256, 64),
    "gpt2": (12, 768, 12, 50257, 512, 256, 48),
}
CASES = {
    "tuned": ["original", "ours", "original bfloat16", "ours bfloat16"],
    "jacobian": ["original", "ours 1024", "ours 4096"],
}


def build(name: str):
    from transformers import GPT2Config, GPT2LMHeadModel

    import logitlens

    layers, width, heads, vocab, *_ = MODELS[name]
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocab, n_layer=layers, n_embd=width, n_head=heads, bos_token_id=0, eos_token_id=0
    )
    hf = GPT2LMHeadModel(config).eval()
    return logitlens.load(hf)


def memory() -> int:
    """Resident bytes now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(once, repeat: int) -> tuple[list[tuple[float, float]], int]:
    """(Wall, CPU) seconds of each repeat after one warm-up, and the peak above the start."""
    before = memory()
    once()
    seconds = []
    for _ in range(repeat):
        began = time.perf_counter(), time.process_time()
        once()
        seconds.append((time.perf_counter() - began[0], time.process_time() - began[1]))
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def tuned(model, name: str, case: str, repeat: int):
    from logitlens.fit.corpus import from_ids
    from logitlens.fit.tuned import Settings, TunedFit

    *_, tokens, length, _ = MODELS[name]
    count = tokens // length
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(model.vocab_size, (count + 1, length), generator=generator)
    if case.startswith("ours"):
        precision = "bfloat16" if "bfloat16" in case else "float32"
        settings = Settings(
            steps=repeat + 1,
            tokens_per_step=tokens,
            length=length,
            precision=precision,
            holdout=1e-9,
        )
        job = TunedFit(model, from_ids(ids.tolist()), settings)
        once = job._update
    else:
        once = original_step(model, ids[:count], "bfloat16" in case)
    seconds, peak = measure(once, repeat)
    return tokens, seconds, peak, {}


def original_step(model, ids, autocast: bool):
    """The arithmetic of tuned-lens's `execute`, one batch a step."""
    hf = model.hf
    norm, head = copy.deepcopy(hf.transformer.ln_f), copy.deepcopy(hf.lm_head)
    for parameter in (*norm.parameters(), *head.parameters()):
        parameter.requires_grad_(False)
    maps = torch.nn.ModuleList(
        [torch.nn.Linear(model.width, model.width) for _ in range(model.n_blocks)]
    )
    for linear in maps:
        torch.nn.init.zeros_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    optimizer = torch.optim.SGD(
        maps.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3
    )

    def once() -> None:
        with torch.no_grad():
            output = hf(ids, output_hidden_states=True)
        labels = output.logits.float().log_softmax(-1)
        for i, h in enumerate(output.hidden_states[:-1]):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                logits = head(norm(h + maps[i](h)))
                loss = torch.sum(labels.exp() * (labels - logits.log_softmax(-1)), dim=-1).mean()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(maps.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    return once


def jacobian(model, name: str, case: str, repeat: int):
    from logitlens.fit import jacobian as fitting

    directions, T = MODELS[name][-1], 128
    generator = torch.Generator().manual_seed(2)
    prompts = list(torch.randint(model.vocab_size, (8, T), generator=generator))
    if case == "original":
        prompts = prompts[:1] if name == "gpt2" else prompts[:2]
        found = {}

        def once() -> None:
            found.update(original_jacobian(model, prompts, directions))
    else:
        per_pass = int(case.split()[1])
        exact = directions == model.width
        settings = fitting.Settings(
            tokens_per_pass=per_pass,
            cotangents=None if exact else directions,
            depths=tuple(range(1, model.n_blocks)),
        )
        prompts = prompts[: max(1, min(8, per_pass // T // (1 if exact else 8)))]
        found = {}

        def once() -> None:
            found.update(fitting.estimate(model, prompts, settings))

    seconds, peak = measure(once, repeat)
    extra = {"directions": directions, "of": model.width}
    if directions == model.width and case != "original":
        truth = original_jacobian(model, prompts, directions)
        extra["relative_error"] = max(
            float((found[d] - truth[d]).norm() / truth[d].norm()) for d in truth
        )
    # Seconds for all d rows: every direction costs the same.
    whole = model.width / directions
    seconds = [(wall * whole, cpu * whole) for wall, cpu in seconds]
    return len(prompts) * T, seconds, peak, extra


def original_jacobian(model, prompts, directions: int, copies: int = 8):
    """One prompt at a time, replicated 8 times; Σ over prompts, depths 1 … N−1."""
    blocks, D = model.hf.transformer.h, model.width
    depths = list(range(1, len(blocks)))
    sums = {d: torch.zeros(directions, D) for d in depths}
    model.hf.requires_grad_(False)
    for ids in prompts:
        kept = original_stream(model, ids.expand(copies, -1))
        target, valid = kept[len(blocks)], slice(16, len(ids) - 1)
        cotangent = torch.zeros_like(target)
        for start in range(0, directions, copies):
            count = min(copies, directions - start)
            cotangent.zero_()
            for b in range(count):
                cotangent[b, valid, start + b] = 1.0
            gradients = torch.autograd.grad(
                target, [kept[d] for d in depths], cotangent, retain_graph=True
            )
            for d, gradient in zip(depths, gradients):
                sums[d][start : start + count] += gradient[:count, valid].float().mean(1)
    return sums


def original_stream(model, ids):
    """Depth → the stream with a graph that begins after block 0."""
    kept: dict[int, torch.Tensor] = {}

    def keep(depth):
        def hook(module, args, output):
            kept[depth] = output[0] if isinstance(output, tuple) else output
            if depth == 1:
                kept[depth].requires_grad_(True)

        return hook

    blocks = model.hf.transformer.h
    hooks = [block.register_forward_hook(keep(i + 1)) for i, block in enumerate(blocks)]
    model.hf.transformer(ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return kept


def run_case(kind: str, name: str, case: str, repeat: int, threads: int) -> dict:
    torch.set_num_threads(threads)
    model = build(name)
    tokens, seconds, peak, extra = {"tuned": tuned, "jacobian": jacobian}[kind](
        model, name, case, repeat
    )
    wall, cpu = ([pair[i] * 1000 / tokens for pair in seconds] for i in (0, 1))
    return {
        "benchmark": f"fit {kind}",
        "model": name,
        "case": case,
        "tokens": tokens,
        "repeats": repeat,
        "seconds_per_1000_tokens": percentiles(wall),
        "cpu_seconds_per_1000_tokens": percentiles(cpu),
        "peak_bytes": peak,
        **extra,
    }


def percentiles(values: list[float]) -> dict[str, float]:
    deciles = (
        statistics.quantiles(values, n=10, method="inclusive") if len(values) > 1 else values * 9
    )
    return {f"p{p}": round(deciles[p // 10 - 1], 4) for p in (20, 50, 80)}


def machine(threads: int) -> dict:
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    a, b = torch.randn(1024, 3072), torch.randn(3072, 768)
    torch.set_num_threads(threads)
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        x, y = a.to(dtype), b.to(dtype)
        x @ y
        began = time.perf_counter()
        for _ in range(10):
            x @ y
        rates[str(dtype)[6:]] = round(
            10 * 2 * a.numel() * 768 / (time.perf_counter() - began) / 1e9
        )
    return {
        "commit": commit,
        "device": f"{cpu}, {threads} threads",
        "torch": torch.__version__,
        "gemm_gflops": rates,
        "load": round(os.getloadavg()[0], 1),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--kinds", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        kind, name, case = arguments.case
        print(json.dumps(run_case(kind, name, case, arguments.repeat, arguments.threads)))
        return
    for kind in arguments.kinds:
        for name in arguments.models:
            for case in CASES[kind]:
                where = machine(arguments.threads)
                command = [sys.executable, __file__, "--case", kind, name, case]
                command += ["--repeat", str(arguments.repeat), "--threads", str(arguments.threads)]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    print(f"{kind} {name} {case}: failed: {done.stderr.strip().splitlines()[-1:]}")
                    continue
                row = {**where, **json.loads(done.stdout.splitlines()[-1])}
                with ROWS.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                middle = row["seconds_per_1000_tokens"]["p50"]
                cpu = row["cpu_seconds_per_1000_tokens"]["p50"]
                print(
                    f"{kind:<9} {name:<5} {case:<18} {middle:10.3f} s / 1,000 tokens "
                    f"({cpu:.3f} of CPU) "
                    f"{row['peak_bytes'] / 1e6:8.0f} MB  load {row['load']}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
