"""A grid of patches: one cell of a clean run put into a corrupted one, cell by cell, many at once.

Only what a patch can change runs again: the blocks below it are skipped, and the stream that the
corrupted run had there takes their place; the positions before it are those of the corrupted run's cache
(Meng et al. 2022, "Locating and Editing Factual Associations in GPT", for the experiment). Cells in which
the two runs are equal are not run at all. Every batch holds the corrupted run unpatched, too: it must
give the corrupted run's own logits, or more is run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from logitlens.anatomy.additions import Value
from logitlens.anatomy.check import distance
from logitlens.anatomy.forward import accepts, as_found, forward, input_device, logits_of, refusing
from logitlens.anatomy.heads import Heads
from logitlens.anatomy.replay import skipping
from logitlens.anatomy.sublayers import MIXES, ROWWISE, Key, Sublayers, contributions
from logitlens.anatomy.watch import hooked
from logitlens.errors import LogitLensError, PromptError, UnsupportedModel
from logitlens.lenses import resolve
from logitlens.model import capture as capturing
from logitlens.model.assemble import depths_of
from logitlens.model.capture import Progress, Residuals
from logitlens.model.chunks import cache_argument
from logitlens.model.edits import head_hook, replaced
from logitlens.model.provenance import provenance
from logitlens.patch_grid import PatchGrid
from logitlens.select import (
    Selection,
    layer_label,
    select_layers,
    select_position,
    select_positions,
)

if TYPE_CHECKING:
    from logitlens.model.lens_model import LensModel

TOKENS = 2048  # of one forward pass
# Of `distance`, times √blocks: a batch, and blocks that do not run, against one pass.
ROUNDING = 4.0
STREAMS = ("resid", "attn", "mlp", "head")


@dataclass(eq=False)
class Runs:
    """The two runs, and what is asked of the corrupted one when it is patched.

    stream   what is patched                 rows   by key, what the clean run has there (T, ·)
    own      by key, what the corrupted run has there; of "resid" the same as `resid`
    resid    by depth, the corrupted run's residual stream (T, D)
    ways     what may be left out of a pass, in the order in which it is tried: the positions before a
             cell and the blocks below it
    """

    model: LensModel
    ids: list[int]
    stream: str
    rows: dict[Key, Tensor]
    own: dict[Key, Tensor]
    resid: dict[int, Tensor]
    at: int
    asked: list[int]
    logits_V: Tensor
    ways: list[tuple[bool, bool]]
    worst: float = 0.0

    @cached_property
    def cache(self) -> DynamicCache | None:
        """Keys and values of the corrupted run; None where the model keeps something else, too."""
        argument = cache_argument(self.model.hf)
        if argument is None or len(self.ids) < 2:
            return None
        cache = capturing.Cache(argument)
        last = [self.model.n_blocks]
        capturing.capture(self.model, [self.ids[:-1]], depths=last, cache=cache)
        layers = getattr(cache.kept, "layers", [])
        whole = all(
            type(layer) in (DynamicLayer, DynamicSlidingWindowLayer)
            and layer.is_initialized
            and layer.keys.shape[-2] == len(self.ids) - 1
            for layer in layers
        )
        return cache.kept if whole and layers and type(cache.kept) is DynamicCache else None


def patch_grid(
    model: LensModel,
    clean: Sequence[int],
    corrupted: Sequence[int],
    token: int | str,
    versus: int | str | None,
    *,
    stream: str,
    layers: Selection,
    positions: Selection,
    position: Selection,
    progress: Progress | None = None,
    **facts: Any,
) -> PatchGrid:
    """The grid of two prompts of equal length; arguments and errors are those of `LensModel`."""
    T, N = len(corrupted), model.n_blocks
    if stream not in STREAMS:
        raise PromptError(f"stream={stream!r}: expected one of {', '.join(STREAMS)}")
    if len(clean) != T:
        raise PromptError(
            f"the clean prompt has {len(clean)} tokens and the corrupted one {T}: expected as many, "
            "position by position"
        )
    if token is None:
        raise PromptError("token=None: expected the answer that a patch may bring back")
    asked = model.tokens.compared(token, versus, model.vocab_size)
    columns, at = select_positions(positions, T), select_position(position, T)
    with as_found(model.hf):
        pair, runs = _both(model, list(clean), list(corrupted), stream, at, asked)
        keys = list(runs.rows)
        labels = [capturing.key_label(key, stream) for key in keys]
        chosen = [keys[i] for i in select_layers(layers, labels, N)]
        values = {}
        depths = dict.fromkeys(_depth(key) for key in chosen)
        for number, depth in enumerate(depths):
            those = [key for key in chosen if _depth(key) == depth]
            for found in _cells(runs, those, columns):
                values |= found
                if progress:  # after every batch, as it may end the grid
                    progress("layers", number, len(depths))
            if progress:
                progress("layers", number + 1, len(depths))
    table = np.array([[values[key, p] for p in columns] for key in chosen])
    ends = [_measured(r.final_logits, asked)[0].tolist() for r in pair]
    pieces, clean_pieces = (model.tokens.pieces(list(ids)) for ids in (corrupted, clean))
    return PatchGrid(
        layers=[capturing.key_label(key, stream) for key in chosen],
        positions=columns,
        pieces=[pieces[i] for i in columns],
        clean_pieces=[clean_pieces[i] for i in columns],
        logits=table[..., 0],
        logprobs=table[..., 1],
        clean=dict(zip(("logit", "logprob"), ends[0])),
        corrupted=dict(zip(("logit", "logprob"), ends[1])),
        token=asked[0],
        versus=asked[1] if len(asked) > 1 else None,
        vocab={i: model.tokens.piece(i) for i in asked},
        meta={
            **provenance(model, resolve("logit", model), model.check),
            "stream": stream,
            "position": at,
            "unpatched_nats": runs.worst,
            **facts,
        },
    )


def _both(
    model: LensModel, clean: list[int], corrupted: list[int], stream: str, at: int, asked: list[int]
) -> tuple[list[Residuals], Runs]:
    """The two prompts as they run, in one pass, and what a patch takes from them."""
    heads: Heads | None = None
    if stream == "head":
        heads = model.heads
        heads.require(model.name)
    inside = "resid" if heads else stream
    with heads.inputs(2) if heads else nullcontext({}) as inputs:
        pair = capturing.capture(model, [clean, corrupted], stream=inside, check=[at] * 2)
    plain = pair[1] if inside == "resid" else capturing.capture(model, [corrupted])[0]
    rows: list[dict[Key, Tensor]] = [{}, {}]
    for b, each in enumerate(rows):
        if heads is None:
            own = pair[b].layers[: None if stream == "resid" else -1]
            each |= {depths_of([label])[0]: pair[b].h[i] for i, label in enumerate(own)}
            continue
        for block, z_BTE in sorted(inputs.items()):
            found = heads.of(block)
            for h in range(found.count):
                each[block + 1, h] = z_BTE[b, :, found.columns(h)]
    skip = all(first is last for first, last in zip(model.anatomy.entries, model.anatomy.blocks))
    ways = (
        [(True, True), (False, True), (False, False)] if skip else [(True, False), (False, False)]
    )
    return pair, Runs(
        model, corrupted, stream, rows[0], rows[1], dict(enumerate(plain.h)), at, asked,
        pair[1].final_logits[0], ways,
    )  # fmt: skip


def _depth(key: Key) -> int:
    return key if isinstance(key, int) else key[0]


Cell = tuple[Key, int]  # what is patched, and at which position


def _cells(
    runs: Runs, keys: Sequence[Key], columns: Sequence[int]
) -> Iterator[dict[Cell, list[float]]]:
    """Logit and log-probability with each position of one layer's keys patched: first of all cells what
    they are unpatched, then batch by batch."""
    own = _measured(runs.logits_V[None], runs.asked)[0].tolist()
    every: dict[Cell, list[float]] = {(key, p): own for key in keys for p in columns}
    yield every
    differ = [c for c in every if not torch.equal(runs.rows[c[0]][c[1]], runs.own[c[0]][c[1]])]
    differ.sort(key=lambda cell: cell[1])  # a batch runs from its first position on
    size = max(1, TOKENS // len(runs.ids) - 1)
    for start in range(0, len(differ), size):
        batch = differ[start : start + size]
        measured = _measured(_checked_run(runs, batch), runs.asked)
        yield dict(zip(batch, measured.tolist()))


def _measured(logits_BV: Tensor, asked: Sequence[int]) -> Tensor:
    """(B, 2) float64: the logit (of the difference), and the token's log-probability."""
    z_BV = logits_BV.double().cpu()
    logit_B = z_BV[:, asked[0]] - (z_BV[:, asked[1]] if len(asked) > 1 else 0.0)
    return torch.stack([logit_B, z_BV.log_softmax(-1)[:, asked[0]]], dim=1)


