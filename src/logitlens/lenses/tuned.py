"""The tuned lens: one affine map a layer, h + A h + b (Belrose et al. 2023, arXiv:2303.08112)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from logitlens.lenses.fitted import FittedLens


class TunedLens(FittedLens):
    """h → h + A h + b, computed in float32.

    Of each layer: `weight` A (D, D), or at low rank `up` (D, r) and `down` (r, D) with A = up · down;
    and `bias` b (D,), or none. The residual form: a lens of zeros is the logit lens.
    """

    kind: ClassVar[str] = "tuned"
    parts: ClassVar[tuple[str, ...]] = ("weight", "up", "down", "bias")

    @staticmethod
    def shapes(D: int, parts: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {"bias": (D,)} if "bias" in parts else {}
        if "up" in parts or "down" in parts:
            sizes = [n for name in ("up", "down") if name in parts for n in parts[name].shape]
            rank = max(1, min(sizes, default=1))
            found |= {"up": (D, rank), "down": (rank, D)}
        if "weight" in parts or "up" not in found:
            found["weight"] = (D, D)
        return found

    def apply(self, h_ND: Tensor, depth: int) -> Tensor:
        """Residual rows (N, D) that enter block `depth` → (N, D) float32."""
        self._depth(depth)
        h_ND = h_ND.float()
        weight_DD, bias_D = self.part(depth, "weight", h_ND), self.part(depth, "bias", h_ND)
        down_rD, up_Dr = self.part(depth, "down", h_ND), self.part(depth, "up", h_ND)
        out_ND = h_ND
        if weight_DD is not None:
            out_ND = out_ND + h_ND @ weight_DD.T
        if down_rD is not None and up_Dr is not None:
            out_ND = out_ND + (h_ND @ down_rD.T) @ up_Dr.T
        return out_ND if bias_D is None else out_ND + bias_D
