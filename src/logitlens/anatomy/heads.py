"""Attention heads: what each of them adds to the stream, found by watching, without names.

What attention adds is explained backwards through the calls inside the block, as the tail is: up to
norms and factors after it, it is what one linear map returned. That map's input was put together from
a tensor of heads (…, H, width of each) by a view, which shows how many there are; its columns, taken
apart in the same way, are what every head adds. Heads and bias sum to the contribution.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from logitlens.anatomy.additions import Value
from logitlens.anatomy.blocks import Anatomy
from logitlens.anatomy.final_norm import LONGEST, Step, explanations
from logitlens.anatomy.forward import as_found, forward, refusing
from logitlens.anatomy.held import Held, held_each
from logitlens.anatomy.sublayers import (
    MIXES,
    POSITIONS,
    ROWWISE,
    TOLERANCE,
    Key,
    Part,
    Sublayers,
    Took,
    contributions,
    of_kind,
    total,
)
from logitlens.anatomy.watch import Axes, Call, Hook, Rows, hooked, leaf, same, watching
from logitlens.errors import PromptError, UnsupportedModel

ROWS = 64  # taken apart at once: H × D numbers each, in float64

_VIEWS = {
    torch.ops.aten.view.default,
    torch.ops.aten._unsafe_view.default,
    torch.ops.aten._reshape_alias.default,
}


@dataclass(frozen=True, eq=False)
class BlockHeads:
    """The heads of one block's attention.

    count       H                      module   the linear map, and where it receives its input
    weight_DE   its weight             bias_D   its bias, or None
    scale       a factor after it      steps    norms between it and the stream
    """

    count: int
    module: nn.Module
    slot: tuple[Any, ...]
    axes: Axes
    weight_DE: Tensor
    bias_D: Tensor | None
    scale: float
    steps: list[Step]

    def columns(self, head: int) -> slice:
        """Where one head is in the linear map's input."""
        size = self.weight_DE.shape[1] // self.count
        return slice(head * size, (head + 1) * size)

    def rows(self, z_NE: Tensor) -> tuple[Tensor, Tensor]:
        """The linear map's input → what each head adds to the stream (H, N, D), and what the biases
        add (N, D); float64 on the CPU, norms' statistics held."""
        forms, bias_ND = self._forms(z_NE.double().cpu())
        z_HNe = z_NE.double().cpu().unflatten(1, (self.count, -1)).transpose(0, 1)
        return self._through(z_HNe, forms), bias_ND

    def sources(self, z_SHe: Tensor) -> Tensor:
        """The same of one row that is a sum over S: what each head adds of each term (H, S, D)."""
        forms, _ = self._forms(z_SHe.sum(0).flatten()[None])
        return self._through(z_SHe.transpose(0, 1), forms)

    def _through(self, z_HNe: Tensor, forms: list[tuple[Held, float]]) -> Tensor:
        w_DHe = self.weight_DE.double().cpu().unflatten(1, (self.count, -1))
        out_HND = torch.einsum("dhe,hne->hnd", w_DHe, z_HNe) * self.scale
        for form, scale in forms:
            out_HND = form.forward(out_HND) * scale
        return out_HND

    def _forms(self, z_NE: Tensor) -> tuple[list[tuple[Held, float]], Tensor]:
        """The norms after the map, held at these rows, and what the biases add (N, D)."""
        x_ND = z_NE @ self.weight_DE.double().cpu().T * self.scale
        bias_ND = torch.zeros_like(x_ND)
        if self.bias_D is not None:
            bias_ND = bias_ND + self.bias_D.double().cpu() * self.scale
        forms = []
        for step in self.steps:
            form = held_each(step, (x_ND + bias_ND).to(step.dtype))
            forms.append((form, step.scale))
            x_ND = form.forward(x_ND) * step.scale
            bias_ND = (form.forward(bias_ND) + form.bias_E) * step.scale
        return forms, bias_ND

    def apart(self, block: int, z_NE: Tensor, attn_ND: Tensor) -> tuple[Tensor, Tensor]:
        """`rows`, where they sum to what attention added; else raises UnsupportedModel."""
        out_HND, bias_ND = self.rows(z_NE)
        scale = float(attn_ND.abs().max()) + float(out_HND.abs().max())
        allowed = TOLERANCE.get(attn_ND.dtype, 1e-4) * scale
        off = float((attn_ND.double().cpu() - out_HND.sum(0) - bias_ND).abs().max())
        if not off <= allowed:
            raise UnsupportedModel(
                f"the heads of block {block} and their bias do not sum to what its attention added: "
                f"they differ by {off:.2g} (tolerance {allowed:.1g})"
            )
        return out_HND, bias_ND


