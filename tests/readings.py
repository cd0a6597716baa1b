"""Synthetic readings: consistent numbers without a model."""

from __future__ import annotations

import numpy as np

from logitlens import Reading


def random_reading(
    *,
    seed: int = 0,
    L: int = 4,
    T: int = 6,
    K: int = 5,
    M: int = 2,
    vocab: dict[int, str] | None = None,
) -> Reading:
    """A Reading of random logits over a vocabulary of 50, with every statistic computed from them."""
    rng = np.random.default_rng(seed)
    V = 50
    vocab = vocab or {i: f" w{i}" for i in range(V)}
    ids = np.array(sorted(vocab))
    V = len(ids)
    z = rng.normal(0, 3, (L, T, V))
    logprobs = z - np.log(np.exp(z).sum(-1, keepdims=True))
    probs = np.exp(logprobs)
    order = np.argsort(-logprobs, axis=-1, kind="stable")
    prompt = rng.integers(0, V, T)
    following = np.append(prompt[1:], -1)
    tracked = rng.integers(0, V, M)

    def rank(column):
        return 1 + (logprobs > column[..., None]).sum(-1)

    next_lp = np.stack([logprobs[:, t, following[t]] for t in range(T)], 1)
    next_rank = rank(next_lp)
    next_lp[:, -1], next_rank[:, -1] = np.nan, 0
    track_lp = logprobs[:, :, tracked]
    return Reading(
        ids=ids[prompt],
        pieces=[vocab[int(ids[i])] for i in prompt],
        layers=["embed", *map(str, range(L - 1))] if L > 1 else ["0"],
        top_ids=ids[order[:, :, :K]],
        top_logprobs=np.take_along_axis(logprobs, order[:, :, :K], -1),
        entropy=-(probs * logprobs).sum(-1),
        kl=(probs[-1] * (logprobs[-1] - logprobs)).sum(-1),
        next_ids=np.append(ids[prompt[1:]], -1),
        next_logprobs=next_lp,
        next_ranks=next_rank,
        track_ids=ids[tracked],
        track_logprobs=track_lp,
        track_ranks=np.stack([rank(track_lp[:, :, m]) for m in range(M)], -1)
        if M
        else np.zeros((L, T, 0)),
        vocab=vocab,
        meta={
            "prompt": "".join(vocab[int(ids[i])] for i in prompt),
            "model": "synthetic",
            "lens": {"name": "logit"},
            "check": {"ok": True, "max_abs_diff": 2.5e-6, "tolerance": 1e-4, "positions": 1},
        },
    )
