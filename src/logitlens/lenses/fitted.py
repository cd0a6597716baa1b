"""What the tuned and the Jacobian lens share: a header, maps for layers, where they were found.

Files and code count *depths*, states of the stream: 0 is what the first block receives, d the output
of block d − 1. What people see are the labels of layers: embed, 0, …
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from logitlens.anatomy.readable import Readable
from logitlens.errors import FormatError, LensMismatch
from logitlens.lenses.header import Header
from logitlens.select import layer_label

if TYPE_CHECKING:
    from logitlens.lenses.interpretation import Verdict

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class FittedLens:
    """A lens with parameters.

    tensors   name → tensor, on the CPU as stored: `DEPTH.PART`
    header    provenance; `header.kind` is the class's `kind`
    path      where it was read from, for people
    verdict   what a published file was found to hold, once it is used with a model
    """

    kind: ClassVar[str]
    parts: ClassVar[tuple[str, ...]]  # the names a depth's tensors may have

    def __init__(self, tensors: dict[str, Tensor], header: Header, path: str | None = None):
        self.name = self.kind
        self.tensors = tensors
        self.header = header
        self.path = path
        self.verdict: Verdict | None = None
        self._placed: dict[tuple[str, torch.device], Tensor] = {}
        self._check()

    def _check(self) -> None:
        """Raise FormatError or LensMismatch unless every layer has a whole map of finite numbers."""
        where = self.path or f"this {self.kind} lens"
        found: dict[int, dict[str, Tensor]] = {}
        for name, tensor in self.tensors.items():
            match = re.fullmatch(rf"(0|[1-9][0-9]{{0,4}})\.({'|'.join(self.parts)})", name)
            if match is None:
                raise FormatError(
                    f"{where}: expected tensors named NUMBER.{{{'|'.join(self.parts)}}}, got "
                    f"{name[:100]!r}"
                )
            if tensor.dtype not in FLOATS or tensor.layout != torch.strided or tensor.is_meta:
                raise FormatError(
                    f"{where}: {name} is {tensor.dtype} ({tensor.layout}), expected a dense tensor "
                    "of floating-point numbers"
                )
            found.setdefault(int(match[1]), {})[match[2]] = tensor
        for depth, parts in sorted(found.items()):
            expected = self.shapes(self.header.width, parts)
            for part, shape in expected.items():
                if part not in parts:
                    raise FormatError(
                        f"{where}: {depth}.{part} is missing beside {depth}.{min(parts)}"
                    )
                if tuple(parts[part].shape) != shape:
                    raise LensMismatch(
                        f"{where}: {depth}.{part} has shape {tuple(parts[part].shape)}, but "
                        f"{shape} was expected of a lens of width {self.header.width}"
                    )
                if not all(map(torch.isfinite, parts[part].aminmax())):
                    raise FormatError(f"{where}: {depth}.{part} holds nan or inf")
        if sorted(found) != sorted(self.header.depths):
            raise FormatError(
                f"{where}: the header lists layers {_labels(self.header.depths)}, the tensors are "
                f"for {_labels(found)}"
            )

    @staticmethod
    def shapes(D: int, parts: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """The parts that a layer's map must have beside those it has, and their shapes at width D."""
        raise NotImplementedError

    def depths(self) -> frozenset[int]:
        return frozenset(self.header.depths)

    def apply(self, h_ND: Tensor, depth: int) -> Tensor:
        raise NotImplementedError

    def check_model(self, model: Readable) -> None:
        self.header.check_model(model)

    def part(self, depth: int, part: str, like: Tensor) -> Tensor | None:
        """A tensor of a depth on the device of `like`, in float32; None where the map has no such part."""
        name = f"{depth}.{part}"
        if name not in self.tensors:
            return None
        key = (name, like.device)
        if key not in self._placed:
            self._placed[key] = self.tensors[name].to(like.device)
        return self._placed[key].float()

    def _depth(self, depth: int) -> None:
        if depth not in self.depths():
            raise LensMismatch(
                f"{self.header.described()} has no map for layer {layer_label(depth)}: it has "
                f"{_labels(self.depths())}"
            )

    @cached_property
    def hash(self) -> str:
        """First 16 hex digits of the SHA-256 of the maps, in the order of their names."""
        digest = hashlib.sha256()
        for name in sorted(self.tensors):
            digest.update(name.encode())
            digest.update(self.tensors[name].contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]

    def describe(self) -> dict[str, Any]:
        head = self.header
        return {
            "name": self.kind,
            "hash": self.hash,
            "model": head.model,
            "revision": head.revision,
            "layers": [layer_label(depth) for depth in sorted(head.depths)],
            "corpus": head.corpus,
            "source": head.source,
            # The name, not the place: a reading is shared, and reveals nothing of this machine.
            "file": Path(self.path).name if self.path else None,
            **({"unembedding": head.unembedding.hash} if head.unembedding else {}),
            **({"interpretation": self.verdict.to_meta()} if self.verdict else {}),
            **head.extra_by_layer(),
        }

    def cast(self, dtype: torch.dtype) -> FittedLens:
        """The same lens with its maps stored in `dtype`; FormatError where a value would overflow."""
        tensors = {name: tensor.to(dtype) for name, tensor in self.tensors.items()}
        for name, tensor in tensors.items():
            if not all(map(torch.isfinite, tensor.aminmax())):
                raise FormatError(
                    f"{name} of {self.header.described()} does not fit into {dtype}: largest value "
                    f"{float(self.tensors[name].abs().max()):.3g}; store it as bfloat16 or float32"
                )
        return type(self)(tensors, self.header, self.path)

    def with_header(self, **changes: Any) -> FittedLens:
        return type(self)(self.tensors, replace(self.header, **changes), self.path)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(of {self.header.model or 'an unnamed model'}, width "
            f"{self.header.width}, layers {_labels(self.depths())}, hash {self.hash})"
        )


def _labels(depths: Iterable[int]) -> str:
    """`embed, 0–3, 5` for depths 0, 1, 2, 3, 4, 6."""
    out: list[list[int]] = []
    for depth in sorted(depths):
        if out and depth == out[-1][1] + 1 and depth > 1:
            out[-1][1] = depth
        else:
            out.append([depth, depth])
    labels = [[layer_label(d) for d in dict.fromkeys(ends)] for ends in out]
    return ", ".join("–".join(ends) for ends in labels) or "none"
