"""From the last block's output to the head's input: which modules, in which order, with what factor.

Found backwards through the watched calls: a tensor is explained by the module that returned it (up
to one constant factor), that module's input by the one before, until the last block's own output
is reached. A final norm, a projection after it, a dense transform, a reduction of several streams
and nothing at all are the same case.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from logitlens.anatomy.watch import Axes, Call, Rows, Slot, leaf, ratio, replace_leaf

LONGEST = 4


@dataclass(frozen=True, eq=False)
class Step:
    """One module of the tail, callable on rows alone, and the factor applied to what it returns."""

    path: str
    module: nn.Module
    given: dict[str, Any]  # "args" and "kwargs" of the call that was watched
    slot_in: Slot
    slot_out: Slot
    axes_in: Axes
    axes_out: Axes
    row_shape: tuple[int, ...]
    dtype: torch.dtype
    scale: float = 1.0

    @staticmethod
    def of(call: Call, x: Rows, y: Rows, scale: float = 1.0) -> Step:
        """The step from what a call received to what it returned."""
        given = {"args": call.args, "kwargs": call.kwargs}
        return Step(
            call.path, call.module, given, x.slot, y.slot, x.axes, y.axes, x.shape,
            x.tensor.dtype, scale,
        )  # fmt: skip

    def __call__(self, x_ND: Tensor) -> Tensor:
        """Rows (N, D in) → rows (N, D out), as one sequence of N positions.

        With a gradient where the rows ask for one; to be called inside `as_found`.
        """
        rows = x_ND.to(self.dtype).reshape(1, x_ND.shape[0], *self.row_shape)
        carried = self.axes_in.carried(rows.to(_device(self.module) or rows.device))
        given = replace_leaf(self.given, self.slot_in, carried)
        out = leaf(self.module(*given["args"], **given["kwargs"]), self.slot_out)
        y_ND = self.axes_out.rows(out, 1).flatten(2)[0]
        return y_ND if self.scale == 1.0 else y_ND * self.scale


def _device(module: nn.Module) -> torch.device | None:
    """Where a module computes: its first real parameter's device; None when it has none there."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.device.type != "meta":
            return tensor.device
    return None


def find_steps(
    target_BTE: Tensor, before: int, h_BTD: Tensor, calls: list[Call]
) -> tuple[float, list[Step]] | None:
    """Explain `target` (seen before event `before`) from `h` by the calls given.

    Returns (factor applied to h first, steps in order), the shortest explanation, or None.
    """
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
                        (x.h_BTD, call.start, [Step.of(call, x, y, scale), *steps])
                        for x, y, scale in explanations(call, y_BTE)
                    ]
        frontier = reached
    return None


def explanations(call: Call, y_BTE: Tensor) -> Iterator[tuple[Rows, Rows, float]]:
    """What a call received and returned, and the factor, where `y` is what it returned."""
    for out in call.outputs:
        factor = ratio(y_BTE, out.h_BTD)
        if factor is None:
            continue
        if sum(isinstance(v, Tensor) for v in (*call.args, *call.kwargs.values())) > 1:
            continue  # needs a second tensor: not a function of the rows alone
        for given in call.inputs:
            yield given, out, factor
