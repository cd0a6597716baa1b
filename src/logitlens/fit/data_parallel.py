"""Several processes as one, through torch.distributed; alone, every function is trivial."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from logitlens.errors import FitError, out_of_memory

WAIT = timedelta(minutes=30)  # for the others to load the model


class PeerLost(FitError):
    """Another process of the group has ended, or cannot be reached."""


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


def join(place: Path, rank: int, size: int, device: torch.device) -> None:
    """Make a group of `size` processes that all see the file `place`, which no other group has used.

    device   where this process has its model: nccl, where each has a GPU of its own; else gloo

    Raises PeerLost where the others do not come.
    """
    gpu = "none"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        gpu = str(torch.cuda.get_device_properties(device).uuid)
    with _all_there():
        store = dist.FileStore(str(place), size)  # pyright: ignore[reportPrivateImportUsage]
        store.set_timeout(WAIT)
        store.set(f"gpu of {rank}", gpu)
        gpus = {store.get(f"gpu of {other}") for other in range(size)}
        backend = "nccl" if len(gpus) == size and b"none" not in gpus else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)


@contextmanager
def _all_there() -> Iterator[None]:
    """Inside, torch's errors are those of a process that cannot reach the others."""
    try:
        yield
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        reason = re.sub(r"^\[\S+\] ", "", str(error)).partition("\n")[0].partition(". ")[0]
        raise PeerLost(f"a process of the fit cannot be reached any more ({reason})") from error


def end() -> None:
    """Leave the group, where there is one."""
    if active():
        dist.destroy_process_group()


def active() -> bool:
    """Whether several processes fit together."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """The number of this process among them, from 0."""
    return dist.get_rank() if active() else 0


def size() -> int:
    """How many processes fit together."""
    return dist.get_world_size() if active() else 1


def sum_all(tensors: Iterable[Tensor]) -> None:
    """Each tensor becomes its sum over all processes, in place, on whatever device."""
    if not active():
        return
    with _all_there():
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


def agreed(number: int) -> bool:
    """Whether the number is the same in all processes."""
    total = torch.tensor([float(number)], dtype=torch.float64, device="cpu")
    sum_all([total])
    return not any_of(total.item() != number * size())


def barrier() -> None:
    """Wait until all have come here."""
    if active():
        with _all_there():
            dist.barrier()
