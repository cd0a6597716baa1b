"""Tensor-parallel models: find this process's columns of the head.

transformers keeps the weights of a model loaded with a tensor-parallel plan as DTensors, the head's
sharded by vocabulary. The model gathers its logits from all processes; a readout need not.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from logitlens.anatomy.tail import Tail
from logitlens.readout.head import Head


@torch.no_grad()
def with_shards(tail: Tail, model: nn.Module) -> Tail:
    """The same tail, with `head.shard` where the head is spread over processes by vocabulary.

    Every process of the model must call this; all get a shard or none does. The local columns are
    compared with what the head itself returns for random rows, and not used where they differ.
    """
    module = getattr(model, "get_output_embeddings", lambda: None)()
    weight: Any = getattr(module, "weight", None)
    if tail.kind != "module" or tail.head.call is None or not _by_vocabulary(weight):
        return tail
    from logitlens.readout.sharded import shard_head

    bias = getattr(module, "bias", None)
    group = weight.device_mesh.get_group()
    head = shard_head(tail.head, _local(weight), None if bias is None else _local(bias), group)
    if not _all(_agrees(head, tail), group):
        return tail
    size = weight.device_mesh.size()
    lines = [
        (name, f"{text}, over {size} processes" if name == "head" else text)
        for name, text in tail.description
    ]
    return replace(tail, head=head, description=lines)


def _by_vocabulary(weight: Any) -> TypeGuard[Any]:
    try:
        from torch.distributed.tensor import DTensor, Shard
    except ImportError:  # a build of torch without distributed
        return False
    if not isinstance(weight, DTensor) or weight.dim() != 2 or weight.device_mesh.ndim != 1:
        return False
    return weight.placements == (Shard(0),) and weight.is_floating_point()


def _local(tensor: Any) -> Tensor:
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local.detach()


def _agrees(head: Head, tail: Tail) -> bool:
    assert head.shard is not None
    local = head.shard.head
    assert local.weight_VE is not None
    generator = torch.Generator().manual_seed(0)
    rows_NE = torch.randn(
        4, local.weight_VE.shape[1], generator=generator, dtype=torch.float32, device="cpu"
    )
    rows_NE = rows_NE.to(local.weight_VE.device, local.weight_VE.dtype)
    whole_NV = tail.head.logits(rows_NE)
    ours_NC = local.logits(rows_NE)
    columns = slice(head.shard.offset, head.shard.offset + local.vocab)
    coarse = max(torch.finfo(tail.dtype).eps, 1e-6)
    allowed = 16 * coarse * float(whole_NV.abs().max() + 1)
    theirs_NC = whole_NV[:, columns].to(ours_NC.device)
    return ours_NC.numel() == 0 or float((ours_NC - theirs_NC).abs().max()) <= allowed


def _all(ok: bool, group: Any) -> bool:
    """True on every process if it is true on all: no process may wait for others alone."""
    import torch.distributed as dist

    device = "cuda" if dist.get_backend(group) == "nccl" else "cpu"
    flag = torch.tensor([int(ok)], device=device, dtype=torch.long)
    dist.all_reduce(flag, dist.ReduceOp.MIN, group=group)
    return bool(flag.item())
