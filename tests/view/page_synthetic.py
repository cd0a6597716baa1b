"""Readings made of numbers only: plausible ones of any size, random ones, and hostile vocabularies."""

from __future__ import annotations

import numpy as np

from logitlens.reading import Reading

_COMMON = (
    " the| of| and| to| in| a| is| that| was| it| for| on| with| as| at| by| from| city| Paris| London"
    "| Rome| New| York| France| Tower| capital| world| first| people| time| year|,|.|\n|The| located"
    "| Berlin| Italy| same| most| years| old| other| state| north| south| war| river| house| man"
)
_WORDS = _COMMON.split("|")


def vocabulary(size: int) -> dict[int, str]:
    """`size` pieces: common words first, then syllables, all different."""
    out = dict(enumerate(_WORDS[:size]))
    syllables = (
        "ka",
        "to",
        "mi",
        "re",
        "sun",
        "vel",
        "or",
        "ith",
        "an",
        "do",
        "es",
        "li",
        "qua",
        "bre",
    )
    n = len(syllables)
    for i in range(len(out), size):
        digits, j = [], i
        while j:
            digits.append(syllables[j % n])
            j //= n
        out[i] = (" " if i % 3 else "") + "".join(digits)
    return out


def plausible(
    L: int = 13,
    T: int = 10,
    K: int = 10,
    M: int = 1,
    V: int = 50257,
    seed: int = 0,
    prompt: str | None = None,
    model: str = "openai-community/gpt2",
    lens: str = "logit",
) -> Reading:
    """A reading that looks like a model's: candidates come and go, and settle in the later layers."""
    rng = np.random.default_rng(seed)
    weight = 1 / np.arange(1, V + 1) ** 0.9
    weight /= weight.sum()

    def draw(*shape: int) -> np.ndarray:
        return rng.choice(V, size=shape, p=weight).astype(np.int32)

    names = vocabulary(V)
    if prompt is not None:
        by_text = {piece: i for i, piece in names.items()}
        words = [w for w in prompt.replace(" ", "\0 ").split("\0") if w]
        ids = np.array([by_text.get(w, V - 1 - i) for i, w in enumerate(words)], np.int32)
        names |= {V - 1 - i: w for i, w in enumerate(words) if w not in by_text}
        T = len(words)
    else:
        ids = draw(T)
    pool, score = draw(T, 3 * K), rng.normal(size=(T, 3 * K))
    top_ids = np.zeros((L, T, K), np.int32)
    top_lp = np.zeros((L, T, K), np.float32)
    for layer in range(L):
        done = layer / max(1, L - 1)
        fresh = rng.random(pool.shape) > 0.5 + 0.48 * done
        pool[fresh] = draw(int(fresh.sum()))
        score = 0.8 * score + 0.6 * rng.normal(size=score.shape)
        score[fresh] = rng.normal(size=int(fresh.sum()))
        by_id = np.argsort(pool, axis=1, kind="stable")  # no token twice in one cell
        ranked = np.take_along_axis(pool, by_id, 1)
        twice = np.zeros_like(fresh)
        np.put_along_axis(twice, by_id[:, 1:], ranked[:, 1:] == ranked[:, :-1], 1)
        score[twice] = -9
        order = np.argsort(-score, axis=1)[:, :K]
        top_ids[layer] = np.take_along_axis(pool, order, 1)
        s = np.take_along_axis(score, order, 1) * (0.8 + 2.6 * done)
        rest = np.exp(3.5 * (1 - done) + rng.normal(size=(T, 1)))
        top_lp[layer] = s - np.log(np.exp(s).sum(1, keepdims=True) + rest)
    fall = 1 - np.arange(L)[:, None] / max(1, L - 1)
    entropy = np.maximum(0.05, 8 * fall**1.5 + rng.gamma(2, 0.6, size=(L, T)))
    kl = 9 * fall * np.exp(0.3 * rng.normal(size=(L, T)))
    kl[-1] = 0
    next_ids = np.append(ids[1:], -1)
    next_lp = np.minimum(
        -0.01, -7 * fall - rng.exponential(2, size=(1, T)) + rng.normal(0, 0.4, (L, T))
    )
    next_lp[:, -1] = np.nan
    ranks = np.exp(np.nan_to_num(-next_lp).clip(0, 20) * 0.9).astype(np.int32) + 1
    ranks[:, -1] = 0
    track = np.array([names_id(names, " Paris"), *range(100, 100 + max(0, M - 1))][:M], np.int32)
    track_lp = np.minimum(-0.02, -8 * fall[..., None] - 1 + rng.normal(0, 0.5, (L, T, M)))
    used = {*ids.tolist(), *top_ids.ravel().tolist(), *track.tolist()}
    return Reading(
        ids=ids,
        pieces=[names[int(i)] for i in ids],
        layers=["embed", *map(str, range(L - 1))],
        top_ids=top_ids,
        top_logprobs=top_lp,
        entropy=entropy,
        kl=kl,
        next_ids=next_ids,
        next_logprobs=next_lp,
        next_ranks=ranks,
        track_ids=track,
        track_logprobs=track_lp,
        track_ranks=np.exp(-track_lp * 0.9).astype(np.int32) + 1,
        vocab={i: names[i] for i in used},
        meta=meta(model, lens, prompt),
    )


