"""What a fitted lens knows of itself: for which model, from what text, and how well it did."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from logitlens.anatomy.readable import Readable
from logitlens.errors import FormatError, LensMismatch
from logitlens.lenses import fingerprint
from logitlens.lenses.fingerprint import Fingerprint
from logitlens.select import layer_label

FORMAT = "logitlens-lens/1"
MAX_HEADER = 1 << 20  # bytes; a lens of a hundred layers needs thirty thousand


def is_count(value: Any) -> bool:
    """Whether a value of a file is a whole number that can count something."""
    return type(value) is int and 0 <= value < 1 << 40


def is_plain(value: Any, levels: int = 8) -> bool:
    """Whether a value of a file is finite and not nested beyond reason, so all can show it."""
    if isinstance(value, (dict, list)) and levels:
        inner = value.values() if isinstance(value, dict) else value
        return all(is_plain(v, levels - 1) for v in inner)
    if isinstance(value, (int, float)):
        return math.isfinite(value) and abs(value) < 1 << 63
    return value is None or isinstance(value, str)


def _text(value: Any) -> bool:
    return value is None or (isinstance(value, str) and len(value) < 1000)


def _size(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def _facts(value: Any) -> bool:
    return isinstance(value, dict) and is_plain(value)


# What each entry of a header must be, as its JSON says it.
_ENTRIES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "kind": (lambda v: isinstance(v, str), "text"),
    "width": (lambda v: is_count(v) and v > 0, "a whole number"),
    "depths": (lambda v: isinstance(v, list) and all(map(is_count, v)), "a list of whole numbers"),
    "n_blocks": (lambda v: v is None or is_count(v), "a whole number"),
    "model": (_text, "text"),
    "revision": (_text, "text"),
    "unembedding": (lambda v: v is None or isinstance(v, dict), "a fingerprint"),
    "corpus": (_facts, "facts"),
    "settings": (_facts, "facts"),
    "losses": (_facts, "a number for each of the maps"),
    "weight": (_size, "a number from 0"),
    "source": (lambda v: isinstance(v, str), "text"),
    "extra": (_facts, "facts"),
}


@dataclass(frozen=True)
class Header:
    """Provenance of a fitted lens.

    kind          "tuned" or "jacobian"
    width         D, numbers in a residual row
    depths        states 0 … N−1 of the stream that have a map: 0 what the first block receives,
                  d the output of block d − 1
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
    def of_model(cls, kind: str, model: Readable, depths: Sequence[int], **known: Any) -> Header:
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
                    f"{where}: expected a lens of format {FORMAT}, got {str(version)[:40]!r}; "
                    "it may need a newer logitlens"
                )
            for name, value in data.items():
                fits, expected = _ENTRIES[name]
                if not fits(value):
                    raise FormatError(f"{where}: {name} in the lens header is not {expected}")
            if data["unembedding"] is not None:
                data["unembedding"] = Fingerprint.from_json(data["unembedding"])
            data["losses"] = {int(d): float(loss) for d, loss in data["losses"].items()}
            data["depths"] = tuple(data["depths"])
            return cls(**data)
        except FormatError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise FormatError(
                f"{where}: the lens header cannot be read ({str(error)[:100]})"
            ) from None

    def extra_by_layer(self) -> dict[str, Any]:
        """`extra`, where figures of each depth are under the labels of layers."""
        return {
            name: {layer_label(int(depth)): figure for depth, figure in value.items()}
            if isinstance(value, dict) and all(re.fullmatch("[0-9]{1,5}", key) for key in value)
            else value
            for name, value in self.extra.items()
        }

    def described(self) -> str:
        """`the tuned lens of gpt2` for messages."""
        return f"the {self.kind} lens" + (f" of {self.model}" if self.model else "")

    def check_model(self, model: Readable) -> None:
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
                f"{self.described()} has a map for layer {layer_label(beyond[0])}, but the last of "
                f"{model.name} is {layer_label(model.n_blocks)}, which is never mapped: use a lens fitted "
                f"for {model.name}"
            )
        if self.unembedding is not None:
            own = fingerprint.of_model(model, self.unembedding.covers)
            difference = own.difference(self.unembedding)
            if difference > fingerprint.tolerance(model):
                raise LensMismatch(
                    f"{self.described()} was fitted for another unembedding than {model.name} has "
                    f"(fingerprints {_apart(difference)}): use a lens fitted for {model.name}, or "
                    "fit one with `logitlens fit`"
                )


def _apart(difference: float) -> str:
    return "of different shape" if difference == float("inf") else f"{difference:.0%} apart"
