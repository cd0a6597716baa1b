"""The tail as a linear map: a norm's statistics are held at the values they have in one row.

    LayerNorm   y = s · g · (x − mean x) + b        s = 1 / sqrt(variance of x + ε)
    RMSNorm     y = s · g · x (+ b)                 s = 1 / sqrt(mean of x² + ε)

With s fixed, both are linear in x, so that a logit is a sum over whatever x is a sum of. Which of the
two a module is, and which of its parameters is g (or g − 1) and which b, is found by trying: the form
that gives back what the module makes of the row and of random rows is the one; s is measured there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from logitlens.anatomy.check import UNIT, UNIT32
from logitlens.anatomy.final_norm import Step
from logitlens.anatomy.forward import as_found
from logitlens.anatomy.tail import Tail
from logitlens.errors import UnsupportedModel

ROWS = 6  # random rows on which a form is tried, beside the row itself
ROUNDINGS = 6.0  # of the dtype, relative to the largest number: what a norm's steps may round


@dataclass(frozen=True, eq=False)
class Held:
    """y = M x + b, or y = s · g · (x − mean x) + b where `centred`, or y = s · g · x + b; float64.

    factor   s: of one row, or (N, 1) of several
    """

    gain_E: Tensor
    bias_E: Tensor
    factor: float | Tensor = 1.0
    centred: bool = False
    matrix_ED: Tensor | None = None

    def forward(self, x_ND: Tensor) -> Tensor:
        """What of the output comes from x: (N, D) → (N, E), without the bias."""
        if self.matrix_ED is not None:
            return x_ND @ self.matrix_ED.T
        x_ND = x_ND - x_ND.mean(-1, keepdim=True) if self.centred else x_ND
        return self.factor * self.gain_E * x_ND

    def transposed(self, w_RE: Tensor) -> Tensor:
        """What `w` weighs in y, as weights of x: (R, E) → (R, D)."""
        if self.matrix_ED is not None:
            return w_RE @ self.matrix_ED
        u_RD = self.factor * w_RE * self.gain_E
        return u_RD - u_RD.mean(-1, keepdim=True) if self.centred else u_RD


@dataclass(frozen=True, eq=False)
class Pulled:
    """Weights of the head's input as weights of the residual row: what a logit is made of.

    u_RD       (R, D) float64: the logits' weights in the residual row
    constants  what norms' own biases add to each of the R logits, by label
    sizes_R    the root of the sum of squares of all terms that were rounded on the way
    """

    u_RD: Tensor
    constants: dict[str, Tensor]
    sizes_R: Tensor


@torch.no_grad()
def pull_back(tail: Tail, h_D: Tensor, w_RE: Tensor) -> Pulled:
    """Weights (R, E) of the head's input → of the raw residual row `h`, the norms' statistics held.

    Raises UnsupportedModel where a step of the tail is neither a norm nor an affine map.
    """
    x_ND = h_D.to(tail.dtype)[None] * tail.before
    rows, forms = [], []
    with as_found(tail.model):
        for step in tail.steps:
            forms.append(held(step, x_ND[0]))
            x_ND = step(x_ND)
            rows.append(x_ND[0].double().cpu())
    u_RD, constants = w_RE.double().cpu(), {}
    squares_R = u_RD.new_zeros(len(u_RD))
    for step, form, row in list(zip(tail.steps, forms, rows))[::-1]:
        squares_R += (u_RD * row).square().sum(-1)
        u_RD = u_RD * step.scale
        if bool((form.bias_E != 0).any()):
            constants[f"{step.path.rpartition('.')[2]} bias"] = u_RD @ form.bias_E
        u_RD = form.transposed(u_RD)
    return Pulled(u_RD * tail.before, constants, squares_R.sqrt())


@torch.no_grad()
def held(step: Step, x_D: Tensor) -> Held:
    """The form of one step, its statistics held at the row x. Raises UnsupportedModel."""
    generator = torch.Generator().manual_seed(5)
    shape = (ROWS, len(x_D))
    noise_ND = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
    # Of the row's own size, and with a mean: centred or not, and g or 1 + g, must show.
    noise_ND = (noise_ND + 0.5) * float(x_D.float().square().mean().sqrt() + 1e-6)
    x_ND = torch.cat([x_D[None].float().cpu(), noise_ND]).to(x_D.device, step.dtype)
    y_NE = _plain(step, x_ND)
    x_ND = x_ND.double().cpu()
    allowed = ROUNDINGS * UNIT.get(step.dtype, 8 * UNIT32)
    form = _affine(step, x_ND, y_NE, allowed) or _norm(step, x_ND, y_NE, allowed)
    if form is None:
        raise UnsupportedModel(
            f"the logits are no sum over components: {step.path} ({type(step.module).__name__}) is "
            "neither a LayerNorm, an RMSNorm nor an affine map"
        )
    return form


@torch.no_grad()
def held_each(step: Step, x_ND: Tensor) -> Held:
    """The form of one step, with the statistics of each of the rows. Raises UnsupportedModel."""
    form = held(step, x_ND[0])
    if form.matrix_ED is not None:
        return form
    y_NE = _plain(step, x_ND) - form.bias_E
    z_NE = replace(form, factor=1.0).forward(x_ND.double().cpu())
    s_N = (y_NE * z_NE).sum(-1) / z_NE.square().sum(-1).clamp(min=1e-300)
    return replace(form, factor=s_N[:, None])


def _plain(step: Step, x_ND: Tensor) -> Tensor:
    """What the module itself makes of rows, in float64 on the CPU."""
    return step(x_ND).double().cpu() / step.scale


def _affine(step: Step, x_ND: Tensor, y_NE: Tensor, allowed: float) -> Held | None:
    D = x_ND.shape[1]
    if not any(p.dim() > 1 for p in step.module.parameters()):
        return None
    eye = torch.eye(D, dtype=step.dtype, device="cpu")
    zero_E = _plain(step, torch.zeros_like(eye[:1]))[0]
    matrix_ED = torch.cat([_plain(step, rows) for rows in eye.split(1024)]).T - zero_E[:, None]
    error = (x_ND @ matrix_ED.T + zero_E - y_NE).abs().amax()
    if not bool(error <= D**0.5 * allowed * y_NE.abs().amax()):
        return None
    return Held(torch.ones_like(zero_E), zero_E, matrix_ED=matrix_ED)


def _norm(step: Step, x_ND: Tensor, y_NE: Tensor, allowed: float) -> Held | None:
    """The best of all forms that a norm may have; None where none gives back what the module does."""
    if x_ND.shape != y_NE.shape:
        return None
    best: tuple[float, Held] | None = None
    ones_D = torch.ones_like(x_ND[0])
    for gain_D, bias_D in _parameters(step.module, ones_D):
        for centred in (False, True):
            z_ND = gain_D * (x_ND - x_ND.mean(-1, keepdim=True) if centred else x_ND)
            s_N = ((y_NE - bias_D) * z_ND).sum(-1) / z_ND.square().sum(-1).clamp(min=1e-300)
            error = float((s_N[:, None] * z_ND + bias_D - y_NE).abs().amax())
            if best is None or error < best[0]:
                best = error, Held(gain_D, bias_D, float(s_N[0]), centred)
    fits = best is not None and best[0] <= allowed * float(y_NE.abs().amax())
    return best[1] if best is not None and fits else None


def _parameters(module: nn.Module, ones_D: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of a gain and a bias that a module's parameters may be."""
    vectors = [
        p.detach().double().cpu().flatten()
        for p in module.parameters()
        if p.is_floating_point() and p.numel() == len(ones_D) and p.device.type != "meta"
    ]
    none_D = torch.zeros_like(ones_D)
    for gain_D in (ones_D, *vectors, *(1 + p for p in vectors)):
        for bias_D in (none_D, *vectors):
            yield gain_D, bias_D


