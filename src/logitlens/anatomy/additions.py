"""Follow the residual stream through a running block: what is added to it, one sum after another.

While a block runs, every sum of two tensors of the stream's shape is recorded. The sums that lead
from the stream the block received to the one it returned are the residual additions. A sum of two
tensors neither of which is the stream is kept with its terms: it may later be added as one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from logitlens.anatomy.blocks import Anatomy
from logitlens.anatomy.watch import Hook, hooked, leaf, leaves, replace_leaf
from logitlens.errors import UnsupportedModel

_SAME = {
    torch.ops.aten.view.default,
    torch.ops.aten._unsafe_view.default,
    torch.ops.aten._reshape_alias.default,
    torch.ops.aten.alias.default,
    torch.ops.aten.detach.default,
    torch.ops.aten.clone.default,
    torch.ops.aten._to_copy.default,
}
_ADD, _ADD_ = torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor
_MUL, _MUL_ = torch.ops.aten.mul.Tensor, torch.ops.aten.mul_.Tensor


@dataclass(eq=False)
class Sum:
    """The sum of two tensors of the stream's shape, neither of which is the stream."""

    left: Value
    right: Value


@dataclass(eq=False)
class State:
    """The stream after `number` additions in this block."""

    number: int
    before: State | None = None
    added: Value | None = None


@dataclass(eq=False)
class Value:
    """A tensor and, if it matters, its origin. Holding it keeps its `id` from being used again."""

    tensor: Tensor
    origin: State | Sum | None = None


Path = list[tuple[State, Value]]  # a block's additions: the state each led to, and what it added
# Called after every block with its number, its additions (None where it did more to the stream than
# add to it), the stream it received and the one it returned.
Took = Callable[[int, Path | None, Tensor, Tensor], None]
# Called with a depth and the stream there: None, or the stream that takes its place.
See = Callable[[int, Tensor], Tensor | None]
# Called with a block, the number of an addition in it (from 1) and what is about to be added: None,
# or what is added in its place.
Change = Callable[[int, int, Value], Value | None]


