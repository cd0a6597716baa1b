"""A grid of patches: one cell of a clean run put into a corrupted one, cell by cell, many at once.

Only what is above a patched layer runs again: the blocks below are skipped, and the stream that the
corrupted run had there takes their place (Meng et al. 2022, "Locating and Editing Factual Associations
in GPT", for the experiment). Cells in which the two runs are equal are not run at all. Every batch
holds the corrupted run unpatched, too: it must give the corrupted run's own logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from logitlens.anatomy.additions import Value
from logitlens.anatomy.check import distance
from logitlens.anatomy.forward import accepts, as_found, forward, input_device, logits_of, refusing
from logitlens.anatomy.replay import skipping
from logitlens.anatomy.sublayers import MIXES, ROWWISE, Sublayers, contributions
from logitlens.errors import LogitLensError, PromptError, UnsupportedModel
from logitlens.lenses import resolve
from logitlens.model import capture as capturing
from logitlens.model.assemble import provenance
from logitlens.model.capture import Progress
from logitlens.model.edits import replaced
from logitlens.patch_grid import PatchGrid
from logitlens.select import Selection, layer_label, select_layers, select_positions

if TYPE_CHECKING:
    from logitlens.model.lens_model import LensModel

TOKENS = 2048  # of one forward pass
ROUNDING = (
    4.0  # of `distance`, times √blocks: a batch, and blocks that do not run, against one pass
)
STREAMS = ("resid", "attn", "mlp")


@dataclass(eq=False)
class Runs:
    """The two runs, and what is asked of the corrupted one when it is patched.

    stream   what is patched                 rows   by depth, what the clean run has there (T, D)
    own      by depth, what the corrupted run has there; of "resid" the same as `resid`
    resid    by depth, the corrupted run's residual stream (T, D)
    """

    model: LensModel
    ids: list[int]
    stream: str
    rows: dict[int, Tensor]
    own: dict[int, Tensor]
    resid: dict[int, Tensor]
    at: int
    asked: list[int]
    logits_V: Tensor
    skip: bool
    worst: float = 0.0


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
    asked = [model.tokens.single(t, model.vocab_size) for t in (token, versus) if t is not None]
    if len(set(asked)) < len(asked):
        raise PromptError(f"versus={versus!r} is the token itself: compare it with another one")
    columns = select_positions(positions, T)
    where = select_positions(position, T)
    if len(where) != 1:
        raise PromptError(f"position={position!r}: expected one position, got {len(where)}")
    with as_found(model.hf):
        pair = capturing.capture(
            model, [list(clean), list(corrupted)], stream=stream, check=[where[0]] * 2
        )
        plain = pair if stream == "resid" else capturing.capture(model, [list(corrupted)])
        labels = pair[0].layers[: None if stream == "resid" else -1]
        chosen = [labels[i] for i in select_layers(layers, labels, N)]
        places = {label: i for i, label in enumerate(labels)}
        runs = Runs(
            model, list(corrupted), stream,
            {_depth(label): pair[0].h[places[label]] for label in chosen},
            {_depth(label): pair[1].h[places[label]] for label in chosen},
            dict(enumerate(plain[-1].h)),
            where[0], asked, pair[1].final_logits[0],
            skip=all(first is last for first, last in zip(model.anatomy.entries, model.anatomy.blocks)),
        )  # fmt: skip
        values = np.empty((len(chosen), len(columns), 2))
        for number, label in enumerate(chosen):
            values[number] = _row(runs, _depth(label), columns)
            if progress:
                progress("layers", number + 1, len(chosen))
    ends = [_measured(r.final_logits, asked)[0].tolist() for r in pair]
    pieces, clean_pieces = (model.tokens.pieces(list(ids)) for ids in (corrupted, clean))
    return PatchGrid(
        layers=chosen,
        positions=columns,
        pieces=[pieces[i] for i in columns],
        clean_pieces=[clean_pieces[i] for i in columns],
        logits=values[..., 0],
        logprobs=values[..., 1],
        clean=dict(zip(("logit", "logprob"), ends[0])),
        corrupted=dict(zip(("logit", "logprob"), ends[1])),
        token=asked[0],
        versus=asked[1] if len(asked) > 1 else None,
        vocab={i: model.tokens.piece(i) for i in asked},
        meta={
            **provenance(model, resolve("logit", model), model.check),
            "stream": stream,
            "position": where[0],
            "unpatched_nats": runs.worst,
            **facts,
        },
    )


def _depth(label: str) -> int:
    return 0 if label == "embed" else int(label.partition(".")[0]) + 1


def _row(runs: Runs, depth: int, columns: Sequence[int]) -> np.ndarray:
    """(T, 2): logit and log-probability with each position of one layer patched."""
    differ = [p for p in columns if not torch.equal(runs.rows[depth][p], runs.own[depth][p])]
    own_2 = _measured(runs.logits_V[None], runs.asked)[0]
    found = dict.fromkeys(columns, own_2.numpy())
    size = max(1, TOKENS // len(runs.ids) - 1)
    for start in range(0, len(differ), size):
        batch = differ[start : start + size]
        logits_BV = _checked_run(runs, depth, batch)
        measured = _measured(logits_BV, runs.asked)
        found |= {p: measured[i].numpy() for i, p in enumerate(batch)}
    return np.stack([found[p] for p in columns])


def _measured(logits_BV: Tensor, asked: Sequence[int]) -> Tensor:
    """(B, 2) float64: the logit (of the difference), and the token's log-probability."""
    z_BV = logits_BV.double().cpu()
    logit_B = z_BV[:, asked[0]] - (z_BV[:, asked[1]] if len(asked) > 1 else 0.0)
    return torch.stack([logit_B, z_BV.log_softmax(-1)[:, asked[0]]], dim=1)


