"""A readout whose unembedding is spread over processes: local statistics are merged, never logits.

Under tensor parallelism every process holds some columns of the vocabulary and all rows of head
input. The model itself gathers the whole logits (about 42 GB for 2,048 tokens of all depths of a
70B model); here each process streams over its own columns and then exchanges, for every row, its
maximum, three sums, its k likeliest tokens and its counts: O(rows · k) numbers.

Every process of the group must call `stats` with the same rows and gets the same answer.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from logitlens.readout.chunked import (
    HELD,
    ROWS,
    Tile,
    beside,
    by_layer,
    stream,
    target_logits,
    tile_columns,
    tiles,
    whole,
)
from logitlens.readout.head import Head, Shard
from logitlens.readout.online import Online
from logitlens.readout.product import Room
from logitlens.readout.stats import Engine, FinalRows, Stats
from logitlens.readout.topk import RunningTopK, leading


class Sharded(Engine):
    """The engine of a head with a `shard`, which holds this process's part: rows, targets and
    positions of `final` are the same on every process, and so are the answers. Raises ValueError
    where the head is not sharded."""

    name = "sharded"

    def positions(self, L: int, head: Head, candidates: int) -> int:
        return min(ROWS // L, HELD // head.vocab) if candidates else ROWS // L

    def block(
        self, x_PLE: Tensor, head: Head, k: int, targets_PM: Tensor, candidates: int, final: FinalRows
    ) -> Stats:  # fmt: skip
        shard = head.shard
        if shard is None or shard.head.weight_VE is None:
            raise ValueError("the head is not sharded: its weights are all in this process")
        targets_PM = targets_PM.to(shard.head.weight_VE.device)
        return _look(x_PLE, shard, k, targets_PM, candidates, final).result(candidates)


def _look(
    x_PLE: Tensor, shard: Shard, k: int, targets_PM: Tensor, candidates: int, final: FinalRows
) -> Online:
    """All of the vocabulary: this process's columns, merged with the others'."""
    (P, L), head = x_PLE.shape[:2], shard.head
    if candidates:  # the final rows first, held while the others pass
        final_PC = whole(x_PLE[:, -1], head)
        tile = beside(tiles(by_layer(x_PLE[:, :-1]), head), final_PC, L, Room(final_PC))
        targets_PM = torch.cat([targets_PM, _leading(final_PC, candidates, shard)], 1)
    else:
        tile = tiles(by_layer(x_PLE), head)
    local_PM = _local(targets_PM, shard)
    online = Online(k, local_PM, _target_logits(tile, L, local_PM, shard.group))
    mine = {p: z_V.zero_()[shard.offset :][: head.vocab] for p, z_V in final.items()}
    stream(tile, head.vocab, tile_columns(P * L, head.vocab), online, mine)
    for z_V in final.values():  # every process has written its own columns
        dist.all_reduce(z_V, group=shard.group)
    merge(online, shard.offset, shard.group)
    online.targets_PM = targets_PM
    return online


def _leading(final_PC: Tensor, k: int, shard: Shard) -> Tensor:
    """The likeliest ids (P, k) of whole rows."""
    top = leading(final_PC, k)
    _merge_top(top, shard.offset, shard.group)
    return top.ids_NK


def _local(targets_PM: Tensor, shard: Shard) -> Tensor:
    """Targets among this process's columns by their local number; −1 for all others."""
    local_PM = targets_PM - shard.offset
    here = (targets_PM >= 0) & (local_PM >= 0) & (local_PM < shard.head.vocab)
    return local_PM.masked_fill(~here, -1)


def _target_logits(tile: Tile, L: int, local_PM: Tensor, group: Any) -> Tensor:
    """Logits (P, L, M) of the targets, from whichever process holds each."""
    P, M = local_PM.shape
    z_PLM = torch.full((P, L, M), float("-inf"), dtype=torch.float32, device=local_PM.device)
    if bool((local_PM >= 0).any()):
        own_PLM = target_logits(tile, L, local_PM)
        z_PLM = torch.where(local_PM[:, None] >= 0, own_PLM, z_PLM)
    dist.all_reduce(z_PLM, dist.ReduceOp.MAX, group=group)
    return z_PLM


def merge(online: Online, offset: int, group: Any = None) -> None:
    """Statistics of this process's columns → those of all processes' columns, in place.

    Maxima are all-reduced, sums carried over to the common maximum and added, counts of larger
    logits added, top-k lists gathered. Ties keep the lower id.
    """
    highest_PL = online.c_PL.clone()
    dist.all_reduce(highest_PL, dist.ReduceOp.MAX, group=group)
    online.raise_to(highest_PL)
    own_PLM = online.own_PLM.masked_fill(
        online.own_PLM.isnan(), 0.0
    )  # each target is known to one process
    sums = [online.s_PL, online.a_PL, online.x_PL, *online.above_PLM.unbind(-1)]
    packed = torch.stack([*sums, *own_PLM.double().unbind(-1)])
    dist.all_reduce(packed, group=group)
    M = online.M
    online.s_PL, online.a_PL, online.x_PL = packed[0], packed[1], packed[2]
    if M:
        online.above_PLM = torch.stack(packed[3 : 3 + M].unbind(0), -1)
        online.own_PLM = torch.stack(packed[3 + M :].unbind(0), -1).to(online.own_PLM.dtype)

    _merge_top(online.top, offset, group)


def _merge_top(top: RunningTopK, offset: int, group: Any) -> None:
    values, ids = _gathered(top.values_NK, group), _gathered(top.ids_NK, group)
    offsets = _gathered(top.ids_NK.new_tensor([[offset]]), group)
    none = torch.iinfo(torch.long).max
    whole_ids = [torch.where(i < 0, none, i + o) for i, o in zip(ids, offsets)]
    ids_NJ, order_NJ = torch.cat(whole_ids, 1).sort(dim=-1)
    values_NJ = torch.cat(values, 1).gather(1, order_NJ)
    values_NJ, order_NJ = values_NJ.sort(dim=-1, descending=True, stable=True)
    top.values_NK = values_NJ[:, : top.k].contiguous()
    top.ids_NK = ids_NJ.gather(1, order_NJ)[:, : top.k].contiguous()


def _gathered(tensor: Tensor, group: Any) -> list[Tensor]:
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, tensor.contiguous(), group=group)
    return parts


def shard_head(head: Head, weight_CE: Tensor, bias_C: Tensor | None, group: Any) -> Head:
    """A head that can only be called, together with this process's rows of its weights.

    weight_CE (C, E) and bias_C (C,) are local; processes hold them one after another in the order
    of their ranks. Rows beyond the vocabulary (padding) are left out.
    """
    mine = torch.tensor([weight_CE.shape[0]], dtype=torch.long, device=weight_CE.device)
    sizes = [int(size) for size in _gathered(mine, group)]
    offset = sum(sizes[: dist.get_rank(group)])
    held = max(0, min(weight_CE.shape[0], head.vocab - offset))
    final = head.final_bias_V
    local = Head(
        held,
        weight_CE[:held],
        None if bias_C is None else bias_C[:held],
        scale=head.scale,
        softcap=head.softcap,
        final_bias_V=None if final is None else final[offset : offset + held],
    )
    return replace(head, shard=Shard(local, offset, group))
