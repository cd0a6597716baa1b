"""Who speaks at each token of a chat: found by rendering its template with other words.

Tokens that change with the words of one message are that message's; what no words change is the
template's own. Nothing is known of families, and nothing is counted: templates rewrite earlier turns,
move the system message into the user's, and leave thinking out.
"""

from __future__ import annotations

import copy
import re
import string
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from logitlens.model.chat import Messages, chat_ids, rendered
from logitlens.model.tokens import Vocabulary

TEMPLATE, CONTENT, THINKING, ANSWER = "template", "content", "thinking", "answer"
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # what messages call them
# A tag of a template's own that is named after thinking, where no field of a message is.
_TAG = re.compile(r"<[^<>'\"\s]*(?:think|thought|reason)[^<>'\"\s]*>|\[/?THINK\w*\]", re.IGNORECASE)
_LAST_TAG = re.compile(r"(<[^<>\s]+>|\[[^\[\]\s]+\])\s*$")
_A, _B, _C = "Lorem", "Dolor", "Tempor"  # words that no template has


class Marks(NamedTuple):
    """What a template writes before and after an assistant's thinking."""

    open: bytes
    close: bytes


class Turns:
    """Of every token of a chat, and of those that the model writes after it:

    role      whose words it is part of; "" in the template
    section   `template`, `content`, `thinking` or `answer`
    """

    def __init__(self, messages: Messages, vocabulary: Vocabulary, dropped: int = 0):
        self.vocabulary = vocabulary
        self.marks = marks_of(vocabulary.tokenizer)
        ids = chat_ids(messages, vocabulary.tokenizer)
        self.role, self.section = [""] * len(ids), [TEMPLATE] * len(ids)
        self.thinks = False
        self.text = b""  # since the last mark
        self.begins: dict[int, int] = {}  # where its tokens begin in it
        last = 0  # where the words of others end
        for words in _words(messages):
            start, stop = self._region(messages, words, ids)
            if start == stop:  # the template leaves it out
                continue
            role = messages[words.message]["role"]
            for t in range(start, stop):
                self.role[t], self.section[t] = role, words.section
            if role != "assistant":
                last = max(last, stop)
            elif words.section == ANSWER:
                self._split(ids, start, stop)
        self._split(ids, last, len(ids))
        del self.role[:dropped], self.section[:dropped]
        self.begins = {t - dropped: at for t, at in self.begins.items() if t >= dropped}

    def _region(self, messages: Messages, words: _Words, ids: list[int]) -> tuple[int, int]:
        """The tokens that change with some words."""
        tokenizer, text = self.vocabulary.tokenizer, words.text
        kept = [mark.decode() for mark in self.marks or ()]
        start, end = len(ids), len(ids)
        for other, at_start, at_end in _others(text, kept):
            try:
                found = chat_ids(words.said(messages, other), tokenizer)
            except Exception:  # a template may refuse other words
                continue
            if found == ids:
                continue
            before = _common(ids, found)
            if at_start:
                start = min(start, before)
            if at_end:
                most = min(len(ids), len(found)) - before
                end = min(end, _common(ids[::-1], found[::-1], most))
        return (start, len(ids) - end) if start < len(ids) - end else (0, 0)

    def _split(self, ids: Sequence[int], start: int, stop: int) -> None:
        """Find the thinking in an assistant's turn."""
        self.thinks, self.text, self.begins = False, b"", {}
        for t in range(start, stop):
            self._scan(t, ids[t])

    def follow(self, token: int) -> None:
        """A token that the model has written."""
        self.role.append("assistant")
        self.section.append(ANSWER)
        self._scan(len(self.section) - 1, token)

    def _scan(self, t: int, token: int) -> None:
        """The next token of an assistant's turn: whether it is thought, said, or (part of) a mark."""
        if self.marks is None:
            return
        if self.thinks:
            self._are(THINKING, t)
        self.begins[t] = len(self.text)
        self.text += self.vocabulary.raw(token) or b""
        mark = next((m for m in self.marks if m in self.text), None)
        if mark is None:
            return
        place = self.text.index(mark)
        first = max(i for i, begin in self.begins.items() if begin <= place)
        if mark == self.marks.close and not self.thinks:  # the template has opened it
            self._are(THINKING, *(i for i in self.begins if i < first))
        for i in range(first, t + 1):
            self.role[i], self.section[i] = "", TEMPLATE
        self.thinks, self.text, self.begins = mark == self.marks.open, b"", {}

    def _are(self, section: str, *positions: int) -> None:
        for t in positions:
            if self.section[t] == ANSWER:
                self.section[t] = section


class _Words(NamedTuple):
    """Some words of a message: their text, where they are in it, and what they are."""

    message: int
    path: tuple[str | int, ...]
    text: str
    section: str

    def said(self, messages: Messages, other: Callable[[str], str]) -> list[dict[str, Any]]:
        """The messages with other words in their place."""
        changed = copy.deepcopy([dict(message) for message in messages])
        place: Any = changed[self.message]
        for key in self.path[:-1]:
            place = place[key]
        place[self.path[-1]] = _in_strings(place[self.path[-1]], other)
        return changed