def _checked_run(runs: Runs, depth: int, positions: Sequence[int]) -> Tensor:
    """Logits (B, V) with each of the positions patched; the unpatched run beside them is checked."""
    model = runs.model
    allowed = ROUNDING * model.n_blocks**0.5
    for skip in (True, False) if runs.skip else (False,):
        try:
            logits_BV = _run(runs, depth, positions, skip)
        except LogitLensError:
            if not skip:
                raise
            continue
        apart = distance(runs.logits_V[None], logits_BV[-1:], model.dtype)
        if apart.rounding <= allowed:
            runs.skip, runs.worst = skip, max(runs.worst, apart.nats)
            return logits_BV[:-1]
    raise UnsupportedModel(
        f"{model.name}: run again from layer {layer_label(depth)}, unpatched, its log-probabilities "
        f"differ by up to {apart.nats:.2g} nats from its own"
    )


def _run(runs: Runs, depth: int, positions: Sequence[int], skip: bool) -> Tensor:
    """Logits (B + 1, V): each position patched, and none."""
    model, anatomy = runs.model, runs.model.anatomy
    B, T = len(positions) + 1, len(runs.ids)
    start = depth if runs.stream == "resid" else depth - 1
    resid_TD = runs.resid[start]
    rows_BTD = resid_TD.expand(B, -1, -1).clone()
    where = torch.tensor(positions, dtype=torch.long, device=resid_TD.device)
    each = torch.arange(B - 1, dtype=torch.long, device=resid_TD.device)
    if runs.stream == "resid":
        rows_BTD[each, where] = runs.rows[depth][where].to(rows_BTD.dtype)

    def see(_: int, stream: Tensor) -> Tensor:
        return anatomy.stream(rows_BTD).reshape(stream.shape).to(stream.device, stream.dtype)

    def changed(tensor: Tensor, _: Sequence[Any]) -> Tensor:
        new_BTD = anatomy.rows(tensor, B).clone()
        new_BTD[each, where] = runs.rows[depth][where].to(new_BTD)
        return anatomy.stream(new_BTD).reshape(tensor.shape)

    device = input_device(model.hf)
    ids_BT = torch.tensor(runs.ids, dtype=torch.long, device=device).expand(B, -1).contiguous()
    extra: dict[str, Any] = {}
    if "logits_to_keep" in accepts(model.hf):
        extra["logits_to_keep"] = torch.tensor([runs.at], dtype=torch.long, device=device)
    with ExitStack() as stack:
        stack.enter_context(refusing(model.hf, f"on {B} × {T} tokens"))
        if skip:
            stack.enter_context(skipping(anatomy.blocks[:start], anatomy.entry[1]))
        stack.enter_context(anatomy.following([start], see))
        if runs.stream != "resid":
            stack.enter_context(_one_block(model, start, runs.stream, changed))
        logits_BPV = logits_of(model.hf, forward(model.hf, ids_BT, **extra)).detach()
    if logits_BPV.shape[0] != B or logits_BPV.shape[1] not in (1, T):
        raise UnsupportedModel(f"patching gave logits of shape {tuple(logits_BPV.shape)}")
    return logits_BPV[:, runs.at if logits_BPV.shape[1] == T else 0].float()


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
