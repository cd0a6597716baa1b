"""Several processes as one, through torch.distributed; alone, every function is trivial."""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from logitlens.errors import FitError


def begin() -> None:
    """Join the group `torchrun` made (gloo on CPUs, nccl on GPUs); nothing without one.

    Raises FitError where the environment names a group that cannot be joined.
    """
    try:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not active():
            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise FitError(
            f"cannot join the processes that WORLD_SIZE, RANK and MASTER_ADDR name ({reason}): start "
            "them with torchrun, or unset WORLD_SIZE"
        ) from error


def end() -> None:
    if active():
        dist.destroy_process_group()


def active() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if active() else 0


def size() -> int:
    return dist.get_world_size() if active() else 1


def sum_all(tensors: Iterable[Tensor]) -> None:
    """Each tensor becomes its sum over all processes, in place, wherever it lies."""
    if not active():
        return
    for tensor in tensors:
        if dist.get_backend() == "nccl" and not tensor.is_cuda:  # it sums on GPUs only
            summed = tensor.cuda()
            dist.all_reduce(summed)
            tensor.copy_(summed)
        else:
            dist.all_reduce(tensor)


def any_of(flag: bool) -> bool:
    """Whether any process says so: all must leave a loop at the same step."""
    votes = torch.tensor([float(flag)], dtype=torch.float32, device="cpu")
    sum_all([votes])
    return bool(votes.item() > 0)


def barrier() -> None:
    if active():
        dist.barrier()
