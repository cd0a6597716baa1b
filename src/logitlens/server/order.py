"""What may be asked of the server: orders made from JSON, and their limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from logitlens.errors import PromptError
from logitlens.reading import Reading

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Limits:
    """What one request may ask for, and what the server keeps; each refusal names the number."""

    characters: int = 20_000  # of a prompt
    tokens: int = 4096  # of a prompt, if the model's own context allows
    top: int = 50
    track: int = 32
    written: int = 1024  # tokens of a generation
    stop: int = 200  # characters that end one: the vocabulary is searched for each of their parts
    waiting: int = 16  # jobs in line
    history: int = 200  # readings kept; the oldest go first
    history_bytes: int = 1 << 30  # of their arrays; the latest is kept in any case
    patience: float = (
        10  # seconds without a sign of life of the model before those who wait hear of it
    )


# Settings of a generation: their kind and what they may be.
_WRITE: dict[str, tuple[type | tuple[type, ...], str]] = {
    "max_new_tokens": (int, "a whole number from 1"),
    "temperature": ((int, float), "a number from 0"),
    "top_p": ((int, float), "a number from 0 to 1"),
    "top_k": (int, "a whole number from 1"),
    "seed": (int, "a whole number"),
    "stop": (str, "a text"),
}


@dataclass(frozen=True)
class Order:
    """What to read, as asked.

    prompt     text, chat messages, or token ids
    lenses     each makes a reading of the same run
    edits      as on the command line: "add:layer=5,token= Paris,scale=4"
    write      settings of `LensModel.generate`; None: read only
    replaces   a reading that this one takes the place of
    """

    prompt: str | tuple[Json, ...] | tuple[int, ...]
    model: str
    lenses: tuple[str, ...] = ("logit",)
    top: int = 10
    track: tuple[int | str, ...] = ()
    edits: tuple[str, ...] = ()
    write: Json | None = None
    replaces: str = ""

    @staticmethod
    def of(data: Any, models: Sequence[str], lenses: Sequence[str], limits: Limits) -> Order:
        """An order from JSON. Raises PromptError, in one line, for anything that does not fit."""
        if not isinstance(data, dict):
            raise PromptError("expected a JSON object with the prompt")
        prompt = _prompt(data.get("prompt"), limits)
        model, wanted = _model(data, models), data.get("lenses", ["logit"])
        top = data.get("top", 10)
        if not isinstance(wanted, list) or not wanted:
            raise PromptError("choose a lens: none was asked for")
        for lens in wanted:
            if lens not in lenses:
                raise PromptError(
                    f"no lens {_short(lens)} here: expected one of {', '.join(lenses)}"
                )
        if not _whole(top) or not 1 <= top <= limits.top:
            raise PromptError(f"top is {_short(top)}: expected 1 to {limits.top}")
        return Order(
            prompt,
            model,
            tuple(dict.fromkeys(wanted)),
            top,
            _track(data.get("track", []), limits),
            _edits(data.get("edits", [])),
            _write(data.get("write"), limits),
        )

    def plain(self) -> dict[str, Any]:
        """What the form shows of it."""
        return {
            "prompt": self.prompt if isinstance(self.prompt, str) else list(self.prompt),
            "model": self.model, "lenses": list(self.lenses), "top": self.top,
            "track": list(self.track), "edits": list(self.edits), "write": self.write,
        }  # fmt: skip


@dataclass(frozen=True)
class Question:
    """Which components wrote a token at a position.

    ids     of the text up to there; with edits, whose positions are those of the prompt, all of it
    given   of a written text: how many of them were the prompt
    """

    model: str
    ids: tuple[int, ...]
    position: int
    token: int
    edits: tuple[str, ...] = ()
    given: int | None = None

    @staticmethod
    def of(data: Any, reading: Reading, order: Order) -> Question:
        """A question about a cell of a reading. Raises PromptError."""
        ids = before(reading, data.get("position"))
        token = data.get("token")
        if not _whole(token) or token < 0:
            raise PromptError(f"token is {_short(token)}: expected an id")
        if order.edits:
            ids = before(reading, len(reading.ids) - 1)
        position = int(data["position"])
        return Question(order.model, ids, position, token, order.edits, given_of(reading))


@dataclass(frozen=True)
class Patch:
    """A grid of patches: which cells of the clean run bring its answer back in the corrupted one."""

    model: str
    clean: str
    corrupted: str
    token: str
    versus: str | None

    @staticmethod
    def of(data: Any, models: Sequence[str], limits: Limits) -> Patch:
        """A patch grid from JSON. Raises PromptError."""
        clean, corrupted, token = (
            _prompt(data.get(name), limits, name) for name in ("clean", "corrupted", "token")
        )
        versus = data.get("versus") or None
        if not all(isinstance(text, str) for text in (clean, corrupted, token, versus or "")):
            raise PromptError("clean, corrupted, token and versus are texts")
        return Patch(_model(data, models), clean, corrupted, token, versus)


def given_of(reading: Reading) -> int | None:
    """How many tokens the prompt of a written text had; None where nothing was written."""
    written = reading.meta.get("generation")
    return None if written is None else int(written["prompt_tokens"])


def before(reading: Reading, position: Any) -> tuple[int, ...]:
    """The ids up to a position (a column) of a reading, that included. Raises PromptError."""
    if not _whole(position) or not 0 <= position < len(reading.ids):
        raise PromptError(f"position is {_short(position)}: expected 0 to {len(reading.ids) - 1}")
    if reading.positions[: position + 1] != list(range(position + 1)):
        raise PromptError("this reading has only a part of its prompt: read all of it first")
    return tuple(reading.ids[: position + 1].tolist())


def _model(data: Json, models: Sequence[str]) -> str:
    model = data.get("model", models[0])
    if model not in models:
        raise PromptError(f"no model {_short(model)} here: expected one of {', '.join(models)}")
    return model


def _prompt(value: Any, limits: Limits, name: str = "prompt") -> Any:
    if isinstance(value, list) and value and all(map(_whole, value)):
        return tuple(value)
    if isinstance(value, list) and value:
        texts = [text for message in value for text in _texts(message)]
        prompt, characters = tuple(value), sum(map(len, texts))
    elif isinstance(value, str) and value:
        prompt, characters = value, len(value)
    elif value:
        raise PromptError(f"the {name} is {_short(value)}: expected text, messages or token ids")
    else:
        raise PromptError(f"the {name} is empty: type some text")
    if characters > limits.characters:
        raise PromptError(
            f"the {name} has {characters:,} characters, at most {limits.characters:,} are read "
            "here; `logitlens read` has no such limit"
        )
    return prompt


def _texts(message: Any) -> list[str]:
    """What a message says, its role and its content among it. Raises PromptError."""
    if not isinstance(message, dict) or not {"role", "content"} <= set(message):
        raise PromptError(f"{_short(message)}: expected a message, with its role and its content")
    texts = list(message.values())
    if not all(isinstance(text, str) for text in texts):
        raise PromptError("a chat's messages have a role and a content, which are texts")
    return texts


def _track(track: Any, limits: Limits) -> tuple[int | str, ...]:
    if not isinstance(track, list):
        raise PromptError(f"track is {_short(track)}: expected a list of tokens")
    if not all(_whole(t) or isinstance(t, str) for t in track):
        raise PromptError("tokens to track are texts or ids")
    tokens = tuple(dict.fromkeys(track))
    if len(tokens) > limits.track:
        raise PromptError(f"{len(tokens)} tokens to track; at most {limits.track} are")
    return tokens


def _edits(edits: Any) -> tuple[str, ...]:
    from logitlens import edit

    if not isinstance(edits, list) or not all(isinstance(text, str) for text in edits):
        raise PromptError(f"edits is {_short(edits)}: expected a list of texts")
    for text in edits:
        if text.endswith((".json", ".parquet")) or "vector=" in text:
            raise PromptError(f"{_short(text)}: the server reads no files; name a token")
        edit.parse(text)
    return tuple(edits)


def _write(write: Any, limits: Limits) -> Json | None:
    if write is None:
        return None
    if not isinstance(write, dict):
        raise PromptError(f"write is {_short(write)}: expected settings of a generation")
    for name, value in write.items():
        kind, expected = _WRITE.get(name, (object, ""))
        if not expected or not isinstance(value, kind) or isinstance(value, bool):
            raise PromptError(
                f"{_short(name)} is {_short(value)}: expected {expected or 'nothing'}"
            )
    if write.get("max_new_tokens", 1) > limits.written:
        raise PromptError(f"at most {limits.written:,} tokens are written here at a time")
    if len(write.get("stop", "")) > limits.stop:
        raise PromptError(f"at most {limits.stop} characters end a text here")
    return dict(write)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _short(value: object) -> str:
    return repr(value)[:60]
