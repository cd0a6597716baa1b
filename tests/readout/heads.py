"""Heads and rows whose every part is visible: nothing tied, nothing small, nothing zero."""

from __future__ import annotations

import torch

from logitlens.readout.head import Head


def make_head(
    vocab: int = 4099,
    width: int = 24,
    *,
    dtype: torch.dtype = torch.float32,
    bias: bool = False,
    final_bias: bool = False,
    scale: float = 1.0,
    softcap: float | None = None,
    spread: float = 4.0,
    seed: int = 0,
) -> Head:
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(vocab, width, generator=g) * (spread / width**0.5)
    return Head(
        vocab,
        weight.to(dtype),
        torch.randn(vocab, generator=g).to(dtype) * 2 if bias else None,
        scale,
        softcap,
        torch.randn(vocab, generator=g).to(dtype) * 2 if final_bias else None,
    )


def make_rows(positions: int = 7, depths: int = 5, width: int = 24, seed: int = 1) -> torch.Tensor:
    """(T, L, E): every depth nearer to the final row, as in a model."""
    g = torch.Generator().manual_seed(seed)
    final = torch.randn(positions, 1, width, generator=g)
    noise = torch.randn(positions, depths, width, generator=g)
    return final + noise * torch.linspace(2, 0, depths)[None, :, None]


def eighths(numbers: torch.Tensor) -> torch.Tensor:
    """Rounded so that products sum up without rounding, in any order: equal stays equal everywhere."""
    return (numbers * 8).round() / 8


def make_targets(positions: int, vocab: int, count: int = 3, seed: int = 2) -> torch.Tensor:
    """(T, M) ids; the last position's first target is absent, as a next token is."""
    g = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, vocab, (positions, count), generator=g)
    if targets.numel():
        targets[-1, 0] = -1
    return targets


def called(head: Head) -> Head:
    """The same head, its weights out of reach."""
    plain = Head(head.vocab, head.weight_VE, head.bias_V)
    return Head(
        head.vocab,
        scale=head.scale,
        softcap=head.softcap,
        final_bias_V=head.final_bias_V,
        call=plain.raw,
    )
