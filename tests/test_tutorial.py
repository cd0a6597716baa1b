"""The tutorial runs, as a script and as a notebook, and its two ways of reading agree."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SAYS = "every word equal, largest difference in probability"


@pytest.mark.slow
def test_the_script_runs():
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "tutorial.py")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert SAYS in done.stdout


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_notebook_runs(tmp_path):
    import nbformat
    from nbclient import NotebookClient

    book = nbformat.read(ROOT / "examples" / "tutorial.ipynb", as_version=4)
    os.environ["JUPYTER_PLATFORM_DIRS"] = "1"
    NotebookClient(book, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [o for cell in book.cells if cell.cell_type == "code" for o in cell.outputs]
    text = "".join(o.get("text", "") for o in outputs)
    assert SAYS in text
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert pictures, "the heatmap is not shown"
