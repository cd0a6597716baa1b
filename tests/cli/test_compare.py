"""`logitlens compare`: what is multiplied, written, refused."""

import json

from logitlens.view import page
from tests.readings import random_reading


def test_two_prompts_become_one_page(cli, tmp_path):
    out = tmp_path / "both.html"
    result = cli("compare", "one", "two", "-k", "3", "--track", " Paris", "-o", str(out))
    assert (result.exit_code, result.stdout) == (0, f"{out}\n")
    assert len(page.load(out)) == 2
    readouts = [options for what, options in cli.model.calls if what == "readout"]
    assert readouts == [{"lens": "logit", "top": 3, "track": [" Paris"], "positions": None}] * 2


def test_lenses_and_models_multiply_and_each_model_is_loaded_once(cli):
    result = cli(
        "compare", "x", "--lens", "logit", "--lens", "tuned", "-m", "a", "-m", "b", "--json"
    )
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["meta"]["lens"]["name"] for line in lines] == ["logit", "tuned"] * 2
    assert [args for args, _ in cli.loaded] == [("a",), ("b",)]
    captures = [what for what, _ in cli.model.calls if what == "capture"]
    assert len(captures) == 2, "one forward pass serves every lens"


def test_without_a_file_what_changed_is_printed_for_each_of_the_others(cli):
    result = cli("compare", "one", "two", "three", "--color", "kl", "--positions", "-3:")
    assert result.exit_code == 0
    for letter in "BC":
        assert f"{letter} − A: KL to the final layer, nats" in result.stdout
    assert result.stdout.count("same top token in 21 of 21 cells, and at 3 of 3") == 2


def test_two_readings_become_a_figure_and_more_a_page_only(cli, tmp_path):
    out = tmp_path / "both.txt"
    assert cli("compare", "one", "two", "-o", str(out)).exit_code == 0
    assert "B − A" in out.read_text("utf-8")
    result = cli("compare", "one", "two", "three", "-o", str(tmp_path / "x.png"))
    assert (result.exit_code, ".html" in result.stderr) == (2, True)


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


def test_files_are_compared_as_they_are_and_not_read_as_prompts(cli, tmp_path):
    paths = [
        str(random_reading(seed=n).save(tmp_path / name))
        for n, name in enumerate(("a.json", "b.html"))
    ]
    result = cli("compare", *paths)
    assert (result.exit_code, cli.loaded) == (0, []), result.stderr
    assert "A→B where it changed" in " ".join(result.stdout.split())
    for words, why in (
        ((*paths, "a prompt"), "give files alone, or prompts alone"),
        ((*paths, "--lens", "tuned"), "readings from files are as they were made"),
        ((*paths, "--dtype", "bfloat16"), "readings from files are as they were made"),
        (paths[:1], "nothing to compare"),
    ):
        refused = cli("compare", *words)
        assert (refused.exit_code, cli.loaded) == (2, [])
        assert why in " ".join(refused.stderr.split())
    for words in ((paths[0], "away.json"), ("away.JSON", "gone.html")):
        missing = cli("compare", *words)
        assert (missing.exit_code, cli.loaded) == (1, [])
        assert f"no reading at {next(w for w in words if w != paths[0])}" in missing.stderr
