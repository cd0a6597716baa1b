"""The benchmark: contenders read the model they are given, rows are summed up and shown rightly."""

from __future__ import annotations

import json
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import run
from benchmarks.readout import (
    compare,
    environments,
    figures,
    floor,
    machine,
    report,
    shapes,
    variants,
)
from benchmarks.readout.contenders import CONTENDERS, STAND_INS, named
from benchmarks.readout.worker import failure

TIMES = {"p20": 1.0, "p50": 1.0, "p80": 1.0, "cpu_p50": 1.0, "peak_mb": 3.0}
HERE = [
    n for n in (*CONTENDERS, *STAND_INS) if named(n).environment in ("logitlens", "transformers")
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return shapes.write("small", tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def model(weights):
    return shapes.load("small", weights)


def row(**over):
    base = {
        "kind": "read", "shape": "gpt2", "tokens": 8, "last": False, "contender": "floor",
        "threads": 1, "dtype": "float32", "commit": "abc", "machine": "m", "features": [],
        "versions": {"torch": "1"}, "format": machine.FORMAT, "gives": "nothing",
    }  # fmt: skip
    return base | over


PAGES = ("docs/performance.md", "benchmarks/README.md")


def rendered(tmp_path, rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    for page in PAGES:
        (tmp_path / page).parent.mkdir()
        (tmp_path / page).write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.write(path, tmp_path)
    return "".join((tmp_path / page).read_text() for page in PAGES)


@pytest.mark.parametrize("name", [n for n in HERE if n != "floor"])
@pytest.mark.parametrize("last", [False, True])
@torch.inference_mode()
def test_a_contender_ends_in_the_models_own_output(name, last, model, weights, monkeypatch):
    monkeypatch.setattr("logitlens.readout.engine.WORTH", 0)  # put back what `ours` sets
    result = named(name).read(model)(shapes.tokens("small", shapes.CHECKED), last)
    top_T = result.top()
    assert top_T.shape == ((1,) if last else (shapes.CHECKED,))
    shapes.check("small", weights, top_T)


@torch.inference_mode()
def test_readings_beside_other_readings_are_the_same_and_have_tables(model, tmp_path, monkeypatch):
    monkeypatch.setattr("logitlens.readout.engine.WORTH", 0)
    monkeypatch.setattr(variants, "SHAPE", "small")
    rows = []
    for kind, make in (("batch", variants._together), ("candidates", variants._followed)):
        ways = make(model)
        found = {name: read() for name, read in ways.items()}
        assert found.pop("floor", None) is None
        first = next(iter(found.values()))
        for readings in found.values():
            for one, other in zip(*(x if isinstance(x, list) else [x] for x in (first, readings))):
                np.testing.assert_allclose(one.entropy, other.entropy, atol=1e-3)
        rows += [row(kind=kind, contender=name, **TIMES | {"p50": 2.0}) for name in ways]
    text = rendered(tmp_path, rows)
    assert "| logitlens, one after another | 2.00 | 1.00 |" in text
    assert "| logitlens, 5 candidates | 2.00 | 1.00 |" in text


def test_a_contender_with_another_model_is_found_out(model, weights):
    with torch.inference_mode():
        top_T = model(shapes.tokens("small", shapes.CHECKED)[None]).logits[0].argmax(-1)
    shapes.check("small", weights, top_T)
    top_T = torch.where(torch.arange(16) == 3, (top_T + 1) % 5000, top_T)
    with pytest.raises(shapes.WrongModel, match=r"^1 of 16 likeliest tokens"):
        shapes.check("small", weights, top_T)


@pytest.mark.parametrize("name", [*CONTENDERS, *STAND_INS])
def test_every_contender_has_a_function_an_environment_and_a_stand_in_that_exist(name):
    contender = named(name)
    module, function = contender.prepare.split(":")
    assert callable(getattr(import_module(f"benchmarks.readout.{module}"), function))
    lines = (environments.PINNED / f"{contender.environment}.txt").read_text().splitlines()
    assert environments.TORCH in lines
    assert all("==" in line for line in lines[1:])
    assert not contender.stand_in or contender.stand_in in STAND_INS


def test_the_transformers_of_the_environments_is_the_projects_own():
    locked = (environments.ROOT / "requirements" / "dev.lock").read_text().splitlines()
    assert environments.TRANSFORMERS in locked
    assert environments.TORCH in locked


@torch.inference_mode()
def test_the_floor_multiplies_every_row_with_all_of_the_vocabulary(model, monkeypatch):
    done = []
    real = floor.linear
    monkeypatch.setattr(floor, "linear", lambda x, w: done.append(len(x) * len(w)) or real(x, w))
    weight_VD = model.lm_head.weight
    floor.Product("linear", 256, 2048)(torch.ones(700, 64), weight_VD)
    assert sum(done) == 700 * 5000
    said = floor.Floor(model)(shapes.tokens("small", 100), False).said
    assert said["product"] == vars(floor.Product(**said["product"]))
    assert min(said["product_s"], said["forward_s"]) > 0


def test_the_floor_is_the_fastest_of_its_ways(monkeypatch):
    def slow(x, w):
        time.sleep(0.03)
        return real(x, w)

    real = floor.linear
    monkeypatch.setattr(floor, "linear", slow)
    assert floor._measured(4, torch.ones(3000, 8)).way == "mm"
    monkeypatch.setattr(floor, "linear", lambda x, w: None)
    assert floor._measured(4, torch.ones(3000, 512)).way == "linear"


@torch.inference_mode()
def test_the_floor_of_half_precision_is_the_better_of_its_own_product_and_a_widened_one(
    monkeypatch,
):
    weight_VD = torch.ones(3000, 8, dtype=torch.bfloat16)
    monkeypatch.setattr(floor, "linear", lambda x, w: time.sleep(0.03))
    real = torch.mm

    def slow(x, w, out):
        if x.dtype == torch.bfloat16:
            time.sleep(0.03)
        return real(x, w, out=out)

    monkeypatch.setattr(torch, "mm", slow)
    assert floor._measured(4, weight_VD).way == "widened"
    monkeypatch.setattr(
        torch, "mm", lambda x, w, out: x.dtype == torch.bfloat16 or time.sleep(0.03)
    )
    assert floor._measured(4, weight_VD).way == "mm"


def test_what_does_not_fit_into_memory_is_not_started(monkeypatch):
    monkeypatch.setattr(compare, "available", lambda: 10 << 30)
    worker = compare.Worker.__new__(compare.Worker)
    worker.shape, worker.contender = "128k", CONTENDERS["naive, all statistics"]
    assert worker._lacking({"tokens": 1024, "last": False}).startswith("holds about 49 GB")
    assert worker._lacking({"tokens": 1024, "last": True}) == ""


def test_a_case_stops_after_its_budget_but_not_before_three_rounds(monkeypatch):
    class Said:
        def ask(self, case):
            return {"seconds": 1.0, "cpu": 1.0, "peak_mb": 1.0}

    results = {"fast": []}
    compare._measure({"fast": Said()}, compare.Case(8, False, rounds=9, budget=0), results)
    assert len(results["fast"]) == 3
    results = {"fast": []}
    compare._measure({"fast": Said()}, compare.Case(8, False, rounds=9, budget=60), results)
    assert len(results["fast"]) == 9


def test_a_case_that_is_interrupted_keeps_what_has_been_measured(monkeypatch):
    class Said:
        contender, ready, asked = CONTENDERS["floor"], {}, 0

        def __init__(self, *_):
            pass

        def ask(self, case):
            self.asked += 1
            if self.asked == 4:  # the third round
                raise KeyboardInterrupt
            return {"seconds": 1.0, "cpu": 1.0, "peak_mb": 1.0}

        facts, close = dict, lambda _: None

    monkeypatch.setattr(compare, "Worker", Said)
    cases = [
        compare.Case(tokens, False, rounds=9, budget=60, leave_out=("naive",)) for tokens in (8, 64)
    ]
    found = compare.rows("small", Path(), cases, 1, ["floor", "naive"])
    row = next(found)
    assert (row["contender"], row["tokens"], row["repeats"]) == ("floor", 8, 2)
    with pytest.raises(KeyboardInterrupt):
        next(found)


@pytest.mark.slow
def test_a_library_that_does_not_install_says_why_and_its_arithmetic_stands_in(
    monkeypatch, weights, tmp_path
):
    def python(name):
        if name == "nnterp":
            raise environments.Unavailable("does not install: no such release")
        return compare.sys.executable

    monkeypatch.setattr(environments, "python", python)
    case = compare.Case(8, True, rounds=1, budget=0)
    found = {r["contender"]: r for r in compare.rows("small", weights, [case], 1, ["nnterp"])}
    assert found["nnterp"]["failed"] == "does not install: no such release"
    arithmetic = found["softmax arithmetic"]
    assert arithmetic["repeats"] == 1
    assert arithmetic["p50"] < arithmetic["first_s"]
    assert arithmetic["versions"]["torch"] == torch.__version__


def test_the_reason_of_a_failed_installation_is_one_line():
    words = (
        "WARNING: x\nERROR: Could not find a version\nERROR: No matching release\n\n[notice] y\n"
    )
    assert environments.reason(words) == "No matching release"
    assert environments.reason("") == "no reason given"
    assert failure(ModuleNotFoundError(name="nnsight"))["failed"] == "not installed: nnsight"
    assert failure(TypeError("a\n  b"))["failed"] == "TypeError: a b"


def test_percentiles_and_failures():
    said = [{"seconds": float(s), "cpu": s / 2, "peak_mb": s} for s in (5, 1, 2, 3, 4, 6)]
    summed = machine.summary(said)
    assert (summed["p20"], summed["p50"], summed["p80"]) == (2.0, 3.5, 5.0)
    assert summed["cpu_p50"] == 1.75
    assert (summed["peak_mb"], summed["repeats"]) == (6, 6)
    assert machine.summary([*said, {"failed": "no"}]) == {"failed": "no"}


def test_the_report_takes_the_newest_row_and_divides_by_the_floor(tmp_path):
    rows = [
        row(**TIMES),
        row(contender="logitlens", **TIMES | {"p50": 9.0}),
        row(contender="logitlens", **TIMES | {"p50": 1.25}),
        row(contender="nnsight", failed="not installed: nnsight"),
    ]
    text = rendered(tmp_path, rows)
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "| logitlens | 1.25 (1.00–1.00) | 1.25 | 3 |" in text
    assert "| nnsight | not installed: nnsight |" in text
    assert "9.00" not in text
    assert "old" not in text


def test_a_row_is_divided_by_the_floor_of_its_own_commit_where_there_is_one(tmp_path):
    rows = [
        row(commit="old", **TIMES | {"p50": 2.0}),
        row(commit="old", contender="naive", **TIMES | {"p50": 6.0}),
        row(commit="new", **TIMES | {"p50": 1.0}),
        row(commit="new", contender="logitlens", **TIMES | {"p50": 1.5}),
        row(commit="newest", contender="nnsight", **TIMES | {"p50": 4.0}),
    ]
    text = rendered(tmp_path, rows)
    for name, seconds, ratio in (("naive", 6, 3), ("logitlens", 1.5, 1.5), ("nnsight", 4, 4)):
        assert f"| {name} | {seconds:.2f} (1.00–1.00) | {ratio:.2f} | 3 |" in text


def test_threads_are_side_by_side_and_each_has_its_own_floor(tmp_path):
    rows = [
        row(**TIMES), row(threads=2, **TIMES | {"p50": 0.5}),
        row(contender="naive", **TIMES | {"p50": 3.0}),
        row(contender="naive", threads=2, **TIMES | {"p50": 2.0}),
    ]  # fmt: skip
    text = rendered(tmp_path, rows)
    assert "| | seconds, 2 threads (20–80 %) | × floor | seconds, 1 thread (20–80 %) |" in text
    assert "| naive | 2.00 (1.00–1.00) | 4.00 | 3.00 (1.00–1.00) | 3.00 | 3 |" in text


def test_rows_of_other_machines_and_older_forms_are_left_out(tmp_path):
    rows = [
        row(contender="naive", machine="another", **TIMES | {"p50": 7.0}),
        row(contender="nnsight", format=1, **TIMES | {"p50": 8.0}),
        row(**TIMES),
    ]
    text = rendered(tmp_path, rows)
    assert "floor: product" in text
    assert "naive" not in text
    assert "nnsight" not in text


def test_classes_of_machines_have_tables_of_their_own(tmp_path):
    rows = [
        row(contender="naive", features=["avx2"], **TIMES | {"p50": 7.0}),
        row(features=["avx2"], **TIMES),
        row(features=["avx2", "avx512f"], **TIMES | {"p50": 2.0}),
        row(features=["avx2", "avx512f", "amx_bf16"], machine="other", **TIMES),
    ]
    text, matrices = rendered(tmp_path, rows).split("### AMX")
    narrow, wide = text.split("### AVX-512")[0], text.split("### AVX-512")[1].split("after")[0]
    assert "### AVX2" in narrow
    assert "| naive | 7.00 (7.00) |" in narrow
    assert "avx2, avx512f" in wide
    assert "naive" not in wide
    assert "avx2, avx512f, amx_bf16" in matrices


def test_a_folder_of_weights_that_is_missing_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr("sys.argv", ["run.py", "--only", "small", "--weights", "nowhere"])
    with pytest.raises(SystemExit) as refused:
        run.main()
    assert refused.value.code == (
        "--weights nowhere: no such folder; make it, or leave --weights out"
    )


def test_without_rows_the_pages_stay_as_they_are(tmp_path):
    with pytest.raises(SystemExit, match="make bench measures them"):
        rendered(tmp_path, [row(format=1, **TIMES)])
    assert all("\nold\n" in (tmp_path / page).read_text() for page in PAGES)


def test_the_bars_are_of_the_longest_prompt_most_read():
    names = list(CONTENDERS)[:6]
    rows = [row(contender=n, tokens=128, threads=2, **TIMES) for n in names]
    rows += [row(contender=n, tokens=1024, threads=2, **TIMES) for n in names[:5]]
    rows += [row(contender=n, tokens=128, **TIMES) for n in names]
    (case,) = figures.longest(rows)
    assert {(r["tokens"], r["threads"]) for r in case} == {(128, 2)}
