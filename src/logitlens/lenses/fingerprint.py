"""Which unembedding a lens was made for: a fingerprint that survives a change of dtype.

The head is fed a few fixed rows and a few of its logits are kept. The same weights in float32,
bfloat16 or int8 answer alike; other weights answer differently. It needs no access to the weights,
so quantised, offloaded and sharded heads have a fingerprint too.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from logitlens.readout.head import Head

ROWS, COLUMNS = 4, 64
FLOAT_TOLERANCE = 0.02  # relative: float32 against bfloat16 weights differ by about 0.004
CALLED_TOLERANCE = 0.1  # heads that may only be called are often quantised


@dataclass(frozen=True)
class Fingerprint:
    """`vocab` and `width` of the head, and ROWS × COLUMNS of its answers, as a flat tuple."""

    vocab: int
    width: int
    answers: tuple[float, ...]

    @property
    def hash(self) -> str:
        """A short name for people; equality is decided by `difference`, which forgives rounding."""
        text = f"{self.vocab} {self.width} " + " ".join(f"{a:.3g}" for a in self.answers)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def difference(self, other: Fingerprint) -> float:
        """‖a − b‖ / ‖b‖ of the answers; inf where the shapes differ."""
        if (self.vocab, self.width, len(self.answers)) != (
            other.vocab,
            other.width,
            len(other.answers),
        ):
            return float("inf")
        a = torch.tensor(self.answers, dtype=torch.float64, device="cpu")
        b = torch.tensor(other.answers, dtype=torch.float64, device="cpu")
        return float((a - b).norm() / b.norm().clamp(min=1e-30))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Fingerprint:
        """Raises KeyError, TypeError, ValueError where `data` is not a fingerprint."""
        answers = tuple(float(a) for a in data["answers"])
        return cls(int(data["vocab"]), int(data["width"]), answers)


@torch.no_grad()
def fingerprint(head: Head, width: int) -> Fingerprint:
    """Fingerprint of a head whose input is `width` numbers wide (E)."""
    x_NE = _fixed_rows(width)
    columns = torch.linspace(0, head.vocab - 1, COLUMNS, dtype=torch.float64, device="cpu")
    columns = columns.long().unique()
    if head.weight_VE is not None:
        weight_CE = head.weight_VE[columns.to(head.weight_VE.device)].float().cpu()
        z_NC = x_NE @ weight_CE.T
        if head.bias_V is not None:
            z_NC = z_NC + head.bias_V[columns.to(head.bias_V.device)].float().cpu()
    else:
        z_NC = head.raw(x_NE).float().cpu()[:, columns]
    answers = tuple(float(f"{z:.6g}") for z in z_NC.flatten().tolist())  # as they are written down
    return Fingerprint(head.vocab, width, answers)


def _fixed_rows(width: int) -> Tensor:
    """(ROWS, width) numbers in [−1, 1) that no version or platform changes."""
    i, j = torch.meshgrid(
        torch.arange(ROWS, dtype=torch.long, device="cpu"),
        torch.arange(width, dtype=torch.long, device="cpu"),
        indexing="ij",
    )
    return ((i * 7919 + j * 104729 + i * j * 31) % 2003).float() / 1001.5 - 1.0


def head_width(model: Any) -> int:
    """E, the width of the head's input; D unless the model projects before its head."""
    head = model.tail.head
    if head.weight_VE is not None:
        return int(head.weight_VE.shape[1])
    with torch.no_grad():
        parameter = next(model.hf.parameters())
        h_1D = torch.zeros(1, model.width, device=parameter.device, dtype=model.dtype)
        return int(model.tail.head_input(h_1D).shape[-1])


def of_model(model: Any) -> Fingerprint:
    """Fingerprint of a LensModel's unembedding; computed once and kept on the LensModel."""
    found = getattr(model, "_unembedding_fingerprint", None)
    if found is None:
        found = fingerprint(model.tail.head, head_width(model))
        model._unembedding_fingerprint = found
    return found


def tolerance(model: Any) -> float:
    """How far two fingerprints of the same unembedding may lie apart on this model."""
    return FLOAT_TOLERANCE if model.tail.head.weight_VE is not None else CALLED_TOLERANCE
