"""What `-j`, `--engine` and `--threads` come to where they are not all given."""

from __future__ import annotations

import pytest
import torch

from logitlens.cli.options import threads_of_each


@pytest.mark.parametrize(
    ("engine", "jobs", "gpus", "threads"),
    [
        ("local", None, 8, 64), ("local", 2, 8, 32), ("local", 100, 0, 1), ("ray", None, 0, 64),
        ("ray", None, 8, 8), ("ray", 4, 8, 16),
    ],
)  # fmt: skip
def test_processes_share_the_machines_threads_and_with_ray_its_gpus_do(
    monkeypatch, engine, jobs, gpus, threads
):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert threads_of_each(engine, jobs) == threads
