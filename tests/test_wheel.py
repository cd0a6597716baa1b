"""The wheel alone is enough to read: built from the source archive, installed without any extra."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[1]
UV = [sys.executable, "-m", "uv"]
PROMPT = "The Eiffel Tower is in the city of"


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command with nothing of the checkout or of its environment in the way."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    # uv does not read pip's settings: where pip finds a CPU build of torch, uv is to find it too.
    env.setdefault("UV_FIND_LINKS", env.get("PIP_FIND_LINKS", ""))
    return subprocess.run(
        [str(c) for c in command], cwd=cwd, env=env, capture_output=True, text=True
    )


def done(*command: str | Path, cwd: Path) -> str:
    result = run(*command, cwd=cwd)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def interpreter(version: str) -> Path:
    """An installed Python of that version: this one, on the path, or among pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [
        sys.executable,
        shutil.which(f"python{version}"),
        *pyenv.glob(f"{version}.*/bin/python"),
    ]
    for python in filter(None, found):
        asked = [str(python), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        if subprocess.run(asked, capture_output=True, text=True).stdout.strip() == version:
            return Path(python)
    pytest.skip(f"Python {version} is not installed")


def dependencies() -> list[str]:
    """Core dependencies as pyproject.toml asks for them."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]


def floors(*names: str) -> list[str]:
    """The lowest versions of core dependencies that pyproject.toml allows, as pins."""
    return [d.replace(">=", "==") for d in dependencies() if d.split(">=")[0] in names]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    done(*UV, "build", "-q", "--out-dir", folder, cwd=ROOT)
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture
def env(tmp_path):
    """Where to make an environment; gone after the test, for torch may bring gigabytes of CUDA."""
    yield tmp_path / "env"
    shutil.rmtree(tmp_path / "env", ignore_errors=True)


def reads(env: Path, cwd: Path) -> None:
    """The grid, the page, a prompt in chunks, and one line for what an extra would draw."""
    logitlens = env / "bin" / "logitlens"
    grid = done(logitlens, "read", PROMPT, "--chunk", "4", "-o", "page.html", cwd=cwd)
    assert "Paris" in grid
    assert (cwd / "page.html").stat().st_size > 10_000
    figure = run(logitlens, "read", PROMPT, "-o", "figure.png", cwd=cwd)
    assert figure.returncode == 1
    assert figure.stderr.strip().endswith("pip install 'logitlens[plot]'")
    assert len(figure.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_the_wheel_reads_with_core_dependencies_alone(wheel, env, tmp_path, version):
    done(*UV, "venv", "-q", "--python", interpreter(version), env, cwd=tmp_path)
    locked = ["--constraint", ROOT / "requirements" / "read.lock"]
    done(
        *UV,
        "pip",
        "install",
        "-q",
        "--python",
        env / "bin" / "python",
        wheel,
        *locked,
        cwd=tmp_path,
    )
    reads(env, tmp_path)


def test_pip_installs_the_wheel_with_the_newest_transformers_and_the_oldest_click_and_rich(
    wheel, env, tmp_path
):
    done(sys.executable, "-m", "venv", env, cwd=tmp_path)
    lock = (ROOT / "requirements" / "read.lock").read_text()
    torch = next(line for line in lock.splitlines() if line.startswith("torch=="))
    oldest = floors("click", "rich")
    assert len(oldest) == 2
    [newest] = [d for d in dependencies() if d.startswith("transformers")]
    # uv links what it has unpacked before; torch alone would take pip half a minute.
    python = env / "bin" / "python"
    done(*UV, "pip", "install", "-q", "--python", python, torch, newest, *oldest, cwd=tmp_path)
    done(env / "bin" / "pip", "install", "-q", "--no-compile", wheel, cwd=tmp_path)
    reads(env, tmp_path)
