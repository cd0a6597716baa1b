"""An environment of its own for each contender, made once under .bench/ from a pinned file.

    python -m benchmarks.readout.environments    # make all that are missing

`make lock` resolves the pinned files. What an alternative brings along never enters the project's own
locks, and logitlens has what a user installs (core and numba), not what its developers do, which
transformers would import too. Its own code is found in src.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PINNED = ROOT / "benchmarks" / "environments"
MADE = ROOT / ".bench"
TORCH = "torch==2.13.0"
TRANSFORMERS = "transformers==5.23.0"  # the one of requirements/dev.lock: the same forward pass
_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ASKED = {
    "logitlens": [
        TRANSFORMERS,
        *[d for d in _PROJECT["dependencies"] if not d.startswith(("torch>", "transformers>"))],
        *_PROJECT["optional-dependencies"]["fast"],
    ],
    "transformers": [TRANSFORMERS],
    "nnsight": ["nnsight==0.8.1", TRANSFORMERS],
    "nnterp": ["nnterp==1.3.0", "nnsight<0.8", TRANSFORMERS],  # it imports what 0.8 moved
    "tuned-lens": ["tuned-lens==0.2.0", "transformers<5"],
    "transformer-lens": ["transformer-lens==4.3.0", TRANSFORMERS],
}


class Unavailable(Exception):
    """An environment that could not be made; the text is one line that says why."""


def python(name: str) -> Path:
    """The interpreter of an environment, which is made if need be. Raises Unavailable."""
    folder, wanted = MADE / name, (PINNED / f"{name}.txt").read_text()
    stamp = folder / "installed.txt"
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"Installing {name} into {folder} (a minute or two, once)", file=sys.stderr)
        _make(folder, PINNED / f"{name}.txt")
        stamp.write_text(wanted)
    return _interpreter(folder)


def _make(folder: Path, pinned: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    _run(sys.executable, "-m", "venv", folder)
    install = [_interpreter(folder), "-m", "pip", "install", "--disable-pip-version-check", "-q"]
    _run(*install, "-r", pinned)


def _interpreter(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def _run(*command: str | Path) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode:
        raise Unavailable("does not install: " + reason(done.stderr))
    return done.stdout


def reason(stderr: str) -> str:
    """The line of pip's words that says what went wrong."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["no reason given"])[-1][:200]


if __name__ == "__main__":
    for each in ASKED:
        python(each)
