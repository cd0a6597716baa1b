"""Memory beside the residuals does not grow with the prompt."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def peak(tokens: int) -> float:
    """Most megabytes beyond the residuals and the numbers kept, in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.readout.memory", str(tokens), "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    return said["peak_mb"] - said["result_mb"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from /proc")
def test_four_times_the_prompt_takes_no_more_memory():
    short, long = peak(256), peak(1024)
    assert long < 64
    assert long < short + 24  # the C library keeps up to 16 MB more in one run than in another
