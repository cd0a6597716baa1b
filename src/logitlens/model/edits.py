"""Edits applied: what is changed in the stream while a model runs; nothing stays on the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from logitlens import edit as editing
from logitlens.anatomy.additions import Change, See, Sum, Value
from logitlens.anatomy.heads import BlockHeads
from logitlens.anatomy.held import pull_back, token_weights
from logitlens.anatomy.sublayers import MIXES, ROWWISE, Part
from logitlens.anatomy.watch import Hook, leaf, replace_leaf
from logitlens.edit import Edit
from logitlens.errors import LensMismatch, PromptError, UnsupportedModel
from logitlens.lenses import Lens, resolve
from logitlens.model import capture as capturing
from logitlens.model.provenance import display_name
from logitlens.select import layer_label, select_layer, select_positions

if TYPE_CHECKING:
    from logitlens.anatomy.blocks import Anatomy
    from logitlens.anatomy.sublayers import Sublayers
    from logitlens.model.lens_model import LensModel


Changed = Callable[[Tensor, Sequence[Edit]], "Tensor | None"]


@dataclass(frozen=True, eq=False)
class Changes:
    """What edits do in one pass over a batch.

    depths   where the stream is changed     see      changes it; see `Anatomy.following`
    change   changes what sublayers add, see `additions.recording`; None: nothing there
    heads    hooks on the maps that put heads together, which change what a head gives them
    """

    depths: list[int]
    see: See
    change: Change | None
    heads: list[tuple[nn.Module, Hook]]


@dataclass(frozen=True, eq=False)
class Prepared:
    """Edits made ready for a model: layers, vectors and rows are found, the source prompts were run.

    start, length   of a prompt that runs in chunks, or is written on: where this pass begins, and the
                    length of the prompt that positions are chosen from
    prompts         of a batch in which answers follow their prompts: the length of each prompt
    """

    edits: list[Edit]
    model: LensModel
    start: int = 0
    length: int | None = None
    prompts: tuple[int, ...] | None = None

    def chunk(self, start: int, length: int) -> Prepared:
        """The same edits for the chunk of a prompt of `length` tokens that begins at `start`."""
        return replace(self, start=start, length=length)

    def before_answers(self, prompts: Sequence[int]) -> Prepared:
        """The same edits for a batch in which an answer follows each prompt, of these lengths."""
        return replace(self, prompts=tuple(prompts))

    def require(self, length: int) -> None:
        """Raise PromptError where a prompt of `length` tokens lacks a position that is edited, or has
        another number of them than a patch has rows."""
        for e in self.edits:
            found = len(self._positions(e, length, length))
            if e.kind == "patch" and found != len(e.vectors[0]):
                raise _other_rows(e, found)

    def to_meta(self) -> dict[str, Any]:
        """For `Reading.meta`: the edits, and their vectors by hash."""
        return editing.to_data(self.edits)

    def over(self, lengths: Sequence[int]) -> Changes | None:
        """What is done in a pass over prompts (or one prompt's chunk) of these lengths.

        Raises PromptError for a position beyond a prompt.
        """
        prompts = self.prompts
        if prompts is None:
            prompts = lengths if self.length is None else [self.length] * len(lengths)
        where = {
            id(e): [self._positions(e, *each) for each in zip(lengths, prompts)] for e in self.edits
        }
        active = [e for e in self.edits if any(where[id(e)])]
        return self._changes(active, lambda e, T: where[id(e)], prompts)

    def writing(self, so_far: Callable[[], int | None]) -> Changes | None:
        """What is done in every pass of a generation; `so_far` is how long the text is by then, or
        None in a pass that does not belong to it."""

        def where(e: Edit, T: int) -> list[list[int]]:
            total = so_far()
            if total is None:
                return [[]]
            prompt = T if self.length is None else self.length
            return [replace(self, start=total - T)._positions(e, T, prompt)]

        return self._changes(self.edits, where, None)

    def _changes(
        self,
        edits: Sequence[Edit],
        where: Callable[[Edit, int], list[list[int]]],
        lengths: Sequence[int] | None,
    ) -> Changes | None:
        active = [e for e in edits if e.scale != 0 or e.kind == "patch"]
        for e in active:
            if e.how == "mean" and self.length is not None:
                raise PromptError(
                    f"{e}: the mean over a prompt needs it whole: not in chunks, not in generate"
                )
        if not active:
            return None
        anatomy = self.model.anatomy
        batch = 1 if lengths is None else len(lengths)

        def edited(rows_BTD: Tensor, wanted: Sequence[Edit]) -> Tensor | None:
            T = rows_BTD.shape[1]
            places = [(where(e, T), e) for e in wanted]
            if not any(positions for each, _ in places for positions in each):
                return None
            rows_BTD = rows_BTD.clone(memory_format=torch.contiguous_format)
            return _edited_rows(rows_BTD, places, lengths or [T])

        def changed(stream: Tensor, wanted: Sequence[Edit]) -> Tensor | None:
            new_BTD = edited(anatomy.rows(stream.detach(), batch), wanted) if wanted else None
            if new_BTD is None:
                return None
            return anatomy.stream(new_BTD).reshape(stream.shape).contiguous()

        def see(depth: int, stream: Tensor) -> Tensor | None:
            return changed(stream, [e for e in whole if _depth(e) == depth])

        whole = [e for e in active if e.stream == "resid"]
        parts = [e for e in active if e.stream in ("attn", "mlp")]
        heads = [e for e in active if e.stream == "head"]
        change = _changing(anatomy, self.model.sublayers, parts, changed) if parts else None
        hooks = [
            self._head_hook(block, [e for e in heads if _depth(e) == block + 1], batch, edited)
            for block in sorted({_depth(e) - 1 for e in heads})
        ]
        return Changes(sorted({_depth(e) for e in whole}), see, change, hooks)

    def _head_hook(
        self, block: int, edits: Sequence[Edit], batch: int, edited: Changed
    ) -> tuple[nn.Module, Hook]:
        """What changes the heads of one block."""
        heads = self.model.heads.of(block)

        def change(z_BTE: Tensor) -> Tensor | None:
            changes = False
            for e in edits:
                columns = heads.columns(e.head or 0)
                new_BTe = edited(z_BTE[..., columns], [e])
                if new_BTe is not None:
                    z_BTE[..., columns], changes = new_BTe, True
            return z_BTE if changes else None

        return head_hook(heads, batch, change)

    def _positions(self, e: Edit, length: int, prompt: int) -> list[int]:
        """Where in a pass of `length` positions an edit acts, of a prompt of so many."""
        try:
            chosen = select_positions(e.positions, prompt)
        except PromptError as error:
            raise PromptError(f"{e}: {error}") from None
        stop = self.start + length
        if e.generated:
            chosen += range(prompt, stop)
        return [p - self.start for p in chosen if self.start <= p < stop]


def prepare(model: LensModel, edits: Prepared | Edit | Iterable[Edit] | None) -> Prepared | None:
    """Edits for a model; None where there are none. Those that are prepared stay as they are.

    Raises PromptError for what this model has not: a layer, a sublayer, a vector of its width; and
    for edits that were saved with another model.
    """
    if isinstance(edits, Prepared):
        return edits
    edits = () if edits is None else edits
    given = list(edits) if isinstance(edits, Iterable) else [edits]
    for e in given:
        if not isinstance(e, Edit):
            raise PromptError(
                f"edits hold {type(e).__name__}: expected what logitlens.edit makes, like "
                "edit.add(vector, layer=5)"
            )
    return Prepared([_prepared(model, e) for e in given], model) if given else None


def controls(model: LensModel, edits: list[Edit]) -> list[Edit]:
    """The edits with those along directions turned into their `logitlens.edit.control`.

    Raises PromptError where none is along a direction, and what `prepare` raises.
    """
    ready = [_prepared(model, e) for e in edits]
    if not any(e.kind in editing.ALONG for e in ready):
        raise PromptError(
            "no edit to control: expected one along a direction, " + ", ".join(editing.ALONG)
        )
    return [editing.control(e) if e.kind in editing.ALONG else e for e in ready]


def _prepared(model: LensModel, e: Edit) -> Edit:
    name = display_name(model.name)
    if e.model is not None and e.model != name:
        raise PromptError(f"{e}: saved with the model {e.model}, and this is {name}")
    labels = [layer_label(depth) for depth in range(model.n_blocks + 1)]
    try:
        depth = select_layer(e.layer, labels)
    except PromptError as error:
        raise PromptError(f"{e}: {error}") from None
    width = model.width
    if e.stream != "resid":
        if depth == 0:
            raise PromptError(f"{e}: expected a block, 0 to {model.n_blocks - 1}")
        if e.stream == "head":
            try:
                width = _width(model.heads.of(depth - 1, e.head))
            except PromptError as error:
                raise PromptError(f"{e}: {error}") from None
        elif not model.sublayers.has(e.stream, depth - 1):
            raise PromptError(f"{e}: block {depth - 1} adds no {e.stream} of its own to the stream")
    e = replace(e, layer=labels[depth], text=str(e))
    if e.source is not None and not e.vectors:
        e = replace(e, vectors=(_source_rows(model, e, depth),))
    vectors = tuple(
        v if isinstance(v, np.ndarray) else direction(model, v, layer=labels[depth])
        for v in e.vectors
    )
    for v in vectors:
        if v.shape[-1] != width:
            whose = "the model" if width == model.width else "the head"
            raise PromptError(f"{e}: its vector is {v.shape[-1]} wide and {whose} {width}")
    if e.kind == "swap":
        a, b = (v / np.linalg.norm(v) for v in (v.astype(np.float64) for v in vectors))
        if abs(float(a @ b)) > 1 - 1e-6:
            raise PromptError(f"{e}: the two directions are the same")
    return replace(e, vectors=vectors)


def _source_rows(model: LensModel, e: Edit, depth: int) -> np.ndarray:
    """What the source prompt, run without edits, has at the layer (N, D)."""
    assert e.source is not None
    ids, _ = model._ids(e.source, False)
    with model.heads.inputs() if e.stream == "head" else nullcontext({}) as inputs:
        last = [depth] if e.stream == "resid" else [depth, model.n_blocks]
        stream = "resid" if e.stream == "head" else e.stream
        (residuals,) = capturing.capture(model, [ids], depths=last, stream=stream)
    rows_TD = residuals.h[0]
    if e.head is not None:
        rows_TD = inputs[depth - 1][0][:, model.heads.of(depth - 1).columns(e.head)]
    chosen = e.from_positions if e.from_positions is not None else e.positions
    try:
        where = select_positions(chosen, len(ids))
    except PromptError as error:
        raise PromptError(f"{e}: in the prompt it is taken from, {error}") from None
    return rows_TD[where].float().cpu().numpy()


def _width(heads: BlockHeads) -> int:
    return heads.weight_DE.shape[1] // heads.count


def _depth(e: Edit) -> int:
    return 0 if e.layer == "embed" else int(e.layer) + 1


def _edited_rows(
    rows_BTD: Tensor, places: Sequence[tuple[list[list[int]], Edit]], lengths: Sequence[int]
) -> Tensor:
    """The same rows, changed in place by each edit at its positions of each prompt."""
    for where, e in places:
        for b, positions in enumerate(where):
            if positions:
                at = torch.tensor(positions, dtype=torch.long, device=rows_BTD.device)
                new_ND = _edited(e, rows_BTD[b, at], rows_BTD[b, : lengths[b]])
                rows_BTD[b, at] = new_ND.to(rows_BTD.dtype)
    return rows_BTD


def _edited(e: Edit, h_ND: Tensor, all_TD: Tensor) -> Tensor:
    """Rows as an edit leaves them."""
    if e.kind == "ablate":
        mean_D = all_TD.float().mean(0)
        return (mean_D if e.how == "mean" else torch.zeros_like(mean_D)).expand(len(h_ND), -1)
    vectors = [torch.from_numpy(v).to(h_ND.device) for v in e.vectors]
    if e.kind == "patch":
        if len(vectors[0]) != len(h_ND):
            raise _other_rows(e, len(h_ND))
        return vectors[0]
    x_ND = h_ND.float()
    if e.kind == "add":
        return x_ND + e.scale * vectors[0]
    unit = [(v / v.norm()).float() for v in (v.double() for v in vectors)]
    if e.kind == "project_out":
        return x_ND - e.scale * (x_ND @ unit[0])[:, None] * unit[0]
    basis_D2 = torch.stack(unit, dim=1)
    # The coordinates along two directions that need not be orthogonal, exchanged.
    c_N2 = x_ND @ torch.linalg.pinv(basis_D2.double()).float().T
    return x_ND + e.scale * (c_N2.flip(-1) - c_N2) @ basis_D2.T


def _other_rows(e: Edit, positions: int) -> PromptError:
    return PromptError(f"{e}: {len(e.vectors[0])} rows for {positions} positions: expected as many")


def head_hook(
    heads: BlockHeads, batch: int, change: Callable[[Tensor], Tensor | None]
) -> tuple[nn.Module, Hook]:
    """A hook on the map that puts a block's heads together: `change` gets its input, a copy
    (B, T, E), and returns what takes its place, or None."""

    def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
        given = {"args": args, "kwargs": kwargs}
        z = leaf(given, heads.slot)
        rows = heads.axes.rows(z.detach(), batch)
        new_BTE = change(rows.flatten(2).clone())
        if new_BTE is None:
            return None
        new = heads.axes.carried(new_BTE.view(rows.shape)).reshape(z.shape).contiguous()
        given = replace_leaf(given, heads.slot, new)
        return given["args"], given["kwargs"]

    return heads.module, hook


def _changing(
    anatomy: Anatomy, sublayers: Sublayers, edits: Sequence[Edit], changed: Changed
) -> Change:
    """What is added to the stream instead of what "attn" or "mlp" adds.

    Raises UnsupportedModel where a patch would have to take the place of several terms.
    """

    def change(block: int, number: int, value: Value) -> Value | None:
        parts = sublayers.blocks[block]
        if number > len(parts):
            return None  # `contributions` will say that the block adds more often than it did
        out = value
        for stream, kind in (("attn", MIXES), ("mlp", ROWWISE)):
            wanted = [e for e in edits if e.stream == stream and _depth(e) == block + 1]
            if not wanted:
                continue
            terms = [p for part in parts for p in part.kinds() if _counts(p, kind)]
            if len(terms) > 1 and any(e.kind == "patch" for e in wanted):
                raise UnsupportedModel(
                    f"block {block} of {anatomy.blocks_path} adds its {stream} in several steps: "
                    "it cannot be patched as one"
                )
            out = replaced(parts[number - 1], out, kind, wanted, changed)
        return None if out is value else out

    return change


def _counts(part: Part, kind: str) -> bool:
    return (part.kind == ROWWISE) == (kind == ROWWISE)


def replaced(part: Part, value: Value, kind: str, edits: Sequence[Edit], changed: Changed) -> Value:
    """A contribution with the terms of one kind edited."""
    if part.parts is None:
        new = changed(value.tensor, edits) if _counts(part, kind) else None
        return value if new is None else Value(new, value.origin)
    if not isinstance(value.origin, Sum):
        raise UnsupportedModel(
            "a block sums its sublayers in another order than when it was probed"
        )
    left = replaced(part.parts[0], value.origin.left, kind, edits, changed)
    right = replaced(part.parts[1], value.origin.right, kind, edits, changed)
    if left is value.origin.left and right is value.origin.right:
        return value
    shape = value.tensor.shape
    return Value(left.tensor.view(shape) + right.tensor.view(shape), Sum(left, right))


def direction(
    model: LensModel,
    token: int | str,
    versus: int | str | None = None,
    *,
    layer: int | str,
    lens: str | Lens = "logit",
) -> np.ndarray:
    """The direction of a token at a layer (D,) float32, of length 1; see `LensModel.direction`."""
    labels = [layer_label(d) for d in range(model.n_blocks + 1)]
    depth = select_layer(layer, labels)
    asked = model.tokens.compared(token, versus, model.vocab_size)
    tail, found = model.tail, resolve(lens, model)
    generator = torch.Generator().manual_seed(1)
    shape = (1, model.width)
    h_1D = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
    h_1D = h_1D.to(next(model.hf.parameters()).device)
    w_RE, _ = token_weights(tail, tail.head_input(h_1D)[0], asked)
    w_1E = w_RE[:1] - (w_RE[1:] if len(asked) > 1 else 0)
    u_1D = pull_back(tail, h_1D[0], w_1E).u_RD
    has = found.depths()
    if found.name != "logit" and depth < model.n_blocks:
        if has is not None and depth not in has:
            raise LensMismatch(f"the {found.name} lens has no map for layer {labels[depth]}")
        with torch.enable_grad():
            x_1D = h_1D.clone().requires_grad_()
            out_1D = found.apply(x_1D, depth)
            (u_1D,) = torch.autograd.grad(out_1D, x_1D, u_1D.to(out_1D))
    u_D = u_1D[0].double().cpu()
    return (u_D / u_D.norm()).float().numpy()
