"""The Jacobian lens: h carried to the last block's output by the mean Jacobian, J h.

Anthropic 2026, "Verbalizable Representations Form a Global Workspace in Language Models" and
anthropics/jacobian-lens. J is fitted on the raw stream and the model's own, unfolded norm follows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from logitlens.errors import LensMismatch
from logitlens.lenses.fitted import FittedLens


class JacobianLens(FittedLens):
    """h → J h, computed in float32; of each layer `jacobian` J (D, D), row = output dimension."""

    kind: ClassVar[str] = "jacobian"
    parts: ClassVar[tuple[str, ...]] = ("jacobian",)

    @staticmethod
    def shapes(D: int, parts: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        return {"jacobian": (D, D)}

    def apply(self, h_ND: Tensor, depth: int) -> Tensor:
        """Residual rows (N, D) at `depth` → (N, D) float32."""
        self._depth(depth)
        J_DD = self.part(depth, "jacobian", h_ND)
        assert J_DD is not None
        return h_ND.float() @ J_DD.T


def merge(lenses: Sequence[JacobianLens]) -> JacobianLens:
    """Lenses fitted on disjoint prompts → their mean, weighted by the number of prompts, in float32.

    Equal to the lens of all prompts up to float rounding. Raises LensMismatch where they are not of
    one model, width, set of layers or setting, where one does not say its number of prompts, or is
    given twice.
    """
    if not lenses:
        raise LensMismatch("expected at least one Jacobian lens to merge, got none")
    first = lenses[0].header
    for lens in lenses:
        head = lens.header
        for what in ("width", "layers", "model", "n_blocks", "settings"):
            ours, theirs = (
                lens.describe()[what] if what == "layers" else getattr(lens.header, what)
                for lens in (lens, lenses[0])
            )
            if ours != theirs:
                raise LensMismatch(
                    f"cannot merge {lens.path or lens!r}: its {what} is {ours}, that of "
                    f"{lenses[0].path or 'the first'} is {theirs}"
                )
        if head.weight <= 0:
            raise LensMismatch(
                f"cannot merge {lens.path or lens!r}: it does not say how many prompts it is of"
            )
    seen: dict[str, JacobianLens] = {}
    for lens in lenses:
        twin = seen.setdefault(lens.hash, lens)
        if twin is not lens:
            raise LensMismatch(
                f"cannot merge {lens.path or 'a lens'} with {twin.path or 'itself'}: their maps are "
                "the same, so its prompts would count twice"
            )
    total = sum(lens.header.weight for lens in lenses)
    tensors = {}
    for name in lenses[0].tensors:
        mean_DD = torch.zeros_like(lenses[0].tensors[name], dtype=torch.float64)
        for lens in lenses:
            mean_DD += lens.tensors[name].double() * (lens.header.weight / total)
        tensors[name] = mean_DD.float()
    corpus = {
        "name": ", ".join(dict.fromkeys(str(lens.header.corpus.get("name")) for lens in lenses)),
        "hash": "+".join(str(lens.header.corpus.get("hash")) for lens in lenses),
        **{what: sum(_count(lens, what) for lens in lenses) for what in ("documents", "tokens")},
    }
    return JacobianLens(tensors, replace(first, weight=total, corpus=corpus, losses={}))


def _count(lens: JacobianLens, what: str) -> int:
    value = lens.header.corpus.get(what, 0)
    return value if isinstance(value, int) else 0
