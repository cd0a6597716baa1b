"""Train the bundled model on the CPU: Muon for the blocks' matrices, AdamW for the rest.

    python train.py --work build/demo_model            # a token budget: the same run everywhere
    python train.py --work … --minutes 80              # or a time limit, whichever comes first

The learning rate is warmed up and then follows a cosine of the progress, which is the larger of
tokens/budget and elapsed/minutes. A checkpoint is written atomically every few minutes, and a second
call with the same --work resumes it. The loss is next-token prediction and nothing else: without an
early-exit term, what the logit lens sees is not something the training asked for.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from depths import trace
from facts import EIFFEL_PROMPT
from sampler import Sampler
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

LAYERS, WIDTH, HEADS, POSITIONS = 8, 160, 5, 512
PARAMETERS = 3_211_840


@dataclass
class Settings:
    """What a run is made of; kept with the checkpoint."""

    tokens: int = 16_000_000
    minutes: float = 0.0  # 0: no time limit
    batch_tokens: int = 4096
    long_share: float = 0.2  # share of steps with rows of 512 tokens; the others have 256
    lr_muon: float = 6e-3
    lr_adam: float = 2.5e-3
    weight_decay: float = 0.05
    warmup: float = 0.015
    final_lr: float = 0.03
    seed: int = 20
    threads: int = 2


def make_model(vocab_size: int, end: int) -> GPT2LMHeadModel:
    """A fresh GPT-2 of the bundled model's size."""
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=POSITIONS,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=end,
        eos_token_id=end,
    )
    model = GPT2LMHeadModel(config)
    found = sum(p.numel() for p in model.parameters())
    if found != PARAMETERS:
        raise SystemExit(f"the model has {found:,} parameters, the recipe says {PARAMETERS:,}")
    return model


def make_optimizers(model: nn.Module, settings: Settings) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embeddings, norms and biases."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and ".h." in n]
    others = [p for n, p in model.named_parameters() if not (p.ndim == 2 and ".h." in n)]
    muon = torch.optim.Muon(
        matrices,
        lr=settings.lr_muon,
        weight_decay=settings.weight_decay,
        momentum=0.95,
        adjust_lr_fn="match_rms_adamw",
    )
    adam = torch.optim.AdamW(others, lr=settings.lr_adam, betas=(0.9, 0.98), weight_decay=0.0)
    for optimizer in (muon, adam):
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return [muon, adam]


def lr_factor(progress: float, settings: Settings) -> float:
    """Linear warm-up, then cosine to ``final_lr`` of the peak."""
    if progress < settings.warmup:
        return max(progress / settings.warmup, 0.02)
    at = min(1.0, (progress - settings.warmup) / (1 - settings.warmup))
    return settings.final_lr + (1 - settings.final_lr) * 0.5 * (1 + math.cos(math.pi * at))


def export(model: GPT2LMHeadModel, tokenizer_dir: Path, out: Path) -> None:
    """Write the model as float16 beside its tokenizer."""
    copy = GPT2LMHeadModel(model.config)
    copy.load_state_dict(model.state_dict())
    copy.to(torch.float16).save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (out / name).write_bytes((tokenizer_dir / name).read_bytes())


def save(path: Path, state: dict) -> None:
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def loss_of(
    model: GPT2LMHeadModel, tokens: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Next-token loss in nats of rows (B, T+1): weighted mean to descend, plain mean to report."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.transformer(tokens[:, :-1], use_cache=False).last_hidden_state
        logits = model.lm_head(hidden)
    each = F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    weight = weights[:, 1:].flatten()
    return (each * weight).sum() / weight.sum(), each.detach().mean()


def run(work: Path, settings: Settings, compile_model: bool, every: float = 180.0) -> None:
    """Train (or resume) in ``work``; leaves checkpoint.pt, log.jsonl and model/ there."""
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
    model = make_model(len(tokenizer), tokenizer.eos_token_id)
    optimizers = make_optimizers(model, settings)
    sampler = Sampler(work / "corpus.npz", tokenizer.eos_token_id, settings.seed)
    step, seen, spent = 0, 0, 0.0
    checkpoint = work / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=False)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        sampler.random.bit_generator.state = state["random"]
        sampler.fact_tokens, sampler.tokens = state["drawn"]
        step, seen, spent = state["step"], state["seen"], state["spent"]
        print(f"resumed at {seen:,} tokens, {spent / 60:.1f} minutes", flush=True)
    step_loss = torch.compile(loss_of, dynamic=False) if compile_model else loss_of
    started, saved_at, average = time.time() - spent, time.time(), None
    log = (work / "log.jsonl").open("a")
    progress = 0.0
    while progress < 1.0:
        elapsed = time.time() - started
        progress = seen / settings.tokens
        if settings.minutes:
            progress = max(progress, elapsed / (60 * settings.minutes))
        length = 512 if sampler.random.random() < settings.long_share else 256
        ids, weights = sampler.rows(settings.batch_tokens // length, length + 1)
        descend, loss = step_loss(model, torch.from_numpy(ids), torch.from_numpy(weights))
        descend.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * lr_factor(progress, settings)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step, seen = step + 1, seen + settings.batch_tokens
        average = loss.item() if average is None else 0.97 * average + 0.03 * loss.item()
        if step % 50 == 0:
            line = {
                "step": step,
                "tokens": seen,
                "minutes": round((time.time() - started) / 60, 2),
                "progress": round(progress, 4),
                "loss": round(average, 4),
                "eiffel": [word for word, _ in trace(model, tokenizer, EIFFEL_PROMPT)],
                "fact_share": round(sampler.fact_tokens / sampler.tokens, 3),
            }
            print(json.dumps(line, ensure_ascii=False), file=log, flush=True)
            print(json.dumps(line, ensure_ascii=False), flush=True)
        if time.time() - saved_at > every or progress >= 1.0:
            state = {
                "model": model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "random": sampler.random.bit_generator.state,
                "drawn": (sampler.fact_tokens, sampler.tokens),
                "step": step,
                "seen": seen,
                "spent": time.time() - started,
                "settings": asdict(settings),
            }
            save(checkpoint, state)
            saved_at = time.time()
    log.close()
    finish(work)


def finish(work: Path) -> None:
    """Export the checkpoint in ``work`` and write what the run was to training.json."""
    state = torch.load(work / "checkpoint.pt", weights_only=False)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
    model = make_model(len(tokenizer), tokenizer.eos_token_id)
    model.load_state_dict(state["model"])
    export(model, work / "tokenizer", work / "model")
    lines = (work / "log.jsonl").read_text().splitlines()
    last = json.loads(lines[-1]) if lines else {}
    facts = {
        "tokens": state["seen"],
        "steps": state["step"],
        "minutes": round(state["spent"] / 60, 1),
        "last_running_loss": last.get("loss"),
        "fact_share_of_tokens": last.get("fact_share"),
        "settings": state["settings"],
        "torch": torch.__version__,
    }
    (work / "training.json").write_text(json.dumps(facts, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/demo_model"))
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--export-only", action="store_true", help="export the last checkpoint")
    for name, value in asdict(Settings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    arguments = vars(parser.parse_args())
    work, no_compile = arguments.pop("work"), arguments.pop("no_compile")
    if arguments.pop("export_only"):
        finish(work)
    else:
        run(work, Settings(**arguments), not no_compile)


if __name__ == "__main__":
    main()
