"""The plain logit lens, on plain transformers: what GPT-2 would say after each block.

Independent of the package on purpose: the recipe evaluates the weights without the tool they ship with.
"""

from __future__ import annotations

import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase


@torch.no_grad()
def residuals(model: GPT2LMHeadModel, ids_BT: torch.Tensor) -> list[torch.Tensor]:
    """The residual stream (B, T, D) at depth 0 … N: before the first block, after each block."""
    kept: list[torch.Tensor] = []
    blocks = model.transformer.h
    hooks = [blocks[0].register_forward_pre_hook(lambda _m, args: kept.append(args[0]))]
    for block in blocks:
        hooks.append(
            block.register_forward_hook(
                lambda _m, _a, out: kept.append(out[0] if isinstance(out, tuple) else out)
            )
        )
    try:
        model.transformer(ids_BT, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return kept


@torch.no_grad()
def trace(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, prompt: str
) -> list[tuple[str, float]]:
    """(token, probability) of the top token after ``prompt`` at depth 0 … N."""
    ids = torch.tensor([tokenizer(prompt).input_ids])
    found = []
    for h_BTD in residuals(model, ids):
        probs = model.lm_head(model.transformer.ln_f(h_BTD[0, -1])).float().softmax(-1)
        top = int(probs.argmax())
        found.append((tokenizer.decode([top]), float(probs[top])))
    return found
