"""Read a long prompt in chunks: each runs through the model after the cache of those before it.

Held are that cache, which the model needs in any case, and the residuals of one chunk. The model makes
the cache in a first pass of one token; whatever in it would forget is then replaced. transformers drops
keys wherever a configuration names a window, also for models that attend to everything; a model that
does have windows masks what is outside them.

Whether a model computes the same in chunks as in one pass is measured before it is relied on, see
`why_not`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
)

from logitlens.anatomy.check import distance
from logitlens.anatomy.forward import accepts
from logitlens.anatomy.probe import probe_ids
from logitlens.errors import PromptError, UnsupportedModel
from logitlens.model.batches import rescales_beyond
from logitlens.model.capture import Cache, Progress, Residuals, capture
from logitlens.model.tokens import whole

if TYPE_CHECKING:
    from logitlens.model.edits import Prepared
    from logitlens.model.lens_model import LensModel

MASK = 2 << 20  # positions of a chunk × positions up to its end: a model makes a mask of that size
LEAST = 16  # positions of a chunk, however long the prompt
PROBE = 2048  # positions of a probe, unless the configuration names a longer window
LONGEST_PROBE = 8192  # whatever it names: the probe runs in one pass
ROUNDING = 6.0  # of `distance`, times √blocks; at most 2.3 among 60 tiny models
COMPARED = 32  # positions of a probe whose logits are compared: those whose residuals differ most

# Words in the names of configuration entries that count positions: windows, states and blocks.
COUNTS_POSITIONS = ("window", "chunk", "block", "local", "conv", "kernel")


def ends(T: int, size: int) -> list[int]:
    """Where the chunks of T positions end: after the first position, in which the model makes its
    cache, then after `size` each, halved when the mask would grow too large.

    Few different sizes: libraries keep a compiled product for each they have seen.
    """
    if size >= T:
        return [T]
    out = [1]
    start = 1
    while start < T:
        while size > LEAST and size * (start + size) > MASK:
            size = -(-size // 2)
        start = min(T, start + size)
        out.append(start)
    return out


def stops_of(model: LensModel, T: int, chunk: int) -> list[int]:
    """Where the chunks of a prompt of T tokens end, for a model that computes the same in chunks.

    Raises PromptError for a chunk below 1, UnsupportedModel with the reason where the model computes
    something else in chunks.
    """
    size = whole(chunk)
    if size is None or size < 1:
        raise PromptError(f"chunk={chunk!r}: expected at least 1 position")
    stops = ends(T, size)
    if len(stops) > 1 and (reason := why_not(model, T, size)):
        raise UnsupportedModel(
            f"{model.name} cannot be read in chunks: {reason}; read the prompt whole, without chunk"
        )
    return stops


def capture_chunks(
    model: LensModel,
    ids: Sequence[int],
    stops: Sequence[int],
    *,
    depths: Sequence[int] | None = None,
    stream: str = "resid",
    progress: Progress | None = None,
    check: int | None = None,
    edits: Prepared | None = None,
) -> Iterator[tuple[int, Residuals]]:
    """Token ids → (first position, residuals) of the chunks that end at `stops`, as they are run.

    check   the position whose own logits its chunk keeps; of other chunks it is the last one
    edits   what is changed while the model runs; its positions are those of the whole prompt

    Raises UnsupportedModel where the model keeps no cache, and what `capture` raises.
    """
    argument = cache_argument(model.hf) if len(stops) > 1 else None
    cache, start = Cache(argument) if argument else None, 0
    for number, stop in enumerate(stops):
        (residuals,) = capture(
            model, [ids[start:stop]], depths=depths, stream=stream, cache=cache,
            progress=_of_all(progress, number, len(stops)),
            check=[check - start] if check is not None and start <= check < stop else None,
            edits=edits.chunk(start, len(ids)) if edits is not None and len(stops) > 1 else edits,
        )  # fmt: skip
        if cache is not None and start == 0:
            if cache.kept is None:
                raise UnsupportedModel(
                    f"{type(model.hf).__name__} keeps no cache of keys and values"
                )
            _forget_nothing(cache.kept, len(ids))
        yield start, residuals
        del residuals
        if stop < stops[-1]:
            _trim()
        start = stop


def why_not(model: LensModel, T: int, chunk: int) -> str | None:
    """The reason why a model cannot read T positions in chunks, or None.

    Measured: a probe of random tokens is run in one pass and in these chunks, the last of one token,
    and the logits are compared at the positions whose final residuals differ most, the last among
    them. The probe is as long as the prompt, rounded up to a power of two below the context, so that
    prompts of one length class share a probe; but no longer than 2048 tokens, or twice the longest
    window, state or block that the configuration names (at most 8192; 2048 with eager attention,
    whose memory grows with the square). A verdict is kept for each probe length and chunk; a probe
    that failed to run is tried again the next time.
    """
    config = model.hf.config
    limit = rescales_beyond(config)
    if limit is not None and limit < T:
        return f"its rotary frequencies depend on the length of the prompt beyond {limit} tokens"
    if cache_argument(model.hf) is None:
        return "its forward takes no cache of keys and values"
    length = probe_length(config, T, model.context)
    verdicts = model._chunk_verdicts
    if (length, chunk) not in verdicts:
        try:
            verdicts[length, chunk] = _difference(model, length, chunk)
        except UnsupportedModel as error:
            return str(error)
    return verdicts[length, chunk]


def probe_length(config: Any, T: int, context: int | None) -> int:
    """How many tokens of a probe stand for a prompt of T tokens; the rule is in `why_not`."""
    text = config.get_text_config(decoder=True)
    named = max(_position_counts(vars(text)), default=0)
    eager = getattr(text, "_attn_implementation", None) == "eager"
    longest = PROBE if eager else min(max(PROBE, 2 * named), LONGEST_PROBE)
    rounded = 1 << (T - 1).bit_length()
    # Some models hold a little less than the context they name.
    return min(rounded if context is None or rounded < context else T, longest)


def _position_counts(entries: Mapping[str, Any]) -> Iterator[int]:
    """Every size in a configuration that may count positions; some models nest their entries."""
    for name, value in entries.items():
        if isinstance(value, Mapping):
            yield from _position_counts({str(k): v for k, v in value.items()})
        elif type(value) is int and any(word in name for word in COUNTS_POSITIONS):
            yield value


def _difference(model: LensModel, length: int, chunk: int) -> str | None:
    """How a probe's logits in chunks differ from those of one pass, or None where they do not."""
    ids = probe_ids(model.hf, model.tokenizer, length)[0].tolist()
    last = [len(model.anatomy.blocks)]
    (whole,) = capture(model, [ids], depths=last)
    stops = sorted({1, *ends(length, chunk), length - 1, length})
    for _ in zip(range(2), capture_chunks(model, ids[::-1], stops)):
        pass  # what a model keeps elsewhere than in the cache will show
    chunks = [residuals for _, residuals in capture_chunks(model, ids, stops, depths=last)]
    whole_TD = whole.h[-1].float()
    chunks_TD = torch.cat([residuals.h[-1] for residuals in chunks]).float()
    apart_T = (whole_TD - chunks_TD).norm(dim=-1) / whole_TD.norm(dim=-1).clamp(min=1e-30)
    apart_T[-1] = torch.inf  # always compared
    where = apart_T.topk(min(COMPARED, length)).indices
    whole_PV, chunks_PV = (
        torch.cat([model.tail.logits(h_TD[where]).cpu(), residuals.final_logits.cpu()])
        for h_TD, residuals in ((whole_TD, whole), (chunks_TD, chunks[-1]))
    )
    apart = distance(whole_PV, chunks_PV, model.dtype)
    allowed = ROUNDING * len(model.anatomy.blocks) ** 0.5
    if apart.rounding <= allowed:
        return None
    return (
        f"its log-probabilities with a cache differ by up to {apart.nats:.2g} nats from those of one "
        f"pass, {apart.rounding / allowed:.2g} times as much as rounding may"
    )