def _checked_run(runs: Runs, cells: Sequence[Cell]) -> Tensor:
    """Logits (B, V) with each of the cells patched; the unpatched run beside them is checked."""
    model = runs.model
    allowed = ROUNDING * model.n_blocks**0.5
    while True:
        cached, skip = runs.ways[0]
        start = min(runs.at, *(p for _, p in cells)) if cached and runs.cache else 0
        try:
            logits_BV = _run(runs, cells, start, skip)
        except LogitLensError:
            if len(runs.ways) == 1:
                raise
            runs.ways.pop(0)
            continue
        apart = distance(runs.logits_V[None], logits_BV[-1:], model.dtype)
        if apart.rounding <= allowed:
            runs.worst = max(runs.worst, apart.nats)
            return logits_BV[:-1]
        if len(runs.ways) == 1:
            raise UnsupportedModel(
                f"{model.name}: run again from layer {layer_label(_depth(cells[0][0]))}, unpatched, its "
                f"log-probabilities differ by up to {apart.nats:.2g} nats from its own"
            )
        runs.ways.pop(0)


def _run(runs: Runs, cells: Sequence[Cell], first: int, skip: bool) -> Tensor:
    """Logits (B + 1, V) of the positions from `first` on: each cell patched, and none."""
    model, anatomy = runs.model, runs.model.anatomy
    B, T = len(cells) + 1, len(runs.ids) - first
    depth = _depth(cells[0][0])
    start = depth if runs.stream == "resid" else depth - 1
    rows_BTD = runs.resid[start][first:].expand(B, -1, -1).clone()

    def patched(rows_BTD: Tensor, columns: Columns = lambda key: slice(None)) -> Tensor:
        for b, (key, position) in enumerate(cells):
            new = runs.rows[key][position].to(rows_BTD)
            rows_BTD[b, position - first, columns(key)] = new
        return rows_BTD

    if runs.stream == "resid":
        patched(rows_BTD)

    def see(_: int, stream: Tensor) -> Tensor:
        return anatomy.stream(rows_BTD).reshape(stream.shape).to(stream.device, stream.dtype)

    def changed(tensor: Tensor, _: Sequence[Any]) -> Tensor:
        return anatomy.stream(patched(anatomy.rows(tensor, B).clone())).reshape(tensor.shape)

    device = input_device(model.hf)
    ids_T = torch.tensor(runs.ids[first:], dtype=torch.long, device=device)
    extra: dict[str, Any] = {}
    if "logits_to_keep" in accepts(model.hf):
        extra["logits_to_keep"] = torch.tensor([runs.at - first], dtype=torch.long, device=device)
    if first and runs.cache is not None:
        argument = cache_argument(model.hf)
        extra |= {"use_cache": True, str(argument): _prefix(runs.cache, first, B)}
    with ExitStack() as stack:
        stack.enter_context(refusing(model.hf, f"on {B} × {T} tokens"))
        if skip:
            stack.enter_context(skipping(anatomy.blocks[:start], anatomy.entry[1]))
        stack.enter_context(anatomy.following([start], see))
        if runs.stream == "head":
            heads = model.heads.of(start)
            hook = head_hook(heads, B, lambda z_BTE: patched(z_BTE, lambda k: heads.columns(k[1])))
            stack.enter_context(hooked(before=[hook]))
        elif runs.stream != "resid":
            stack.enter_context(_one_block(model, start, runs.stream, changed))
        ids_BT = ids_T.expand(B, -1).contiguous()
        logits_BPV = logits_of(model.hf, forward(model.hf, ids_BT, **extra)).detach()
    if logits_BPV.shape[0] != B or logits_BPV.shape[1] not in (1, T):
        raise UnsupportedModel(f"patching gave logits of shape {tuple(logits_BPV.shape)}")
    return logits_BPV[:, runs.at - first if logits_BPV.shape[1] == T else 0].float()


