"""Write every lock file: one for each purpose, every version pinned.

    requirements/read.lock          what reading needs: the core dependencies
    requirements/dev.lock           all extras, the tests and the tools besides; agrees with read.lock
    benchmarks/environments/*.txt   what each contender of the benchmarks needs

`make lock` runs this. torch and transformers are those that the benchmarks were measured with and the
architectures swept (`benchmarks/readout/environments.py`). torch is pinned without its local label, so
that `2.13.0+cpu` satisfies the lock as well as PyPI's build. The latter brings gigabytes of CUDA
packages on Linux, which belong in no lock, so uv must be able to find a CPU build: in UV_FIND_LINKS, or
by UV_TORCH_BACKEND=cpu.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
READ, DEV = ROOT / "requirements" / "read.lock", ROOT / "requirements" / "dev.lock"
sys.path.insert(0, str(ROOT))

from benchmarks.readout.environments import ASKED, PINNED, TORCH, TRANSFORMERS  # noqa: E402

COMPILE = [sys.executable, "-m", "uv", "pip", "compile", "-q", "--no-annotate", "--no-header"]


def write(target: Path, *sources: str | Path, stdin: str = "") -> None:
    """Write the versions that the sources resolve to; a source `-` is `stdin`."""
    command = [*COMPILE, "--python-version", "3.11", *map(str, sources)]
    done = subprocess.run(command, input=stdin, text=True, capture_output=True, cwd=ROOT)
    if done.returncode:
        sys.exit(f"{target.name}: {done.stderr.strip()}")
    if "nvidia-" in done.stdout:
        sys.exit("torch resolved to a CUDA build; run UV_TORCH_BACKEND=cpu make lock")
    pins = re.sub(r"^(torch==[0-9.]+)\+\w+", r"\1", done.stdout, flags=re.MULTILINE)
    target.write_text(f"# Written by `make lock`.\n{pins}", encoding="utf-8")
    print(f"{target.relative_to(ROOT)}: {len(pins.splitlines())} packages")


write(READ, "pyproject.toml", "--constraint", "-", stdin=f"{TORCH}\n{TRANSFORMERS}")
write(DEV, "pyproject.toml", "--all-extras", "--group", "dev", "--constraint", READ)
for name, asked in ASKED.items():
    write(PINNED / f"{name}.txt", "-", stdin="\n".join([TORCH, *asked]))
