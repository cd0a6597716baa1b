"""Which engine reads, and how the files of the readout hang together."""

from __future__ import annotations

import ast
import io
import os
import platform
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import pytest
import torch

import logitlens.readout
from logitlens.lenses import LogitLens
from logitlens.readout import chunked, engine
from logitlens.readout.chunked import Chunked
from logitlens.readout.head import Head, Shard
from logitlens.readout.read import BLOCK_BYTES, positions_per_block, statistics
from tests.readout.heads import called, make_head, make_rows, make_targets

FOLDER = Path(logitlens.readout.__path__[0])
HERE = "logitlens.readout"


def imported(source: str, names: set[str]) -> set[str]:
    """Modules of the folder that a source imports anywhere: in functions and for types too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {a.name.removeprefix(f"{HERE}.") for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                module = ".".join(filter(None, (HERE, module)))
            if module == HERE:
                found |= {a.name for a in node.names}
            found.add(module.removeprefix(f"{HERE}."))
    return found & names


def order(sources: dict[str, str]) -> list[str]:
    """The modules, each after those it imports. Raises CycleError."""
    names = set(sources)
    graph = {name: imported(source, names) for name, source in sources.items()}
    return list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("kernel", ["torch", "numba"])
def test_reading_on_the_cpu_loads_neither_triton_nor_what_tries_it(kernel, monkeypatch):
    pytest.importorskip("numba")
    for name in ("triton", f"{HERE}.proof", f"{HERE}.epilogue"):
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delattr(logitlens.readout, name.split(".")[-1], raising=False)
    monkeypatch.setattr(engine, "WORTH", -1 if kernel == "numba" else engine.WORTH)
    head = make_head(10)
    chosen = engine.choose(head, 3)
    assert chosen.name == f"chunked ({kernel})"
    x_TLE = torch.ones(1, 3, head.weight_VE.shape[1], dtype=torch.float32, device="cpu")
    targets_TM = torch.zeros(1, 1, dtype=torch.long, device="cpu")
    assert chosen.stats(x_TLE, head, 2, targets_TM).finite.all()


def test_no_file_of_the_readout_imports_itself_by_way_of_others():
    sources = {p.stem: p.read_text(encoding="utf-8") for p in FOLDER.glob("*.py")}
    found = order(sources)
    assert set(found) == set(sources)
    assert found.index("product") < found.index("head") < found.index("chunked")
    assert found.index("chunked") < found.index("engine") < found.index("read")


@pytest.mark.parametrize(
    "back",
    [
        "from logitlens.readout.engine import choose",
        "from logitlens.readout import engine",
        "import logitlens.readout.engine",
        "from .engine import choose",
        "from . import engine",
        "def f():\n    from logitlens.readout import engine",
        "if TYPE_CHECKING:\n    from logitlens.readout.engine import Engine",
    ],
)
def test_a_circle_is_found_however_it_is_written(back):
    sources = {"engine": "from logitlens.readout import stats", "stats": back}
    with pytest.raises(CycleError):
        order(sources)


def test_the_same_reading_takes_the_same_kernel_whatever_was_read_before():
    head, few = make_head(1000), 10
    many = engine.WORTH // 1000 + 1
    before = [engine.choose(head, rows).name for rows in (few, many)]
    for _ in range(3):
        engine.choose(head, many)
    assert [engine.choose(head, rows).name for rows in (few, many)] == before
    compiled = "numba" if find_spec("numba") else "torch"
    assert before == ["chunked (torch)", f"chunked ({compiled})"]


def test_without_numba_torch_reads(monkeypatch):
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    assert engine.choose(make_head(1000), engine.WORTH).name == "chunked (torch)"


@pytest.mark.skipif(not find_spec("numba"), reason="numba is not installed")
def test_where_numba_cannot_be_used_torch_reads_and_says_once_why(monkeypatch, capsys):
    engine._numba_loads.cache_clear()
    monkeypatch.setattr(chunked, "given_up", [])
    monkeypatch.setitem(sys.modules, "logitlens.readout.fused", None)
    monkeypatch.delattr("logitlens.readout.fused", raising=False)
    for _ in range(2):
        assert engine.choose(make_head(1000), engine.WORTH).name == "chunked (torch)"
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "the extra `fast` cannot be used, torch reads alone: " in said
    engine._numba_loads.cache_clear()


@pytest.mark.skipif(not find_spec("numba"), reason="numba is not installed")
def test_where_numba_is_to_compile_nothing_torch_reads_and_says_so(monkeypatch, capsys):
    import numba

    engine._numba_loads.cache_clear()
    monkeypatch.setattr(chunked, "given_up", [])
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    assert engine.choose(make_head(1000), engine.WORTH).name == "chunked (torch)"
    assert "torch reads alone: RuntimeError: NUMBA_DISABLE_JIT is set" in capsys.readouterr().err
    engine._numba_loads.cache_clear()


@pytest.mark.skipif(not find_spec("numba"), reason="numba is not installed")
def test_a_disk_that_is_full_while_numba_compiles_ends_no_reading(tmp_path):
    """Really: no file of this process may be larger than some bytes, so that nothing can be kept."""
    code = """
