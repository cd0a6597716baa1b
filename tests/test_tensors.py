"""Every tensor the package makes names its dtype and its device: a process's defaults change nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FACTORIES = {
    "arange", "empty", "empty_strided", "eye", "full", "linspace", "logspace", "normal", "ones", "rand",
    "randint", "randn", "randperm", "range", "scalar_tensor", "tensor", "tril_indices", "triu_indices",
    "zeros",
}  # fmt: skip


def unnamed(source: str) -> list[str]:
    """The calls of a source that make a tensor and leave its dtype or device to the process."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id == "torch"
            and node.func.attr in FACTORIES
            and not {"dtype", "device"} <= {k.arg for k in node.keywords}
        ):
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


def test_every_tensor_names_its_dtype_and_device():
    sources = sorted((ROOT / "src").rglob("*.py"))
    assert len(sources) > 50
    left = {
        str(p.relative_to(ROOT)): lines
        for p in sources
        if (lines := unnamed(p.read_text(encoding="utf-8")))
    }
    assert not left, (
        "name dtype= and device=, or make it from another tensor (new_zeros, zeros_like)"
    )


@pytest.mark.parametrize(
    "call",
    ["torch.empty(3)", "torch.zeros(3, dtype=torch.long)", "f(torch.rand(2, device='cpu'))"],
)
def test_a_tensor_of_the_process_default_is_found(call):
    assert unnamed(call)
    assert not unnamed("torch.empty(3, dtype=torch.float32, device=x.device); x.new_zeros(3)")


READ = """
import sys
import numpy as np, torch
import logitlens
from logitlens.readout import engine
from logitlens.statistics import stored
from tests.models import tiny_gpt2

default, *kernels = sys.argv[1:]
ids = list(range(5, 25))
for dtype in (torch.float32, torch.bfloat16):
    for kernel in kernels:
        engine.WORTH = -1 if kernel == "numba" else 1 << 62
        hf = tiny_gpt2().to(dtype)
        model = logitlens.load(hf)
        residuals = model.capture(ids)
        before = model.readout(residuals, top=7, track=[3])
        assert kernel in before.meta["kernel"], before.meta["kernel"]
        torch.set_default_dtype(getattr(torch, default))
        after = model.readout(residuals, top=7, track=[3])
        fields, again = before.fields(), after.fields()
        arrays = [statistic.name for statistic in stored() if statistic.dtype != "str"]
        assert {"top_ids", "top_logprobs", "entropy", "kl", "track_ranks"} <= set(arrays)
        for name in arrays:
            a, b = fields[name], again[name]
            assert a.dtype == b.dtype, name
            np.testing.assert_allclose(b.astype(float), a.astype(float), atol=1e-6, err_msg=name)
        whole = logitlens.load(hf).read(ids, top=7)
        assert whole.meta["check"]["ok"]
        assert (whole.top_ids[-1, :, 0] == before.top_ids[-1, :, 0]).all()
        torch.set_default_dtype(torch.float32)
"""


@pytest.mark.slow
@pytest.mark.parametrize("default", ["bfloat16", "float16", "float64"])
def test_the_default_dtype_changes_no_reading(default):
    """In a process of its own: memory written beyond its end would abort it."""
    kernels = ["torch", *(["numba"] if find_spec("numba") else [])]
    command = [sys.executable, "-c", READ, default, *kernels]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:] or f"ended by signal {-done.returncode}"
