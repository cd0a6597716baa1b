"""Several threads of a process read at once, whatever pool numba has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba")
ROOT = Path(__file__).resolve().parents[2]

READ = """
import threading
import numba, torch
from logitlens.readout.chunked import Chunked
from tests.readout.heads import make_head, make_rows, make_targets

torch.set_num_threads(2)
head, read = make_head(20_000), Chunked("numba")
for positions in (40, 120):  # in tiles; in strips, where there are any
    x, targets = make_rows(positions, 5), make_targets(positions, 20_000)
    whole = read.stats(x, head, 5, targets)
    found, meet = [None] * 3, threading.Barrier(3)

    def one(i):
        meet.wait()
        for _ in range(10):
            found[i] = read.stats(x, head, 5, targets)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(other.top_ids, whole.top_ids) for other in found)
print(numba.threading_layer())
"""


@pytest.mark.slow
def test_three_threads_read_with_a_pool_that_serves_one():
    environment = os.environ | {"NUMBA_THREADING_LAYER": "workqueue", "NUMBA_NUM_THREADS": "2"}
    command = [sys.executable, "-c", READ]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:] or f"ended by signal {-done.returncode}"
    assert done.stdout == "workqueue\n"


ONCE = """
import torch
from logitlens.readout.chunked import Chunked
from tests.readout.heads import make_head, make_rows, make_targets

torch.set_num_threads(1)
Chunked("numba").stats(make_rows(4, 5), make_head(500), 5, make_targets(4, 500))
print(torch.get_num_threads())
"""


@pytest.mark.slow
def test_numba_leaves_torch_its_number_of_threads():
    """Its OpenMP pool, when it starts, sets the number that torch has as well."""
    environment = os.environ | {"NUMBA_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", ONCE], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.stdout == "1\n", done.stderr[-500:]
