"""KL(final ‖ lens) and its gradient, exactly, without keeping a vocabulary per row.

For a head z = s W x + b the final row enters only through its expected unembedding vector
P = Σ_v p_v W_v, E numbers:

    KL(final ‖ lens) = lse(z) − lse(z_final) − s (x − x_final) · P
    ∂KL / ∂x         = s (Σ_v q_v W_v − P)            q = softmax(z)

so a depth costs one product with the unembedding, one exponential per logit, and one product back.
With a softcap z = c tanh(u / c) the final probabilities themselves are needed and are held for one
block of rows. Rows go in blocks whose logits fit a fixed number of bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from logitlens.errors import UnsupportedModel
from logitlens.readout.head import Head

BLOCK_BYTES = 48 << 20  # logits of one block of rows
HOT = 1 << 18  # logits exponentiated at once: what stays in a core's cache
COLUMNS = 8192  # vocabulary columns turned into float32 at once where the weights are not
NONLINEAR = 0.03  # relative: int8 heads stay below, a softmax or a norm does not


@dataclass(eq=False)
class Final:
    """What is kept of a block of final rows: its share of every depth's loss."""

    x_RE: Tensor
    lse_R: Tensor
    expected_RE: Tensor  # P, the mean of the unembedding under the final distribution
    p_RV: Tensor | None = None  # only with a softcap
    self_R: Tensor | None = None  # Σ p log p, only with a softcap