import resource, signal
from logitlens.readout.chunked import Chunked
from tests.readout.heads import make_head, make_rows, make_targets
given = make_rows(3, 4), make_head(200), 3, make_targets(3, 200)
theirs = Chunked("torch").stats(*given)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
reads = Chunked("numba")
before = reads.name
ours = reads.stats(*given)
assert (ours.top_ids == theirs.top_ids).all() and (ours.top_logprobs == theirs.top_logprobs).all()
print(before, "then", reads.name, "then", Chunked("numba").name)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.stdout.split("\n")[0] == (
        "chunked (numba) then chunked (torch) then chunked (torch)"
    ), done.stderr
    assert done.stderr.count("torch reads alone: OSError") == 1


@pytest.mark.skipif(not find_spec("numba"), reason="numba is not installed")
@pytest.mark.parametrize("error", [TimeoutError("my deadline"), FileNotFoundError(2, "no weights")])
def test_what_is_not_numbas_is_raised(error, monkeypatch, capsys):
    monkeypatch.setattr(chunked, "given_up", [])

    def call(x_NE):
        raise error

    with pytest.raises(type(error)):
        Chunked("numba").stats(make_rows(3, 4), Head(50, call=call), 3, make_targets(3, 50))
    assert (chunked.given_up, capsys.readouterr().err) == ([], "")


def test_a_line_that_cannot_be_written_ends_nothing(monkeypatch):
    monkeypatch.setattr(chunked, "given_up", [])

    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stderr", Full())
    chunked.give_up(OSError(28, "No space left on device"))
    assert len(chunked.given_up) == 1


