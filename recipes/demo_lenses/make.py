"""Fit the two lenses of the bundled model, evaluate them, and put them into the package.

    python recipes/demo_lenses/make.py --data ../shared/data/corpus      # after demo_model/make.py

The text is drawn as the model's own training text was (the same mixture of facts and prose, another
seed), with the tokenizer that ships. The lenses are evaluated on held-out prose and held-out facts
(`recipes/demo_model/heldout_*.jsonl`), which neither the model nor the lenses saw.
Writes src/logitlens/demo/lenses/{tuned,jacobian}.safetensors and evaluation.json beside this file,
and the figures into the model card. About ten minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "recipes" / "demo_model"))

import build_corpus  # noqa: E402
import prose  # noqa: E402
from sampler import Sampler  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

import logitlens  # noqa: E402
from logitlens import demo  # noqa: E402
from logitlens.fit import corpus, evaluate, facts, jacobian, tuned  # noqa: E402
from logitlens.view import evaluation as view  # noqa: E402

LENSES = ROOT / "src" / "logitlens" / "demo" / "lenses"
CARD = ROOT / "src" / "logitlens" / "demo" / "README.md"
EVALUATION = Path(__file__).with_name("evaluation.json")
HELD_OUT = ROOT / "recipes" / "demo_model"
BEGIN, END = "<!-- lenses: written by recipes/demo_lenses/make.py -->", "<!-- end of lenses -->"

TUNED = tuned.Settings(
    steps=160,
    tokens_per_step=8192,
    length=256,
    optimizer="muon",
    lr=0.5,
    precision="bfloat16",
    holdout=0.01,
    evaluate_every=20,
)
JACOBIAN = jacobian.Settings(prompts=64, length=128)


def prepare(data: Path, work: Path) -> None:
    """Make the token arrays of the training text unless they exist."""
    if not (work / "corpus.npz").is_file():
        tokenizer = Tokenizer.from_file(str(demo.path() / "tokenizer.json"))
        print(build_corpus.build(prose.load(data)[0], tokenizer, work / "corpus.npz"), flush=True)


def text(work: Path, rows: int, length: int, seed: int) -> corpus.Corpus:
    """`rows` documents of `length` tokens, drawn as the training rows were."""
    sampler = Sampler(work / "corpus.npz", end=0, seed=seed)
    ids_NT, _ = sampler.rows(rows, length)
    return corpus.from_ids(
        ids_NT.astype(np.int32), "the training mixture of the model, another draw"
    )


def assess(model: logitlens.LensModel) -> evaluate.Evaluation:
    """All three lenses on held-out prose and held-out facts."""
    held = corpus.read(HELD_OUT / "heldout_prose.jsonl", model)
    found = facts.read(HELD_OUT / "heldout_facts.jsonl", model)
    return evaluate.evaluate(
        model,
        ["logit", f"tuned:{LENSES}", f"jacobian:{LENSES}"],
        sequences=held.chunks(128),
        facts=found,
    )


def section(result: evaluate.Evaluation, seconds: dict[str, float]) -> str:
    """The part of the model card that shows how well the lenses do."""
    size = sum(file.stat().st_size for file in LENSES.glob("*.safetensors"))
    meta = result.meta
    lenses = meta["lenses"]
    lines = [
        BEGIN,
        "",
        f"Bundled with the model ({size / 1e6:.1f} MB together): a tuned lens, trained on "
        f"{lenses['tuned']['corpus']['tokens'] / 1e6:.1f} M tokens drawn as the training text was "
        f"({seconds['tuned'] / 60:.0f} minutes on a busy CPU core), and a Jacobian lens, the mean "
        f"over {lenses['jacobian']['corpus']['documents']:,} prompts of 128 tokens "
        f"({seconds['jacobian'] / 60:.0f} minutes). `--lens tuned` and `--lens jacobian` find them.",
        "",
        f"Evaluated on {meta['tokens']:,} tokens of held-out prose and {meta['facts']:,} held-out facts "
        "by `recipes/demo_lenses/make.py` (95 % intervals in `recipes/demo_lenses/evaluation.json`). "
        "KL: KL(final ‖ layer) in nats, lower is better. Answer at rank 1 / ≤ 10: share of facts.",
        "",
        "| layer | KL logit | KL tuned | KL Jacobian | rank 1 logit | tuned | Jacobian "
        "| rank ≤ 10 logit | tuned | Jacobian |",
        "| --- " + "| ---: " * 9 + "|",
    ]
    for i, label in enumerate(_labels(result)):
        cells = [
            f"{result.column(lens, measure)[i]:.{2 if measure == 'kl' else 3}f}"
            for measure in ("kl", "fact1", "fact10")
            for lens in ("logit", "tuned", "jacobian")
        ]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", END])


def _labels(result: evaluate.Evaluation) -> list[str]:
    return [r["layer"] for r in result.rows if r["lens"] == "logit" and r["layer"] != "any"]


def write_card(part: str) -> None:
    """Put the section into the model card, replacing the old one, or at the end."""
    card = CARD.read_text(encoding="utf-8") if CARD.is_file() else ""
    if BEGIN in card:
        before, _, rest = card.partition(BEGIN)
        card = before + part + rest.partition(END)[2]
    else:
        card = card.rstrip() + "\n\n## Lenses\n\n" + part + "\n"
    CARD.write_text(card, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "corpus")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "demo_lenses")
    parser.add_argument("--steps", type=int, default=TUNED.steps, help="of the tuned lens")
    parser.add_argument(
        "--prompts", type=int, default=JACOBIAN.prompts, help="of the Jacobian lens"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--fit", nargs="*", choices=["jacobian", "tuned"], default=["jacobian", "tuned"],
        help="which to fit; the others must exist (none: only evaluate)",
    )  # fmt: skip
    parser.add_argument(
        "--only-fit", action="store_true", help="do not evaluate: the other is fitted elsewhere"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = logitlens.load()
    build = arguments.work / "lenses"
    if arguments.fit:
        prepare(arguments.data, arguments.work)
        LENSES.mkdir(parents=True, exist_ok=True)
        trained = replace(TUNED, steps=arguments.steps)
        averaged = replace(JACOBIAN, prompts=arguments.prompts)
        rows = round(
            trained.steps * trained.tokens_per_step / trained.length / (1 - trained.holdout)
        )
        fits = {
            "jacobian": (jacobian, averaged, averaged.prompts, averaged.length, 77),
            "tuned": (tuned, trained, rows, trained.length, 78),
        }
        for kind in arguments.fit:
            module, settings, count, length, seed = fits[kind]
            began = time.perf_counter()
            source = text(arguments.work, count, length, seed)
            module.fit(model, source, settings, folder=build / kind, report=_say)
            seconds = round(time.perf_counter() - began, 1)
            (build / f"{kind}.seconds").write_text(str(seconds))
            shutil.copyfile(build / kind / module.FILE, LENSES / module.FILE)
    if arguments.only_fit:
        return
    seconds = {k: float((build / f"{k}.seconds").read_text()) for k in ("jacobian", "tuned")}
    result = assess(model)
    EVALUATION.write_text(
        json.dumps({"seconds": seconds, "meta": result.meta, "rows": result.rows}, indent=1) + "\n"
    )
    write_card(section(result, seconds))
    print(view.text(result.rows, intervals=False))
    logit, ours = result.column("logit", "kl")[:-1], result.column("tuned", "kl")[:-1]
    worse = [label for label, a, b in zip(_labels(result), logit, ours) if b >= a]
    if worse:
        raise SystemExit(f"the tuned lens is no better than the logit lens at {', '.join(worse)}")


def _say(p: object) -> None:
    heldout = getattr(p, "heldout", None)
    if isinstance(p, tuned.Progress) and heldout:
        shown = " ".join(f"{loss:.3f}" for loss in heldout.values())
        print(f"step {p.step}/{p.steps} {p.tokens / p.seconds:,.0f} tokens/s  {shown}", flush=True)
    if isinstance(p, jacobian.Progress):
        worst = max(p.error.values(), default=float("nan"))
        print(f"{p.prompts}/{p.total} prompts in {p.seconds:.0f} s, error {worst:.2%}", flush=True)


if __name__ == "__main__":
    main()
