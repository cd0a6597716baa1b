"""The trainable maps of a tuned lens, and their gradients by hand."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class AffineMaps:
    """One map per depth, y = h + A h + b, in float32; A whole, or `up` · `down` at rank r.

    They start as the logit lens: A = 0, b = 0 (at rank r `up` = 0 and `down` random, so that the
    first step has a direction).
    """

    def __init__(
        self,
        depths: Sequence[int],
        width: int,
        *,
        rank: int | None = None,
        seed: int = 0,
        devices: dict[int, torch.device] | None = None,
    ):
        self.depths, self.width, self.rank = list(depths), width, rank
        generator = torch.Generator().manual_seed(seed)
        self.parameters: dict[str, Tensor] = {}
        for depth in self.depths:
            device = (devices or {}).get(depth, torch.device("cpu"))
            if rank is None:
                self.parameters[f"{depth}.weight"] = torch.zeros(
                    width, width, device=device, dtype=torch.float32
                )
            else:
                shape = (rank, width)
                down_rD = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
                self.parameters[f"{depth}.down"] = (down_rD / width**0.5).to(device)
                self.parameters[f"{depth}.up"] = torch.zeros(
                    width, rank, device=device, dtype=torch.float32
                )
            self.parameters[f"{depth}.bias"] = torch.zeros(
                width, device=device, dtype=torch.float32
            )
        for parameter in self.parameters.values():
            parameter.grad = torch.zeros_like(parameter)

    def __call__(self, h_ND: Tensor, depth: int) -> Tensor:
        """Rows (N, D) float32 → (N, D)."""
        p = self.parameters
        y_ND = h_ND + p[f"{depth}.bias"]
        if self.rank is None:
            return y_ND.addmm_(h_ND, p[f"{depth}.weight"].T)
        return y_ND.addmm_(h_ND @ p[f"{depth}.down"].T, p[f"{depth}.up"].T)

    def accumulate(self, h_ND: Tensor, gradient_ND: Tensor, depth: int) -> None:
        """Add ∂loss/∂(A, b), given ∂loss/∂y, to the parameters' gradients."""
        p, g_ND = self.parameters, gradient_ND
        _grad(p[f"{depth}.bias"]).add_(g_ND.sum(0))
        if self.rank is None:
            _grad(p[f"{depth}.weight"]).addmm_(g_ND.T, h_ND)
        else:
            down_rD, up_Dr = p[f"{depth}.down"], p[f"{depth}.up"]
            _grad(up_Dr).addmm_(g_ND.T, h_ND @ down_rD.T)
            _grad(down_rD).addmm_((g_ND @ up_Dr).T, h_ND)

    def gradients(self) -> list[Tensor]:
        return [_grad(parameter) for parameter in self.parameters.values()]

    def zero_gradients(self) -> None:
        for gradient in self.gradients():
            gradient.zero_()

    def of_depth(self, depth: int) -> dict[str, Tensor]:
        """The parameters of one depth, by name, as copies."""
        return {
            name: parameter.detach().clone()
            for name, parameter in self.parameters.items()
            if name.startswith(f"{depth}.")
        }


def _grad(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
