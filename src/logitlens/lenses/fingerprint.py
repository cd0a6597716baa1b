"""Which unembedding a lens was made for: a fingerprint that survives a change of dtype.

The head is fed a few fixed rows, and its logits are summed, with fixed signs, over groups of tokens,
so every row of the unembedding has its share. The same weights in float32, bfloat16 or int8
answer alike; other weights answer differently. It needs no access to the weights, so quantised,
offloaded and sharded heads have a fingerprint too.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from logitlens.anatomy.readable import Readable
from logitlens.readout.head import Head

ROWS, GROUPS = 4, 64
TILE = 2048  # tokens in one product
ALL, SAMPLE = "all", "sample"
FLOAT_TOLERANCE = 0.02  # relative: float32 against bfloat16 weights differ by about 0.004
CALLED_TOLERANCE = 0.1  # heads that may only be called are often quantised: int8 differs by 0.02


@dataclass(frozen=True)
class Fingerprint:
    """`vocab` and `width` of the head, and ROWS × GROUPS of its answers, as a flat tuple.

    covers   "all": sums over every token's logits; "sample": the logits of 64 tokens, as files
             were written before
    """

    vocab: int
    width: int
    answers: tuple[float, ...]
    covers: str = SAMPLE

    @property
    def hash(self) -> str:
        """A short name for people; equality is decided by `difference`, which tolerates rounding."""
        text = f"{self.vocab} {self.width} " + " ".join(f"{a:.3g}" for a in self.answers)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def difference(self, other: Fingerprint) -> float:
        """How far apart the answers are, relative to their size; inf where the shapes differ.

        Of "all", in the group where it is largest: one row of the unembedding may have changed.
        """
        shapes = [(f.vocab, f.width, len(f.answers), f.covers) for f in (self, other)]
        if shapes[0] != shapes[1]:
            return float("inf")
        a_N, b_N = (
            torch.tensor(f.answers, dtype=torch.float64, device="cpu") for f in (self, other)
        )
        if self.covers == SAMPLE:
            return float((a_N - b_N).norm() / b_N.norm().clamp(min=1e-30))
        apart_C = (a_N - b_N).view(ROWS, -1).norm(dim=0)
        size_C = b_N.view(ROWS, -1).norm(dim=0)
        typical = b_N.norm() / math.sqrt(len(size_C))
        return float((apart_C / size_C.clamp(min=max(float(typical), 1e-30))).max())

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Fingerprint:
        """Raises KeyError, TypeError, ValueError where `data` is not a fingerprint."""
        answers = tuple(float(a) for a in data["answers"])
        covers = data.get("covers", SAMPLE)
        if covers not in (ALL, SAMPLE) or len(answers) > 1024 or len(answers) % ROWS:
            raise ValueError(f"a fingerprint of {len(answers)} numbers that covers {covers!r}")
        if not all(map(math.isfinite, answers)) or not answers:
            raise ValueError("a fingerprint that is not finite")
        vocab, width = data["vocab"], data["width"]
        if type(vocab) is not int or type(width) is not int:
            raise TypeError("a fingerprint whose vocabulary and width are not whole numbers")
        return cls(vocab, width, answers, covers)


@torch.no_grad()
def fingerprint(head: Head, width: int, covers: str = ALL) -> Fingerprint:
    """Fingerprint of a head whose input is `width` numbers wide (E)."""
    x_NE = _fixed_rows(width)
    if covers == SAMPLE:
        columns = torch.linspace(0, head.vocab - 1, 64, dtype=torch.float64, device="cpu")
        columns = columns.long().unique()
        z_NC = _logits(head, x_NE, columns)
    else:
        tile = TILE if head.weight_VE is not None else head.vocab
        parts = [slice(v, v + tile) for v in range(0, head.vocab, tile)]
        z_NV = torch.cat([_logits(head, x_NE, part) for part in parts], dim=1)
        # A multiplicative hash: neighbours are far apart, and no platform changes it.
        order_V = torch.arange(head.vocab, dtype=torch.int64, device="cpu")
        hash_V = (order_V * 2654435761 + 12345) % (1 << 32)
        z_NC = torch.zeros(ROWS, GROUPS, dtype=torch.float64, device="cpu")
        z_NC.index_add_(1, (hash_V >> 13) % GROUPS, z_NV * (1.0 - 2.0 * (hash_V >> 31)))
    answers = tuple(float(f"{z:.6g}") for z in z_NC.flatten().tolist())  # as they are written down
    return Fingerprint(head.vocab, width, answers, covers)


def _logits(head: Head, x_NE: Tensor, tokens: Tensor | slice) -> Tensor:
    """Logits (N, tokens), before scale and cap, in float64: the same for any number of threads."""
    if head.weight_VE is None:
        return head.raw(x_NE).double().cpu()[:, tokens]
    z_NT = (head.weight_VE[tokens].cpu().double() @ x_NE.double().T).T
    return z_NT if head.bias_V is None else z_NT + head.bias_V[tokens].cpu().double()


def _fixed_rows(width: int) -> Tensor:
    """(ROWS, width) numbers in [−1, 1) that no version or platform changes."""
    i, j = torch.meshgrid(
        torch.arange(ROWS, dtype=torch.long, device="cpu"),
        torch.arange(width, dtype=torch.long, device="cpu"),
        indexing="ij",
    )
    return ((i * 7919 + j * 104729 + i * j * 31) % 2003).float() / 1001.5 - 1.0


def head_width(model: Readable) -> int:
    """E, the width of the head's input; D unless the model projects before its head."""
    head = model.tail.head
    if head.weight_VE is not None:
        return int(head.weight_VE.shape[1])
    with torch.no_grad():
        parameter = next(model.hf.parameters())
        h_1D = torch.zeros(1, model.width, device=parameter.device, dtype=model.dtype)
        return int(model.tail.head_input(h_1D).shape[-1])


def of_model(model: Readable, covers: str = ALL) -> Fingerprint:
    """Fingerprint of a LensModel's unembedding; computed once and kept on the LensModel."""
    kept = model.__dict__.setdefault("_unembedding_fingerprints", {})
    if covers not in kept:
        kept[covers] = fingerprint(model.tail.head, head_width(model), covers)
    return kept[covers]


def tolerance(model: Readable) -> float:
    """How far two fingerprints of the same unembedding may be apart on this model."""
    return FLOAT_TOLERANCE if model.tail.head.weight_VE is not None else CALLED_TOLERANCE
