"""The residual stream with a gradient: from one depth to the last, through the model's own blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from logitlens.anatomy.forward import as_found, forward, unwrap
from logitlens.anatomy.watch import leaf, replace_leaf
from logitlens.errors import UnsupportedModel
from logitlens.model.capture import input_device, padded


class _Enough(Exception):
    """Raised behind the last block: the unembedding is not needed."""


@contextmanager
def differentiable(model: Any) -> Iterator[None]:
    """Inside: evaluation mode, gradients for activations, none for parameters. Then as before."""
    hf = unwrap(model.hf)
    flags = [(p, p.requires_grad) for p in hf.parameters()]
    with as_found(hf), torch.enable_grad():
        try:
            for parameter, flag in flags:
                if flag:
                    parameter.requires_grad_(False)
            yield
        finally:
            for parameter, flag in flags:
                if flag:
                    parameter.requires_grad_(True)


def run(
    model: Any, prompts: Sequence[Tensor], depths: Sequence[int], copies: int = 1
) -> dict[int, Tensor]:
    """Depth → the stream at `depths` and at N, as the model carries it, joined by one autograd graph.

    prompts   token ids, each (T,); padded on the right, which a causal model cannot see
    copies    how often each prompt stands in the batch, next to itself

    The graph begins at the first depth wanted; what came before is not kept. To be called inside
    `differentiable`. Raises UnsupportedModel where no gradient reaches from the last depth back.
    """
    hf, anatomy = unwrap(model.hf), model.anatomy
    batch = padded([ids for ids in prompts for _ in range(copies)], input_device(hf))
    first, last = min(depths), len(anatomy.blocks)
    kept: dict[int, Tensor] = {}

    def take(depth: int, tensor: Tensor) -> Tensor:
        """Keep the stream here; hand on a copy, because models add into the stream in place."""
        if depth == first:
            tensor = tensor.detach().requires_grad_(True)
        kept[depth] = tensor
        return tensor.clone()

    with ExitStack() as stack:
        for depth in sorted({*depths, last}):
            if depth == 0:
                module, slot = anatomy.entry
                hook: Any = module.register_forward_pre_hook(
                    _entering(take, slot), with_kwargs=True
                )
            else:
                leaving = _leaving(take, depth, anatomy.exits[depth - 1], depth == last)
                hook = anatomy.blocks[depth - 1].register_forward_hook(leaving)
            stack.callback(hook.remove)
        try:
            forward(hf, batch.ids_BT, **{**batch.extra, **getattr(model, "extra", {})})
        except _Enough:
            pass
    if not kept[last].requires_grad:
        raise UnsupportedModel(
            f"{model.name}: no gradient reaches from the last block back to depth {first} "
            "(a quantised or custom layer without a backward pass?)"
        )
    return kept


def _entering(take: Any, slot: Any) -> Any:
    def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
        given = leaf({"args": args, "kwargs": kwargs}, slot)
        new = replace_leaf({"args": args, "kwargs": kwargs}, slot, take(0, given))
        return new["args"], new["kwargs"]

    return hook


def _leaving(take: Any, depth: int, slot: Any, last: bool) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        passed_on = take(depth, leaf(output, slot))
        if last:
            raise _Enough
        return replace_leaf(output, slot, passed_on)

    return hook