@dataclass(frozen=True, eq=False)
class Heads:
    """The heads of every block; where a block's were not found, the reason.

    writers   "attn" and "mlp" → of every block, the weight (D, E) of the linear map whose output that
              sublayer adds, or the reason why there is none
    """

    blocks: tuple[BlockHeads | str, ...]
    writers: dict[str, tuple[Tensor | str, ...]]

    def require(self, name: str) -> list[int]:
        """The blocks whose heads were found; raises UnsupportedModel where none were."""
        found = [i for i, heads in enumerate(self.blocks) if isinstance(heads, BlockHeads)]
        if not found:
            raise UnsupportedModel(
                f"{name} has no heads that can be told apart: of block 0, {self.blocks[0]}"
            )
        return found

    def of(self, block: int, head: int | None = None) -> BlockHeads:
        """One block's heads. Raises PromptError for one, or a head, that there is not."""
        heads = self.blocks[block]
        if isinstance(heads, str):
            raise PromptError(f"the heads of block {block} cannot be told apart: {heads}")
        if head is not None and not 0 <= head < heads.count:
            raise PromptError(f"no head {head}: block {block} has heads 0 to {heads.count - 1}")
        return heads

    @contextmanager
    def inputs(self, batch: int = 1) -> Iterator[dict[int, Tensor]]:
        """Inside, every pass fills a dictionary: block → its map's input (B, T, E)."""
        kept: dict[int, Tensor] = {}

        def hook(block: int, heads: BlockHeads) -> Hook:
            def keep(module: nn.Module, args: Any, kwargs: Any) -> None:
                given = leaf({"args": args, "kwargs": kwargs}, heads.slot)
                kept[block] = heads.axes.rows(given.detach(), batch).flatten(2)

            return keep

        found = [(i, h) for i, h in enumerate(self.blocks) if isinstance(h, BlockHeads)]
        with hooked(before=[(h.module, hook(i, h)) for i, h in found]):
            yield kept

    @contextmanager
    def keeper(
        self, anatomy: Anatomy, blocks: Sequence[int], batch: int, took: list[Took]
    ) -> Iterator[dict[Key, list[Tensor]]]:
        """Inside, every pass adds what each head of the blocks adds to the stream (B, T, D), under
        (depth, head), where `took` is called by `contributions`. Heads and bias are checked."""
        kept: dict[Key, list[Tensor]] = {}

        def keep(
            block: int, entering: Tensor, added: list[tuple[Part, Value]], leaving: Tensor
        ) -> None:
            if block not in blocks:
                return
            attn = total("attn", entering, added, None).view(leaving.shape)
            attn_ND = anatomy.rows(attn.detach(), batch).flatten(0, 1)
            z_NE, heads = inputs.pop(block).flatten(0, 1), self.of(block)
            parts = [
                heads.apart(block, z, attn)[0].to(leaving)
                for z, attn in zip(z_NE.split(ROWS), attn_ND.split(ROWS))
            ]
            for head, h_ND in enumerate(torch.cat(parts, 1)):
                rows = h_ND.unflatten(0, (batch, -1)).clone()
                kept.setdefault((block + 1, head), []).append(rows)

        took.append(keep)
        with self.inputs(batch) as inputs:
            yield kept


class _Merges(TorchDispatchMode):
    """Remembers, by the width that results, how many heads the last view put together."""

    def __init__(self):
        super().__init__()
        self.merged: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in _VIEWS and isinstance(out, Tensor):
            before, after = tuple(args[0].shape), tuple(out.shape)
            if len(before) > 2 and before[-1] * before[-2] == after[-1] and len(after) > 1:
                self.merged[after[-1]] = before[-2]
        return out


@torch.no_grad()
def find_heads(model: nn.Module, anatomy: Anatomy, sublayers: Sublayers, ids_T: Tensor) -> Heads:
    """The heads of every block, from one probe of tokens `ids_T`."""
    ids_2T = ids_T.flatten()[:POSITIONS].expand(2, -1)
    B, T = ids_2T.shape
    targets: dict[tuple[str, int], Tensor | str] = {}
    counts: dict[str, int] = {}
    calls: list[Call] = []
    modules = [
        (f"{i}.{name}", module)
        for i, block in enumerate(anatomy.blocks)
        for name, module in block.named_modules()
        if name
    ]
    mode = _Merges()

    def count(path: str) -> Hook:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            given = args[0] if args else None
            if isinstance(given, Tensor) and given.shape[-1] in mode.merged:
                counts[path] = mode.merged[given.shape[-1]]

        return hook

    def begin(module: nn.Module, args: Any, kwargs: Any) -> None:
        mode.merged.clear()

    with (
        refusing(model, "while its heads are watched"),
        as_found(model),
        contributions(anatomy, sublayers, [_adding(anatomy, B, targets)]),
        hooked(
            before=[
                *((block, begin) for block in anatomy.blocks),
                *((module, count(path)) for path, module in modules),
            ]
        ),
        watching(modules, B, T, calls),
        mode,
    ):
        forward(model, ids_2T)
    often = Counter(id(module) for _, module in modules)  # a block's modules may be another's, too
    own = [
        [c for c in calls if c.path.startswith(f"{i}.") and often[id(c.module)] == 1]
        for i in range(len(anatomy.blocks))
    ]
    maps = {
        stream: [_map(targets.get((stream, i), "it did not run"), own[i]) for i in range(len(own))]
        for stream in ("attn", "mlp")
    }
    return Heads(
        tuple(_block(found, counts) for found in maps["attn"]),
        {s: tuple(m if isinstance(m, str) else m[2] for m in found) for s, found in maps.items()},
    )


