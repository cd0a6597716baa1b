"""What may be asked of the server: an order made from JSON, and its limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from logitlens.errors import PromptError


@dataclass(frozen=True)
class Limits:
    """What one request may ask for, and what the server keeps; each refusal names the number."""

    characters: int = 20_000  # of a prompt
    tokens: int = 4096  # of a prompt, if the model's own context allows
    top: int = 50
    track: int = 32
    waiting: int = 16  # jobs in line
    history: int = 200  # readings kept; the oldest go first
    history_bytes: int = 1 << 30  # of their arrays; the latest is kept in any case
    patience: float = (
        10  # seconds without a sign of life of the model before those who wait hear of it
    )


@dataclass(frozen=True)
class Order:
    """What to read, as asked."""

    prompt: str
    model: str
    lens: str = "logit"
    top: int = 10
    track: tuple[int | str, ...] = ()

    @staticmethod
    def of(data: Any, models: Sequence[str], lenses: Sequence[str], limits: Limits) -> Order:
        """An order from JSON. Raises PromptError, in one line, for anything that does not fit."""
        if not isinstance(data, dict):
            raise PromptError("expected a JSON object with the prompt")
        prompt, model = data.get("prompt"), data.get("model", models[0])
        lens, top, track = data.get("lens", "logit"), data.get("top", 10), data.get("track", [])
        if not isinstance(prompt, str) or not prompt:
            raise PromptError("the prompt is empty: type some text")
        if len(prompt) > limits.characters:
            raise PromptError(
                f"the prompt has {len(prompt):,} characters, at most {limits.characters:,} are read "
                "here; `logitlens read` has no such limit"
            )
        if model not in models:
            raise PromptError(f"no model {_short(model)} here: expected one of {', '.join(models)}")
        if lens not in lenses:
            raise PromptError(f"no lens {_short(lens)} here: expected one of {', '.join(lenses)}")
        if not isinstance(top, int) or isinstance(top, bool) or not 1 <= top <= limits.top:
            raise PromptError(f"top is {_short(top)}: expected 1 to {limits.top}")
        if not isinstance(track, list):
            raise PromptError(f"track is {_short(track)}: expected a list of tokens")
        if not all(isinstance(t, (int, str)) and not isinstance(t, bool) for t in track):
            raise PromptError("tokens to track are texts or ids")
        tokens = tuple(dict.fromkeys(track))
        if len(tokens) > limits.track:
            raise PromptError(f"{len(tokens)} tokens to track; at most {limits.track} are")
        return Order(prompt, model, lens, top, tokens)


def _short(value: object) -> str:
    return repr(value)[:60]
