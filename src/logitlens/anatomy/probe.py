"""The forward pass in which a model is looked at: two short prompts, every call outside its blocks.

A model whose logits are not finite, or that looks ahead, is refused here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from logitlens.anatomy.check import distance
from logitlens.anatomy.forward import (
    accepts,
    embeddings,
    input_device,
    logits,
    model_dtype,
    refusing,
)
from logitlens.anatomy.inputs import with_inputs
from logitlens.anatomy.watch import Call, watching
from logitlens.errors import UnsupportedModel

BATCH = 2
POSITIONS = 11
NOISE = 100  # units of rounding that a model may make by itself; what is random makes more


class NotCausal(UnsupportedModel):
    """A later token changes an earlier position."""


@dataclass(frozen=True, eq=False)
class Observation:
    """One watched forward pass of a model: its ids, its calls, and the logits."""

    model: nn.Module
    ids_BT: Tensor
    vocab: int
    calls: list[Call]
    logits_BTV: Tensor


def probe(model: nn.Module, tokenizer: Any = None) -> Observation:
    """Watch a pass over the probe's prompts.

    A prefix model (PaliGemma), which attends both ways among tokens of type 0 and causally among
    those of type 1, is observed, and later read, with type 1 throughout.

    Raises UnsupportedModel where the forward fails or has no logits, where they are not finite, and
    where a later token changes them.
    """
    try:
        return _observe(model, tokenizer)
    except NotCausal as refusal:
        if "token_type_ids" not in accepts(model):
            raise
        try:
            return _observe(with_inputs(model, {"token_type_ids": torch.ones_like}), tokenizer)
        except UnsupportedModel:
            raise refusal from None


def _observe(model: nn.Module, tokenizer: Any) -> Observation:
    ids_BT = probe_ids(model, tokenizer)
    B, T = ids_BT.shape
    watched, calls = list(_watched(model)), []
    with refusing(model, f"on a prompt of {T} tokens"):
        logits_BTV = logits(model, ids_BT, watching(watched, B, T, calls)).clone()
    _refuse_nonfinite(model, logits_BTV)
    _refuse_lookahead(model, ids_BT, logits_BTV)
    return Observation(model, ids_BT, logits_BTV.shape[-1], calls, logits_BTV)


def probe_ids(model: nn.Module, tokenizer: Any = None, length: int = POSITIONS) -> Tensor:
    """Two prompts of ordinary tokens, equal but for the last one: (2, T) on the model's device."""
    embedding, device = embeddings(model, "input"), input_device(model)
    config: Any = getattr(model, "config", None)
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    sizes = (getattr(text, "vocab_size", None), getattr(embedding, "num_embeddings", None))
    vocab = min((v for v in sizes if isinstance(v, int) and v > 0), default=0)
    if vocab < 4:
        raise UnsupportedModel(
            f"{type(model).__name__} has no vocabulary of token ids: not a causal language model"
        )
    special = {v for c in (config, text) for v in _special_ids(c)}
    usual = [i for i in range(min(vocab, 50_000)) if i not in special]
    context = getattr(text, "max_position_embeddings", None)
    if isinstance(context, int) and BATCH < context < length:
        length = context
    generator = torch.Generator().manual_seed(5)
    picks = torch.randint(
        len(usual), (length + 1,), generator=generator, dtype=torch.long, device="cpu"
    )
    ids = [usual[i] for i in picks]
    if ids[-1] == ids[-2]:
        ids[-1] = usual[(int(picks[-1]) + 1) % len(usual)]
    if tokenizer is not None:
        # A tokenizer may know more tokens than the model: reading says so, loading need not fail.
        words = [i for i in tokenizer("The quick brown fox")["input_ids"][:5] if i < vocab]
        words = words[: length - 1]
        ids[: len(words)] = words
    one = torch.tensor(ids[:length], dtype=torch.long, device="cpu")
    two = one.clone()
    two[-1] = ids[-1]
    return torch.stack([one, two]).to(device)


def _special_ids(config: Any) -> set[int]:
    found: set[int] = set()
    for name, value in vars(config).items() if config is not None else ():
        if name.endswith(("_token_id", "_token_index", "_id")):
            values = value if isinstance(value, (list, tuple)) else [value]
            found |= {v for v in values if isinstance(v, int)}
    return found


def _watched(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module outside block lists, and every member of one."""
    seen: set[int] = set()
    inside: tuple[str, ...] = ()
    for path, module in model.named_modules():
        if not path or id(module) in seen or isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            continue
        if path.startswith(inside or ("\0",)):
            continue
        seen.add(id(module))
        yield path, module
        parent, _, name = path.rpartition(".")
        if name.isdigit() and isinstance(model.get_submodule(parent), nn.ModuleList):
            inside = (*inside, path + ".")


def _refuse_nonfinite(model: nn.Module, logits_BTV: Tensor) -> None:
    """Raise UnsupportedModel where the logits hold nan or +inf, naming a weight that does."""
    bad = logits_BTV.isnan() | (logits_BTV == torch.inf)
    if not bool(bad.any()):
        return
    guilty = next(
        (n for n, p in model.named_parameters() if p.device.type != "meta" and p.isnan().any()),
        None,
    )
    where = f"the weight {guilty} holds nan" if guilty else "no weight does: try dtype='float32'"
    count = int(bad.any(-1).sum())
    raise UnsupportedModel(
        f"{type(model).__name__}: its own logits are not finite at {count} of "
        f"{bad[..., 0].numel()} positions ({where})"
    )


def _refuse_lookahead(model: nn.Module, ids_BT: Tensor, logits_BTV: Tensor) -> None:
    """Raise NotCausal where a later token changes an earlier position's logits.

    More than a usual pass's rounding may be this model's own: it shows where the same prompt, in the
    other place of the batch, differs as much.
    """
    one, two = logits_BTV[0, :-1], logits_BTV[1, :-1]
    apart = distance(one, two, model_dtype(model))
    if apart.rounding <= 1:
        return
    with refusing(model, f"on a prompt of {ids_BT.shape[1]} tokens"):
        swapped_BTV = logits(model, ids_BT.flip(0))
    noise = distance(one, swapped_BTV[1, :-1], model_dtype(model))
    if apart.rounding > min(4 * noise.rounding, NOISE):
        raise NotCausal(
            f"{type(model).__name__} is not causal: changing the last token changes earlier "
            f"positions by {apart.nats:.2g} nats. Encoders and masked models have no logit "
            "lens; a decoder of such a family needs is_decoder=True in its configuration"
        )