def token_weights(tail: Tail, x_E: Tensor, tokens: list[int]) -> tuple[Tensor, Tensor]:
    """Rows (R, E) of the unembedding and the head's own bias (R,) for tokens, float64.

    Of a head that is only called they are its gradient at `x`, the head's input; that it is linear
    is for the caller to check, by the sum.
    """
    head = tail.head
    if head.weight_VE is not None:
        ids_R = torch.tensor(tokens, dtype=torch.long, device=head.weight_VE.device)
        w_RE = head.weight_VE[ids_R].double().cpu()
        bias_R = head.bias_V[ids_R].double().cpu() if head.bias_V is not None else None
        return w_RE, w_RE.new_zeros(len(tokens)) if bias_R is None else bias_R
    if tail.kind == "replay" or head.shard is not None:
        raise UnsupportedModel(
            "the logits are no sum over components here: what follows the last block does not come "
            "apart into modules of this process"
        )
    rows = []
    with torch.enable_grad():
        x_1E = x_E.detach().clone()[None].requires_grad_()
        logits_1V = head.raw(x_1E)
        for token in tokens:
            (w_1E,) = torch.autograd.grad(logits_1V[0, token], x_1E, retain_graph=True)
            rows.append(w_1E[0].double().cpu())
    w_RE = torch.stack(rows)
    logits_R = logits_1V[0, tokens].detach().double().cpu()
    zero_R = head.raw(torch.zeros_like(x_1E.detach()))[0, tokens].detach().double().cpu()
    off = (w_RE @ x_E.double().cpu() + zero_R - logits_R).abs().amax()
    if not bool(off <= 64 * UNIT.get(x_E.dtype, UNIT32) * (1 + logits_R.abs().amax())):
        raise UnsupportedModel("the logits are no sum over components: the head is not linear")
    return w_RE, zero_R
