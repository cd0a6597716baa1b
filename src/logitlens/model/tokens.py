"""Text → token ids, and ids → pieces that a person can read.

Ids are the keys everywhere. A token that is only part of a character decodes to U+FFFD, a string
that many ids would share; it is shown by its bytes (`⟨E2 82⟩`), or, where its neighbours in a prompt
complete the character, by the whole character with a mark at each of its positions (`€⟨1/3⟩`).
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

from logitlens.errors import PromptError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Vocabulary:
    """What a tokenizer's ids stand for; without a tokenizer, pieces are numbers (`⟨5⟩`)."""

    def __init__(self, tokenizer: Any | None):
        self.tokenizer = tokenizer
        self._bytes_of = _byte_reader(tokenizer) if tokenizer is not None else None
        self._special = set(tokenizer.all_special_ids) if tokenizer is not None else set()
        self._size = len(tokenizer) if tokenizer is not None else 0

    def raw(self, token: int) -> bytes | None:
        """The bytes a token stands for; None for an id the tokenizer does not have."""
        if self._bytes_of is None or not 0 <= token < self._size:
            return None
        return self._bytes_of(int(token))  # numpy's integers are ids too

    def is_special(self, token: int) -> bool:
        return token in self._special

    def piece(self, token: int) -> str:
        """The display piece of one id by itself: text, bytes in hex, or `⟨id⟩`."""
        raw = self.raw(token)
        if raw is None:
            return f"⟨{token}⟩"
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return f"⟨{raw.hex(' ').upper()}⟩"

    def fragments(self, tokens: Iterable[int]) -> dict[int, str]:
        """id → bytes in hex, of those tokens that are not text by themselves."""
        out = {}
        for token in tokens:
            raw = self.raw(token)
            if raw is not None and b"\xef\xbf\xbd" not in raw:
                try:
                    raw.decode("utf-8")
                except UnicodeDecodeError:
                    out[token] = raw.hex()
        return out

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """Display pieces of a prompt's tokens; a character split over tokens is shown whole, marked."""
        raws = [self.raw(token) for token in tokens]
        out = [self.piece(token) for token in tokens]
        start = 0
        while start < len(tokens):
            stop = _glyph_stop(raws, start)
            if stop is not None:
                text = b"".join(raw or b"" for raw in raws[start:stop]).decode("utf-8")
                for i in range(start, stop):
                    out[i] = f"{text}⟨{i - start + 1}/{stop - start}⟩"
                start = stop
            else:
                start += 1
        return out

    def text(self, tokens: Sequence[int]) -> str:
        """What tokens say one after the other; � where they are no whole characters."""
        raws = (self.raw(i) for i in tokens)
        parts = (self.piece(i).encode() if raw is None else raw for i, raw in zip(tokens, raws))
        return b"".join(parts).decode("utf-8", "replace")

    def encode(self, text: str) -> list[int]:
        """Text → ids with the tokenizer's own special tokens. Raises PromptError."""
        if self.tokenizer is None:
            raise PromptError(
                "this model was loaded without a tokenizer: give token ids, or load it with "
                "tokenizer=… (--tokenizer)"
            )
        if not text:
            raise PromptError("the prompt is empty: give some text")
        ids = self._ids_of(text)
        if len(ids) > 1 and ids[0] == ids[1] and self.is_special(ids[0]):
            # Text of a chat template begins with the token that the tokenizer would put before it.
            plain = self._ids_of(text, add_special_tokens=False)
            ids = plain if plain[:1] == ids[:1] else ids
        if not ids:
            raise PromptError(f"the prompt {text!r} has no tokens: give some text")
        if all(self.is_special(i) for i in ids):
            names = ", ".join(self.piece(i) for i in ids)
            raise PromptError(
                f"the prompt {text!r} consists of special tokens only ({names}): "
                "add some text, or pass token ids to read them as they are"
            )
        return ids

    def _ids_of(self, text: str, **options: Any) -> list[int]:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise PromptError(
                f"{text[:60]!r} holds half a character at position {error.start} (a lone surrogate): "
                "give text that can be written as UTF-8"
            ) from error
        assert self.tokenizer is not None
        # We refuse or cut long prompts ourselves: no warning of the tokenizer's beside that.
        options.setdefault("verbose", False)
        try:
            return [int(i) for i in self.tokenizer(text, **options)["input_ids"]]
        except BaseException as error:
            # A panic of the tokenizers library is no Exception; an interrupt is none either.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            reason = " ".join(str(error).split())[:200]
            raise PromptError(
                f"the tokenizer raises {type(error).__name__} on {text[:60]!r}: {reason}; "
                "give other text, or token ids"
            ) from error

    def compared(self, token: Any, versus: Any, vocab_size: int) -> list[int]:
        """Ids of a token and of the one it is compared with; None: it is left out.

        Raises PromptError where they are the same, and what `single` raises.
        """
        ids = [self.single(t, vocab_size) for t in (token, versus) if t is not None]
        if len(set(ids)) < len(ids):
            raise PromptError(f"versus={versus!r} is the token itself: compare it with another one")
        return ids

    def single(self, token: Any, vocab_size: int) -> int:
        """A token to track, by id or by its exact text, as an id.

        Raises PromptError for what is neither, an id outside the vocabulary, and text that is not
        one token, with how it splits and the token that may have been meant.
        """
        if not isinstance(token, str):
            if (number := whole(token)) is None:
                raise PromptError(f"cannot track {token!r}: expected a token's text, or its id")
            if not 0 <= number < vocab_size:
                raise PromptError(
                    f"token id {number} is outside the vocabulary: expected 0 to {vocab_size - 1}"
                )
            return number
        if self.tokenizer is None:
            raise PromptError(
                f"cannot look up {token!r} without a tokenizer: track token ids instead"
            )
        if not token:
            raise PromptError("the token to track is empty: give its text, or its id")
        if (exact := self.exact(token)) is not None:
            return exact
        ids = self._ids_of(token, add_special_tokens=False)
        near = (f" {token}", token.lstrip(), self.piece(ids[0]) if len(ids) == 1 else "")
        meant = next((text for text in near if text and self.exact(text) is not None), None)
        if meant is not None and meant == getattr(self.tokenizer, "unk_token", None):
            raise PromptError(
                f"{token!r} is not in the vocabulary: the tokenizer reads it as {meant!r}. Give a "
                "part of it, or a token id"
            )
        split = " ".join(repr(self.piece(i)) for i in ids)
        what = f"is {len(ids)} tokens ({split})" if len(ids) > 1 else "is not a token by itself"
        hint = f"Did you mean {meant!r} (one token)?" if meant else "Give one of its parts"
        raise PromptError(f"{token!r} {what}. {hint}")

    def plain(self, text: str) -> list[int]:
        """Text → ids without special tokens. Raises PromptError."""
        return self._ids_of(text, add_special_tokens=False)

    def exact(self, text: str) -> int | None:
        """The token whose own text this is, or None."""
        assert self.tokenizer is not None
        ids = self._ids_of(text, add_special_tokens=False)
        spellings = [text, text.replace(" ", "▁"), _byte_level(text)]
        ids += [i for i in self.tokenizer.convert_tokens_to_ids(spellings) if i is not None]
        return next((i for i in ids if self.piece(i) == text), None)


