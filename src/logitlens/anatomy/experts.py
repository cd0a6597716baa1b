"""Mixtures of experts: what each expert adds to the stream, found by watching, without names.

A module of a block that is given rows, the numbers of some experts for each row and as many weights,
and returns rows, holds its experts. It is asked again, one expert at a time with its router weight and
the others' weights zero. What it returns sums, with what a shared expert beside it returned (times a
factor of the row), to what the MLP adds, as it is or times one factor of the whole (Granite's residual
multiplier); else nothing is shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from logitlens.anatomy.blocks import Anatomy
from logitlens.anatomy.sublayers import TOLERANCE
from logitlens.anatomy.watch import Hook, hooked, replace_leaf
from logitlens.errors import UnsupportedModel


@dataclass(frozen=True, eq=False)
class Routed:
    """One call of a block's experts, at one position.

    given   the call's arguments; `slots`: where rows, numbers and weights are among them
    x_D     the row                      ids_K   the numbers of its experts
    w_K     the router's weights         lead    how many axes come before (positions, ·)
    """

    module: nn.Module
    given: dict[str, Any]
    slots: list[tuple[Any, ...]]
    lead: int
    x_D: Tensor
    ids_K: Tensor
    w_K: Tensor

    def each(self) -> Tensor:
        """What each of the experts returns, times its weight (K, D)."""
        K = len(self.ids_K)
        rows = [self.x_D.expand(K, -1), self.ids_K.expand(K, -1), torch.diag(self.w_K)]
        given = self.given
        for slot, tensor in zip(self.slots, rows):
            tensor = tensor.reshape(*[1] * self.lead, *tensor.shape).contiguous()
            given = replace_leaf(given, slot, tensor)
        # Its forward alone: hooks are for the model's own passes.
        return self.module.forward(*given["args"], **given["kwargs"]).reshape(K, -1)


class Experts:
    """What the blocks' modules do at one position of a pass over one prompt of T tokens."""

    def __init__(self, anatomy: Anatomy, length: int, position: int):
        self.anatomy, self.length, self.position = anatomy, length, position
        self.given: dict[nn.Module, dict[str, Any]] = {}
        self.calls: dict[int, list[Routed]] = {}
        self.rows: dict[int, list[Tensor]] = {}  # (D,) that a module of the block returned

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, a pass over the prompt is watched."""

        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.given[module] = {"args": args, "kwargs": kwargs}

        def after(block: int) -> Hook:
            def keep(module: nn.Module, args: Any, output: Any) -> None:
                row_D = self._row(output)
                given = self.given.pop(module, None)
                if row_D is not None and given is not None:
                    call = self._routed(module, given)
                    if call is not None:
                        self.calls.setdefault(block, []).append(call)
                    else:
                        self.rows.setdefault(block, []).append(row_D)

            return keep

        inner = [
            (module, i)
            for i, block in enumerate(self.anatomy.blocks)
            for module in block.modules()
            if module is not block
        ]
        with hooked(
            before=[(module, before) for module, _ in inner],
            after=[(module, after(i)) for module, i in inner],
        ):
            yield

    def apart(self, block: int, mlp_D: Tensor) -> tuple[dict[int, float], Tensor, Tensor] | None:
        """Router weights by the number of each expert, what each of them added (K, D), and what was
        added beside them (D,), of what the MLP added; None where the block has no experts.

        Raises UnsupportedModel where they do not sum to it.
        """
        calls, rows = self.calls.pop(block, []), self.rows.pop(block, [])
        if not calls:
            return None
        if len(calls) > 1:
            raise UnsupportedModel(
                f"block {block} calls its experts {len(calls)} times for one row"
            )
        out_KD = calls[0].each().double().cpu()
        mlp64_D, routed_D = mlp_D.double().cpu(), out_KD.sum(0)
        size = float(mlp_D.abs().max()) + float(out_KD.abs().max())
        allowed = TOLERANCE.get(mlp_D.dtype, 1e-4) * size
        beside = [torch.zeros_like(routed_D)]
        for row_D in (r.double().cpu() for r in rows):  # a shared expert, times a gate of the row
            # What the whole MLP returned, or the experts alone, explains nothing beside them.
            if all(
                float((x - _along(row_D, x)).abs().max()) > allowed for x in (mlp64_D, routed_D)
            ):
                beside.append(row_D)
        # Once as they are; else all of them times one factor, which multiplies what the MLP returned.
        for free in (False, True):
            fits = [_fit(mlp64_D, routed_D, row_D, free) for row_D in beside]
            off = [float((mlp64_D - a * routed_D - x).abs().max()) for a, x in fits]
            best = 0 if off[0] <= allowed else min(range(len(off)), key=off.__getitem__)
            if off[best] <= allowed:
                break
        if not off[best] <= allowed:
            raise UnsupportedModel(
                f"the experts of block {block}, and one shared expert, do not sum to what its MLP "
                f"added: they differ by {off[best]:.2g} (tolerance {allowed:.1g})"
            )
        weights = dict(zip(calls[0].ids_K.tolist(), calls[0].w_K.double().tolist()))
        factor, beside_D = fits[best]
        return weights, out_KD * factor, beside_D

    def _row(self, tensor: Any) -> Tensor | None:
        if not isinstance(tensor, Tensor) or tensor.numel() != self.length * self.anatomy.width:
            return None
        return tensor.detach().reshape(self.length, -1)[self.position].clone()

    def _routed(self, module: nn.Module, given: dict[str, Any]) -> Routed | None:
        """A call that is given rows, numbers of experts and as many weights."""
        args, kwargs = given["args"], given["kwargs"]
        slots = [("args", i) for i in range(len(args))] + [("kwargs", key) for key in kwargs]
        tensors = {
            slot: value
            for slot, value in zip(slots, [*args, *kwargs.values()])
            if isinstance(value, Tensor) and value.dim() > 1
        }
        for ids_slot, ids in tensors.items():
            if ids.is_floating_point() or ids.dtype == torch.bool or ids.numel() % self.length:
                continue
            K = ids.shape[-1]
            for slot, weights in tensors.items():
                rows = [s for s, x in tensors.items() if s != slot and self._row(x) is not None]
                if weights.is_floating_point() and weights.shape == ids.shape and len(rows) == 1:
                    x_D = self._row(tensors[rows[0]])
                    if x_D is None or ids.numel() != self.length * K:
                        continue
                    ids_K = ids.reshape(self.length, K)[self.position].clone()
                    w_K = weights.detach().reshape(self.length, K)[self.position].clone()
                    found: list[tuple[Any, ...]] = [rows[0], ids_slot, slot]
                    return Routed(module, given, found, ids.dim() - 2, x_D, ids_K, w_K)
        return None


def _along(row_D: Tensor, target_D: Tensor) -> Tensor:
    """The multiple of a row that is nearest to another."""
    return row_D * (row_D @ target_D / row_D.square().sum().clamp(min=1e-300))


def _fit(mlp_D: Tensor, routed_D: Tensor, row_D: Tensor, free: bool) -> tuple[float, Tensor]:
    """The factor of the experts (1 unless `free`), and the multiple of another row, that are nearest
    to what the MLP added."""
    if not free:
        return 1.0, _along(row_D, mlp_D - routed_D)
    both = torch.stack([routed_D, row_D], 1)
    a, b = (torch.linalg.pinv(both) @ mlp_D).tolist()
    return a, b * row_D
