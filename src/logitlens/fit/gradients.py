"""The residual stream with a gradient: from one depth to the last, through the model's own blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from logitlens.anatomy.forward import as_found, forward, input_device
from logitlens.anatomy.readable import Readable
from logitlens.errors import UnsupportedModel
from logitlens.model.batches import padded
from logitlens.select import layer_label


class _Enough(Exception):
    """Raised after the last block: the unembedding is not needed."""


@contextmanager
def differentiable(model: Readable) -> Iterator[None]:
    """Inside: evaluation mode, gradients for activations, none for parameters. Then as before."""
    with as_found(model.hf), torch.enable_grad():
        trained = [p for p in model.hf.parameters() if p.requires_grad]
        try:
            for parameter in trained:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)


def run(
    model: Readable, prompts: Sequence[Tensor], depths: Sequence[int], copies: int = 1
) -> dict[int, Tensor]:
    """Depth → the stream at `depths` and at N, as the model carries it, joined by one autograd graph.

    prompts   token ids, each (T,); padded on the right, which a causal model cannot see
    copies    how often each prompt is in the batch, next to itself

    The graph begins at the first depth wanted; what came before is not kept. To be called inside
    `differentiable`. Raises UnsupportedModel where no gradient reaches from the last depth back.
    """
    anatomy = model.anatomy
    batch = padded([ids for ids in prompts for _ in range(copies)], input_device(model.hf))
    first, last = min(depths), len(anatomy.blocks)
    kept: dict[int, Tensor] = {}

    def take(depth: int, stream: Tensor) -> Tensor:
        """Keep the stream here; hand on a copy, because models add into the stream in place."""
        kept[depth] = stream.detach().requires_grad_(True) if depth == first else stream
        if depth == last:
            raise _Enough
        return kept[depth].clone()

    with anatomy.following([*depths, last], take):
        try:
            forward(model.hf, batch.ids_BT, **batch.extra)
        except _Enough:
            pass
    if not kept[last].requires_grad:
        raise UnsupportedModel(
            f"{model.name}: no gradient reaches layer {layer_label(first)} from the last block "
            "(a quantised or custom layer without a backward pass?)"
        )
    return kept