def test_a_large_reading_without_numba_says_once_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    engine._say_once.cache_clear()
    head = Head(1000, torch.ones(1000, 4))
    for _ in range(2):
        engine.choose(head, engine.WORTH // 1000 + 1)
    assert capsys.readouterr().err == ""
    for _ in range(2):
        engine.choose(head, engine.LARGE // 1000 + 1)
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.count("\n") == 1
    assert "pip install 'logitlens[fast]'" in found.err
    for other in ("DEFAULT", "SVE256", "VSX"):  # where nothing was measured
        engine._say_once.cache_clear()
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda other=other: other)
        engine.choose(head, engine.LARGE // 1000 + 1)
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("matrices", "saved"), [(False, "half the"), (True, "a quarter less")])
def test_what_numba_would_save_of_bfloat16_depends_on_torchs_own_product(
    monkeypatch, capsys, matrices, saved
):
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    monkeypatch.setattr(engine, "multiplies_bfloat16", lambda: matrices)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    head = Head(1000, torch.ones(1000, 2048, dtype=torch.bfloat16))
    engine._say_once.cache_clear()
    engine.choose(head, engine.LARGE // 1000)
    assert capsys.readouterr().err == ""
    engine.choose(head, engine.LARGE // 1000 + 1)
    assert f"in about {saved} time" in capsys.readouterr().err


@pytest.mark.skipif(not find_spec("numba"), reason="numba is not installed")
def test_positions_that_come_one_by_one_call_for_numba_sooner():
    head, rows = make_head(1000), engine.WORTH // 2000
    assert engine.choose(head, rows).name == "chunked (torch)"
    assert engine.choose(head, 0, single=rows).name == "chunked (numba)"


@pytest.mark.skipif(not find_spec("numba"), reason="numba is not installed")
@pytest.mark.parametrize("capability", ["AVX2", "AVX512", "AVX512_BF16"])
def test_bfloat16_calls_for_numba_sooner_where_it_may_be_multiplied(capability, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    head = Head(1000, torch.ones(1000, 2048, dtype=torch.bfloat16))
    expected = "torch" if capability == "AVX2" else "numba"
    assert engine.choose(head, engine.WORTH // 1000 // 4).name == f"chunked ({expected})"


def test_a_head_in_parts_is_read_in_parts():
    pytest.importorskip("torch.distributed")
    whole = called(make_head(10))
    head = Head(20, call=whole.call, shard=Shard(make_head(10), 0))
    assert engine.choose(head, 1).name == "sharded"


def test_a_block_of_positions_fills_a_tile_and_no_more_memory_than_its_share():
    assert positions_per_block(13, 768) == 2 * (chunked.ROWS // 13)
    assert positions_per_block(1000, 16_384) == 1
    assert positions_per_block(4, 16_384) * 4 * 16_384 * 4 <= BLOCK_BYTES


@pytest.mark.parametrize(
    ("positions", "L", "E", "blocks"),
    [
        (128, 17, 2048, [64, 64]),  # not 60, 60 and 8, which have the unembedding laid out for 8
        (4096, 9, 160, [1366, 1366, 1364]),  # not 28 behind 1,356 thrice
        (90, 17, 2048, [45, 45]),
        (1, 17, 2048, [1]),
    ],
)
def test_blocks_of_a_prompt_are_of_one_size(positions, L, E, blocks):
    class Recorder(Chunked):
        found: ClassVar[list[int]] = []

        def block(self, x_PLE, head, k, targets_PM, candidates, final):
            self.found.append(len(x_PLE))
            return super().block(x_PLE[..., :4], head, k, targets_PM, candidates, final)

        def positions(self, L, head, candidates):
            return sys.maxsize

    class Tail:
        head = Head(30, weight_VE=torch.randn(30, 4))

        def head_input(self, h_ND):
            return h_ND

    h_LTD, targets_TM = torch.zeros(L, positions, E), torch.zeros(positions, 0, dtype=torch.long)
    statistics(
        list(h_LTD), list(range(L)), Tail(), LogitLens(), k=1, targets_TM=targets_TM,
        engine=Recorder(),
    )  # fmt: skip
    assert Recorder.found == blocks


def test_what_may_not_be_exceeded_is_divided_evenly_below_it():
    assert chunked.evenly(224, 100) == 112
    assert chunked.evenly(224, 100, 100) == 75
    assert chunked.evenly(0, 100) == 1


FAULTS = """
import resource, torch
from logitlens.readout import engine
from tests.readout.heads import make_head

engine.choose(make_head(50), 1)
faults = []
for _ in range(5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(18 << 20, dtype=torch.uint8) for _ in range(3)]
    del blocks
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults))
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="says what glibc does")
def test_what_one_reading_frees_is_kept_for_the_next():
    """13,824 pages of 54 MB, nearly all of which would else come fresh from the system each time; one
    block of the three still may, by where it happens to be in memory."""
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 7000
