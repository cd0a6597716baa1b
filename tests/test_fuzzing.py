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


def ends(counts: dict[str, int], seed: int) -> dict[str, dict]:
    """How the mutated inputs of each format ended."""
    asked = [f"{name}={count}" for name, count in counts.items()]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.fuzzing", str(seed), *asked],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {one["format"]: one for one in found}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_mutated_files_are_read_or_refused_in_one_line():
    all_found = ends(COUNTS, SEED)
    assert list(all_found) == list(COUNTS)
    for name, found in all_found.items():
        assert not found.get("unclean"), (name, found["first"])
        assert not found.get("memory"), f"{name}: more than 256 MB for a file of a few KB"
        assert found["read"] > 0, f"{name}: harmless changes are read"
        assert found["refused"] > 0, name


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
