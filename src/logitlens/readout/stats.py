"""What a readout keeps of a row of logits, a few numbers, never the vocabulary; and what finds them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from logitlens.errors import PromptError
from logitlens.readout.head import Head

FinalRows = dict[int, Tensor]  # position → (V,) float32, to be filled with its final row's logits


@dataclass(frozen=True, eq=False)
class Stats:
    """Statistics of T positions × L rows; the last row along L is the model's own (final) one. Ids and ranks
    are int64, or int32 where an engine makes those.

    top_ids          (T, L, K)           likeliest ids, highest first, ties by lower id
    top_logprobs     (T, L, K) float32   natural log
    entropy          (T, L)    float32   nats
    kl               (T, L)    float32   KL(final ‖ row), nats, ≥ 0, exactly 0 in the final row
    target_logprobs  (T, L, M + C) float32   of the targets asked for, then of the candidates; nan
                                         where the target id is −1
    target_ranks     (T, L, M + C)         1 + number strictly greater; 0 where the target id is −1
    candidate_ids    (T, C)              the likeliest ids of the final row; −1 where it is not finite
    finite           (T, L)    bool      False where a NaN or +inf logit makes the row meaningless:
                                         its statistics are nan, its ids −1 and its ranks 0
    """

    top_ids: Tensor
    top_logprobs: Tensor
    entropy: Tensor
    kl: Tensor
    target_logprobs: Tensor
    target_ranks: Tensor
    candidate_ids: Tensor
    finite: Tensor

    @classmethod
    def joined(cls, parts: Sequence[Stats]) -> Stats:
        """Positions one after another."""
        if len(parts) == 1:
            return parts[0]
        names = [field.name for field in fields(cls)]
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


class Engine(ABC):
    """Rows of head input → statistics, however much work it is, in bounded memory: a block of
    positions at a time."""

    name: str  # what a reading's `meta["kernel"]` says

    @torch.no_grad()
    def stats(
        self,
        x_TLE: Tensor,
        head: Head,
        k: int,
        targets_TM: Tensor,
        *,
        candidates: int = 0,
        final: FinalRows | None = None,
    ) -> Stats:
        """Rows of head input (T, L, E), the final row last along L → `Stats`.

        targets_TM   (T, M) int64 ids whose log-probability and rank are wanted; −1: none
        candidates   C: so many of the final row's likeliest tokens are further targets
        final        positions whose final row's logits are wanted whole; filled as they pass

        Raises PromptError for a k, a target id or candidates outside the vocabulary, ValueError for
        shapes that do not match and for what the engine does not serve.
        """
        check_request(x_TLE, head, k, targets_TM, candidates)
        step = max(1, self.positions(x_TLE.shape[1], head, candidates))
        parts = []
        for p in range(0, max(len(x_TLE), 1), step):
            block = slice(p, p + step)
            given = (x_TLE[block], head, k, targets_TM[block], candidates)
            parts.append(self.block(*given, inside(final, p, p + step)))
        return Stats.joined(parts)

    @abstractmethod
    def positions(self, L: int, head: Head, candidates: int) -> int:
        """How many positions of L rows make a block."""

    @abstractmethod
    def block(
        self, x_PLE: Tensor, head: Head, k: int, targets_PM: Tensor, candidates: int, final: FinalRows
    ) -> Stats:  # fmt: skip
        """`stats` of P positions, which `final` counts from the first."""


def inside(final: FinalRows | None, start: int, stop: int) -> FinalRows:
    """Those of a block of positions, counted from its start."""
    return {p - start: z_V for p, z_V in (final or {}).items() if start <= p < stop}


def check_request(
    x_TLE: Tensor, head: Head, k: int, targets_TM: Tensor, candidates: int = 0
) -> None:
    """Shapes and ids every readout path relies on; raises PromptError, ValueError otherwise."""
    if x_TLE.ndim != 3 or x_TLE.shape[1] < 1:
        raise ValueError(f"rows must be (positions, layers, width); got {tuple(x_TLE.shape)}")
    if targets_TM.ndim != 2 or targets_TM.shape[0] != x_TLE.shape[0]:
        raise ValueError(
            f"targets must be (positions, targets) with {x_TLE.shape[0]} positions; "
            f"got {tuple(targets_TM.shape)}"
        )
    if not 1 <= k <= head.vocab:
        raise PromptError(f"top must be between 1 and the vocabulary's {head.vocab:,}; got {k:,}")
    if not 0 <= candidates <= head.vocab:
        raise PromptError(
            f"candidates must be between 0 and the vocabulary's {head.vocab:,}; got {candidates:,}"
        )
    if targets_TM.numel() and int(targets_TM.max()) >= head.vocab:
        raise PromptError(
            f"token id {int(targets_TM.max())} is outside the vocabulary of {head.vocab:,}"
        )