def whole(value: Any) -> int | None:
    """A whole number of Python, numpy or torch as an int; None for anything else, and for bools."""
    if isinstance(value, bool) or "bool" in str(getattr(value, "dtype", "")):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def _glyph_stop(raws: Sequence[bytes | None], start: int) -> int | None:
    """The end of the run of fragments from `start` on that makes up whole characters, or None."""
    if _complete(raws[start]):
        return None
    joined = b""
    for stop in range(start, min(len(raws), start + 8)):
        raw = raws[stop]
        if raw is None:
            return None
        joined += raw
        if stop > start and _complete(joined):
            return stop + 1
    return None


def _complete(raw: bytes | None) -> bool:
    if raw is None:
        return True
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _byte_reader(tokenizer: Any) -> Callable[[int], bytes]:
    """How this tokenizer's token strings encode bytes: byte-level, SentencePiece, or plain text."""
    decoder = _decoder_types(tokenizer)
    added = set(getattr(tokenizer, "added_tokens_decoder", {}) or {})

    def decoded(token: int) -> bytes:
        text = tokenizer.decode([token], clean_up_tokenization_spaces=False)
        return text.encode("utf-8", "replace")

    def byte_level(token: int) -> bytes:
        text = tokenizer.convert_ids_to_tokens(token)
        if token in added or text is None:
            return (text or "").encode("utf-8", "replace")
        table = _byte_level_table()
        return b"".join(
            bytes([table[c]]) if c in table else c.encode("utf-8", "replace") for c in text
        )

    def sentencepiece(token: int) -> bytes:
        text = tokenizer.convert_ids_to_tokens(token) or ""
        if token in added:
            return text.encode("utf-8", "replace")
        if match := _BYTE_TOKEN.fullmatch(text):
            return bytes([int(match[1], 16)])
        return text.replace("▁", " ").encode("utf-8", "replace")

    if "ByteLevel" in decoder or hasattr(tokenizer, "byte_decoder"):
        return byte_level
    if decoder & {"ByteFallback", "Metaspace"} or hasattr(tokenizer, "sp_model"):
        return sentencepiece
    return decoded


def _byte_level(text: str) -> str:
    """How byte-level BPE writes a text."""
    characters = {byte: character for character, byte in _byte_level_table().items()}
    return "".join(characters[byte] for byte in text.encode("utf-8"))


def _decoder_types(tokenizer: Any) -> set[str]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = getattr(backend, "decoder", None)
    if decoder is None:
        return set()
    state = json.loads(decoder.__getstate__())  # the decoder's own JSON, without the vocabulary
    parts = state.get("decoders", [state])
    return {part.get("type", "") for part in parts}


@lru_cache(maxsize=1)
def _byte_level_table() -> dict[str, int]:
    """The character that byte-level BPE writes for each byte (GPT-2's printable alphabet)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(b): b for b in printable}
    others = (b for b in range(256) if b not in set(printable))
    table.update({chr(256 + i): b for i, b in enumerate(others)})
    return table
