"""True and false demonstrations: the design of Halawi et al. 2023 (arXiv:2307.09476) as a survey.

    python recipes/demonstrations/make.py -o DIR -m openai-community/gpt2-xl

Every question (a capital, a continent, an opposite) is asked twice, after the same demonstrations: once
with their right answers, once with wrong ones. Wrong answers follow one permutation of a task's answers, so
that they could be learnt, and the answer which that permutation gives to the question is the `wrong` one.
Halawi et al. find that the two conditions agree in early layers and part at a middle one, after which the
accuracy given false demonstrations falls. DIR gets the prompts, the survey, and its report over layers.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import sys
from pathlib import Path
from typing import Any

import torch

import logitlens
from logitlens.files import write_text
from logitlens.survey.plan import Settings
from logitlens.survey.report import report
from logitlens.survey.run import run

FACTS = Path(__file__).resolve().parents[1] / "demo_model" / "facts"
TASKS = {
    "capital": "The capital of {} is",
    "continent": "{} is on the continent of",
    "opposite": "The opposite of {} is",
}


def facts(task: str) -> dict[str, str]:
    """Subject → answer."""
    if task == "opposite":
        with (FACTS / "pairs.csv").open(encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["relation"] == task]
        return {row["subject"]: row["object"] for row in rows}
    with (FACTS / "countries.csv").open(encoding="utf-8") as file:
        return {row["country"]: row[task] for row in csv.DictReader(file)}


def prompts(each: int, shots: int, seed: int = 0) -> list[dict[str, Any]]:
    """`each` questions of every task, after so many demonstrations, true and false."""
    out = []
    for task, words in TASKS.items():
        known, draw = facts(task), random.Random(seed)
        answers = sorted(set(known.values()))
        draw.shuffle(answers)
        false = dict(zip(answers, [*answers[1:], answers[0]]))
        for subject in draw.sample(sorted(known), min(each, len(known))):
            shown = draw.sample([s for s in sorted(known) if known[s] != known[subject]], shots)
            for condition in ("true", "false"):
                told = [known[s] if condition == "true" else false[known[s]] for s in shown]
                lines = [f"{words.format(s)} {answer}." for s, answer in zip(shown, told)]
                out.append(
                    {
                        "id": f"{task}: {subject}",
                        "prompt": " ".join([*lines, words.format(subject)]),
                        "answer": f" {known[subject]}",
                        "wrong": f" {false[known[subject]]}",
                        "demonstrations": condition,
                        "task": task,
                    }
                )
    return out


def main(
    folder: Path,
    model: str | None,
    lenses: list[str],
    each: int,
    shots: int,
    loading: dict[str, Any] | None = None,
) -> None:
    """Write the prompts, survey them (or go on), and report. loading: options of `logitlens.load`."""
    loading = loading or {}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "prompts.jsonl"
    lines = "".join(json.dumps(item) + "\n" for item in prompts(each, shots))
    if path.exists() and path.read_text(encoding="utf-8") != lines:
        raise SystemExit(f"{path} holds other prompts: choose another folder, or delete this one")
    write_text(path, lines)
    # By some tokenizers a right answer begins with the wrong one: such a question is left out.
    settings = Settings(shard_size=64, threads=torch.get_num_threads(), bad="skip")
    found = run(
        path, folder / "demonstrations", logitlens.load(model, **loading), source=model or "demo",
        loading=loading, lenses=lenses, settings=settings,
    )  # fmt: skip
    for line in found.skipped:
        print(f"left out: {line}", file=sys.stderr)
    if not found.done:
        left = found.failed | found.underway
        why = "; ".join(f"shard {shard}: {reason}" for shard, reason in left.items())
        raise SystemExit(f"not done, run the same again: {why}")
    for name in ("report.html", "report.md"):
        report(
            [folder / "demonstrations"], folder / name, by="demonstrations",
            contrast=("false", "true"), title="True and false demonstrations",
        )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("-m", "--model", help="Default: the bundled model.")
    parser.add_argument("--lens", nargs="*", default=["logit"])
    parser.add_argument("--each", type=int, default=60, help="Questions of each task.")
    parser.add_argument("--shots", type=int, default=4, help="Demonstrations before each.")
    parser.add_argument("--device-map", help="As of logitlens, say cuda or auto.")
    parser.add_argument("--dtype", help="Likewise, say bfloat16.")
    options = parser.parse_args()
    loading = {"device_map": options.device_map, "dtype": options.dtype}
    main(
        options.out, options.model, options.lens, options.each, options.shots,
        {name: value for name, value in loading.items() if value},
    )  # fmt: skip
