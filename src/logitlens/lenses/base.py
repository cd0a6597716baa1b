"""The Lens protocol, and the logit lens, which is the identity."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from logitlens.anatomy.readable import Readable


@runtime_checkable
class Lens(Protocol):
    """A map from the residual of a layer into the final basis.

    `name` is "logit", "tuned" or "jacobian". What `apply` returns is read through the model's own
    final norm and unembedding. A depth counts states of the stream: 0 is what the first block
    receives, d the output of block d − 1. The last one, N, is never mapped: its row is the model's
    own output.
    """

    name: str

    def depths(self) -> frozenset[int] | None:
        """The depths (0 … N−1) this lens has a map for; None: every depth."""
        ...

    def apply(self, h_ND: Tensor, depth: int) -> Tensor:
        """Residual rows (N, D) of state `depth` → rows (N, D) in the final basis."""
        ...

    def describe(self) -> dict[str, Any]:
        """Provenance for `Reading.meta["lens"]`: at least `name`, and a hash where it was fitted."""
        ...

    def check_model(self, model: Readable) -> None:
        """Raise LensMismatch, in one line, where this lens was made for another model."""
        ...


class LogitLens:
    """The raw residual, without a fitted map (nostalgebraist 2020, "interpreting GPT: the logit lens")."""

    name = "logit"

    def depths(self) -> frozenset[int] | None:
        return None

    def apply(self, h_ND: Tensor, depth: int) -> Tensor:
        return h_ND

    def describe(self) -> dict[str, Any]:
        return {"name": "logit"}

    def check_model(self, model: Readable) -> None:
        return None