def cache_argument(hf: Any) -> str | None:
    """The argument by which a model's forward takes a cache, or None."""
    known = accepts(hf)
    if not {"use_cache", "**"} & known:
        return None
    return next(
        (name for name in ("past_key_values", "cache", "cache_params") if name in known), None
    )


def _forget_nothing(cache: Any, T: int) -> None:
    """Replace the layers of a transformers cache that have a window; give the others room for T.

    States of other kinds stay as they are.
    """
    cache = getattr(cache, "self_attention_cache", cache)
    for i, layer in enumerate(getattr(cache, "layers", ())):
        if type(layer) in (DynamicLayer, DynamicSlidingWindowLayer):
            cache.layers[i] = Room(layer, T)
        elif type(layer) is LinearAttentionAndSlidingWindowAttentionLayer:
            cache.layers[i] = LinearAttentionAndFullAttentionLayer()
            vars(cache.layers[i]).update(vars(layer))


class Room(DynamicLayer):
    """A cache layer that forgets nothing, with memory for T positions from its first keys on.

    `DynamicLayer` joins old and new keys with every chunk: copies that grow, in ever new memory.
    """

    def __init__(self, layer: DynamicLayer, T: int):
        super().__init__()
        self.T = T
        if layer.keys is not None and layer.values is not None:
            self.update(layer.keys, layer.values)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take the memory; nothing is in it yet."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.rooms = [
            part.new_empty(*part.shape[:-2], self.T, part.shape[-1])
            for part in (key_states, value_states)
        ]
        self.keys, self.values = (room[..., :0, :] for room in self.rooms)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add keys and values behind those held, and return all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        held = self.get_seq_length()
        stop = held + key_states.shape[-2]
        for room, new in zip(self.rooms, (key_states, value_states)):
            room[..., held:stop, :] = new
        self.keys, self.values = (room[..., :stop, :] for room in self.rooms)
        return self.keys, self.values


def _trim() -> None:
    """Hand freed memory back to the system, where the C library is glibc.

    Every chunk needs a mask a little larger than the last; glibc keeps the pieces of those before,
    none of which is large enough again, twice as much at 32k positions.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, TypeError, AttributeError):
        pass  # another C library


def _of_all(progress: Progress | None, number: int, chunks: int) -> Progress | None:
    """Rescale one chunk's progress to the whole prompt."""
    if progress is None or chunks == 1:
        return progress
    return lambda what, done, total: progress(what, number * total + done, chunks * total)
