"""Prompts with an answer to look for: our own facts, and the published lens evaluations.

    {"prompt": "… is in the city of", "answer": " Paris", "relation": "landmark_city"}    JSONL, ours
    {"items": [{"prompt": …, "intermediates": ["Sweden"], "target": …}]}                  JSON

The second is the format of `data/evaluations/lens-eval-*.json` of anthropics/jacobian-lens: the
readout is at the last token of the prompt (for poetry at the last line end), and what is looked for
are the intermediates, each as any of its spellings that is one token.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from logitlens.errors import FormatError, InputError, PromptError
from logitlens.schema import matches, parse_json


@dataclass(frozen=True)
class Fact:
    """Where to look (`position` in `ids`) and for what: each target is a set of token ids."""

    ids: tuple[int, ...]
    position: int
    targets: tuple[tuple[int, ...], ...]
    relation: str = ""


@dataclass(frozen=True)
class Facts:
    """Facts, and how many were skipped as there is no token to look for. Of an answer of several tokens
    its first is looked for."""

    name: str
    facts: list[Fact]
    unsupported: int = 0


def read(path: str | os.PathLike[str], model: Any) -> Facts:
    """A file of facts, by its content. Raises FormatError, InputError."""
    file = Path(os.path.expanduser(path))
    if not file.is_file():
        raise InputError(f"no facts at {path}: expected a .jsonl or .json file")
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".json":
            items = parse_json(text, "the file")
            matches(items, {"items": [object]}, "the file")
            items = items["items"]
        else:
            lines = [line for line in text.splitlines() if line.strip()]
            items = [parse_json(line, f"item {i}") for i, line in enumerate(lines, 1)]
    except ValueError as error:
        raise FormatError(
            f"{file}: expected lines of JSON with prompt and answer, or JSON with items ({error})"
        ) from None
    found, unsupported = [], 0
    for number, item in enumerate(items, 1):
        where = f"{file} item {number}"
        try:
            fact = _fact(item, model, where, "poetry" in file.stem)
        except PromptError as error:
            raise InputError(f"{where}: {error}") from error
        if fact is None:
            unsupported += 1
        else:
            found.append(fact)
    if not found:
        raise InputError(
            f"{file}: no item has an answer, or intermediates of one token, to look for in {model.name}"
        )
    return Facts(file.name, found, unsupported)


def _fact(item: Any, model: Any, where: str, poetry: bool) -> Fact | None:
    if not isinstance(item, dict) or not isinstance(item.get("prompt"), str):
        raise FormatError(f"{where}: expected an object with a prompt, got {str(item)[:60]!r}")
    ids = model.tokens.encode(item["prompt"])
    relation = str(item.get("relation") or item.get("family") or "")
    if isinstance(item.get("answer"), str):
        answer = _plain(model, item["answer"])
        if not answer:
            return None
        return Fact(tuple(ids), len(ids) - 1, ((answer[0],),), relation)
    words = item.get("intermediates")
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise FormatError(f"{where}: expected an answer, or a list of intermediates")
    targets = tuple(t for word in words if (t := _spellings(model, word)))
    if not targets:
        return None
    position = len(ids) - 1
    if poetry:
        line_ends = [i for i, token in enumerate(ids) if "\n" in model.tokens.piece(token)]
        position = line_ends[-1] if line_ends else position
    return Fact(tuple(ids), position, targets, relation)


def _plain(model: Any, text: str) -> list[int]:
    """Ids of a text that continues a prompt: no special tokens. Raises PromptError."""
    try:
        text.encode("utf-8")
    except UnicodeError as error:
        raise PromptError(f"an answer is not text ({error})") from None
    return list(model.tokenizer(text, add_special_tokens=False)["input_ids"])


def _spellings(model: Any, word: str) -> tuple[int, ...]:
    """Ids of those spellings of a word (case, leading space) that are one token."""
    out: dict[int, None] = {}
    for form in dict.fromkeys((word, word.lower(), word.capitalize())):
        for text in (form, f" {form}"):
            ids = _plain(model, text)
            if len(ids) == 1:
                out[ids[0]] = None
    return tuple(out)
