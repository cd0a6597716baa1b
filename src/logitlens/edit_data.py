"""An `Edit`: one change to the residual stream, as plain data. `logitlens.edit` makes them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from logitlens.errors import PromptError

KINDS = ("add", "project_out", "swap", "ablate", "patch")
ALONG = ("add", "project_out", "swap")  # those along directions
STREAMS = ("resid", "attn", "mlp", "head")
HOW = ("zero", "mean")


@dataclass(frozen=True, eq=False)
class Edit:
    """One change, made by `add`, `project_out`, `swap`, `ablate` or `patch`.

    kind       which of them          layer      the layer whose output is changed; of a sublayer, the
    positions  of the prompt; None: all          block it belongs to
    generated  also at every position that the model writes itself
    scale      how much of the change is made: 0 is none
    vectors    directions (D,), or rows to patch in (N, D); a token's text or id stands for its own
    stream     "resid", or what a block's "attn", "mlp" or "head" adds
    head       which head
    how        of an ablation: "zero" or "mean"
    source     of a patch: the prompt that rows are taken from, at `from_positions`
    model      the model it was saved with; None: not saved yet
    text       what it does, in words; None: found from the rest
    """

    kind: str
    layer: int | str
    positions: Any = None
    generated: bool = False
    scale: float = 1.0
    vectors: tuple[Any, ...] = ()
    stream: str = "resid"
    how: str = "zero"
    source: str | list[int] | None = None
    from_positions: Any = None
    model: str | None = None
    text: str | None = None
    head: int | None = None

    def __repr__(self) -> str:
        return f"Edit({self})"

    def __str__(self) -> str:
        if self.text is not None:
            return self.text
        at = "" if self.positions is None else f" at {_shown(self.positions)}"
        at += " and generated" if self.generated else ""
        part = self.stream if self.head is None else f"head{self.head}"
        where = f"layer {self.layer}" if self.stream == "resid" else f"{self.layer}.{part}"
        names = " and ".join(
            repr(v) if isinstance(v, (str, int)) else "a vector" for v in self.vectors
        )
        what = {
            "add": f"added {self.scale:g} × {names} after {where}",
            "project_out": f"projected {names} out of {where}",
            "swap": f"swapped {names} in {where}",
            "ablate": f"{where} set to {'zero' if self.how == 'zero' else 'its mean'}",
            "patch": f"{where} patched"
            + (f" from {str(self.source)[:40]!r}" if self.source is not None else ""),
        }[self.kind]
        share = f", {self.scale:g} of it" if self.scale != 1 and self.kind != "add" else ""
        return what + at + share


_COUNTS = {"add": (1,), "project_out": (1,), "swap": (2,), "ablate": (0,), "patch": (0, 1)}


def checked(e: Edit) -> Edit:
    """The edit in Python's numbers, where they make sense without a model. Raises PromptError."""
    numbers: tuple[Any, ...] = (e.layer, e.scale, e.head)
    layer, scale, head = (v.tolist() if hasattr(v, "tolist") else v for v in numbers)
    if isinstance(layer, bool) or not isinstance(layer, (int, str)):
        raise PromptError(f"layer={layer!r}: expected one layer, like 5, -1 or 'embed'")
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not abs(scale) < 1e300:
        raise PromptError(f"scale={scale!r}: expected a number")
    e = replace(e, layer=layer, scale=float(scale), head=head)
    if e.stream not in STREAMS or (e.kind == "ablate" and e.stream == "resid"):
        wanted = STREAMS[1:] if e.kind == "ablate" else STREAMS
        raise PromptError(f"stream={e.stream!r}: expected one of {', '.join(wanted)}")
    if (e.head is None) == (e.stream == "head"):
        given = "none" if e.head is None else str(e.head)
        raise PromptError(f"stream={e.stream!r} with head={given}: a head is of the stream 'head'")
    if e.head is not None and (type(e.head) is not int or e.head < 0):
        raise PromptError(f"head={e.head!r}: expected its number, from 0")
    if e.how not in HOW:
        raise PromptError(f"how={e.how!r}: expected zero or mean")
    if e.kind == "ablate" and isinstance(e.layer, str) and not e.layer.lstrip("-").isdigit():
        raise PromptError(f"no block {e.layer!r} to ablate: expected a number")
    count = len(e.vectors)
    if count not in _COUNTS[e.kind] or (e.kind == "patch" and not count and e.source is None):
        raise PromptError(f"{e.kind} has {count} vectors: expected {max(_COUNTS[e.kind])}")
    for v in e.vectors:
        if isinstance(v, np.ndarray):
            if v.ndim != (2 if e.kind == "patch" else 1) or not v.size:
                raise PromptError(f"a vector has shape {v.shape}: expected one dimension (D,)")
            if not np.isfinite(v).all():
                raise PromptError("a vector holds nan or inf: expected finite numbers")
            if e.kind in ("project_out", "swap") and not v.any():
                raise PromptError("a direction of zeros has no direction")
    return e


def _shown(positions: Any) -> str:
    if isinstance(positions, list) and len(positions) <= 8:
        return f"position {', '.join(map(str, positions))}"
    return (
        f"{len(positions)} positions" if isinstance(positions, list) else f"positions {positions}"
    )
