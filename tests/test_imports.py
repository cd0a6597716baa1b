"""What an import does not do; and that the import contracts notice sabotage."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "transformers", "matplotlib", "rich", "pyarrow", "pandas"}


def loaded_by(code: str) -> set[str]:
    """Top-level modules in sys.modules after running `code` in a fresh interpreter."""
    script = f"import sys\n{code}\nprint(*{{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("code", ["import logitlens", "import logitlens.errors, logitlens.demo"])
def test_importing_the_package_loads_nothing_heavy(code):
    assert not loaded_by(code) & (HEAVY | {"numpy"})


def test_a_reading_needs_numpy_only():
    loaded = loaded_by("from logitlens import Reading; import logitlens.reading_io")
    assert "numpy" in loaded
    assert not loaded & HEAVY


def test_views_never_load_torch():
    source = ROOT / "src"
    views = sorted((source / "logitlens" / "view").rglob("*.py"))
    names = [
        ".".join(p.relative_to(source).with_suffix("").parts)
        for p in views
        if p.stem not in ("__init__", "widget")  # the widget needs an extra
    ]
    assert "logitlens.view.page.data" in names
    assert not loaded_by(f"import {', '.join(names)}") & {"torch", "transformers"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("reading.py", "import torch", "numpy only"),
        ("tables.py", "import torch", "numpy only"),
        ("storage.py", "import torch", "numpy only"),
        ("hub.py", "import torch", "need no torch"),
        ("view/terminal.py", "from logitlens.model import tokens", "One direction"),
        ("anatomy/blocks.py", "from logitlens.model import capture", "One direction"),
        ("lenses/base.py", "from logitlens.model import capture", "One direction"),
        ("readout/head.py", "from logitlens.anatomy import watch", "One direction"),
        ("anatomy/tail.py", "import rich", "Model code never imports a view"),
        (
            "readout/chunked.py",
            "from logitlens.view import color",
            "Model code never imports a view",
        ),
    ],
)
def test_sabotage_breaks_the_import_contracts(tmp_path, file, line, contract):
    """Each contract is shown to fail on a copy of the package with one bad import added."""
    shutil.copytree(ROOT / "src", tmp_path / "src")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    module = tmp_path / "src" / "logitlens" / file
    module.write_text(module.read_text(encoding="utf-8") + f"\n\n{line}\n", encoding="utf-8")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command as m; m()",
            "--no-cache",
        ],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "src"), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    broken = [text for text in done.stdout.splitlines() if "BROKEN" in text]
    assert any(contract in text for text in broken), done.stdout[-1500:]
