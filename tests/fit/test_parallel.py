"""Sums over processes. Groups of two are tested with the fits that use them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from logitlens.errors import FitError
from logitlens.fit import data_parallel
from tests.fit.processes import run_two


def test_alone_nothing_changes():
    tensor = torch.tensor([1.0, 2.0])
    data_parallel.sum_all([tensor])
    assert tensor.tolist() == [1, 2]
    assert data_parallel.any_of(True)
    assert not data_parallel.any_of(False)
    assert data_parallel.agreed(3)
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


@pytest.mark.parametrize(
    ("device", "other", "backend"),
    [
        ("cuda:0", b"GPU-2", "nccl"),
        ("cuda:0", b"GPU-1", "gloo"),  # two processes on one GPU
        ("cuda:0", b"none", "gloo"),
        ("cpu", b"GPU-2", "gloo"),
    ],
)
def test_sums_are_made_on_gpus_where_each_process_has_its_own(
    monkeypatch, tmp_path, device, other, backend
):
    kept = {"gpu of 1": other}

    class Store:
        def __init__(self, path, size):
            assert (path, size) == (str(tmp_path / "meeting"), 2)

        def set_timeout(self, wait):
            assert wait == data_parallel.WAIT

        def set(self, key, value):
            kept[key] = value.encode()

        def get(self, key):
            return kept[key]

    begun = []
    monkeypatch.setattr(dist, "FileStore", Store)
    monkeypatch.setattr(
        dist, "init_process_group", lambda name, **given: begun.append((name, given["rank"]))
    )
    monkeypatch.setattr(torch.cuda, "set_device", lambda given: None)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda given: SimpleNamespace(uuid="GPU-1")
    )
    data_parallel.join(tmp_path / "meeting", 0, 2, torch.device(device))
    assert begun == [(backend, 0)]


def test_a_process_that_cannot_be_reached_is_one_line_and_full_memory_is_what_it_is(monkeypatch):
    said = "[/a/gloo/pair.cc:537] Connection closed by peer [::1]:7. Check the logs. Good luck"

    def fails(tensor):
        raise RuntimeError(said)

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_backend", lambda: "gloo")
    monkeypatch.setattr(dist, "all_reduce", fails)
    with pytest.raises(FitError, match=r"any more \(Connection closed by peer \[::1\]:7\)$"):
        data_parallel.sum_all([torch.zeros(1)])
    said = "CUDA out of memory"
    with pytest.raises(RuntimeError, match="out of memory") as full:
        data_parallel.sum_all([torch.zeros(1)])
    assert not isinstance(full.value, FitError)


AGREED = """
if not parallel.agreed(3) or parallel.agreed(parallel.rank()):
    raise SystemExit("what is the same is not told from what is not")
"""


@pytest.mark.slow
def test_processes_that_read_different_checkpoints_notice(tmp_path):
    run_two(AGREED, tmp_path / "two")
