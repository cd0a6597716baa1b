"""What the file of a fitted lens says: for which model, from what text, and how well it does."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from logitlens.anatomy.readable import Readable
from logitlens.errors import FormatError, LensMismatch
from logitlens.lenses import fingerprint
from logitlens.lenses.fingerprint import Fingerprint
from logitlens.schema import matches, parse_json
from logitlens.select import layer_label

FORMAT = "logitlens-lens/1"
MAX_HEADER = 1 << 20  # bytes; a lens of a hundred layers needs thirty thousand


MAX_COUNT = 1 << 40

FACTS = {str: object}
SCHEMA = {
    "format": str,
    "kind": str,
    "width": int,
    "depths": [int],
    "n_blocks?": (int, None),
    "model?": (str, None),
    "revision?": (str, None),
    "unembedding": ({"vocab": int, "width": int, "answers": [float], "covers?": str}, None),
    "corpus?": FACTS,
    "settings?": FACTS,
    "losses": {str: float},
    "weight?": float,
    "source?": str,
    "extra?": FACTS,
}


def is_count(value: Any) -> bool:
    """Whether a value of a file is a whole number that can count something."""
    return type(value) is int and 0 <= value < MAX_COUNT


def is_finite(value: Any) -> bool:
    """Whether no number of a JSON value is nan, inf, or too long to be written on."""
    if isinstance(value, (dict, list)):
        return all(map(is_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, (int, float)) or abs(value) < 1e300  # nan is not, either


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
        data["losses"] = {str(d): loss for d, loss in self.losses.items()}
        return json.dumps({"format": FORMAT, **data}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, where: str) -> Header:
        """Raises FormatError, naming `where`, for text that is not a header of this version."""
        what = f"{where}: the lens header"
        data = parse_json(text, what)
        version = data.get("format") if isinstance(data, dict) else None
        if isinstance(version, str) and version != FORMAT:
            raise FormatError(
                f"{where}: expected a lens of format {FORMAT}, got {version[:40]!r}; it may need a "
                "newer logitlens"
            )
        matches(data, SCHEMA, what)
        counts = [data["width"], data.get("n_blocks") or 0, *data["depths"]]
        if not is_finite(data) or not all(map(is_count, counts)):
            raise FormatError(f"{what} holds numbers that no lens has")
        try:
            del data["format"]
            if data["unembedding"] is not None:
                data["unembedding"] = Fingerprint.from_json(data["unembedding"])
            data["losses"] = {int(depth): loss for depth, loss in data["losses"].items()}
            data["depths"] = tuple(data["depths"])
            return cls(**data)
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"{what} cannot be read ({str(error)[:100]})") from None

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
