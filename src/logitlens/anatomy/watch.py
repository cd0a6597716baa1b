"""Run a model as it is, watch which modules it calls on which tensors, and leave no trace.

Everything the package learns about a model it learns here: nothing is read from class names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

# Where a tensor sits in a call's arguments or in its output: ("args", 0), ("kwargs", "x", 1), (0,).
Slot = tuple[Any, ...]


@dataclass(eq=False)
class Call:
    """One call of one module: its tensors are copies, so later in-place changes do not show.

    start, end count events of the whole forward pass: a call lies after another when its start is
    greater than the other's end.
    """

    path: str
    module: nn.Module
    start: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: list[tuple[Slot, Tensor]]
    end: int = -1
    outputs: list[tuple[Slot, Tensor]] = field(default_factory=list)


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


def leaf(value: Any, slot: Slot) -> Any:
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


@contextmanager
def watching(modules: Iterable[tuple[str, nn.Module]]) -> Iterator[list[Call]]:
    """Record every call of the modules given, in order of their start."""
    calls: list[Call] = []
    open_calls: list[Call] = []
    clock = iter(range(1 << 62))

    def before(path: str):
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found = [*leaves(args, ("args",)), *leaves(kwargs, ("kwargs",))]
            call = Call(path, module, next(clock), args, kwargs, _copies(found))
            calls.append(call)
            open_calls.append(call)

        return hook

    def after(module: nn.Module, args: Any, output: Any) -> None:
        while open_calls:
            call = open_calls.pop()
            if call.module is module:
                call.end = next(clock)
                call.outputs = _copies(leaves(output))
                return

    handles = []
    try:
        for path, module in modules:
            handles.append(module.register_forward_pre_hook(before(path), with_kwargs=True))
            handles.append(module.register_forward_hook(after))
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _copies(found: Iterable[tuple[Slot, Tensor]]) -> list[tuple[Slot, Tensor]]:
    return [(slot, tensor.detach().clone()) for slot, tensor in found]
