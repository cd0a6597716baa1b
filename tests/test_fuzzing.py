"""Whatever bytes a file holds: it is read, or refused in one clean line and in little memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzzing import FORMATS

ROOT = Path(__file__).parents[1]
SEED = 2026
COUNTS = {"reading_json": 6000, "reading_parquet": 4000, "page_html": 5000, "corpus": 2500,
          "facts": 1500, "checkpoint": 1500, "lens": 5000, "jacobian_pt": 3500,
          "tuned_directory": 2500}  # fmt: skip


def ends(name: str, count: int, seed: int) -> dict:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.fuzzing", name, str(count), str(seed)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def judge(found: dict) -> None:
    assert not found.get("unclean"), found["first"]
    assert not found.get("memory"), "more than 256 MB for a file of a few KB"
    assert found["read"] > 0, "harmless changes are read"
    assert found["refused"] > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", COUNTS)
def test_mutated_files_are_read_or_refused_in_one_line(name):
    judge(ends(name, COUNTS[name], SEED))


def test_the_fuzzer_sees_what_is_unclean(monkeypatch, tmp_path):
    """A loader that raises something of its own, in two lines, or takes much memory is caught."""
    from logitlens import FormatError
    from tests import fuzzing

    outcomes = iter(
        [None, FormatError("one line"), FormatError("two\nlines"), KeyError("x"), None] * 2
    )

    def broken(place, rng):
        def case():
            if (outcome := next(outcomes)) is not None:
                raise outcome

        return case

    monkeypatch.setitem(fuzzing.FORMATS, "broken", broken)
    monkeypatch.setattr(fuzzing.resource, "setrlimit", lambda *limits: None)
    found = fuzzing.run("broken", 4, 1)
    assert (found["read"], found["refused"], found["unclean"]) == (1, 1, 2)
    assert set(COUNTS) <= set(FORMATS)
