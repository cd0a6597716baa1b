"""logitlens, with one of its kernels whatever the length of a prompt."""

from __future__ import annotations

import torch
from torch import Tensor

import logitlens
from benchmarks.readout.contenders import Read, Result
from logitlens.readout import engine


def torch_kernel(model) -> Read:
    engine.WORTH = 1 << 62
    return _read(model)


def numba_kernel(model) -> Read:
    from logitlens.readout import fused  # noqa: F401  raises here where numba is not installed

    engine.WORTH = -1
    return _read(model)


def _read(model) -> Read:
    loaded = logitlens.load(model)

    def read(ids: Tensor, last: bool) -> Result:
        reading = loaded.read(ids, top=10, positions=[-1] if last else None)
        return Result(lambda: torch.tensor(reading.top_ids[-1, :, 0]), reading)

    return read
