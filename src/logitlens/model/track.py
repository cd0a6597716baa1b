"""What to track: tokens, and sets of tokens by name, whose probabilities are added up.

    model.read(prompt, track=[" Paris", {"France": [" Paris", " Lyon"], "Italy": [" Rome"]}])

A set has an id of its own, −2, −3, … in the order given, so that it appears wherever a tracked token
does: its name is its piece in `Reading.vocab`, its members are in `Reading.meta["track_sets"]`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from logitlens.errors import PromptError
from logitlens.model.tokens import Vocabulary, whole

Token = int | str
TokenSets = Mapping[str, Sequence[Token]]
Track = Iterable[Token | TokenSets] | TokenSets | Token | None


@dataclass(frozen=True)
class Tracked:
    """ids (M,) of tokens and sets; members: the token ids behind each; names: id → name, of sets."""

    ids: list[int] = field(default_factory=list)
    members: list[list[int]] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)

    @property
    def flat(self) -> list[int]:
        """All members, one after another: what a readout is asked for."""
        return [token for tokens in self.members for token in tokens]

    def add_set(self, name: str, tokens: list[int]) -> None:
        number = -2 - len(self.names)  # −1 is no token at all
        self.ids.append(number)
        self.members.append(tokens)
        self.names[number] = name

    def joined(
        self, logprobs_LTF: np.ndarray, ranks_LTF: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Of every member → (L, T, M) float32, int32 of what is tracked: the log of the summed
        probability, and the best rank."""
        L, T, _ = logprobs_LTF.shape
        logprobs_LTM = np.empty((L, T, len(self.ids)), np.float32)
        ranks_LTM = np.empty((L, T, len(self.ids)), np.int32)
        start = 0
        for m, tokens in enumerate(self.members):
            stop = start + len(tokens)
            logprobs_LTM[..., m] = log_sum(logprobs_LTF[..., start:stop])
            ranks_LTM[..., m] = ranks_LTF[..., start:stop].min(-1)
            start = stop
        return logprobs_LTM, ranks_LTM


def log_sum(logprobs: np.ndarray) -> np.ndarray:
    """log Σ exp along the last axis, in float64; −inf of nothing but −inf, exact of one."""
    if logprobs.shape[-1] == 1:
        return logprobs[..., 0]
    values = logprobs.astype(np.float64)
    highest = values.max(-1, keepdims=True)
    base = np.where(np.isfinite(highest), highest, 0.0)
    with np.errstate(divide="ignore"):
        return (np.log(np.exp(values - base).sum(-1, keepdims=True)) + base)[..., 0]


def tracked_of(track: Track, tokens: Vocabulary, vocab_size: int) -> Tracked:
    """The ids behind what a user wants to track. Raises PromptError."""
    found = Tracked()
    for item in several(track):
        if not isinstance(item, Mapping):
            token = tokens.single(item, vocab_size)
            found.ids.append(token)
            found.members.append([token])
            continue
        for name, members in item.items():
            if not isinstance(name, str) or not name:
                raise PromptError(
                    f"track={item!r}: expected the name of a set of tokens, got {name!r}"
                )
            if name in found.names.values():
                raise PromptError(f"two sets of tokens to track are called {name!r}")
            if isinstance(members, (str, Mapping)) or whole(members) is not None:
                raise PromptError(
                    f"track={item!r}: expected a list of tokens for the set {name!r}, got {members!r}"
                )
            ids = [tokens.single(token, vocab_size) for token in several(members)]
            if not ids:
                raise PromptError(f"the set {name!r} is empty: give its tokens, like [' Paris']")
            found.add_set(name, list(dict.fromkeys(ids)))  # a token counts once
    return found


def tracks_of(track: Any, prompts: int) -> list[Any]:
    """What to track in each of several prompts: one list for each, or the same for all."""
    tokens = several(track)
    lists = [isinstance(item, (list, tuple)) for item in tokens]
    if not any(lists):
        return [tokens] * prompts
    if not all(lists) or len(tokens) != prompts:
        raise PromptError(
            f"track={track!r}: expected tokens to follow in every prompt, or one list of tokens for "
            f"each of the {prompts} prompts"
        )
    return tokens


def several(track: Any) -> list[Any]:
    """What to track as a list: a text alone is one token, not its letters. Raises PromptError."""
    if track is None:
        return []
    if isinstance(track, (str, Mapping)) or whole(track) is not None:
        return [track]
    try:
        if isinstance(track, bytes):
            raise TypeError
        return list(track)
    except TypeError:
        raise PromptError(
            f"track={track!r}: expected tokens, each by its text or its id, or sets of them by name"
        ) from None
