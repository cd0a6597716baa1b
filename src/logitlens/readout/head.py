"""The unembedding as numbers a kernel can use: rows of head input → logits.

    z = x W^T + bias            accumulated in float32
    z = z · scale
    z = softcap · tanh(z / softcap)
    z = z + final_bias

`logitlens.anatomy.tail` finds these values by watching the model and checks them against its
logits; everything in `logitlens.readout` takes them as given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from logitlens.readout.product import Product

SLICE = 16_384  # tokens multiplied in one step


@dataclass(frozen=True, eq=False)
class Head:
    """The last linear map and what follows it.

    weight_VE   (V, E), or None where the weights may not be read (quantised, offloaded, sharded);
                then `call` maps rows x_NE to (N, V) in any float dtype, before scale and softcap.
    bias_V, final_bias_V   (V,) or None. `scale` multiplies; `softcap` None means no cap.
    shard       this process's columns, where several processes hold the vocabulary (see `sharded`)
    """

    vocab: int
    weight_VE: Tensor | None = None
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    final_bias_V: Tensor | None = None
    call: Callable[[Tensor], Tensor] | None = None
    shard: Shard | None = None

    @property
    def plain(self) -> bool:
        """Whether logits are the product with the weights and nothing else."""
        parts = (self.bias_V, self.softcap, self.final_bias_V, self.shard)
        return self.weight_VE is not None and self.scale == 1.0 and all(p is None for p in parts)

    def raw(self, x_NE: Tensor) -> Tensor:
        """Rows (N, E) → (N, V) float32, before scale, softcap and final bias."""
        if self.weight_VE is None:
            assert self.call is not None, "a Head needs weights or a callable"
            return self.call(x_NE).float()
        if torch.is_grad_enabled() and x_NE.requires_grad:  # the fast product has no backward pass
            z_NV = x_NE.to(self.weight_VE.dtype).float() @ self.weight_VE.float().T
            return z_NV if self.bias_V is None else z_NV + self.bias_V.float()
        product = Product(x_NE, self.weight_VE, self.bias_V)
        z_NV = product.x_NE.new_empty(x_NE.shape[0], self.vocab, dtype=torch.float32)
        for v in range(0, self.vocab, SLICE):  # never the whole of half-precision weights, widened
            z_NV[:, v : v + SLICE] = product.raw(slice(v, min(self.vocab, v + SLICE)))
        return z_NV

    def finish(self, z_NV: Tensor, columns: slice | Tensor = slice(None)) -> Tensor:
        """Raw logits of the vocabulary columns given → the model's logits (scale, cap, bias)."""
        if self.scale != 1.0:
            z_NV = z_NV * self.scale
        if self.softcap is not None:
            z_NV = torch.tanh(z_NV / self.softcap) * self.softcap
        if self.final_bias_V is not None:
            z_NV = z_NV + self.final_bias_V[columns].to(z_NV.dtype)
        return z_NV

    def finish_(self, z_NV: Tensor, columns: slice | Tensor = slice(None)) -> Tensor:
        """`finish` in place, for float32."""
        if self.scale != 1.0:
            z_NV.mul_(self.scale)
        if self.softcap is not None:
            z_NV.div_(self.softcap).tanh_().mul_(self.softcap)
        if self.final_bias_V is not None:
            z_NV.add_(self.final_bias_V[columns].to(z_NV))  # maybe of another GPU
        return z_NV

    def logits(self, x_NE: Tensor) -> Tensor:
        """Rows (N, E) of head input → (N, V) float32 logits. The naive way; see `chunked`."""
        return self.finish(self.raw(x_NE))


@dataclass(frozen=True, eq=False)
class Shard:
    """One process's columns of a vocabulary that several hold.

    head     weights, bias, scale, softcap and final bias of the local columns alone
    offset   the id of the first of them
    group    the processes that together hold the vocabulary (None: all)
    """

    head: Head
    offset: int
    group: Any = None
