"""Which sequences of a corpus train, which are held out, and which belong to a step.

Deterministic: it depends on the corpus, the settings and the seed alone, so that
a fit that was stopped, or is shared by several processes, sees what a whole one would have seen.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from logitlens.anatomy.readable import Readable
from logitlens.errors import InputError
from logitlens.fit.corpus import Corpus


def split(model: Readable, corpus: Corpus, settings: Any) -> tuple[Tensor, Tensor]:
    """Training and held-out sequences, (C, T) int64 each. Raises InputError: corpus too short."""
    length = settings.length
    if model.context is not None:
        length = min(length, model.context)
    separator = getattr(model.tokenizer, "eos_token_id", None) if model.tokenizer else None
    chunks_CT = corpus.chunks(length, separator)
    if len(chunks_CT) < 2:
        raise InputError(
            f"{corpus.name} is too short: {corpus.tokens} tokens make {len(chunks_CT)} sequences of "
            f"{length}; at least 2 are needed (one is held out): more text, or a smaller --length"
        )
    order = _permutation(len(chunks_CT), settings.seed, -1)
    held = max(1, min(round(len(chunks_CT) * settings.holdout), settings.holdout_tokens // length))
    return chunks_CT[order[held:]], chunks_CT[order[:held]]


class Schedule:
    """The training sequences, reshuffled every epoch and served in steps of a fixed size."""

    def __init__(self, train_CT: Tensor, tokens_per_step: int, seed: int):
        self.train_CT, self.seed = train_CT, seed
        self.count = max(1, tokens_per_step // train_CT.shape[1])
        self._epoch, self._order = -1, torch.zeros(0, dtype=torch.long, device="cpu")

    def step(self, step: int) -> Tensor:
        """The sequences (B, T) of a step, counted from 0."""
        places = []
        for i in range(step * self.count, (step + 1) * self.count):
            epoch, place = divmod(i, len(self.train_CT))
            if epoch != self._epoch:
                self._epoch = epoch
                self._order = _permutation(len(self.train_CT), self.seed, epoch)
            places.append(int(self._order[place]))
        return self.train_CT[torch.tensor(places, dtype=torch.long, device="cpu")]


def _permutation(size: int, seed: int, epoch: int) -> Tensor:
    """A shuffle with a seed of its own for every epoch; epoch −1 is the split."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch + 1)
    return torch.randperm(size, generator=generator, dtype=torch.long, device="cpu")
