"""Make the bundled model from nothing: tokenizer, corpus, training, evaluation, shipping.

    python recipes/demo_model/make.py --data ../shared/data/corpus

Resumes a run that was stopped: every step whose result is in --work is skipped. With the token
budget of the settings the run is the same anywhere up to floating point; --minutes ends it early.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import build_corpus
import card
import evaluate
import prose
import train
import train_tokenizer
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)


def prepare(data: Path, work: Path) -> None:
    """Make the tokenizer and the token arrays unless they exist."""
    if (work / "corpus.npz").is_file() and (work / "tokenizer" / "tokenizer.json").is_file():
        return
    text, held = prose.load(data)
    prose.write_held_out_sample(held)
    evaluate.write_held_out_facts()
    tokenizer: Tokenizer = train_tokenizer.train(text, work / "tokenizer")
    print(build_corpus.build(text, tokenizer, work / "corpus.npz"))


def ship(model: Path, destination: Path) -> None:
    """Copy the exported files to where the package finds them."""
    destination.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(model / name, destination / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "corpus")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "demo_model")
    parser.add_argument("--tokens", type=int, default=train.Settings.tokens)
    parser.add_argument("--minutes", type=float, default=0.0, help="stop after this long")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile")
    parser.add_argument("--no-ship", action="store_true", help="leave the package's weights alone")
    arguments = parser.parse_args()
    prepare(arguments.data, arguments.work)
    settings = train.Settings(tokens=arguments.tokens, minutes=arguments.minutes)
    train.run(arguments.work, settings, not arguments.no_compile)
    if arguments.no_ship:
        print(f"weights in {arguments.work / 'model'}")
        return
    ship(arguments.work / "model", evaluate.SHIPPED)
    evaluate.main_with(evaluate.SHIPPED, arguments.work / "training.json")
    card.main()


if __name__ == "__main__":
    main()
