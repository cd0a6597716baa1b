"""Where the blocks are: found by watching one forward pass, never by a family's name.

A model's blocks are the list of modules that ran once each, in order, every one receiving what the
one before returned. Several lists may do so (an encoder and a decoder, a vision tower and a text
model); the one nearest the logits, of the configured length, is the decoder's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from logitlens.anatomy.forward import as_found, forward, logits_of
from logitlens.anatomy.watch import Call, Slot, watching
from logitlens.errors import UnsupportedModel

PROBE_BATCH = 2
PROBE_POSITIONS = 11


@dataclass(frozen=True)
class Axes:
    """Where batch and positions lie in a stream tensor: "bt", "tb" or "flat" from dimension `at`.

    "stacked" is (batch, S · positions, …): S streams one after another along the positions.
    What remains, in order, is one row: (D,), or (S, D) where a model carries S streams.
    """

    order: str
    at: int
    streams: int = 1

    @staticmethod
    def find(shape: tuple[int, ...], batch: int, positions: int) -> Axes | None:
        for at, size in enumerate(shape[:-1]):
            after = shape[at + 1] if at + 1 < len(shape) - 1 else None
            if (size, after) == (batch, positions):
                return Axes("bt", at)
            if (size, after) == (positions, batch):
                return Axes("tb", at)
        for at, size in enumerate(shape[:-1]):
            if size == batch * positions:
                return Axes("flat", at)
        if len(shape) == 3 and shape[0] == batch and shape[1] % positions == 0 < shape[1]:
            return Axes("stacked", 0, shape[1] // positions)
        return None

    def rows(self, stream: Tensor, batch: int) -> Tensor:
        """A stream tensor → (B, T, *row shape)."""
        if self.order == "flat":
            rest = stream.movedim(self.at, 0)
            return rest.reshape(batch, rest.shape[0] // batch, *rest.shape[1:])
        if self.order == "stacked":
            positions = stream.shape[1] // self.streams
            return stream.unflatten(1, (self.streams, positions)).transpose(1, 2)
        front = (0, 1) if self.order == "bt" else (1, 0)
        return stream.movedim((self.at, self.at + 1), front)

    def stream(self, rows_BT: Tensor) -> Tensor:
        """(B, T, *row shape) → a stream tensor; the inverse of `rows`."""
        if self.order == "flat":
            return rows_BT.flatten(0, 1).movedim(0, self.at)
        if self.order == "stacked":
            return rows_BT.transpose(1, 2).flatten(1, 2)
        front = (0, 1) if self.order == "bt" else (1, 0)
        return rows_BT.movedim(front, (self.at, self.at + 1))


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
    configured: int | None = None
    skipped: int = 0
    notes: list[str] = field(default_factory=list)

    def rows(self, stream: Tensor, batch: int) -> Tensor:
        """A stream tensor as the model carries it → (B, T, D)."""
        return self.axes.rows(stream, batch).flatten(2)

    def stream(self, rows_BTD: Tensor) -> Tensor:
        """(B, T, D) → the shape in which the model carries it."""
        return self.axes.stream(rows_BTD.unflatten(-1, self.row_shape))

    def describe(self) -> list[tuple[str, str]]:
        count = f"{len(self.blocks)} × {_class_names(self.blocks)}"
        if self.skipped:
            count += f" ({self.skipped} more did not run)"
        lines = [("blocks", f"{self.blocks_path}: {count}"), ("width", str(self.width))]
        if len(self.row_shape) > 1:
            lines[1] = ("width", f"{self.width} ({' × '.join(map(str, self.row_shape))})")
        return lines


@dataclass(frozen=True, eq=False)
class Observation:
    """One watched forward pass: its ids, the calls outside blocks, and the logits."""

    ids_BT: Tensor
    extra: dict[str, Any]
    calls: list[Call]
    logits_BTV: Tensor


def _class_names(modules: list[nn.Module]) -> str:
    return " + ".join(Counter(type(m).__name__ for m in modules))


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


def observe(model: nn.Module, ids_BT: Tensor, extra: dict[str, Any] | None = None) -> Observation:
    """Run the model once, watching every module outside block lists and every member of one."""
    extra = extra or {}
    watched = list(_watched(model))
    with as_found(model), watching(watched) as calls:
        logits = logits_of(forward(model, ids_BT, **extra)).detach().clone()
    return Observation(ids_BT, extra, calls, logits)


def _watched(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    seen: set[int] = set()
    inside: tuple[str, ...] = ()
    for path, module in model.named_modules():
        if not path or id(module) in seen or isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            continue
        if path.startswith(inside or ("\0",)):
            continue
        seen.add(id(module))
        yield path, module
        parent, _, name = path.rpartition(".")
        if name.isdigit() and isinstance(model.get_submodule(parent), nn.ModuleList):
            inside = (*inside, path + ".")


def find_blocks(model: nn.Module, seen: Observation) -> tuple[Anatomy, list[Call]]:
    """The anatomy, and the watched calls of the blocks. Raises UnsupportedModel with the reason."""
    expected = configured_length(model)
    by_path: dict[str, list[Call]] = {}
    for call in seen.calls:
        by_path.setdefault(call.path, []).append(call)
    found, reasons, lists = [], [], []
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
            anatomy = _chain(path, chain, chain, seen, expected, len(members) - len(ran))
        except UnsupportedModel as reason:
            reasons.append(str(reason))
            lists.append((path, chain))
            continue
        found.append((anatomy, chain))
    # Also where a list by itself passes a stream on: that may be an encoder's (BLT), further from
    # the logits.
    for group in _groups(lists):
        path = ", ".join(path for path, _ in group)
        spread = [sorted(calls, key=lambda c: c.start) for calls in zip(*(c for _, c in group))]
        firsts, lasts = [calls[0] for calls in spread], [calls[-1] for calls in spread]
        try:
            found.append((_chain(path, firsts, lasts, seen, expected, 0), lasts))
        except UnsupportedModel:
            continue  # the reasons each list has given say it better
    if not found:
        detail = "; ".join(reasons) or "no list of modules ran"
        raise UnsupportedModel(
            f"no residual blocks found in {type(model).__name__} "
            f"(the configuration says {expected or 'nothing about their number'}): {detail}"
        )

    def preference(item: tuple[Anatomy, list[Call]]) -> tuple[bool, int, int]:
        anatomy, chain = item
        return (len(anatomy.blocks) + anatomy.skipped == expected, len(chain) > 1, chain[-1].end)

    return max(found, key=preference)


def _groups(lists: list[tuple[str, list[Call]]]) -> list[list[tuple[str, list[Call]]]]:
    """Lists of modules of one length: together they may be the blocks."""
    lengths = sorted({len(chain) for _, chain in lists}, reverse=True)
    groups = ([item for item in lists if len(item[1]) == n] for n in lengths)
    return [group for group in groups if len(group) > 1]


def _chain(
    path: str,
    firsts: list[Call],
    lasts: list[Call],
    seen: Observation,
    expected: int | None,
    skipped: int,
) -> Anatomy:
    """The anatomy of blocks that pass the stream on, each from a first call to a last one.

    Raises UnsupportedModel with the reason where they do not.
    """
    batch, positions = seen.ids_BT.shape
    links: list[tuple[Slot, Slot]] = []
    for one, two in zip(lasts, firsts[1:]):
        if two.start < one.end:
            raise UnsupportedModel(f"{path}: its modules do not run one after another")
        link = _link(one, two, batch, positions)
        if link is None:
            raise UnsupportedModel(f"{two.path} does not receive what {one.path} returned")
        links.append(link)
    first, last = firsts[0], lasts[-1]
    outgoing = dict(last.outputs)
    exit_slot = links[-1][0] if links and links[-1][0] in outgoing else None
    if exit_slot is None:
        shaped = [s for s, t in last.outputs if Axes.find(tuple(t.shape), batch, positions)]
        if not shaped:
            raise UnsupportedModel(
                f"{last.path} returns no tensor with the prompt's {positions} positions"
            )
        exit_slot = shaped[0]
    stream = outgoing[exit_slot]
    axes = Axes.find(tuple(stream.shape), batch, positions)
    if axes is None:
        raise UnsupportedModel(f"{last.path} returns {tuple(stream.shape)}, not one row a position")
    entry = _entry(first, links[0][1] if links else None, tuple(stream.shape))
    if entry is None:
        raise UnsupportedModel(f"{first.path} receives no tensor of shape {tuple(stream.shape)}")
    row_shape = tuple(axes.rows(stream, batch).shape[2:])
    return Anatomy(
        blocks=[call.module for call in lasts],
        entries=[call.module for call in firsts],
        blocks_path=path,
        width=int(torch.Size(row_shape).numel()),
        row_shape=row_shape,
        axes=axes,
        entry=(first.module, entry),
        exits=[out for out, _ in links] + [exit_slot],
        configured=expected,
        skipped=skipped,
    )


def _link(one: Call, two: Call, batch: int, positions: int) -> tuple[Slot, Slot] | None:
    for out_slot, out in one.outputs:
        if Axes.find(tuple(out.shape), batch, positions) is None:
            continue
        for in_slot, given in two.inputs:
            if given.shape == out.shape and same(given, out):
                return out_slot, in_slot
    return None


def _entry(first: Call, usual: Slot | None, shape: tuple[int, ...]) -> Slot | None:
    fitting = [slot for slot, t in first.inputs if tuple(t.shape) == shape]
    if usual in fitting:
        return usual
    return fitting[0] if fitting else None


def same(a: Tensor, b: Tensor) -> bool:
    """Equal value for value; NaN equals NaN, and another device or dtype does not matter."""
    if a.shape != b.shape:
        return False
    a, b = a.to(b.device), b
    return torch.equal(a, b) or bool(((a == b) | (a.isnan() & b.isnan())).all())
