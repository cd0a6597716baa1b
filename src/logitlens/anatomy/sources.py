"""Where each attention head read: its input to the projection, taken apart by source position.

Eager attention multiplies the heads' weights by the values, a product that can be watched: one whose
result, head after head, is what the projection receives. Other implementations do it inside a kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from logitlens.anatomy.heads import BlockHeads
from logitlens.anatomy.sublayers import TOLERANCE
from logitlens.anatomy.watch import hooked
from logitlens.errors import UnsupportedModel


class Products(TorchDispatchMode):
    """Keeps the products of the block that runs, in a pass over one prompt of `length` tokens."""

    def __init__(self, length: int):
        super().__init__()
        self.length = length
        self.found: list[tuple[Tensor, Tensor, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.bmm.default and args[0].shape[1:] == (self.length, self.length):
            self.found.append((args[0], args[1], out))
        return out

    @contextmanager
    def within(self, blocks: Sequence[nn.Module]) -> Iterator[None]:
        """Inside, every pass is watched, block by block."""

        def begin(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.found.clear()

        with hooked(before=[(block, begin) for block in blocks]), self:
            yield

    def sources(self, block: int, heads: BlockHeads, z_TE: Tensor, position: int) -> Tensor:
        """What each position gave each head's input at one position (S, H, e); float64 on the CPU.

        Raises UnsupportedModel where no product that was seen is that input.
        """
        z_HTe = z_TE.unflatten(1, (heads.count, -1)).transpose(0, 1)
        allowed = TOLERANCE.get(z_TE.dtype, 1e-4) * float(z_TE.abs().max())
        for weights_HTS, values_HSe, out_HTe in self.found:
            if out_HTe.shape == z_HTe.shape and float((out_HTe - z_HTe).abs().max()) <= allowed:
                weights_SH = weights_HTS[:, position].T.double().cpu()
                return weights_SH[..., None] * values_HSe.transpose(0, 1).double().cpu()
        raise UnsupportedModel(
            f"the attention weights of block {block} are not exposed, or do not make what its heads "
            "give: load the model with attn_implementation='eager' (--attn eager), or try by='head'"
        )
