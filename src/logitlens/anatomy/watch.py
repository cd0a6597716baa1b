"""Watch which modules a model calls on which tensors, and leave no trace.

Everything the package learns about a model it learns here: nothing is read from class names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

# Where a tensor is in a call's arguments or in its output: ("args", 0), ("kwargs", "x", 1), (0,).
Slot = tuple[Any, ...]
Hook = Callable[[nn.Module, Any, Any], Any]


@contextmanager
def hooked(
    before: Iterable[tuple[nn.Module, Hook]] = (),
    after: Iterable[tuple[nn.Module, Hook]] = (),
    *,
    first: bool = False,
) -> Iterator[None]:
    """Inside, hooks are on the modules given; afterwards none is, whatever happened.

    before   hook(module, args, kwargs) → None, or the (args, kwargs) that take their place
    after    hook(module, args, output) → None, or the output that takes its place
    first    those `before` come before the hooks that are there
    """
    with ExitStack() as stack:
        for module, hook in before:
            handle = module.register_forward_pre_hook(hook, with_kwargs=True, prepend=first)
            stack.callback(handle.remove)
        for module, hook in after:
            stack.callback(module.register_forward_hook(hook).remove)
        yield


def leaves(value: Any, slot: Slot = ()) -> Iterator[tuple[Slot, Tensor]]:
    """Every floating-point tensor inside nested tuples, lists and mappings, with its place."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield slot, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, (*slot, key))
    elif isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            yield from leaves(item, (*slot, index))


def leaf(value: Any, slot: Slot) -> Tensor:
    """The tensor at `slot`; raises LookupError where the structure has changed."""
    for key in slot:
        if not isinstance(value, (tuple, list, Mapping)):
            raise LookupError(slot)
        value = value[key]
    if not isinstance(value, Tensor):
        raise LookupError(slot)
    return value


def replace_leaf(value: Any, slot: Slot, new: Tensor) -> Any:
    """The same structure with the tensor at `slot` replaced."""
    if not slot:
        return new
    key, rest = slot[0], slot[1:]
    if isinstance(value, Mapping):
        items = {**value, key: replace_leaf(value[key], rest, new)}
        # A ModelOutput must stay one: models read its attributes.
        return items if type(value) is dict else type(value)(**items)
    items = list(value)
    items[key] = replace_leaf(items[key], rest, new)
    if isinstance(value, list):
        return items
    make = getattr(type(value), "_make", None)
    return make(items) if make else tuple(items)


@dataclass(frozen=True)
class Axes:
    """Where batch and positions are in a tensor: "bt", "tb" or "flat" from dimension `at`.

    "stacked" is (batch, S · positions, …): S streams one after another along the positions.
    What remains, in order, is one row: (D,), or (S, D) where a model carries S streams.
    """

    order: str
    at: int
    streams: int = 1

    @staticmethod
    def find(shape: tuple[int, ...], batch: int, positions: int) -> Axes | None:
        """The axes of a tensor that a pass over (batch, positions) made; None for any other tensor."""
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

    def rows(self, tensor: Tensor, batch: int) -> Tensor:
        """A tensor as the model carries it → (B, T, *row shape)."""
        if self.order == "flat":
            rest = tensor.movedim(self.at, 0)
            return rest.reshape(batch, rest.shape[0] // batch, *rest.shape[1:])
        if self.order == "stacked":
            positions = tensor.shape[1] // self.streams
            return tensor.unflatten(1, (self.streams, positions)).transpose(1, 2)
        front = (0, 1) if self.order == "bt" else (1, 0)
        return tensor.movedim((self.at, self.at + 1), front)

    def carried(self, rows_BT: Tensor) -> Tensor:
        """(B, T, *row shape) → a tensor as the model carries it; the inverse of `rows`."""
        if self.order == "flat":
            return rows_BT.flatten(0, 1).movedim(0, self.at)
        if self.order == "stacked":
            return rows_BT.transpose(1, 2).flatten(1, 2)
        front = (0, 1) if self.order == "bt" else (1, 0)
        return rows_BT.movedim(front, (self.at, self.at + 1))


@dataclass(frozen=True, eq=False)
class Rows:
    """A copy of a tensor that was given to a call, or returned by it, with one row a position.

    slot    its place in the call's {"args": …, "kwargs": …}, or in its output
    shape   of one row: (D,), or (streams, width of each)
    """

    slot: tuple[Any, ...]
    tensor: Tensor
    axes: Axes
    h_BTD: Tensor
    shape: tuple[int, ...]

    @staticmethod
    def find(slot: tuple[Any, ...], tensor: Tensor, batch: int, positions: int) -> Rows | None:
        axes = Axes.find(tuple(tensor.shape), batch, positions)
        if axes is None:
            return None
        copy = tensor.detach().clone()
        rows = axes.rows(copy, batch)
        return Rows(slot, copy, axes, rows.flatten(2), tuple(rows.shape[2:]))


@dataclass(eq=False)
class Call:
    """One call of one module, and those of its tensors that hold one row a position.

    start, end count events of the whole forward pass: a call comes after another when its start is
    greater than the other's end.
    """

    path: str
    module: nn.Module
    start: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: list[Rows]
    end: int = -1
    outputs: list[Rows] = field(default_factory=list)


@contextmanager
def watching(
    modules: Sequence[tuple[str, nn.Module]], batch: int, positions: int, calls: list[Call]
) -> Iterator[None]:
    """Inside, every call of the modules given is added to `calls`, in order of their start.

    Rows are copies: what a model changes in place later does not show.
    """
    running: list[Call] = []
    events = 0

    def rows(found: Iterable[tuple[Slot, Tensor]]) -> list[Rows]:
        nonlocal events
        events += 1
        each = (Rows.find(slot, tensor, batch, positions) for slot, tensor in found)
        return [r for r in each if r is not None]

    def begins(path: str) -> Hook:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            given = rows(leaves({"args": args, "kwargs": kwargs}))
            call = Call(path, module, events, args, kwargs, given)
            calls.append(call)
            running.append(call)

        return hook

    def returns(module: nn.Module, args: Any, output: Any) -> None:
        while running:
            call = running.pop()
            if call.module is module:
                call.outputs = rows(leaves(output))
                call.end = events
                return

    with hooked(
        before=[(module, begins(path)) for path, module in modules],
        after=[(module, returns) for _, module in modules],
    ):
        yield


def same(a: Tensor, b: Tensor) -> bool:
    """Equal value for value; nan equals nan, and another device or dtype does not matter."""
    if a.shape != b.shape:
        return False
    a = a.to(b.device)
    return torch.equal(a, b) or bool(((a == b) | (a.isnan() & b.isnan())).all())


def ratio(a: Tensor, b: Tensor) -> float | None:
    """The one factor c with a = c · b, to the precision of the dtype; None if there is none."""
    if a.shape != b.shape:
        return None
    if same(a, b):
        return 1.0
    x, y = a.detach().double().flatten(), b.detach().double().flatten().to(a.device)
    norm = y @ y
    if not bool(torch.isfinite(norm)) or norm == 0:
        return None
    factor = float((x @ y) / norm)
    error = float((x - factor * y).abs().max())
    coarse = max(torch.finfo(a.dtype).eps, torch.finfo(b.dtype).eps)
    return factor if factor != 0 and error <= 4 * coarse * float(x.abs().max()) else None