def _adding(anatomy: Anatomy, batch: int, targets: dict[tuple[str, int], Tensor | str]) -> Took:
    """What `contributions` calls: keeps what attention and the MLP of each block add, or why not."""

    def took(
        block: int, entering: Tensor, added: list[tuple[Part, Value]], leaving: Tensor
    ) -> None:
        for stream, kind in (("attn", MIXES), ("mlp", ROWWISE)):
            terms = [t for part, value in added for t in _terms(part, value, kind)]
            if not terms:
                targets[stream, block] = f"it has no {stream}"
            elif len(terms) > 1:
                targets[stream, block] = f"its {stream} adds in several steps"
            else:
                rows = anatomy.rows(terms[0].view(leaving.shape).detach(), batch)
                targets[stream, block] = rows.clone()

    return took


def _terms(part: Part, value: Value, kind: str) -> Iterator[Tensor]:
    """The terms of a contribution that are of a kind; a constant beside attention is no head's."""
    if part.parts is None:
        if part.kind == kind:
            yield value.tensor
    elif kind in {p.kind for p in part.kinds()}:
        yield from of_kind(part, value, kind)


Map = tuple[Call, Rows, Tensor, float, list[Step]]


def _map(target: Tensor | str, calls: Sequence[Call]) -> Map | str:
    if isinstance(target, str):
        return target
    return _projection(target, calls) or "what it adds is not what one linear map returned"


def _block(found: Map | str, counts: dict[str, int]) -> BlockHeads | str:
    if isinstance(found, str):
        return found
    call, x, weight_DE, scale, steps = found
    E = weight_DE.shape[1]
    heads = counts.get(call.path, 0)
    if heads < 2 or E % heads:
        return "the linear map's input was not put together from heads"
    bias = getattr(call.module, "bias", None)
    return BlockHeads(
        heads, call.module, x.slot, x.axes, weight_DE,
        bias.detach() if isinstance(bias, Tensor) else None, scale, steps,
    )  # fmt: skip


def _projection(target_BTD: Tensor, calls: Sequence[Call]) -> Map | None:
    """The linear map whose output, through norms and factors, is the target; the nearest."""
    frontier: list[tuple[Tensor, float, list[Step]]] = [(target_BTD, torch.inf, [])]
    for _ in range(LONGEST):
        reached = []
        for y_BTD, before, steps in frontier:
            for call in calls:
                if call.end > before:
                    continue
                for x, out, factor in explanations(call, y_BTD):
                    weight_DE = _weight(call, x, out)
                    if weight_DE is not None:
                        return call, x, weight_DE, factor, steps
                    if x.h_BTD.shape == y_BTD.shape and not call.module._modules:
                        step = Step.of(call, x, out, factor)
                        reached.append((x.h_BTD, call.start, [step, *steps]))
        frontier = reached
    return None


def _weight(call: Call, x: Rows, out: Rows) -> Tensor | None:
    """(D, E), where a call is a plain product with its module's weight and bias; else None."""
    weight, bias = getattr(call.module, "weight", None), getattr(call.module, "bias", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2 or not weight.is_floating_point():
        return None
    if weight.device.type == "meta" or type(weight) not in (Tensor, nn.Parameter):
        return None
    E, D = x.h_BTD.shape[-1], out.h_BTD.shape[-1]
    for matrix_DE in (weight.detach(), weight.detach().T):  # GPT-2 keeps it transposed
        if matrix_DE.shape == (D, E):
            bias_D = None if bias is None else bias.detach().double()
            ours = nn.functional.linear(x.tensor.double(), matrix_DE.double(), bias_D)
            if same(ours.to(out.tensor.dtype), out.tensor) or _near(ours, out.tensor):
                return matrix_DE
    return None


def _near(ours: Tensor, theirs: Tensor) -> bool:
    allowed = 64 * torch.finfo(theirs.dtype).eps * float(theirs.abs().max())
    return float((ours - theirs.double()).abs().max()) <= allowed
