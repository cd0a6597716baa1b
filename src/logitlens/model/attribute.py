"""What every component added to one logit: the linear form of the tail, its norm's statistics held.

The residual stream after the last block is a sum: the embedding, and what every sublayer added. With
the final norm's statistics held at the values they have in this row, norm and head are linear, so the
logit before a softcap is the same sum, component by component (Elhage et al. 2021, "A Mathematical
Framework for Transformer Circuits"; nostalgebraist 2020 for the reading of rows).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from logitlens.anatomy.check import SUMS, UNIT, UNIT32, compare
from logitlens.anatomy.forward import as_found
from logitlens.anatomy.held import pull_back, token_weights
from logitlens.attribution import BY, Attribution
from logitlens.errors import PromptError, UnsupportedModel
from logitlens.lenses import resolve
from logitlens.model.provenance import provenance
from logitlens.model.trace import Trace
from logitlens.select import Selection, select_position

if TYPE_CHECKING:
    from logitlens.model.edits import Prepared
    from logitlens.model.lens_model import LensModel


def attribute(
    model: LensModel,
    ids: Sequence[int],
    token: int | str | None,
    *,
    versus: int | str | None,
    position: Selection,
    by: str,
    edits: Prepared | None = None,
    prompt: str | None = None,
) -> Attribution:
    """The attribution of one position's logit; arguments and errors are those of `LensModel`."""
    if by not in BY:
        raise PromptError(f"by={by!r}: expected one of {', '.join(BY)}")
    where = select_position(position, len(ids))
    asked = model.tokens.compared(token, versus, model.vocab_size)
    with as_found(model.hf):
        trace = Trace(model, len(ids), where, by)
        residuals = trace.run(ids, edits)
        logits_V = residuals.final_logits[0]
        if token is None:
            asked = model.tokens.compared(int(logits_V.argmax()), versus, model.vocab_size)
        final_1D = residuals.h[-1][[where]]
        check = compare(residuals.final_logits, model.tail.logits(final_1D), model.tail, final_1D)
        check.require(model.name)
        sums = _sums(model, trace, final_1D[0], asked)
    own_R = logits_V[asked].double().cpu()
    bound_R = sums.bound(model, own_R)
    if not bool(((own_R - sums.finished_R).abs() <= bound_R).all()):
        raise UnsupportedModel(
            f"{model.name}: the parts sum to {float(sums.finished_R[0]):.6g} and the model's own logit "
            f"is {float(own_R[0]):.6g}; rounding explains {float(bound_R.max()):.2g} of it"
        )
    pieces, head = model.tokens.pieces(list(ids)), model.tail.head
    return Attribution(
        components=sums.labels,
        token_parts=sums.parts_CR[:, 0].numpy(),
        versus_parts=sums.parts_CR[:, 1].numpy() if len(asked) > 1 else None,
        token=asked[0],
        versus=asked[1] if len(asked) > 1 else None,
        vocab={i: model.tokens.piece(i) for i in asked},
        meta={
            **provenance(model, resolve("logit", model), check, edits),
            "prompt": prompt,
            "ids": [int(i) for i in ids],
            "pieces": pieces,
            "position": where,
            "piece": pieces[where],
            "by": by,
            "logits": own_R.tolist(),
            "finished": sums.finished_R.tolist(),
            "bound": float(bound_R.sum()),
            "scale": head.scale,
            "softcap": head.softcap,
            "slopes": sums.slopes_R.tolist(),
            **({"router": trace.router} if trace.router else {}),
        },
    )


@dataclass(frozen=True, eq=False)
class Sums:
    """Parts (C, R) of R logits, float64, and what becomes of their sums.

    finished_R   after softcap and final bias      slopes_R   of the softcap there
    streams_R    the root of the sum of squares of what was rounded: along the stream and in the norm,
    product_R    and in the head's product
    """

    labels: list[str]
    parts_CR: Tensor
    finished_R: Tensor
    slopes_R: Tensor
    streams_R: Tensor
    product_R: Tensor

    def bound(self, model: LensModel, own_R: Tensor) -> Tensor:
        """What rounding may cost: of every sum along the stream, of the norm, of the head's product."""
        unit = UNIT.get(model.dtype, UNIT32)
        error_R = SUMS * (unit * self.streams_R + UNIT32 * self.product_R) * model.tail.head.scale
        return error_R + 4 * unit * own_R.abs() + SUMS * UNIT32


def _sums(model: LensModel, trace: Trace, final_D: Tensor, asked: list[int]) -> Sums:
    """The components' rows, and the tail's own biases, as parts of logits."""
    head, tail = model.tail.head, model.tail
    x_E = tail.head_input(final_D[None])[0]
    w_RE, bias_R = token_weights(tail, x_E, asked)
    pulled = pull_back(tail, final_D, w_RE)
    rows_CD = torch.stack([row_D for _, row_D in trace.components])
    finals_R = None if head.final_bias_V is None else head.final_bias_V[asked].double().cpu()
    constants = {**pulled.constants, "head bias": bias_R}
    constants = {n: c_R * head.scale for n, c_R in constants.items() if bool((c_R != 0).any())}
    if head.softcap is None and finals_R is not None and bool((finals_R != 0).any()):
        constants["final bias"] = finals_R
    parts_CR = rows_CD @ pulled.u_RD.T * head.scale
    parts_CR = torch.cat([parts_CR, *(c_R[None] for c_R in constants.values())])
    sums_R = parts_CR.sum(0)
    finished_R, slopes_R = sums_R, torch.ones_like(sums_R)
    if head.softcap is not None:
        capped_R = torch.tanh(sums_R / head.softcap)
        finished_R, slopes_R = capped_R * head.softcap, 1 - capped_R**2
        finished_R = finished_R if finals_R is None else finished_R + finals_R
    streams_R = torch.stack([(pulled.u_RD * h_D).norm(dim=-1) for h_D in trace.states]).norm(dim=0)
    return Sums(
        [*(label for label, _ in trace.components), *constants], parts_CR, finished_R, slopes_R,
        streams_R + 2 * pulled.sizes_R, w_RE.norm(dim=-1) * x_E.double().norm().cpu(),
    )  # fmt: skip