class Divergence:
    """KL to final rows and its gradient, for one head whose input is `width` (E) numbers wide.

    precision   "float32": exact to rounding; "bfloat16": both products with the unembedding in
                bfloat16 (several times faster where the hardware has it; the loss carries noise of
                about its square rounding error, as under autocast)
    """

    def __init__(
        self,
        head: Head,
        width: int,
        *,
        precision: str = "float32",
        block_bytes: int = BLOCK_BYTES,
    ):
        if precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision={precision!r}: expected float32 or bfloat16")
        self.head = head
        self.vocab = head.vocab
        self.rows = max(8, block_bytes // (4 * head.vocab))
        self.called = head.weight_VE is None and not _linear(head, width)
        if self.called:
            self.rows = max(1, self.rows // 4)  # autograd keeps several vocabularies a row
            return
        weight_VE, bias_V = _dense(head, width)
        self.weight_VE = weight_VE.bfloat16() if precision == "bfloat16" else weight_VE
        self.low = precision == "bfloat16"
        self.scale, self.softcap = head.scale, head.softcap
        self.bias_V = None if bias_V is None else bias_V.float() * head.scale
        self.cap_bias_V = None
        if head.final_bias_V is not None:
            final = head.final_bias_V.float().to(weight_VE.device)
            if self.softcap is None:
                self.bias_V = final if self.bias_V is None else self.bias_V + final
            else:
                self.cap_bias_V = final
        self.device = weight_VE.device

    def blocks(self, rows: int) -> Iterator[slice]:
        """Slices of at most `self.rows` rows that cover `rows`."""
        for start in range(0, rows, self.rows):
            yield slice(start, min(rows, start + self.rows))

    def final(self, x_RE: Tensor) -> Final:
        """A block of final rows (head input) → what depths need of it."""
        if self.called:
            return _final_of(x_RE, self.head.logits(x_RE))
        x_RE = x_RE.to(self.device).float()
        z_RV = self._logits(x_RE)
        if self.softcap is not None:
            return _final_of(x_RE, self._cap(z_RV)[1])
        lse_R, sum_R = self._exponentiate(z_RV)
        return Final(x_RE, lse_R, self._expected(z_RV) / sum_R[:, None])

    def __call__(
        self, x_RE: Tensor, final: Final, *, gradient: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Rows of head input of one depth → KL (R,) float32 and ∂KL/∂x (R, E) float32, or None."""
        if self.called:
            return self._through_module(x_RE, final, gradient)
        x_RE = x_RE.to(self.device).float()
        z_RV = self._logits(x_RE)
        if self.softcap is not None:
            return self._capped(z_RV, final, gradient)
        lse_R, sum_R = self._exponentiate(z_RV)
        moved_RE, expected_RE = x_RE - final.x_RE, final.expected_RE
        if not gradient:  # to judge by: the difference of large numbers, in float64
            shift_R = torch.linalg.vecdot(moved_RE.double(), expected_RE.double())
            return (lse_R.double() - final.lse_R.double() - self.scale * shift_R).float(), None
        kl_R = lse_R - final.lse_R - self.scale * torch.linalg.vecdot(moved_RE, expected_RE)
        return kl_R, (self._expected(z_RV) / sum_R[:, None] - final.expected_RE) * self.scale

    # -- products with the unembedding ----------------------------------------------------------

    def _logits(self, x_RE: Tensor) -> Tensor:
        """s W x + b, (R, V); bfloat16 at low precision."""
        if self.low:
            z_RV = (x_RE * self.scale).bfloat16() @ self.weight_VE.T
        elif self.weight_VE.dtype == torch.float32:
            z_RV = (x_RE * self.scale) @ self.weight_VE.T
        else:
            z_RV = x_RE.new_empty(len(x_RE), self.vocab)
            for v in self._columns():
                torch.mm(x_RE * self.scale, self.weight_VE[v].float().T, out=z_RV[:, v])
        return z_RV if self.bias_V is None else z_RV.add_(self.bias_V)

    def _expected(self, e_RV: Tensor) -> Tensor:
        """Σ_v e_v W_v, (R, E) float32."""
        if self.low or self.weight_VE.dtype == torch.float32:
            return (e_RV.to(self.weight_VE.dtype) @ self.weight_VE).float()
        out_RE = e_RV.new_zeros(len(e_RV), self.weight_VE.shape[1])
        for v in self._columns():
            out_RE.addmm_(e_RV[:, v], self.weight_VE[v].float())
        return out_RE

    def _columns(self) -> Iterator[slice]:
        for start in range(0, self.vocab, COLUMNS):
            yield slice(start, min(self.vocab, start + COLUMNS))

    def _exponentiate(self, z_RV: Tensor) -> tuple[Tensor, Tensor]:
        """z → e^(z − max) in place; returns logsumexp (R,) and Σ e^(z − max) (R,), float32."""
        lse_R = torch.empty(len(z_RV), device=z_RV.device, dtype=torch.float32)
        sum_R = torch.empty_like(lse_R)
        step = max(1, HOT // self.vocab) if z_RV.device.type == "cpu" else len(z_RV)
        for start in range(0, len(z_RV), step):
            r = slice(start, start + step)
            z_rV = z_RV[r].float()  # a view where z is float32 already
            max_r1 = z_rV.amax(-1, keepdim=True)
            z_rV.sub_(max_r1).exp_()
            sum_R[r] = z_rV.sum(-1)
            lse_R[r] = max_r1[:, 0] + sum_R[r].log()
            if self.low:
                z_RV[r] = z_rV
        return lse_R, sum_R

    # -- with a softcap -------------------------------------------------------------------------

    def _cap(self, u_RV: Tensor) -> tuple[Tensor, Tensor]:
        """u → tanh(u / c) and the logits c tanh(u / c) + final bias, float32."""
        assert self.softcap is not None
        t_RV = torch.tanh(u_RV.float() / self.softcap)
        z_RV = t_RV * self.softcap
        return t_RV, z_RV if self.cap_bias_V is None else z_RV.add_(self.cap_bias_V)

    def _capped(self, u_RV: Tensor, final: Final, gradient: bool) -> tuple[Tensor, Tensor | None]:
        assert final.p_RV is not None
        assert final.self_R is not None
        t_RV, z_RV = self._cap(u_RV)
        lse_R = z_RV.logsumexp(-1)
        kl_R = final.self_R - torch.linalg.vecdot(final.p_RV, z_RV) + lse_R
        if not gradient:
            return kl_R, None
        g_RV = (z_RV - lse_R[:, None]).exp_().sub_(final.p_RV)
        g_RV.mul_(1 - t_RV.square_())
        return kl_R, self._expected(g_RV) * self.scale

    # -- a head that is more than a product -----------------------------------------------------

    def _through_module(
        self, x_RE: Tensor, final: Final, gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        """By autograd through the head's own module."""
        assert final.p_RV is not None
        assert final.self_R is not None
        with torch.set_grad_enabled(gradient):
            x_RE = x_RE.detach().requires_grad_(gradient)
            z_RV = self.head.logits(x_RE)
            kl_R = final.self_R - torch.linalg.vecdot(final.p_RV, z_RV) + z_RV.logsumexp(-1)
        if not gradient:
            return kl_R, None
        if not kl_R.requires_grad:
            raise UnsupportedModel(
                "the model's head gives no gradient, so a loss cannot be carried back through it: a "
                "tuned lens cannot be fitted here; the logit lens needs no such thing"
            )
        (gradient_RE,) = torch.autograd.grad(kl_R.sum(), x_RE)
        return kl_R.detach(), gradient_RE.float()


def _final_of(x_RE: Tensor, z_RV: Tensor) -> Final:
    """Final rows whose probabilities themselves are needed."""
    lse_R = z_RV.logsumexp(-1)
    p_RV = (z_RV - lse_R[:, None]).exp_()
    return Final(x_RE, lse_R, x_RE, p_RV, torch.linalg.vecdot(p_RV, z_RV) - lse_R)


def _linear(head: Head, width: int) -> bool:
    """Whether a head that can only be called is linear: f(a) + f(b) − f(0) = f(a + b)."""
    probe_4E = torch.zeros(4, width, dtype=torch.float32, device="cpu")
    probe_4E[:2].normal_(generator=torch.Generator().manual_seed(0))
    probe_4E[2] = probe_4E[:2].sum(0)
    with torch.no_grad():
        a_V, b_V, sum_V, zero_V = head.raw(probe_4E).double()
    odd = (a_V + b_V - zero_V - sum_V).norm() / sum_V.norm().clamp(min=1e-30)
    return bool(odd.isfinite()) and float(odd) <= NONLINEAR


@torch.no_grad()
def _dense(head: Head, width: int) -> tuple[Tensor, Tensor | None]:
    """The weights (V, E) and bias (V,) of a linear head; asked out of one that can only be called.

    Such a head answers the rows of the identity with the columns of its weights.
    """
    if head.weight_VE is not None:
        weight_VE = head.weight_VE.detach()
        return weight_VE, None if head.bias_V is None else head.bias_V.detach().to(weight_VE.device)
    bias_V = head.raw(torch.zeros(1, width, dtype=torch.float32, device="cpu"))[0].float()
    weight_VE = torch.empty(head.vocab, width, device=bias_V.device, dtype=torch.float32)
    for start in range(0, width, 256):
        rows_nE = torch.eye(width, dtype=torch.float32, device="cpu")[start : start + 256]
        weight_VE[:, start : start + len(rows_nE)] = (head.raw(rows_nE) - bias_V).T
    return weight_VE, bias_V if bool(bias_V.any()) else None
