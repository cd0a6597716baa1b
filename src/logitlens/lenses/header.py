"""What a fitted lens knows of itself: for which model, from what text, and how well it did."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from logitlens.errors import FormatError, LensMismatch
from logitlens.lenses import fingerprint
from logitlens.lenses.fingerprint import Fingerprint

FORMAT = "logitlens-lens/1"


@dataclass(frozen=True)
class Header:
    """Provenance of a fitted lens.

    kind          "tuned" or "jacobian"
    width         D, numbers in a residual row
    depths        depths 0 … N−1 that have a map
    n_blocks      N of the model it was fitted on; None where the file does not say
    model         its name; None where the file does not say       revision   likewise
    unembedding   fingerprint of its unembedding; None in published formats
    corpus        name, hash, documents, tokens                    settings   of the fit
    losses        depth → held-out KL(final ‖ lens) in nats at the end of the fit
    weight        how much it counts when shards are merged: prompts (jacobian), tokens (tuned)
    source        the format it came from
    """

    kind: str
    width: int
    depths: tuple[int, ...]
    n_blocks: int | None = None
    model: str | None = None
    revision: str | None = None
    unembedding: Fingerprint | None = None
    corpus: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    losses: dict[int, float] = field(default_factory=dict)
    weight: float = 0.0
    source: str = FORMAT
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of_model(cls, kind: str, model: Any, depths: Sequence[int], **known: Any) -> Header:
        """The header of a lens fitted on `model` (a LensModel); `known`: further fields."""
        return cls(
            kind=kind,
            width=model.width,
            depths=tuple(depths),
            n_blocks=model.n_blocks,
            model=model.name,
            revision=model.revision,
            unembedding=fingerprint.of_model(model),
            **known,
        )

    def to_json(self) -> str:
        data = asdict(self)
        data["unembedding"] = self.unembedding.to_json() if self.unembedding else None
        data["losses"] = {str(d): loss for d, loss in self.losses.items()}
        return json.dumps({"format": FORMAT, **data}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, where: str) -> Header:
        """Raises FormatError, naming `where`, for text that is not a header of this version."""
        try:
            data = json.loads(text)
            version = data.pop("format")
            if version != FORMAT:
                raise FormatError(
                    f"{where}: expected a lens of format {FORMAT}, got {version!r}; "
                    "it may need a newer logitlens"
                )
            if data["unembedding"] is not None:
                data["unembedding"] = Fingerprint.from_json(data["unembedding"])
            data["losses"] = {int(d): float(loss) for d, loss in data["losses"].items()}
            data["depths"] = tuple(int(d) for d in data["depths"])
            return cls(**data)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, FormatError):
                raise
            raise FormatError(f"{where}: the lens header cannot be read ({error})") from None

    def described(self) -> str:
        """`the tuned lens of gpt2` for messages."""
        return f"the {self.kind} lens" + (f" of {self.model}" if self.model else "")

    def check_model(self, model: Any) -> None:
        """Raise LensMismatch where `model` (a LensModel) is not the one this lens was made for."""
        if self.width != model.width:
            raise LensMismatch(
                f"{self.described()} maps rows of width {self.width}, but {model.name} has width "
                f"{model.width}: use a lens fitted for {model.name}"
            )
        if self.n_blocks is not None and self.n_blocks != model.n_blocks:
            raise LensMismatch(
                f"{self.described()} was fitted on {self.n_blocks} blocks, but {model.name} has "
                f"{model.n_blocks}: use a lens fitted for {model.name}"
            )
        beyond = [d for d in self.depths if not 0 <= d < model.n_blocks]
        if beyond:
            raise LensMismatch(
                f"{self.described()} has a map for depth {beyond[0]}, but {model.name} has depths 0 "
                f"to {model.n_blocks - 1} before its last: use a lens fitted for {model.name}"
            )
        if self.unembedding is not None:
            difference = fingerprint.of_model(model).difference(self.unembedding)
            if difference > fingerprint.tolerance(model):
                raise LensMismatch(
                    f"{self.described()} was fitted for another unembedding than {model.name} has "
                    f"(fingerprints {_apart(difference)}): use a lens fitted for {model.name}, or "
                    "fit one with `logitlens fit`"
                )


def _apart(difference: float) -> str:
    return "of different shape" if difference == float("inf") else f"{difference:.0%} apart"
