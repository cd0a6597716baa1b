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


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("processor", RESTRICTED)
def test_the_quick_tests_hold_on_other_processors(processor):
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow and not hub", *QUICK]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | RESTRICTED[processor], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:]
