"""Optimizers of a tuned lens, and their learning-rate schedule."""

from __future__ import annotations

from typing import Any

import torch

from logitlens.errors import PromptError
from logitlens.fit.affine import AffineMaps

LEARNING_RATE = {"sgd": 1.0, "adamw": 1e-3, "muon": 0.02}


def make_optimizers(maps: AffineMaps, settings: Any) -> list[torch.optim.Optimizer]:
    """The optimizers of `settings`, which share the parameters; raises PromptError for no such name.

    sgd    Nesterov; the learning rate is scaled by 1 − momentum, which torch's own update is not, so
           that 1.0 is a good rate for any model (Belrose et al. 2023)
    muon   for the matrices (Jordan et al. 2024), adamw at its own rate for the biases
    """
    name, momentum, decay = settings.optimizer, settings.momentum, settings.weight_decay
    if name not in LEARNING_RATE:
        raise PromptError(f"optimizer {name!r}: expected {', '.join(LEARNING_RATE)}")
    lr = LEARNING_RATE[name] if settings.lr is None else settings.lr
    parameters = list(maps.parameters.values())
    if name == "sgd":
        return [
            torch.optim.SGD(
                parameters,
                lr=lr * (1 - momentum),
                momentum=momentum,
                nesterov=momentum > 0,
                weight_decay=decay,
            )
        ]
    if name == "adamw":
        return [torch.optim.AdamW(parameters, lr=lr, betas=(momentum, 0.999), weight_decay=decay)]
    if not hasattr(torch.optim, "Muon"):
        raise PromptError(f"optimizer muon needs torch 2.9 or newer; this is {torch.__version__}")
    matrices = [p for p in parameters if p.ndim == 2]
    vectors = [p for p in parameters if p.ndim != 2]
    adamw_lr = lr * LEARNING_RATE["adamw"] / LEARNING_RATE["muon"]
    return [
        torch.optim.Muon(matrices, lr=lr, momentum=momentum, weight_decay=decay),
        torch.optim.AdamW(vectors, lr=adamw_lr, weight_decay=decay),
    ]


def schedule(step: int, settings: Any) -> float:
    """Factor of the learning rate at a step (0-based): linear warm-up, then linear decay to 0."""
    warmup = settings.warmup
    if warmup is None:
        warmup = 0 if settings.optimizer == "sgd" else min(1000, settings.steps // 5)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if not settings.decay:
        return 1.0
    return max(0.0, (settings.steps - step) / max(1, settings.steps - warmup))
