"""Sums over processes. Groups of two are tested with the fits that use them."""

from __future__ import annotations

import torch
import torch.distributed as dist

from logitlens.fit import data_parallel


def test_alone_nothing_changes():
    tensor = torch.tensor([1.0, 2.0])
    data_parallel.sum_all([tensor])
    assert tensor.tolist() == [1, 2]
    assert data_parallel.any_of(True)
    assert not data_parallel.any_of(False)
    assert (data_parallel.rank(), data_parallel.size(), data_parallel.active()) == (0, 1, False)


def test_a_group_that_sums_on_gpus_brings_the_sum_back(monkeypatch):
    """NCCL takes tensors on GPUs only; what lies on the CPU goes there and the sum returns."""
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_backend", lambda: "nccl")
    there = []

    def to_gpu(tensor):
        there.append(tensor.clone())
        return there[-1]

    def all_reduce(tensor):
        assert any(tensor is t for t in there), "summed where it lay"
        tensor.mul_(2)

    monkeypatch.setattr(torch.Tensor, "cuda", to_gpu)
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    tensor = torch.tensor([1.0, 2.0])
    data_parallel.sum_all([tensor])
    assert tensor.tolist() == [2, 4]
