"""Evaluate a directory of weights and write the figures that the card and the tests quote.

    python evaluate.py                       # the shipped weights → evaluation.json

Facts are evaluated on held-out wordings only. A prompt counts as right when the top token is the first
token of the answer ("top-1"); "whole" asks for every token of the answer in turn.
Weights are read as float32, as the package reads them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections import defaultdict
from pathlib import Path

import torch
import torch.nn.functional as F
from depths import residuals, trace
from facts import EIFFEL_PROMPT, Judged, judged, load_facts, load_templates
from prose import HELD_OUT_SAMPLE
from transformers import AutoTokenizer, GPT2LMHeadModel, PreTrainedTokenizerBase

HERE = Path(__file__).resolve().parent
SHIPPED = HERE.parents[1] / "src" / "logitlens" / "demo" / "model"
EVALUATION = HERE / "evaluation.json"
HELD_OUT_FACTS = HERE / "heldout_facts.jsonl"


def load(directory: Path) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerBase]:
    """Model in float32 and its tokenizer."""
    model = GPT2LMHeadModel.from_pretrained(directory, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(directory)


def one_per_fact() -> list[Judged]:
    """One held-out prompt per fact, wordings taken in turn; the Eiffel prompt comes first."""
    templates = load_templates()
    found = []
    for index, fact in enumerate(load_facts()):
        prompts = judged(fact, templates)
        found.append(prompts[(index // 2) % len(prompts)])
    return found


def write_held_out_facts(path: Path = HELD_OUT_FACTS) -> None:
    lines = [
        json.dumps(
            {"prompt": p.prompt, "answer": p.answer, "relation": p.relation}, ensure_ascii=False
        )
        for p in one_per_fact()
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _batches(tokenizer, pairs: list[tuple[str, str]], size: int = 128):
    """(indices, ids_BT padded on the right, prompt lengths, answers) of prompts of similar length."""
    encoded = [(tokenizer(p).input_ids, tokenizer(a).input_ids) for p, a in pairs]
    order = sorted(range(len(pairs)), key=lambda i: len(encoded[i][0]) + len(encoded[i][1]))
    for start in range(0, len(order), size):
        indices = order[start : start + size]
        rows = [encoded[i][0] + encoded[i][1] for i in indices]
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        for row, tokens in zip(ids, rows, strict=True):
            row[: len(tokens)] = torch.tensor(tokens)
        yield indices, ids, [len(encoded[i][0]) for i in indices], [encoded[i][1] for i in indices]


@torch.no_grad()
def answers_right(model, tokenizer, pairs: list[tuple[str, str]]) -> list[tuple[bool, bool]]:
    """(first token right, whole answer right) of every (prompt, answer)."""
    found: list[tuple[bool, bool]] = [(False, False)] * len(pairs)
    for indices, ids, lengths, answers in _batches(tokenizer, pairs):
        h_BTD = model.transformer(ids, use_cache=False).last_hidden_state
        rows = [row for row, answer in enumerate(answers) for _ in answer]
        places = [
            n - 1 + i
            for n, answer in zip(lengths, answers, strict=True)
            for i in range(len(answer))
        ]
        said = iter(model.lm_head(h_BTD[rows, places]).argmax(-1).tolist())
        for index, answer in zip(indices, answers, strict=True):
            right = [next(said) == token for token in answer]
            found[index] = (right[0], all(right))
    return found


@torch.no_grad()
def top1_by_depth(model, tokenizer, pairs: list[tuple[str, str]]) -> list[float]:
    """Share of prompts whose answer's first token is the top token at depth 0 … N."""
    right = [0] * (model.config.n_layer + 1)
    for _, ids, lengths, answers in _batches(tokenizer, pairs):
        rows = torch.arange(len(ids))
        last = torch.tensor(lengths) - 1
        first = torch.tensor([answer[0] for answer in answers])
        for depth, h_BTD in enumerate(residuals(model, ids)):
            logits = model.lm_head(model.transformer.ln_f(h_BTD[rows, last]))
            right[depth] += int((logits.argmax(-1) == first).sum())
    return [round(count / len(pairs), 4) for count in right]


