"""What every component added to one logit: the linear form of the tail, its norm's statistics held.

The residual stream after the last block is a sum: the embedding, and what every sublayer added. With
the final norm's statistics held at the values they have in this row, norm and head are linear, so the
logit before a softcap is the same sum, component by component (Elhage et al. 2021, "A Mathematical
Framework for Transformer Circuits"; nostalgebraist 2020 for the reading of rows).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from logitlens.anatomy.additions import Value
from logitlens.anatomy.check import SUMS, UNIT, UNIT32, compare
from logitlens.anatomy.heads import BlockHeads, Heads
from logitlens.anatomy.held import pull_back, token_weights
from logitlens.anatomy.sublayers import TOLERANCE, Part, Took, total
from logitlens.anatomy.watch import Hook, hooked
from logitlens.attribution import Attribution
from logitlens.errors import PromptError, UnsupportedModel
from logitlens.lenses import resolve
from logitlens.model import capture as capturing
from logitlens.model.assemble import provenance
from logitlens.model.capture import Residuals
from logitlens.select import Selection, layer_label, select_positions

if TYPE_CHECKING:
    from logitlens.model.edits import Prepared
    from logitlens.model.lens_model import LensModel

BY = ("sublayer", "layer", "head")


class Trace:
    """One position's rows of the stream and of what was added to it, in the order of the pass."""

    def __init__(self, model: LensModel, length: int, position: int):
        self.model, self.length, self.position = model, length, position
        self.components: list[tuple[str, Tensor]] = []  # label, (D,) float64
        self.states: list[Tensor] = []  # the stream after each addition
        self.embedded: list[tuple[str, Tensor]] = []
        self.inputs: dict[int, Tensor] = {}  # by block, of the map that puts heads together

    def row(self, stream: Tensor) -> Tensor:
        return self.model.anatomy.rows(stream, 1)[0, self.position].double().cpu()

    def watch(self) -> Took:
        """What `capture` is to call after every block."""
        anatomy, sublayers = self.model.anatomy, self.model.sublayers

        def took(
            block: int, entering: Tensor, added: list[tuple[Part, Value]], leaving: Tensor
        ) -> None:
            self.enters(block, self.row(entering))
            for stream in ("attn", "mlp"):
                if sublayers.has(stream, block):
                    rows = total(stream, entering, added, None).view(leaving.shape)
                    row_D = anatomy.rows(rows, 1)[0, self.position].double().cpu()
                    if stream == "attn" and block in self.inputs:
                        self.by_head(block, row_D)
                    else:
                        self.adds(f"{block}.{stream}", row_D)
            self.states.append(self.row(leaving))

        return took

    def by_head(self, block: int, attn_D: Tensor) -> None:
        """Heads and bias in the place of what attention added. Raises UnsupportedModel where they do
        not sum to it."""
        heads = self.model.heads.blocks[block]
        assert isinstance(heads, BlockHeads)
        out_HD, bias_D = heads.rows(self.inputs[block])
        change_D = attn_D - out_HD.sum(0)
        scale = float(attn_D.abs().max()) + float(out_HD.abs().max())
        allowed = TOLERANCE.get(self.model.dtype, 1e-4) * scale
        off = float((change_D - bias_D).abs().max())
        if not off <= allowed:
            raise UnsupportedModel(
                f"the heads of block {block} and their bias do not sum to what its attention added: "
                f"they differ by {off:.2g} (tolerance {allowed:.1g})"
            )
        for head, row_D in enumerate(out_HD):
            self.adds(f"{block}.head{head}", row_D)
        if bool(bias_D.any()):
            self.adds(f"{block}.attn bias", bias_D)
        self.states.append(attn_D)

    def enters(self, block: int, h_D: Tensor) -> None:
        """The stream that a block receives; what was changed since the last one is an edit's."""
        if block == 0:
            self.begins(h_D)
        elif bool((change_D := h_D - self.states[-1]).any()):
            self.components.append((f"{block - 1}.edit", change_D))
            self.states.append(h_D)

    def begins(self, h_D: Tensor) -> None:
        """What the first block receives: embeddings by themselves where they sum to it."""
        parts = self.embedded
        allowed = 8 * UNIT.get(self.model.dtype, UNIT32) * float(h_D.abs().max())
        whole = sum((row_D for _, row_D in parts), torch.zeros_like(h_D))
        apart = len(parts) > 1 and float((whole - h_D).abs().max()) <= allowed
        self.components += parts if apart else [("embed", h_D)]
        self.states.append(h_D)

    def ends(self, h_D: Tensor) -> None:
        """The final residual; an edit after the last block is the rest."""
        if bool((change_D := h_D - self.states[-1]).any()):
            self.components.append((f"{self.model.n_blocks - 1}.edit", change_D))

    def adds(self, label: str, row_D: Tensor) -> None:
        self.components.append((label, row_D.double().cpu()))

    def embeddings(self) -> list[tuple[nn.Module, Hook]]:
        """Hooks on what looks up one row a token or a position, outside the blocks."""
        model = self.model
        inside = {m for block in model.anatomy.blocks for m in block.modules()}

        def hook(path: str) -> Hook:
            def keep(module: nn.Module, args: Any, output: Any) -> None:
                if isinstance(output, Tensor) and output.numel() == self.length * model.width:
                    row_D = output.reshape(self.length, model.width)[self.position]
                    self.embedded.append((f"embed.{path}", row_D.double().cpu()))

            return keep

        return [
            (module, hook(path.rpartition(".")[2]))
            for path, module in model.hf.named_modules()
            if isinstance(module, nn.Embedding) and module not in inside
        ]


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
    where = select_positions(position, len(ids))
    if len(where) != 1:
        raise PromptError(f"position={position!r}: expected one position, got {len(where)}")
    asked = [model.tokens.single(t, model.vocab_size) for t in (token, versus) if t is not None]
    trace = Trace(model, len(ids), where[0])
    residuals = _run(model, ids, trace, by, edits)
    final_D = residuals.h[-1][where[0]]
    logits_V = residuals.final_logits[0]
    if token is None:
        asked.insert(0, int(logits_V.argmax()))
    if len(set(asked)) < len(asked):
        raise PromptError(f"versus={versus!r} is the token itself: compare it with another one")
    head, tail = model.tail.head, model.tail
    check = compare(residuals.final_logits, tail.logits(final_D[None]), tail, final_D[None])
    if not check.ok:
        raise UnsupportedModel(
            f"{model.name}: the last row is not the model's own output: {check.line()}"
        )
    x_E = tail.head_input(final_D[None])[0]
    w_RE, bias_R = token_weights(tail, x_E, asked)
    pulled = pull_back(tail, final_D, w_RE)
    rows_CD = torch.stack([row_D for _, row_D in trace.components])
    parts_CR = rows_CD @ pulled.u_RD.T
    labels = [label for label, _ in trace.components]
    finals_R = None if head.final_bias_V is None else head.final_bias_V[asked].double().cpu()
    constants = {**pulled.constants, "head bias": bias_R}
    constants = {n: c_R * head.scale for n, c_R in constants.items() if bool((c_R != 0).any())}
    if head.softcap is None and finals_R is not None and bool((finals_R != 0).any()):
        constants["final bias"] = finals_R
    parts_CR = torch.cat([parts_CR * head.scale, *(c_R[None] for c_R in constants.values())])
    sums_R = parts_CR.sum(0)
    finished_R, slopes_R = sums_R, torch.ones_like(sums_R)
    if head.softcap is not None:
        capped_R = torch.tanh(sums_R / head.softcap)
        finished_R, slopes_R = capped_R * head.softcap, 1 - capped_R**2
        finished_R = finished_R if finals_R is None else finished_R + finals_R
    own_R = logits_V[asked].double().cpu()
    # What rounding may cost: of every sum along the stream, of the norm, of the head's product.
    unit = UNIT.get(model.dtype, UNIT32)
    streams_R = torch.stack([(pulled.u_RD * h_D).norm(dim=-1) for h_D in trace.states]).norm(dim=0)
    product_R = w_RE.norm(dim=-1) * x_E.double().norm().cpu()
    error_R = SUMS * (unit * (streams_R + 2 * pulled.sizes_R) + UNIT32 * product_R) * head.scale
    bound_R = error_R + 4 * unit * own_R.abs() + SUMS * UNIT32
    off_R = (own_R - finished_R).abs()
    if not bool((off_R <= bound_R).all()):
        raise UnsupportedModel(
            f"{model.name}: the parts sum to {float(finished_R[0]):.6g} and the model's own logit is "
            f"{float(own_R[0]):.6g}; rounding explains {float(bound_R.max()):.2g} of it"
        )
    pieces = model.tokens.pieces(list(ids))
    return Attribution(
        components=[*labels, *constants],
        token_parts=parts_CR[:, 0].numpy(),
        versus_parts=parts_CR[:, 1].numpy() if len(asked) > 1 else None,
        token=asked[0],
        versus=asked[1] if len(asked) > 1 else None,
        vocab={i: model.tokens.piece(i) for i in asked},
        meta={
            **provenance(model, resolve("logit", model), check, edits),
            "prompt": prompt,
            "ids": [int(i) for i in ids],
            "pieces": pieces,
            "position": where[0],
            "piece": pieces[where[0]],
            "by": by,
            "logits": own_R.tolist(),
            "finished": finished_R.tolist(),
            "bound": float(bound_R.sum()),
            "scale": head.scale,
            "softcap": head.softcap,
            "slopes": slopes_R.tolist(),
        },
    )


