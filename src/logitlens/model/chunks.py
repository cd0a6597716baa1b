"""A long prompt in parts: each runs through the model with the keys and values of those before it.

What is held is that cache, which the model needs in any case, and one part's residuals. Whether a
model computes the same in parts as in one pass is proven on a probe before it is relied on.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from logitlens.anatomy.check import compare
from logitlens.anatomy.forward import accepts
from logitlens.anatomy.tail import probe_ids
from logitlens.errors import PromptError, UnsupportedModel
from logitlens.model.batches import rescales_beyond
from logitlens.model.capture import Cache, Progress, Residuals, capture

MASK = 2 << 20  # positions of a part × positions up to its end: a model makes a mask of that size
LEAST = 16  # positions of a part, however long the prompt


def ends(T: int, size: int) -> list[int]:
    """Where the parts of T positions end: `size` each, halved when the mask would grow too large.

    Few different sizes: libraries keep a compiled product for each they have seen.
    """
    out = []
    start = 0
    while start < T:
        while size > LEAST and size * (start + size) > MASK:
            size = -(-size // 2)
        start = min(T, start + size)
        out.append(start)
    return out


def capture_in_parts(
    model: Any,
    ids: Sequence[int],
    stops: Sequence[int],
    *,
    depths: Sequence[int] | None = None,
    stream: str = "resid",
    progress: Progress | None = None,
) -> Iterator[tuple[int, Residuals]]:
    """Token ids → (first position, residuals) of the parts that end at `stops`, as they are run.

    Raises UnsupportedModel where the model keeps no cache; else as `capture`.
    """
    cache, start = Cache() if len(stops) > 1 else None, 0
    try:
        for number, stop in enumerate(stops):
            (residuals,) = capture(
                model, [ids[start:stop]], depths=depths, stream=stream, cache=cache,
                progress=_of_all(progress, number, len(stops)),
            )  # fmt: skip
            if cache is not None and cache.past is None:
                raise UnsupportedModel(
                    f"{type(model.hf).__name__} keeps no cache of keys and values: read the prompt "
                    "whole, without chunk"
                )
            if number == 0 and cache is not None:
                _grow_in_place(cache.past, len(ids))
            yield start, residuals
            del residuals
            if stop < stops[-1]:
                _trim()
            start = stop
    finally:
        _let_go(cache)


def _grow_in_place(past: Any, T: int) -> None:
    """Give the layers of a transformers cache room for T positions.

    They would join old and new keys with every part: copies that grow, in ever new memory. Layers
    of other kinds (a window, a state) are small and stay as they are.
    """
    for layer in getattr(past, "layers", ()):
        if type(layer) is DynamicLayer and layer.is_initialized:
            layer.update = _Room(layer, T)  # pyright: ignore[reportAttributeAccessIssue]


def _trim() -> None:
    """Hand freed memory back to the system, where the C library is glibc.

    Every part needs a mask a little larger than the last; glibc keeps the pieces of those before,
    none of which is large enough again, twice as much at 32k positions.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, TypeError, AttributeError):
        pass  # another C library


def _let_go(cache: Cache | None) -> None:
    """Undo `_grow_in_place`: a layer and its room hold each other, and would outlive the reading."""
    for layer in getattr(cache and cache.past, "layers", ()):
        vars(layer).pop("update", None)


class _Room:
    """`DynamicLayer.update`, writing into memory that is there."""

    def __init__(self, layer: Any, T: int):
        self.layer = layer
        self.rooms = [
            part.new_empty(*part.shape[:-2], T, part.shape[-1])
            for part in (layer.keys, layer.values)
        ]
        held = layer.keys, layer.values
        layer.keys, layer.values = (room[..., :0, :] for room in self.rooms)
        self(*held)

    def __call__(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        held = self.layer.keys.shape[-2]
        stop = held + keys.shape[-2]
        for room, new in zip(self.rooms, (keys, values)):
            room[..., held:stop, :] = new
        self.layer.keys, self.layer.values = (room[..., :stop, :] for room in self.rooms)
        return self.layer.keys, self.layer.values


def _of_all(progress: Progress | None, number: int, parts: int) -> Progress | None:
    """Progress of one part, as progress of all."""
    if progress is None or parts == 1:
        return progress
    return lambda what, done, total: progress(what, number * total + done, parts * total)


def why_not(model: Any, length: int) -> str | None:
    """The reason why a model cannot read so many positions in parts, or None.

    Asked of the model: the logits of a probe in three parts, the last of one token, against those
    of one pass.
    """
    limit = rescales_beyond(model.hf.config)
    if limit is not None and length > limit:
        return f"its rotary frequencies depend on the length of the prompt beyond {limit} tokens"
    known = accepts(model.hf)
    if not {"use_cache", "past_key_values"} <= known:
        return "its forward takes no cache of keys and values"
    return model.differs_in_parts


def differs_in_parts(model: Any) -> str | None:
    """How a probe's logits in parts differ from those of one pass, or None where they do not."""
    ids = probe_ids(model.hf, model.tokenizer).tolist()[0]
    last = [len(model.anatomy.blocks)]
    (whole,) = capture(model, [ids], depths=last, check_positions="all")
    try:
        parts = capture_in_parts(model, ids, [len(ids) // 2, len(ids) - 1, len(ids)], depths=last)
        h_TD = torch.cat([residuals.h[-1] for _, residuals in parts])
    except UnsupportedModel as error:
        return str(error)
    check = compare(
        whole.final_logits, model.tail.logits(h_TD), model.dtype, tolerance=model.check.tolerance
    )
    if check.ok:
        return None
    return (
        f"its log-probabilities with a cache differ by up to {check.max_abs_diff:.2g} nats from those "
        f"of one pass (tolerance {check.tolerance:.1e})"
    )


def parts_of(model: Any, ids: Sequence[int], chunk: int) -> list[int]:
    """Where the parts of a prompt end, for a model that has proven to read in parts.

    Raises PromptError for a chunk below 1, UnsupportedModel with the reason where the model reads
    differently in parts.
    """
    if not isinstance(chunk, (int, np.integer)) or chunk < 1:
        raise PromptError(f"chunk={chunk!r}: expected at least 1 position")
    stops = ends(len(ids), int(chunk))
    if len(stops) > 1 and (reason := why_not(model, len(ids))):
        raise UnsupportedModel(
            f"{model.name} cannot be read in parts: {reason}; read the prompt whole, without chunk"
        )
    return stops
