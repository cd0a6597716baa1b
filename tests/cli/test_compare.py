"""`logitlens compare`: what is multiplied, written, refused."""

import json

import numpy as np

from logitlens.cli.compare import summary
from logitlens.view import page
from tests.view.conftest import make


def test_two_prompts_become_one_page(cli, tmp_path):
    out = tmp_path / "both.html"
    result = cli("compare", "one", "two", "-k", "3", "--track", " Paris", "-o", str(out))
    assert (result.exit_code, result.stdout) == (0, f"{out}\n")
    assert len(page.load(out)) == 2
    readouts = [options for what, options in cli.model.calls if what == "readout"]
    assert readouts == [{"lens": "logit", "top": 3, "track": (" Paris",)}] * 2


def test_lenses_and_models_multiply_and_each_model_is_loaded_once(cli):
    result = cli(
        "compare", "x", "--lens", "logit", "--lens", "tuned", "-m", "a", "-m", "b", "--json"
    )
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["meta"]["lens"]["name"] for line in lines] == ["logit", "tuned"] * 2
    assert [args for args, _ in cli.loaded] == [("a",), ("b",)]
    captures = [what for what, _ in cli.model.calls if what == "capture"]
    assert len(captures) == 2, "one forward pass serves every lens"


def test_without_a_file_the_grids_are_printed_under_their_names_with_a_summary(cli):
    result = cli("compare", "one", "two", "three", "--lens", "logit", "--lens", "tuned")
    assert result.exit_code == 0
    assert result.stdout.count("embed") == 6
    lines = result.stdout.splitlines()
    titles = [line for line in lines if line.startswith(tuple(f"{n} · " for n in range(1, 7)))]
    assert len(set(titles)) == 6, "names tell them apart"
    assert lines[-5:] == [
        f"{n} vs 1: 10 aligned positions; top tokens agree at 10 of them in the last layer and in "
        "70 of 70 cells; mean entropy +0.00 nats"
        for n in range(2, 7)
    ]


def test_the_summary_counts_cells_of_aligned_tokens_and_layers():
    a = make(["The", " Eiff", "el", " is"], layers=3, seed=0)
    b = make(["The", " Tower", " is"], layers=3, seed=1)
    c = make(["x"], layers=5, seed=2)
    lines = summary([a, b, c])
    pairs = [(0, 0), (1, 1), (3, 2)]
    last = sum(a.words[2][i] == b.words[2][j] for i, j in pairs)
    same = sum(a.words[d][i] == b.words[d][j] for d in range(3) for i, j in pairs)
    gap = np.mean([b.entropy[d, j] - a.entropy[d, i] for d in range(3) for i, j in pairs])
    assert lines[0] == (
        f"2 vs 1: 3 aligned positions; top tokens agree at {last} of them in the last layer and in "
        f"{same} of 9 cells; mean entropy {gap:+.2f} nats"
    )
    assert 0 < same < 9, "the numbers above mean something"
    assert " of 5 cells" in lines[1], "the rows of the deeper one, each beside the nearest"


def test_too_many_readings_load_nothing(cli):
    lenses, models = ("--lens", "logit", "--lens", "tuned"), ("-m", "x", "-m", "y")
    result = cli("compare", "a", "b", "c", *lenses, *models)
    assert (result.exit_code, "12 readings; at most 8" in result.stderr) == (2, True)
    assert cli.loaded == []


def test_a_folder_that_is_missing_is_told_before_the_model_is_loaded(cli, tmp_path):
    result = cli("compare", "a", "b", "-o", str(tmp_path / "no" / "x.html"))
    assert result.exit_code == 1
    assert "there is no folder" in result.stderr
    assert cli.loaded == []