def _heads(model: LensModel) -> Heads:
    """The model's heads; blocks without any keep their attention whole. Raises UnsupportedModel."""
    if not any(isinstance(h, BlockHeads) for h in model.heads.blocks):
        raise UnsupportedModel(
            f"{model.name} has no heads that can be told apart: of block 0, {model.heads.blocks[0]}; "
            "try by='sublayer'"
        )
    return model.heads


def _run(
    model: LensModel, ids: Sequence[int], trace: Trace, by: str, edits: Prepared | None
) -> Residuals:
    """One pass in which the trace is filled; the final residual and the logits at its position."""
    last = model.n_blocks
    try:
        watch = trace.watch() if by != "layer" else None
    except UnsupportedModel as reason:
        raise UnsupportedModel(f"{reason}; try by='layer'") from reason
    with ExitStack() as stack:
        if by == "head":
            trace.inputs = stack.enter_context(_heads(model).inputs(trace.position))
        stack.enter_context(hooked(after=trace.embeddings()))
        (residuals,) = capturing.capture(
            model, [ids], depths=[last] if watch else None, check=[trace.position],
            edits=edits, watch=watch,
        )  # fmt: skip
    rows = [h_TD[trace.position].double().cpu() for h_TD in residuals.h]
    if watch:
        trace.ends(rows[-1])
    else:
        trace.begins(rows[0])
        for depth in range(1, last + 1):
            trace.adds(layer_label(depth), rows[depth] - rows[depth - 1])
            trace.states.append(rows[depth])
    return residuals