Columns = Callable[[Any], slice]


def _prefix(cache: DynamicCache, length: int, batch: int) -> DynamicCache:
    """The first positions of a cache of one prompt, for a batch; nothing is copied."""
    out = DynamicCache()
    for layer in cache.layers:  # as `Runs.cache` has found them
        assert isinstance(layer, DynamicLayer)
        assert layer.keys is not None
        assert layer.values is not None
        new = DynamicLayer()
        parts = [
            part[..., :length, :].expand(batch, -1, -1, -1) for part in (layer.keys, layer.values)
        ]
        new.lazy_initialization(*parts)
        new.keys, new.values = parts
        out.layers.append(new)
    return out


def _one_block(model: LensModel, block: int, stream: str, changed: Any) -> Any:
    """A context in which what one block's attention or MLP adds is changed."""
    anatomy, parts = model.anatomy, model.sublayers.blocks[block]
    kind = MIXES if stream == "attn" else ROWWISE
    alone = replace(
        anatomy, blocks=[anatomy.blocks[block]], exits=[anatomy.exits[block]],
        entries=[anatomy.entries[block]],
    )  # fmt: skip

    def change(_: int, number: int, value: Value) -> Value | None:
        new = replaced(parts[number - 1], value, kind, [], changed)
        return None if new is value else new

    if sum((p.kind == ROWWISE) == (kind == ROWWISE) for part in parts for p in part.kinds()) > 1:
        raise UnsupportedModel(
            f"block {block} of {anatomy.blocks_path} adds its {stream} in several steps: it cannot be "
            "patched as one"
        )
    return contributions(alone, Sublayers((parts,)), [], change=change)