def with_candidates(reading: Reading, C: int = 5) -> Reading:
    """The same with the C first tokens of its last row followed through every layer."""
    rng = np.random.default_rng(C)
    ids = reading.top_ids[-1, :, :C]
    fall = np.linspace(9, 0, len(reading.layers), dtype=np.float32)[:, None, None]
    noise = np.exp(0.3 * rng.normal(size=(len(reading.layers), *ids.shape)))
    logprobs = reading.top_logprobs[-1:, :, :C] - fall * noise
    logprobs[-1] = reading.top_logprobs[-1, :, :C]
    return reading.replace(
        candidate_ids=ids,
        candidate_logprobs=logprobs,
        candidate_ranks=np.exp((-logprobs * 0.9).clip(0, 12)).astype(np.int32),
    )


def names_id(names: dict[int, str], text: str) -> int:
    return next(i for i, piece in names.items() if piece == text)


def meta(
    model: str = "openai-community/gpt2", lens: str = "logit", prompt: str | None = None
) -> dict:
    return {
        **({"prompt": prompt} if prompt else {}),
        "model": model,
        "revision": "607a30d783dfa663caf39e06633721c8d4cfcd7e",
        "lens": {"name": lens},
        "dtype": "float32",
        "check": {
            "ok": True,
            "max_abs_diff": 2.1e-6,
            "line": "last row equals the model's own logits at 10 positions: max |Δ log-prob| 2.1e-06",
        },
    }


def random(L: int, T: int, K: int, M: int, C: int = 2, seed: int = 0) -> Reading:
    """Numbers without any order, with missing ones, ties and infinities among them."""
    rng = np.random.default_rng(seed)
    V = 500
    lp = -np.sort(rng.exponential(3, size=(L, T, K)).astype(np.float32), axis=-1)
    lp[:, ::3, 1::2] = lp[:, ::3, :-1:2][..., : lp[:, ::3, 1::2].shape[-1]]  # exact ties
    ids = np.stack([rng.permutation(V)[:K] for _ in range(L * T)]).reshape(L, T, K)
    ids[:, 1::5, -1] = -1
    lp[:, 1::5, -1] = np.nan
    entropy = rng.exponential(3, size=(L, T))
    entropy[0, 0] = np.nan
    kl = rng.exponential(1, size=(L, T))
    kl[0, -1] = np.inf
    next_ids = rng.integers(0, V, T)
    next_ids[-1] = -1
    next_lp = -rng.exponential(5, size=(L, T))
    next_lp[:, -1] = np.nan
    next_ranks = rng.integers(1, 2**31 - 1, size=(L, T))
    next_ranks[:, -1] = 0
    return Reading(
        ids=rng.integers(0, V, T),
        pieces=[f"p{t}" for t in range(T)],
        layers=["embed", *map(str, range(L - 1))],
        top_ids=ids,
        top_logprobs=lp,
        entropy=entropy,
        kl=kl,
        next_ids=next_ids,
        next_logprobs=next_lp,
        next_ranks=next_ranks,
        track_ids=rng.integers(0, V, M),
        track_logprobs=-rng.exponential(5, size=(L, T, M)),
        track_ranks=rng.integers(1, V, size=(L, T, M)),
        candidate_ids=rng.integers(0, V, (T, C)),
        candidate_logprobs=-rng.exponential(5, size=(L, T, C)),
        candidate_ranks=rng.integers(1, V, size=(L, T, C)),
        vocab={i: f"v{i}" for i in range(V)},
        meta=meta(),
    )


# What a vocabulary may hold: the page must show each and be harmed by none.
HOSTILE = [
    "</script><script>document.title='owned'</script>",
    "<!--<script>",
    "\n",
    " \t ",
    "",
    "שלום",
    "مرحبا بالعالم",
    "日本語",
    "\u0301",
    "e\u0301\u0302\u0303",
    "👩‍👩‍👧‍👦",
    "\u202etxet desrever",
    "\u200b",
    "\u2028\u2029",
    "\x00\x1b[31m",
    "x" * 10_000,
    "“quoted” & <b>bold</b>",
    "\ud800",
    "same",
    "same",
]


def hostile() -> Reading:
    """The hostile pieces as prompt and as predictions, and an emoji split over three byte tokens."""
    L, K = 4, 5
    n = len(HOSTILE)
    split = {n: "⟨F0 9F⟩", n + 1: "⟨98⟩", n + 2: "⟨80⟩"}
    vocab = dict(enumerate(HOSTILE)) | split
    T = len(vocab)
    rng = np.random.default_rng(5)
    top = np.stack([rng.permutation(T)[:K] for _ in range(L * T)]).reshape(L, T, K)
    top[:, n + 1, 0] = n + 2  # the byte that completes the emoji
    lp = -np.sort(rng.exponential(1, size=(L, T, K)), axis=-1)
    pieces = [*HOSTILE, "😀⟨1/3⟩", "😀⟨2/3⟩", "😀⟨3/3⟩"]
    fragments = {str(n): "f09f", str(n + 1): "98", str(n + 2): "80"}
    return Reading(
        ids=np.arange(T),
        pieces=pieces,
        layers=["embed", "0", "1", "2"],
        top_ids=top,
        top_logprobs=lp,
        entropy=rng.exponential(1, (L, T)),
        kl=rng.exponential(1, (L, T)),
        next_ids=np.append(np.arange(1, T), -1),
        next_logprobs=np.where(np.arange(T) == T - 1, np.nan, -rng.exponential(1, (L, T))),
        next_ranks=np.where(np.arange(T) == T - 1, 0, rng.integers(1, 99, (L, T))),
        track_ids=np.zeros(0),
        track_logprobs=np.zeros((L, T, 0)),
        track_ranks=np.zeros((L, T, 0)),
        vocab=vocab,
        meta=meta() | {"vocab_bytes": fragments, "prompt": "".join(HOSTILE)},
    )