def _words(messages: Messages) -> Iterator[_Words]:
    """All words of a chat."""
    for n, message in enumerate(messages):
        own = ANSWER if message["role"] == "assistant" else CONTENT
        content = message.get("content")
        if isinstance(content, str):
            yield _Words(n, ("content",), content, own)
        elif isinstance(content, list):
            for i, part in enumerate(content):
                for key, section in (("text", own), ("thinking", THINKING)):
                    if isinstance(part, dict) and isinstance(part.get(key), str):
                        yield _Words(n, ("content", i, key), part[key], section)
        for key in _THOUGHTS:
            if isinstance(message.get(key), str):
                yield _Words(n, (key,), message[key], THINKING)
        for i, call in enumerate(message.get("tool_calls") or ()):
            if isinstance(call, dict) and isinstance(call.get("function"), dict):
                yield _Words(n, ("tool_calls", i, "function"), "", own)


def _in_strings(value: Any, other: Callable[[str], str]) -> Any:
    """Other words in all strings that a value is made of."""
    if isinstance(value, dict):
        return {key: _in_strings(item, other) for key, item in value.items()}
    if isinstance(value, list):
        return [_in_strings(item, other) for item in value]
    return other(value) if isinstance(value, str) else value


def _others(text: str, kept: Sequence[str]) -> Iterator[tuple[Callable[[str], str], bool, bool]]:
    """Ways to say something else instead of a text: how, whether the first character is another one
    in its first byte, and whether the last one is in its last.

    Words keep their shape (letters stay letters, spaces spaces, and so do the marks in `kept`), so that
    the tokens around them stay what they are.
    """
    plain = text.isascii()
    yield _saying(_ascii, kept), True, plain
    if not plain:
        yield _saying(_neighbour, kept), False, True
    if text.strip() not in ("", text):  # spaces at the ends, which the template may keep
        yield _saying(_ascii, kept, strip=True), True, plain
        if not plain:
            yield _saying(_neighbour, kept, strip=True), False, True


def _saying(
    character: Callable[[str], str], kept: Sequence[str], strip: bool = False
) -> Callable[[str], str]:
    def other(text: str) -> str:
        parts = re.split(f"({'|'.join(map(re.escape, kept))})", text) if kept else [text]
        changed = "".join(part if part in kept else "".join(map(character, part)) for part in parts)
        return changed.strip() if strip else changed

    return other


def _ascii(c: str) -> str:
    """Another ASCII character of the same kind; spaces stay."""
    for letters in (string.ascii_lowercase, string.ascii_uppercase, string.digits):
        if c in letters:
            return letters[(letters.index(c) + 1) % len(letters)]
    if c.isspace():
        return c
    if c.isalpha():
        return "x"
    return "7" if c.isnumeric() else "?" if c == "!" else "!"


def _neighbour(c: str) -> str:
    """The next character of the same category, where there is one."""
    if c.isascii():
        return _ascii(c)
    kind = unicodedata.category(c)
    near = (chr(ord(c) + step) for step in (1, -1) if 0x80 <= ord(c) + step < 0x110000)
    return next((n for n in near if unicodedata.category(n) == kind), _ascii(c))


def _common(a: Sequence[int], b: Sequence[int], most: int | None = None) -> int:
    """How many ids two lists begin with together."""
    limit = min(len(a), len(b)) if most is None else most
    return next((n for n in range(limit) if a[n] != b[n]), limit)


def marks_of(tokenizer: Any) -> Marks | None:
    """What the tokenizer's template writes around thinking; None where it knows of none."""
    ask = {"role": "user", "content": _A}
    for field in _THOUGHTS:
        answer = {"role": "assistant", "content": _C, field: _B}
        try:
            text = rendered([ask, answer], tokenizer)
            begun = rendered([ask], tokenizer)
        except Exception:  # whatever a template raises: it does not know the field
            continue
        at, after = text.find(_B), text.find(_C)
        if 0 <= at < after:
            before = text[:at]
            own = before[len(_shared(before, begun)) :].strip()
            tag = _LAST_TAG.search(before)
            opening = own or (tag[1] if tag else "")
            close = text[at + len(_B) : after].strip()
            if opening and close:
                return Marks(opening.encode(), close.encode())
    return _named(str(tokenizer.get_chat_template()))


def _shared(a: str, b: str) -> str:
    return a[: next((n for n, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))]


def _named(source: str) -> Marks | None:
    """A pair of tags in a template's source that is named after thinking."""
    for close in sorted(set(_TAG.findall(source)), key=len):
        for end, start in (("/", ""), ("END_", "START_"), ("end_", "begin_")):
            if end in close:
                return Marks(close.replace(end, start, 1).encode(), close.encode())
    return None
