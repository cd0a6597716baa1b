"""Group prompts of different lengths into batches, and take the padding off other tools' batches.

Padding is on the right: in a causal model, which loading has checked it to be, nothing to the right
of a token reaches it, so no family needs position ids. Left padding does need them: GPT-2 padded on
the left without position ids is off by 5.7 logits.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from logitlens.errors import PromptError
from logitlens.model.tokens import whole
from logitlens.readout.transfer import sent

if TYPE_CHECKING:
    from logitlens.model.lens_model import LensModel

CHECKED = 16 << 20  # final logits of a batch that are compared with the model's own (64 MB of each)


@dataclass(frozen=True, eq=False)
class Padded:
    """Several prompts as one tensor (B, T), and the further arguments of the forward."""

    ids_BT: Tensor
    extra: dict[str, Any]


def padded(ids: Sequence[Tensor], device: torch.device) -> Padded:
    """Right-padded ids. The pad is the prompt's own last token, which the model certainly knows.

    A mask is given only where there is something to mask, so that a prompt by itself runs exactly
    as it does outside logitlens.
    """
    longest = max(len(i) for i in ids)
    rows = [torch.cat([i, i[-1:].expand(longest - len(i))]) for i in ids]
    ids_BT = sent(torch.stack(rows), device)
    if all(len(i) == longest for i in ids):
        return Padded(ids_BT, {})
    lengths = sent(torch.tensor([len(i) for i in ids], device="cpu", dtype=torch.long), device)
    mask_BT = (torch.arange(longest, device=device, dtype=torch.long) < lengths[:, None]).long()
    return Padded(ids_BT, {"attention_mask": mask_BT})


def batches(
    lengths: Sequence[int],
    token_budget: int = 4096,
    *,
    alone_beyond: int | None = None,
    most: int = sys.maxsize,
) -> list[list[int]]:
    """Indices of prompts, grouped by length so that each padded batch fits `token_budget` tokens.

    A prompt longer than the budget runs alone. Prompts longer than `alone_beyond` tokens share a
    batch with prompts of the same length only; no batch has more than `most`. Every index occurs once.

    Raises PromptError for a budget below 1.
    """
    budget = whole(token_budget)
    if budget is None or budget < 1:
        raise PromptError(f"token_budget={token_budget!r}: expected at least 1 token")
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        # Longest first: a group's first member is its padded width.
        width = lengths[groups[-1][0]] if groups else 0
        fits = groups and width * (len(groups[-1]) + 1) <= budget and len(groups[-1]) < most
        apart = alone_beyond is not None and width > alone_beyond and width != lengths[index]
        if fits and not apart:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def batches_of(model: LensModel, lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """`batches` of prompts of which none changes another, as a model has been found to run them."""
    alone_beyond = rescales_beyond(model.hf.config)
    if len(set(lengths)) > 1 and not model._pads_change_nothing:
        alone_beyond = 0  # only prompts of one length share a batch
    most = max(1, CHECKED // model.vocab_size)
    return batches(lengths, token_budget, alone_beyond=alone_beyond, most=most)


def rescales_beyond(config: Any) -> int | None:
    """The length from which on a model's rotary frequencies depend on its longest prompt, or None.

    "dynamic" and "longrope" scaling look at the whole batch: a short prompt beside a long one would
    be computed with the long one's frequencies.
    """
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    limits = []
    for rope in _ropes(getattr(text, "rope_parameters", None)):
        if rope.get("rope_type") not in ("dynamic", "longrope"):
            continue
        limit = rope.get("original_max_position_embeddings")
        limit = limit or getattr(text, "original_max_position_embeddings", None)
        limit = limit or getattr(text, "max_position_embeddings", None)
        limits.append(limit if isinstance(limit, int) else 0)
    return min(limits, default=None)


def _ropes(parameters: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(parameters, Mapping):
        yield parameters
        for value in parameters.values():  # one set for each kind of layer
            yield from _ropes(value)


def unpadded(encoding: Mapping[Any, Any]) -> list[list[int]]:
    """What a tokenizer returns (`input_ids`, `attention_mask`) → each prompt's ids without pads.

    Takes one prompt or a batch, padded left or right, as lists, arrays or tensors. Raises
    PromptError where there are no ids, or the mask does not fit them or has holes.
    """
    if "input_ids" not in encoding:
        raise PromptError(
            f"expected input_ids as a tokenizer returns them, got {', '.join(map(str, encoding))}"
        )
    ids, mask = encoding["input_ids"], encoding.get("attention_mask")
    rows = _rows(ids)
    masks = [np.ones(len(row), int) for row in rows] if mask is None else _rows(mask)
    if [len(r) for r in rows] != [len(m) for m in masks]:
        raise PromptError("attention_mask does not have the shape of input_ids")
    out = []
    for row, kept in zip(rows, masks):
        where = np.flatnonzero(kept)
        if len(where) and where[-1] - where[0] + 1 != len(where):
            raise PromptError(
                "attention_mask has a hole: expected pads on the left or the right only"
            )
        out.append([int(i) for i in row[where]])
    return out


def _rows(values: Any) -> list[np.ndarray]:
    if isinstance(values, Tensor):
        values = values.cpu().numpy()
    if len(values) and np.ndim(values[0]) == 0:
        values = [values]
    rows = [np.asarray(v.cpu() if isinstance(v, Tensor) else v) for v in values]
    if any(row.ndim != 1 or (row.size and row.dtype.kind not in "iub") for row in rows):
        raise PromptError("expected integer ids in one or two dimensions")
    return rows