class Additions(TorchDispatchMode):
    """Follows the stream through the block that is running; see `recording`."""

    def __init__(self, change: Change | None = None):
        super().__init__()
        self.rows: Sequence[Tensor] | None = None  # what replaces the stream after each addition
        self.change = change
        self.known: dict[int, Value] = {}
        self.size, self.block = -1, -1

    def begin(self, block: int, stream: Tensor) -> None:
        self.known, self.size, self.block = {}, stream.numel(), block
        self.shape = stream.shape
        self._note(stream, State(0))

    def end(self, stream: Tensor) -> Path | None:
        """The additions on the way to `stream`, first to last; None where it was not only added to."""
        value = self.known.get(id(stream))
        state = value.origin if value is not None else None
        path: Path = []
        while isinstance(state, State) and state.added is not None:
            path.append((state, state.added))
            state = state.before
        self.known, self.size = {}, -1
        return path[::-1] if isinstance(state, State) else None

    def _note(self, tensor: Tensor, origin: State | Sum | None) -> Value:
        value = Value(tensor, origin)
        self.known[id(tensor)] = value
        return value

    def _value(self, tensor: Tensor) -> Value:
        return self.known.get(id(tensor)) or Value(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.size < 0:
            return func(*args, **kwargs)
        if func in (_ADD, _ADD_) and self._fits(*args[:2]):
            return self._add(func, args, kwargs)
        out = func(*args, **kwargs)
        given = args[0] if args else None
        same = func in _SAME or (func in (_MUL, _MUL_) and _is_one(args[1]))
        if same and isinstance(given, Tensor) and isinstance(out, Tensor):
            value = self.known.get(id(given))
            if value is not None and out.numel() == self.size:
                self._note(out, value.origin)
        elif isinstance(out, Tensor) and out is given:
            self.known.pop(id(out), None)  # changed in place: no longer what it was
        return out

    def _fits(self, x: Any, y: Any) -> bool:
        both = isinstance(x, Tensor) and isinstance(y, Tensor)
        return both and x.numel() == y.numel() == self.size and x.shape[-1] == self.shape[-1]

    def _add(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        x, y = self._value(args[0]), self._value(args[1])
        if func is _ADD_:  # the first tensor is about to be overwritten
            x = Value(x.tensor.clone(), x.origin)
        out = func(*args, **kwargs)
        if kwargs.get("alpha", 1) != 1:
            y = Value(y.tensor * kwargs["alpha"])
        pairs = ((x, y), (y, x))
        states = [(v.origin, v, added) for v, added in pairs if isinstance(v.origin, State)]
        if len(states) == 2:
            self.known.pop(id(out), None)
        elif states:
            before, stream, added = states[0]
            new = self.change(self.block, before.number + 1, added) if self.change else None
            if new is not None:
                added = new
                out.copy_(stream.tensor.view(out.shape) + added.tensor.view(out.shape))
            state = State(before.number + 1, before, added)
            if self.rows is not None and state.number < len(self.rows):
                out.copy_(self.rows[state.number].view(out.shape))
            self._note(out, state)
        else:
            self._note(out, Sum(x, y))
        return out


def _is_one(factor: Any) -> bool:
    if isinstance(factor, Tensor):
        return factor.numel() == 1 and factor.device.type != "meta" and float(factor) == 1.0
    return factor == 1


@contextmanager
def recording(
    anatomy: Anatomy,
    took: Took,
    replace: Callable[[Tensor], Sequence[Tensor]] | None = None,
    *,
    see: See | None = None,
    change: Change | None = None,
) -> Iterator[None]:
    """Inside, `took` is called after every block.

    replace   the stream a block receives → tensors that take its place: the first at the block's
              entry, the next after the first addition, and so on; None: the stream stays as it is
    see       called with the stream at every depth; what it returns is what the model goes on with
    change    called with everything that is added to the stream; what it returns is added instead
    """
    mode = Additions(change)
    entered: list[Tensor] = []

    def before(block: int) -> Hook:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
            given = {"args": args, "kwargs": kwargs}
            slot = _entry(anatomy, block, given, entered)
            stream = leaf(given, slot)
            if replace is not None:
                mode.rows = replace(stream)
                stream = mode.rows[0].clone().view(stream.shape)
                given = replace_leaf(given, slot, stream)
            elif block == 0 and see is not None and (new := see(0, stream)) is not None:
                stream = new
                given = replace_leaf(given, slot, stream)
            entered[:] = [stream, stream if replace is not None else stream.clone()]
            mode.begin(block, stream)
            return given["args"], given["kwargs"]

        return hook

    def after(block: int) -> Hook:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            stream = leaf(output, anatomy.exits[block])
            took(block, mode.end(stream), entered[1], stream)
            new = see(block + 1, stream) if see is not None else None
            entered[:] = [stream if new is None else new]
            return None if new is None else replace_leaf(output, anatomy.exits[block], new)

        return hook

    hooks = hooked(
        before=[(block, before(i)) for i, block in enumerate(anatomy.blocks)],
        after=[(block, after(i)) for i, block in enumerate(anatomy.blocks)],
    )
    with mode, hooks:
        yield


def _entry(anatomy: Anatomy, block: int, given: Any, last: list[Tensor]) -> tuple[Any, ...]:
    """Where the block receives the stream: the tensor that the last one returned, or an equal one."""
    slot = anatomy.entry[1]
    if block == 0:
        return slot
    found = list(leaves(given))
    for place, tensor in found:
        if tensor is last[0]:
            return place
    for place, tensor in sorted(found, key=lambda item: item[0] != slot):
        if tensor.shape == last[0].shape and torch.equal(tensor.to(last[0].device), last[0]):
            return place
    raise UnsupportedModel(f"block {block} of {anatomy.blocks_path} does not receive the stream")
