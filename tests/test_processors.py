"""The quick tests of what computes, on other processors than this one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processors import RESTRICTED

ROOT = Path(__file__).resolve().parents[1]
QUICK = [
    "tests/readout",
    "tests/anatomy",
    "tests/model/test_read.py",
    "tests/model/test_capture.py",
    "tests/model/test_batches.py",
    "tests/model/test_traps.py",
    "tests/lenses/test_published.py",
]
# How a model is called, what it was when it was looked at, GPU kernels (interpreted) and benchmarks
# are the same on every processor: none of their numbers is summed in another order there.
THE_SAME = [
    "tests/anatomy/test_forward.py",
    "tests/anatomy/test_snapshot.py",
    "tests/readout/test_benchmarks.py",
    "tests/readout/test_gpu.py",
    "tests/readout/test_gpu_model.py",
]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("processor", RESTRICTED)
def test_the_quick_tests_hold_on_other_processors(processor):
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow and not hub", *QUICK]
    command += [f"--ignore={file}" for file in THE_SAME]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | RESTRICTED[processor], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:]
