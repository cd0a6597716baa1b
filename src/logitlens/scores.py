"""`Scores`: how likely whole answers are at every layer. Needs numpy only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Scores:
    """Answers of any number of tokens, each token given the prompt and the tokens before it.

        scores = model.score("The Eiffel Tower is in the city of", [" Paris", " New York"])
        scores.logprobs[-1]                # (A,) what the model itself gives to each answer, in nats
        scores.best()                      # per layer, the answer that is likeliest there

    answers           A texts                       pieces   for each, its tokens
    layers            L labels: `embed`, `0`, … `N-1`; the last row is the model's own
    token_logprobs    for each answer (L, n) float32: natural log, of each of its n tokens
    token_ranks       for each answer (L, n) int32: 1 = likeliest
    meta              model, lens, versions, check … (JSON-able)
    """

    answers: list[str]
    pieces: list[list[str]]
    layers: list[str]
    token_logprobs: list[NDArray[np.float32]]
    token_ranks: list[NDArray[np.int32]]
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def logprobs(self) -> NDArray[np.float64]:
        """(L, A) log-probability of each whole answer, nats: the sum over its tokens."""
        return np.stack([each.astype(np.float64).sum(-1) for each in self.token_logprobs], axis=-1)

    @property
    def ranks(self) -> NDArray[np.int32]:
        """(L, A) rank of each answer's first token after the prompt; 1 = likeliest."""
        return np.stack([each[:, 0] for each in self.token_ranks], axis=-1)

    def best(self) -> list[str]:
        """(L,) the answer with the highest log-probability at each layer."""
        return [self.answers[int(a)] for a in self.logprobs.argmax(-1)]

    def __str__(self) -> str:
        """A line for each layer: the log-probability of every answer."""
        heads = [repr(answer) for answer in self.answers]
        widths = [max(len(head), 8) for head in heads]
        lines = ["layer  " + "  ".join(h.rjust(w) for h, w in zip(heads, widths))]
        for label, row in zip(self.layers, self.logprobs):
            cells = (f"{value:.2f}".rjust(width) for value, width in zip(row, widths))
            lines.append(label.ljust(5) + "  " + "  ".join(cells))
        return "\n".join(lines)