@torch.no_grad()
def perplexity(model, tokenizer, paragraphs: list[str]) -> dict:
    """Next-token loss over paragraphs, each read alone from position 0 (at most 512 tokens)."""
    nats, tokens, size = 0.0, 0, 0
    for text in paragraphs:
        ids = tokenizer(text).input_ids[: model.config.n_positions]
        if len(ids) < 2:
            continue
        row = torch.tensor([ids])
        logits = model(row, use_cache=False).logits[0, :-1].float()
        nats += float(F.cross_entropy(logits, row[0, 1:], reduction="sum"))
        tokens += len(ids) - 1
        size += len(tokenizer.decode(ids[1:]).encode())
    return {
        "tokens": tokens,
        "nats_per_token": round(nats / tokens, 4),
        "perplexity": round(math.exp(nats / tokens), 2),
        "bits_per_byte": round(nats / math.log(2) / size, 4),
    }


def _facts(model, tokenizer) -> dict:
    templates = load_templates()
    prompts = [p for fact in load_facts() for p in judged(fact, templates)]
    marks = answers_right(model, tokenizer, [(p.prompt, p.answer) for p in prompts])
    groups: dict[str, dict[str, list[tuple[bool, bool]]]] = {
        "relation": defaultdict(list),
        "wording": defaultdict(list),
    }
    for prompt, mark in zip(prompts, marks, strict=True):
        groups["relation"][prompt.relation].append(mark)
        groups["wording"][prompt.wording].append(mark)

    def figures(found: list[tuple[bool, bool]]) -> dict:
        return {
            "n": len(found),
            "top1": round(sum(first for first, _ in found) / len(found), 4),
            "whole": round(sum(whole for _, whole in found) / len(found), 4),
        }

    return {"overall": figures(marks)} | {
        f"by_{name}": {key: figures(found) for key, found in group.items()}
        for name, group in groups.items()
    }


def _file(model, tokenizer, path: Path = HELD_OUT_FACTS) -> dict:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    pairs = [(line["prompt"], line["answer"]) for line in lines]
    marks = answers_right(model, tokenizer, pairs)
    return {
        "file": path.name,
        "n": len(pairs),
        "top1": round(sum(first for first, _ in marks) / len(pairs), 4),
        "top1_by_depth": top1_by_depth(model, tokenizer, pairs),
    }


def evaluate(directory: Path) -> dict:
    """Every acceptance figure for the weights in ``directory``."""
    model, tokenizer = load(directory)
    weights = (directory / "model.safetensors").read_bytes()
    tops = trace(model, tokenizer, EIFFEL_PROMPT)
    prose: dict[str, list[str]] = defaultdict(list)
    for line in HELD_OUT_SAMPLE.read_text(encoding="utf-8").splitlines():
        item = json.loads(line)
        prose[item["domain"]].append(item["text"])
    every = [text for texts in prose.values() for text in texts]
    return {
        "model": {
            "parameters": sum(p.numel() for p in model.parameters()),
            "layers": model.config.n_layer,
            "width": model.config.n_embd,
            "heads": model.config.n_head,
            "positions": model.config.n_positions,
            "vocabulary": model.config.vocab_size,
            "weights_bytes": len(weights),
            "weights_sha256": hashlib.sha256(weights).hexdigest(),
        },
        "eiffel": {
            "prompt": EIFFEL_PROMPT,
            "prompt_tokens": len(tokenizer(EIFFEL_PROMPT).input_ids),
            "in_training_text": False,
            "top_by_depth": [[word, round(prob, 4)] for word, prob in tops],
            "first_depth_of_answer": next(
                (d for d, (word, _) in enumerate(tops) if word == " Paris"), None
            ),
        },
        "held_out_facts": _facts(model, tokenizer),
        "held_out_file": _file(model, tokenizer),
        "held_out_prose": {name: perplexity(model, tokenizer, t) for name, t in prose.items()}
        | {"all": perplexity(model, tokenizer, every)},
    }


def main_with(directory: Path, training: Path | None, out: Path = EVALUATION) -> None:
    """Evaluate, write the JSON and print the two figures that matter most."""
    if not HELD_OUT_FACTS.is_file():
        write_held_out_facts()
    figures = evaluate(directory)
    previous = json.loads(out.read_text()) if out.is_file() else {}
    if training:
        figures["training"] = json.loads(training.read_text())
    elif "training" in previous:
        figures["training"] = previous["training"]
    out.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    facts, eiffel = figures["held_out_facts"]["overall"], figures["eiffel"]
    print(f"held-out wordings: {facts['top1']:.1%} of {facts['n']:,}")
    print("Eiffel, by layer:", *(repr(word) for word, _ in eiffel["top_by_depth"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, nargs="?", default=SHIPPED)
    parser.add_argument("-o", "--out", type=Path, default=EVALUATION)
    parser.add_argument("--training", type=Path, help="training.json of the run")
    arguments = parser.parse_args()
    main_with(arguments.model, arguments.training, arguments.out)


if __name__ == "__main__":
    main()
