"""The public-domain prose that the bundled model is trained on, cleaned, and the part held out."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from pathlib import Path

HERE = Path(__file__).resolve().parent
HELD_OUT_SAMPLE = HERE / "heldout_prose.jsonl"
HELD_OUT_BOOKS = ("book-black-beauty", "book-the-time-machine")
HELD_OUT_ONE_IN = 50  # of the paragraphs of everything that is not a book
_BOILERPLATE = re.compile(
    r"project gutenberg|gutenberg|ebook|e-book|\bISBN\b|transcriber|illustrat(ed|ions) by|"
    r"copyright|all rights reserved|printed (in|by)|contents",
    re.IGNORECASE,
)


class MissingData(SystemExit):
    """The text that the recipe reads is not in the given directory."""


def _paragraphs(path: Path) -> list[str]:
    text = gzip.decompress(path.read_bytes()).decode("utf-8", errors="replace")
    text = text.replace("\r\n", "\n").replace("\ufffd", "")
    return [" ".join(block.split()) for block in re.split(r"\n\s*\n", text)]


def _lines(path: Path) -> list[str]:
    text = gzip.decompress(path.read_bytes()).decode("utf-8", errors="replace")
    return [" ".join(line.split()) for line in text.splitlines()]


def _is_prose(paragraph: str) -> bool:
    """False for front matter, chapter headings and the like."""
    letters = [c for c in paragraph if c.isalpha()]
    if len(paragraph) < 40 or not letters or _BOILERPLATE.search(paragraph):
        return False
    return sum(c.isupper() for c in letters) < 0.3 * len(letters)


def _is_held_out(text: str) -> bool:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) % HELD_OUT_ONE_IN == 0


def _split_long(paragraph: str, limit: int = 1500) -> list[str]:
    """Cut a very long paragraph between sentences."""
    pieces, piece = [], ""
    for sentence in re.split(r"(?<=[.!?]) ?(?=[A-Z])", paragraph):
        if piece and len(piece) + len(sentence) > limit:
            pieces.append(piece)
            piece = ""
        piece = f"{piece} {sentence}".strip()
    return [*pieces, piece] if piece else pieces


def load(data: Path) -> tuple[dict[str, list[list[str]]], dict[str, list[str]]]:
    """(train, held out): per domain, documents as lists of consecutive paragraphs / paragraphs."""
    if not (data / "wordnet.txt.gz").is_file():
        raise MissingData(
            f"no corpus at {data}: expected book-*.txt.gz, factbook.txt.gz, wordnet.txt.gz and "
            "speeches-*.txt.gz there; name the directory with --data"
        )
    train: dict[str, list[list[str]]] = {"book": [], "factbook": [], "wordnet": [], "speech": []}
    held: dict[str, list[str]] = {name: [] for name in train}
    for path in sorted(data.glob("book-*.txt.gz")):
        paragraphs = [p for p in _paragraphs(path) if _is_prose(p)]
        if path.name.startswith(HELD_OUT_BOOKS):
            held["book"] += paragraphs
        else:
            train["book"].append(paragraphs)
    sources = {
        "factbook": [data / "factbook.txt.gz"],
        "speech": sorted(data.glob("speeches-*.txt.gz")),
        "wordnet": [data / "wordnet.txt.gz"],
    }
    for domain, paths in sources.items():
        for path in paths:
            blocks = _lines(path) if domain == "wordnet" else _paragraphs(path)
            kept = []
            for block in blocks:
                for piece in _split_long(block):
                    if domain != "wordnet" and not _is_prose(piece):
                        continue
                    (held[domain] if _is_held_out(piece) else kept).append(piece)
            train[domain] += [[p] for p in kept] if domain == "factbook" else [kept]
    return train, held


def write_held_out_sample(held: dict[str, list[str]], path: Path = HELD_OUT_SAMPLE) -> None:
    """Commit about 18 kB of each public-domain domain, so that perplexity needs no corpus."""
    lines = []
    for domain in ("book", "factbook", "speech"):
        size = 0
        step = max(1, len(held[domain]) // 60) if domain == "book" else 1
        for paragraph in held[domain][::step]:
            if size + len(paragraph) > 18_000:
                continue
            size += len(paragraph)
            lines.append(json.dumps({"domain": domain, "text": paragraph}, ensure_ascii=False))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
