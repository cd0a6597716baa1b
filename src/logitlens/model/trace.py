"""One pass at one position: the rows of the stream, and of everything that was added to it, in order."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from logitlens.anatomy.additions import Value
from logitlens.anatomy.check import UNIT, UNIT32
from logitlens.anatomy.experts import Experts
from logitlens.anatomy.sources import Products
from logitlens.anatomy.sublayers import Part, Took, total
from logitlens.anatomy.watch import Hook, hooked
from logitlens.errors import UnsupportedModel
from logitlens.model import capture as capturing
from logitlens.model.capture import Residuals
from logitlens.select import layer_label

if TYPE_CHECKING:
    from logitlens.model.edits import Prepared
    from logitlens.model.lens_model import LensModel


class Trace:
    """What a pass over `length` tokens adds to the stream at one position.

    by           what the components are: "sublayer", "layer", "head", "token" or "expert"
    components   label and row (D,) float64, in the order of the pass
    states       the stream after each addition
    router       the router's weight of every expert among the components
    """

    def __init__(self, model: LensModel, length: int, position: int, by: str):
        self.model, self.length, self.position, self.by = model, length, position, by
        self.components: list[tuple[str, Tensor]] = []
        self.states: list[Tensor] = []
        self.router: dict[str, float] = {}
        self.embedded: list[tuple[str, Tensor]] = []
        self.inputs: dict[int, Tensor] = {}  # by block, of the map that puts heads together
        self.products = Products(length) if by == "token" else None
        self.experts = Experts(model.anatomy, length, position) if by == "expert" else None

    def run(self, ids: Sequence[int], edits: Prepared | None) -> Residuals:
        """The pass: the final residual, and the logits at the position. Raises UnsupportedModel."""
        model, last = self.model, self.model.n_blocks
        try:
            watch = self._watch() if self.by != "layer" else None
        except UnsupportedModel as reason:
            raise UnsupportedModel(f"{reason}; try by='layer'") from reason
        with ExitStack() as stack:
            if self.by in ("head", "token"):
                self._require_heads()
                self.inputs = stack.enter_context(model.heads.inputs())
            if self.products is not None:
                stack.enter_context(self.products.within(model.anatomy.blocks))
            if self.experts is not None:
                stack.enter_context(self.experts.watching())
            stack.enter_context(hooked(after=self._embeddings()))
            (residuals,) = capturing.capture(
                model, [ids], depths=[last] if watch else None, check=[self.position],
                edits=edits, watch=watch,
            )  # fmt: skip
        rows = [h_TD[self.position].double().cpu() for h_TD in residuals.h]
        if watch:
            self._ends(rows[-1])
        else:
            self._begins(rows[0])
            for depth in range(1, last + 1):
                self._adds(layer_label(depth), rows[depth] - rows[depth - 1])
                self.states.append(rows[depth])
        if self.experts is not None and not self.router:
            raise UnsupportedModel(
                f"{model.name} has no experts that can be told apart: in no block is one module given "
                "rows, numbers of experts and their weights; try by='sublayer'"
            )
        return residuals

    def _require_heads(self) -> None:
        """Blocks without heads keep their attention whole. Raises UnsupportedModel where all do."""
        try:
            self.model.heads.require(self.model.name)
        except UnsupportedModel as reason:
            raise UnsupportedModel(f"{reason}; try by='sublayer'") from reason

    def _row(self, stream: Tensor) -> Tensor:
        """(1, D), as the model carries it."""
        return self.model.anatomy.rows(stream, 1)[0, [self.position]]

    def _watch(self) -> Took:
        """What `capture` is to call after every block."""
        sublayers = self.model.sublayers

        def took(
            block: int, entering: Tensor, added: list[tuple[Part, Value]], leaving: Tensor
        ) -> None:
            self._enters(block, self._row(entering)[0].double().cpu())
            for stream in ("attn", "mlp"):
                if sublayers.has(stream, block):
                    whole = total(stream, entering, added, None).view(leaving.shape)
                    self._sublayer(block, stream, self._row(whole))
            self.states.append(self._row(leaving)[0].double().cpu())

        return took

    def _sublayer(self, block: int, stream: str, row_1D: Tensor) -> None:
        """What a sublayer added, or what it is the sum of."""
        found = self.experts.apart(block, row_1D[0]) if self.experts and stream == "mlp" else None
        if found is not None:
            weights, out_KD, beside_D = found
            for (expert, weight), row_D in zip(weights.items(), out_KD):
                self._adds(f"{block}.expert{expert}", row_D)
                self.router[f"{block}.expert{expert}"] = weight
            if bool(beside_D.any()):
                self._adds(f"{block}.shared", beside_D)
        elif stream == "attn" and block in self.inputs:
            self._heads(block, row_1D)
        else:
            self._adds(f"{block}.{stream}", row_1D[0])
            return
        self.states.append(row_1D[0].double().cpu())

    def _heads(self, block: int, attn_1D: Tensor) -> None:
        """Heads and bias in the place of what attention added; of heads, what they read where."""
        heads, z_TE = self.model.heads.of(block), self.inputs[block][0]
        out_H1D, bias_1D = heads.apart(block, z_TE[[self.position]], attn_1D)
        if self.products is None:
            for head, row_D in enumerate(out_H1D[:, 0]):
                self._adds(f"{block}.head{head}", row_D)
        else:
            z_SHe = self.products.sources(block, heads, z_TE, self.position)
            for head, out_SD in enumerate(heads.sources(z_SHe)):
                for source, row_D in enumerate(out_SD[: self.position + 1]):
                    self._adds(f"{block}.head{head}@{source}", row_D)
        if bool(bias_1D.any()):
            self._adds(f"{block}.attn bias", bias_1D[0])

    def _enters(self, block: int, h_D: Tensor) -> None:
        """The stream that a block receives; what was changed since the last one is an edit's."""
        if block == 0:
            self._begins(h_D)
        elif bool((change_D := h_D - self.states[-1]).any()):
            self.components.append((f"{block - 1}.edit", change_D))
            self.states.append(h_D)

    def _begins(self, h_D: Tensor) -> None:
        """What the first block receives: embeddings by themselves where they sum to it."""
        parts = self.embedded
        allowed = 8 * UNIT.get(self.model.dtype, UNIT32) * float(h_D.abs().max())
        whole = sum((row_D for _, row_D in parts), torch.zeros_like(h_D))
        apart = len(parts) > 1 and float((whole - h_D).abs().max()) <= allowed
        self.components += parts if apart else [("embed", h_D)]
        self.states.append(h_D)

    def _ends(self, h_D: Tensor) -> None:
        """The final residual; an edit after the last block is the rest."""
        if bool((change_D := h_D - self.states[-1]).any()):
            self.components.append((f"{self.model.n_blocks - 1}.edit", change_D))

    def _adds(self, label: str, row_D: Tensor) -> None:
        self.components.append((label, row_D.double().cpu()))

    def _embeddings(self) -> list[tuple[nn.Module, Hook]]:
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
