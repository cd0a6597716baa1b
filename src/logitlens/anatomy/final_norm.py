"""From the last block's output to the head's input: which modules, in which order, with what factor.

Found backwards through the watched calls: a tensor is explained by the module that returned it (up
to one constant factor), that module's input by the one before, until the last block's own output
is reached. A final norm, a projection after it, a dense transform, a reduction of several streams
or nothing at all are the same case.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from logitlens.anatomy.blocks import Axes, same
from logitlens.anatomy.watch import Call, Slot, leaf, replace_leaf

LONGEST = 4


@dataclass(frozen=True, eq=False)
class Step:
    """One module of the tail, callable on rows alone, and the factor applied to what it returns."""

    path: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    slot_in: Slot
    slot_out: Slot
    axes_in: Axes
    axes_out: Axes
    row_shape: tuple[int, ...]
    scale: float = 1.0

    def __call__(self, x_ND: Tensor) -> Tensor:
        """Rows (N, D in) → rows (N, D out), as one sequence of N positions."""
        rows = x_ND.reshape(1, x_ND.shape[0], *self.row_shape)
        given = self.axes_in.stream(rows.to(device_of(self.module) or rows.device))
        args, kwargs = self.args, self.kwargs
        if self.slot_in[0] == "args":
            args = replace_leaf(args, self.slot_in[1:], given)
        else:
            kwargs = replace_leaf(kwargs, self.slot_in[1:], given)
        out = leaf(self.module(*args, **kwargs), self.slot_out)
        y_ND = self.axes_out.rows(out, 1).flatten(2)[0]
        return y_ND if self.scale == 1.0 else y_ND * self.scale

    def describe(self) -> str:
        text = f"{self.path} ({type(self.module).__name__})"
        return text if self.scale == 1.0 else f"{text}, then × {self.scale:.6g}"


def device_of(module: nn.Module) -> torch.device | None:
    """Where a module computes: its first real parameter's device; None when it has none there."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.device.type != "meta":
            return tensor.device
    return None


def rows_of(tensor: Tensor, batch: int, positions: int) -> tuple[Axes, Tensor] | None:
    """A tensor with one row a position → its axes and (B, T, E); None for any other tensor."""
    axes = Axes.find(tuple(tensor.shape), batch, positions)
    return None if axes is None else (axes, axes.rows(tensor, batch).flatten(2))


def find_steps(
    target_BTE: Tensor, before: int, h_BTD: Tensor, calls: list[Call]
) -> tuple[float, list[Step]] | None:
    """Explain `target` (seen before event `before`) from `h` by the calls given.

    Returns (factor applied to h first, steps in order), the shortest explanation, or None.
    """
    batch, positions = h_BTD.shape[:2]
    frontier: list[tuple[Tensor, int, list[Step]]] = [(target_BTE, before, [])]
    for _ in range(LONGEST + 1):
        reached: list[tuple[Tensor, int, list[Step]]] = []
        for y_BTE, event, steps in frontier:
            factor = ratio(y_BTE, h_BTD)
            if factor is not None:
                return factor, steps
            for call in calls:
                if call.end < event:
                    reached += [
                        (x, call.start, [step, *steps])
                        for x, step in _explanations(call, y_BTE, batch, positions)
                    ]
        frontier = reached
    return None


def _explanations(call: Call, y_BTE: Tensor, batch: int, positions: int):
    for slot_out, out in call.outputs:
        found = rows_of(out, batch, positions)
        factor = ratio(y_BTE, found[1]) if found else None
        if found is None or factor is None:
            continue
        if sum(isinstance(v, Tensor) for v in (*call.args, *call.kwargs.values())) > 1:
            continue  # needs a second tensor: not a function of the rows alone
        for slot_in, given in call.inputs:
            source = rows_of(given, batch, positions)
            if source is None:
                continue
            shape = tuple(source[0].rows(given, batch).shape[2:])
            yield (
                source[1],
                Step(
                    call.path,
                    call.module,
                    call.args,
                    call.kwargs,
                    slot_in,
                    slot_out,
                    source[0],
                    found[0],
                    shape,
                    factor,
                ),
            )


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
