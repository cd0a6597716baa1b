"""Synthetic readings: the views are tested without a model."""

from __future__ import annotations

import numpy as np
import pytest

from logitlens.reading import Reading

HOSTILE = [
    "</script>", "\n", "\n\n", "\t", "\r\n", " ", "   ", "", " Paris", "Paris", "Paris",
    "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\x9b2J", "\x00", "\x7f", "\u202eevil", "\u2066x", "\u200b",
    "שלום", " مرحبا", "中文字符", " 日本", "한국어", "👩\u200d👧", "❤️", "🇫🇷", "e\u0301", "\u0301",
    "a" + "\u0301" * 40,
    "⟨E2 82⟩", "€⟨1/3⟩", "\ufffd", "\ue000", "\ud800", "\u2028", "\u00a0", "\ufeff", "$x^2$", "$\\frac{1}{$",
    "[bold]rich[/bold]", ":smile:", "%s{0}", "\\n", "x" * 200, "&amp;", "<b>", "नमस्ते", "ไทย", "\U0010ffff",
]  # fmt: skip

EIFFEL = ["<|endoftext|>", "The", " Eiff", "el", " Tower", " is", " in", " the", " city", " of"]


def make(
    pieces: list[str],
    *,
    layers: int = 7,
    k: int = 5,
    track: int = 1,
    vocab: list[str] | None = None,
    seed: int = 0,
    meta: dict | None = None,
) -> Reading:
    """A reading whose numbers have the shape of real ones: junk at first, confident at the end."""
    rng = np.random.default_rng(seed)
    words = vocab or [
        " Paris",
        " Heaven",
        " of",
        " the",
        " London",
        " Rome",
        "ing",
        " city",
        ".",
        ",",
        " a",
        " France",
    ]
    T, L, V = len(pieces), layers, len(words)
    logits = rng.normal(size=(L, T, V)) * np.linspace(0.7, 5.5, L)[:, None, None]
    logits[-max(1, L // 3) :, -1, 0] += 8
    z = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    order = np.argsort(-z, axis=-1, kind="stable")
    top = order[:, :, :k]
    entropy = -(np.exp(z) * z).sum(-1)
    kl = (np.exp(z[-1]) * (z[-1] - z)).sum(-1)
    rank_of = np.argsort(order, axis=-1) + 1
    next_ids = np.append(rng.integers(0, V, T - 1), -1)
    follows = np.broadcast_to(np.maximum(next_ids, 0)[None, :, None], (L, T, 1))
    next_logprobs = np.take_along_axis(z, follows, -1)[..., 0]
    next_ranks = np.take_along_axis(rank_of, follows, -1)[..., 0]
    next_logprobs[:, -1], next_ranks[:, -1] = np.nan, 0
    return Reading(
        ids=np.arange(T) + 1000,
        pieces=pieces,
        layers=["embed", *(str(i) for i in range(L - 1))],
        top_ids=top,
        top_logprobs=np.take_along_axis(z, top, -1),
        entropy=entropy,
        kl=np.maximum(kl, 0),
        next_ids=next_ids,
        next_logprobs=next_logprobs,
        next_ranks=next_ranks,
        track_ids=np.arange(track),
        track_logprobs=z[:, :, :track],
        track_ranks=rank_of[:, :, :track],
        vocab=dict(enumerate(words)) | {1000 + i: p for i, p in enumerate(pieces)},
        meta=meta
        if meta is not None
        else {
            "model": "demo",
            "lens": {"name": "logit"},
            "dtype": "float32",
            "device": "cpu",
            "prompt": "".join(pieces),
            "check": {"ok": True, "max_abs_diff": 1.2e-6, "tolerance": 1e-4, "positions": 1},
        },
    )


@pytest.fixture
def eiffel() -> Reading:
    return make(EIFFEL)


@pytest.fixture
def hostile() -> Reading:
    return make(list(HOSTILE), vocab=list(HOSTILE), layers=9, k=4, track=3)


@pytest.fixture
def reading_of():
    return make
