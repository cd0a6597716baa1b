"""Readings as one tidy table: a row for each prompt × lens × layer × position."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from logitlens import statistics
from logitlens.errors import FormatError, MissingExtra
from logitlens.reading import Reading
from logitlens.select import layer_number

if TYPE_CHECKING:
    import pandas


def table(readings: Iterable[Reading] | Reading) -> pandas.DataFrame:
    """Readings → a pandas DataFrame with a row for each reading × layer × position.

        frame = logitlens.table(model.read_batch(prompts, track=answers))
        frame.groupby("layer", observed=True).kl.mean().plot()

    prompt, model, lens, layer, position, token   where the row is; layer is an ordered categorical
                                                  (embed < 0 < 1 < … < 10), so that it sorts as numbers
    role, section                                 of chats: whose words, and of which kind
    top, prob, entropy, kl                        the top token and its probability; nats
    agree, ahead                                  whether the top token is already the model's own;
                                                  how many positions on it occurs (missing: nowhere)
    next, next_prob, next_rank                    the token that follows, missing at the end
    answer, answer_prob, answer_rank              the model's own top token of that position
    track_1, track_1_prob, track_1_rank, …        tokens tracked, in the order they were asked for: with
                                                  `read_batch(track=[[…], …])` the first of each prompt

    Raises FormatError for no readings, MissingExtra without pandas.
    """
    try:
        import pandas
    except ImportError as error:
        raise MissingExtra("pandas", "data", "table()") from error
    readings = [readings] if isinstance(readings, Reading) else list(readings)
    if not readings:
        raise FormatError("a table needs at least one reading, got none")
    frame = pandas.concat([pandas.DataFrame(_columns(r)) for r in readings], ignore_index=True)
    names = {label for reading in readings for label in reading.layers}
    order = sorted(names, key=lambda x: -1 if (number := layer_number(x)) is None else number)
    frame["layer"] = pandas.Categorical(frame["layer"], order, ordered=True)
    return frame


def _columns(reading: Reading) -> dict[str, Any]:
    """One reading's columns, all of L × T rows."""
    L, T, _ = reading.shape

    def per_cell(values: Any) -> np.ndarray:
        return np.broadcast_to(values, (L, T)).reshape(-1)

    def words(ids: np.ndarray) -> np.ndarray:
        return np.array([reading.piece(int(i)) if i != -1 else None for i in ids.flat], object)

    def token(name: str, ids: Any, logprobs: np.ndarray, ranks: np.ndarray) -> dict[str, Any]:
        known = np.where(ranks > 0, ranks, np.nan)
        ids = per_cell(ids)
        return {name: words(ids), f"{name}_prob": np.exp(logprobs).reshape(-1),
                f"{name}_rank": known.reshape(-1)}  # fmt: skip

    spoken = [s.name for s in statistics.stored() if s.dtype == "str" and not s.absent(reading)]
    out: dict[str, Any] = {
        "prompt": reading.prompt,
        "model": str(reading.meta.get("model", "")),
        "lens": reading.lens_name,
        "layer": np.repeat(np.array(reading.layers, object), T),
        "position": per_cell(np.array(reading.positions)),
        "token": per_cell(np.array(reading.pieces, object)),
        **{name: per_cell(getattr(reading, name).astype(object)) for name in spoken},
        "top": words(reading.top_ids[:, :, 0]),
        "prob": np.exp(reading.top_logprobs[:, :, 0]).reshape(-1),
    }
    out["agree"] = (reading.top_ids[:, :, 0] == reading.top_ids[-1, :, 0]).reshape(-1)
    ahead = reading._ahead().reshape(-1)
    out["ahead"] = np.where(ahead > 0, ahead, np.nan)
    for statistic in statistics.stored():
        if statistic.axes == "LT" and not statistic.name.startswith("next_"):
            out[statistic.name] = getattr(reading, statistic.name).reshape(-1)
    out |= token("next", reading.next_ids, reading.next_logprobs, reading.next_ranks)
    if reading.candidate_ids.shape[1]:
        logprobs, ranks = reading.candidate_logprobs[..., 0], reading.candidate_ranks[..., 0]
        out |= token("answer", reading.candidate_ids[:, 0], logprobs, ranks)
    for m, tracked in enumerate(reading.track_ids):
        logprobs, ranks = reading.track_logprobs[..., m], reading.track_ranks[..., m]
        out |= token(f"track_{m + 1}", tracked, logprobs, ranks)
    return out
