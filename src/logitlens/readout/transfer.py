"""Between main memory and a GPU: copies through pinned memory that nothing waits for until it must.

A copy from or to memory that the system may move (any other) makes the host wait for all that the GPU has
been given before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

Found = TypeVar("Found")


def overlaps(device: torch.device) -> bool:
    """Whether a device works on while its host does something else."""
    return device.type == "cuda"


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of main memory on a device."""
    if device.type == "cuda" and tensor.is_cpu:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class Arriving:
    """Tensors on their way into main memory, where they are once `arrays` is called. Views of the same memory
    go together, in one copy of all of it."""

    def __init__(self, tensors: Mapping[str, Tensor], device: torch.device):
        on_gpu = device.type == "cuda"
        if len({tensor.untyped_storage().data_ptr() for tensor in tensors.values()}) == 1:
            self._host = _together(tensors, on_gpu)
        else:
            self._host = {
                n: t.contiguous().to("cpu", non_blocking=on_gpu) for n, t in tensors.items()
            }
        self._copied = torch.cuda.current_stream(device).record_event() if on_gpu else None

    def arrays(self) -> dict[str, np.ndarray]:
        if self._copied is not None:
            self._copied.synchronize()
        return {name: tensor.numpy() for name, tensor in self._host.items()}


def _together(tensors: Mapping[str, Tensor], non_blocking: bool) -> dict[str, Tensor]:
    first = next(iter(tensors.values()))
    memory = first.new_empty(0, dtype=torch.uint8).set_(first.untyped_storage())
    host = memory.to("cpu", non_blocking=non_blocking)
    return {
        name: host.view(t.dtype).as_strided(t.shape, t.stride(), t.storage_offset())
        for name, t in tensors.items()
    }


def aside(*devices: torch.device) -> AbstractContextManager[None]:
    """A context in which the work of GPUs waits for what they had been given when this was called, not for what
    they have been given since; all of it is done when the context is left."""
    on_gpu = {device for device in devices if device.type == "cuda"}
    return _aside({d: torch.cuda.current_stream(d).record_event() for d in on_gpu})


@contextmanager
def _aside(given: Mapping[torch.device, Any]) -> Iterator[None]:
    with ExitStack() as stack:
        for device, event in given.items():
            stream = _side_stream(device)
            stream.wait_event(event)
            # before memory of the main stream that is read here can be used again
            stack.callback(stream.synchronize)
            stack.enter_context(torch.cuda.stream(stream))
        yield


@lru_cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device, priority=-1)  # before what else is queued


def in_turn(begun: Iterable[Callable[[], Found]], *, behind: bool) -> Iterator[Found]:
    """What each gives that was begun, one after another.

    behind   wait for it only when the next has been begun, so that a GPU has work while its host has;
             what was begun before an error is still given
    """
    before: list[Callable[[], Found]] = []
    begun = iter(begun)
    while True:
        try:
            now = next(begun, None)
        except Exception:
            if before:
                yield before.pop()()
            raise
        if before:
            yield before.pop()()
        if now is None:
            return
        before.append(now)
        del now  # what it holds is freed when it has ended
        if not behind:
            yield before.pop()()
