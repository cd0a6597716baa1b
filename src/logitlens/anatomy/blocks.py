"""Where the blocks are: found by watching one forward pass, never by a family's name.

A model's blocks are the list of modules that ran once each, in order, every one receiving what the
one before returned. Several lists may do so (an encoder and a decoder, a vision tower and a text
model); the one nearest the logits, of the configured length, is the decoder's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from logitlens.anatomy.probe import Observation
from logitlens.anatomy.watch import Axes, Call, Hook, Rows, Slot, hooked, leaf, replace_leaf, same
from logitlens.errors import UnsupportedModel


@dataclass(frozen=True, eq=False)
class Anatomy:
    """The blocks of a causal language model and how the residual stream passes through them.

    blocks       the N modules, in the order they run; depth d is what blocks[d-1] returned
    entries      the modules that receive each depth: the blocks themselves, unless a block is
                 spread over several lists of modules (XLM, BLT)
    blocks_path  their place, for people: "transformer.h"
    width        D, the number of values in one row (all streams together)
    row_shape    (D,), or (streams, width of each)
    entry        the module that receives depth 0, and the place among its arguments
    exits        the place of the stream in each block's output
    skipped      members of the list that did not run (cross-attention without an image, …)
    """

    blocks: list[nn.Module]
    blocks_path: str
    width: int
    row_shape: tuple[int, ...]
    axes: Axes
    entry: tuple[nn.Module, Slot]
    exits: list[Slot]
    entries: list[nn.Module]
    skipped: int = 0

    def rows(self, stream: Tensor, batch: int) -> Tensor:
        """A stream tensor as the model carries it → (B, T, D)."""
        return self.axes.rows(stream, batch).flatten(2)

    def stream(self, rows_BTD: Tensor) -> Tensor:
        """(B, T, D) → the shape in which the model carries it."""
        return self.axes.carried(rows_BTD.unflatten(-1, self.row_shape))

    def following(
        self, depths: Iterable[int], see: Callable[[int, Tensor], Tensor | None]
    ) -> AbstractContextManager[None]:
        """Inside, `see(depth, stream)` gets the stream at each depth, as the model carries it.

        A tensor that it returns takes the stream's place. UnsupportedModel is raised where a block
        returns another structure than when it was looked at.
        """

        def entering(module: nn.Module, args: Any, kwargs: Any) -> Any:
            given = {"args": args, "kwargs": kwargs}
            new = see(0, leaf(given, self.entry[1]))
            if new is None:
                return None
            given = replace_leaf(given, self.entry[1], new)
            return given["args"], given["kwargs"]

        def leaving(depth: int) -> Hook:
            def hook(module: nn.Module, args: Any, output: Any) -> Any:
                slot = self.exits[depth - 1]
                try:
                    stream = leaf(output, slot)
                except LookupError:
                    raise UnsupportedModel(
                        f"block {depth - 1} of {self.blocks_path} returns {type(output).__name__}, "
                        "another structure than when it was loaded (a hook put on it since?)"
                    ) from None
                new = see(depth, stream)
                return None if new is None else replace_leaf(output, slot, new)

            return hook

        wanted = set(depths)
        return hooked(
            before=[(self.entry[0], entering)] if 0 in wanted else [],
            after=[(self.blocks[d - 1], leaving(d)) for d in sorted(wanted - {0})],
        )


def configured_length(model: nn.Module) -> int | None:
    """The number of decoder blocks the configuration states, or None."""
    config: Any = getattr(model, "config", None)
    if config is None:
        return None
    if hasattr(config, "get_text_config"):
        config = config.get_text_config(decoder=True)
    for name in ("decoder_layers", "num_decoder_layers", "num_hidden_layers"):
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    return None


def find_blocks(seen: Observation) -> tuple[Anatomy, Call]:
    """The anatomy, and the call of the last block. Raises UnsupportedModel with the reason."""
    model, expected = seen.model, configured_length(seen.model)
    by_path: dict[str, list[Call]] = {}
    for call in seen.calls:
        by_path.setdefault(call.path, []).append(call)
    found: list[tuple[Anatomy, Call]] = []
    reasons, lists = [], []
    for path, members in model.named_modules():
        if not isinstance(members, (nn.ModuleList, nn.Sequential)) or not len(members):
            continue
        calls = [by_path.get(f"{path}.{i}", []) for i in range(len(members))]
        ran = [c for c in calls if c]
        if not ran:
            continue
        if any(len(c) > 1 for c in ran):
            most = max(len(c) for c in ran)
            reasons.append(f"{path}: its {len(ran)} modules run up to {most} times in one pass")
            continue
        chain = [c[0] for c in ran]
        try:
            found.append((_chain(path, chain, chain, len(members) - len(ran)), chain[-1]))
        except UnsupportedModel as reason:
            reasons.append(str(reason))
            lists.append((path, chain))
    # Also where a list by itself passes a stream on: that may be an encoder's (BLT), further from
    # the logits.
    for group in _groups(lists):
        path = ", ".join(path for path, _ in group)
        spread = [sorted(calls, key=lambda c: c.start) for calls in zip(*(c for _, c in group))]
        firsts, lasts = [calls[0] for calls in spread], [calls[-1] for calls in spread]
        try:
            found.append((_chain(path, firsts, lasts), lasts[-1]))
        except UnsupportedModel:
            continue  # the reasons each list has given say it better
    if not found:
        detail = "; ".join(reasons) or "no list of modules ran"
        raise UnsupportedModel(
            f"no residual blocks found in {type(model).__name__} "
            f"(the configuration says {expected or 'nothing about their number'}): {detail}"
        )

    def preference(item: tuple[Anatomy, Call]) -> tuple[bool, bool, int]:
        anatomy, last = item
        N = len(anatomy.blocks)
        return N + anatomy.skipped == expected, N > 1, last.end

    return max(found, key=preference)


def _groups(lists: list[tuple[str, list[Call]]]) -> list[list[tuple[str, list[Call]]]]:
    """Lists of modules of one length: together they may be the blocks."""
    lengths = sorted({len(chain) for _, chain in lists}, reverse=True)
    groups = ([item for item in lists if len(item[1]) == n] for n in lengths)
    return [group for group in groups if len(group) > 1]


def _chain(path: str, firsts: list[Call], lasts: list[Call], skipped: int = 0) -> Anatomy:
    """The anatomy of blocks that pass the stream on, each from a first call to a last one.

    Raises UnsupportedModel with the reason where they do not.
    """
    links: list[tuple[Rows, Rows]] = []
    for one, two in zip(lasts, firsts[1:]):
        if two.start < one.end:
            raise UnsupportedModel(f"{path}: its modules do not run one after another")
        link = _link(one, two)
        if link is None:
            raise UnsupportedModel(f"{two.path} does not receive what {one.path} returned")
        links.append(link)
    first, last = firsts[0], lasts[-1]
    if not last.outputs:
        raise UnsupportedModel(f"{last.path} returns no tensor with one row a position")
    slot = links[-1][0].slot if links else None
    stream = next((out for out in last.outputs if out.slot == slot), last.outputs[0])
    entry = [given for given in first.inputs if given.tensor.shape == stream.tensor.shape]
    if not entry:
        shape = tuple(stream.tensor.shape)
        raise UnsupportedModel(f"{first.path} receives no tensor of shape {shape}")
    usual = links[0][1].slot if links else None
    return Anatomy(
        blocks=[call.module for call in lasts],
        entries=[call.module for call in firsts],
        blocks_path=path,
        width=int(torch.Size(stream.shape).numel()),
        row_shape=stream.shape,
        axes=stream.axes,
        entry=(first.module, next((e.slot for e in entry if e.slot == usual), entry[0].slot)),
        exits=[out.slot for out, _ in links] + [stream.slot],
        skipped=skipped,
    )


def _link(one: Call, two: Call) -> tuple[Rows, Rows] | None:
    """What one block returned and the next received."""
    for out in one.outputs:
        for given in two.inputs:
            if same(given.tensor, out.tensor):
                return out, given
    return None
