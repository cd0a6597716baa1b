"""`logitlens lens`: what lies where, what a lens knows of itself, and how well it does."""

from __future__ import annotations

import json
import os

import pytest
import torch

from logitlens.lenses import find, save
from tests.cli.test_fit import place, run  # noqa: F401 - a fixture
from tests.lenses import tiny
from tests.lenses.test_published import jacobian_file, tuned_directory
from tests.lenses.test_store import tuned


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LOGITLENS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(find, "BUNDLED", tmp_path / "none")
    return tmp_path


def test_ls_and_show(home):
    assert "no lenses in" in run("lens", "ls").stdout
    folder = find.lens_folder() / "tiny--gpt2"
    folder.mkdir(parents=True)
    path = save(tuned(tiny.gpt2()), folder / "tuned.safetensors", dtype="float16")
    (line,) = run("lens", "ls").stdout.splitlines()
    assert line.split() == ["tuned", "tiny/gpt2", "3", "layers", str(path)]
    shown = run("lens", "show", path).stdout
    assert "novels" in shown
    assert "held-out KL 0.5000 nats" in shown
    facts = json.loads(run("lens", "show", path, "--json").stdout)
    assert facts["width"] == 32
    assert facts["losses"] == {"0": 0.5, "1": 0.4, "2": 0.3}
    (folder / "jacobian.safetensors").write_bytes(b"broken")
    result = run("lens", "ls", "--json")
    assert [entry["kind"] for entry in json.loads(result.stdout)] == ["tuned"]
    assert "passed over" in result.stderr


def test_show_reads_published_lenses(home):
    model = tiny.gpt2()
    assert "tuned-lens" in run("lens", "show", tuned_directory(home / "t", model)).stdout
    assert "jacobian-lens" in run("lens", "show", jacobian_file(home / "lens.pt", model)).stdout
    result = run("lens", "show", home / "nothing")
    assert result.exit_code == 4
    assert "no lens at" in result.stderr


def test_offline_pull_and_push_say_so(home):
    for arguments in (["pull", "someone/model"], ["pull", "gpt2", "--kind", "jacobian"]):
        result = run("lens", *arguments)
        assert result.exit_code == 4
        assert "HF_HUB_OFFLINE" in result.stderr
    path = save(tuned(tiny.gpt2()), home / "tuned.safetensors")
    result = run("lens", "push", path, "someone/lenses")
    assert result.exit_code == 4
    assert "cannot push" in result.stderr
    assert run("lens", "push", home / "none.safetensors", "a/b").exit_code == 4


def test_pull_from_the_cache_makes_a_lens_usable_by_name(home, monkeypatch):
    from huggingface_hub import constants

    model = tiny.gpt2(name="someone/Tiny-Model")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    commit = "a" * 40
    repo = home / "hub" / "spaces--AlignmentResearch--tuned-lens"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    tuned_directory(repo / "snapshots" / commit / "lens" / "Tiny-Model", model)
    result = run("lens", "pull", "someone/Tiny-Model")
    folder = find.lens_folder() / "someone--Tiny-Model"
    assert result.stdout.split() == [str(folder)]
    assert sorted(os.listdir(folder)) == ["config.json", "params.pt"]
    assert find.resolve("tuned", model).path == str(folder)


def test_eval(home, place):  # noqa: F811
    files = [home / f"e.{suffix}" for suffix in ("parquet", "json", "png")]
    outputs = [part for file in files for part in ("-o", file)]
    result = run("lens", "eval", "-m", place / "model", "--lens", "logit", "--corpus",
                 place / "text.txt", "--facts", place / "facts.jsonl", "--length", 20, *outputs)  # fmt: skip
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split()[:3] == ["lens", "layer", "KL"]
    assert [line.split()[1] for line in lines[1:]] == ["embed", "0", "1", "2", "any"]
    assert all(file.stat().st_size > 500 for file in files)
    saved = json.loads(files[1].read_text())
    assert saved["rows"][3]["kl"] == 0
    assert saved["rows"][-1]["kl"] is None  # "any" is a row of facts only
    out = run("lens", "eval", "-m", place / "model", "--facts", place / "facts.jsonl", "--json")
    assert [row["layer"] for row in json.loads(out.stdout)["rows"]] == [
        "embed",
        "0",
        "1",
        "2",
        "any",
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["eval"], 2, "give --corpus, --facts, or both"),
        (["eval", "--facts", "f", "-o", "e.txt"], 1, "expected .parquet"),
        (
            ["eval", "--facts", "f", "-o", "e.html"],
            1,
            "expected .parquet, .json, .png, .svg or .pdf",
        ),
        (["eval", "--facts", "f", "-o", "no/e.png"], 1, "there is no folder no"),
        (["merge", "none", "-o", "x"], 4, "no lens at none"),
    ],
)
def test_mistakes(home, arguments, code, message):
    result = run("lens", *arguments)
    assert result.exit_code == code
    assert message in result.stderr


def test_merge_refuses_other_models(home):
    model = tiny.gpt2()
    paths = [jacobian_file(home / "a.pt", model), jacobian_file(home / "b.pt", tiny.gpt2(width=48))]
    result = run("lens", "merge", *paths, "-o", home / "m.safetensors")
    assert result.exit_code == 1
    assert "width is 48" in result.stderr
    assert not (home / "m.safetensors").exists()


def test_merge_of_published_lenses(home):
    model = tiny.gpt2()
    a = jacobian_file(home / "a.pt", model, seed=1, n_prompts=3)
    b = jacobian_file(home / "b.pt", model, seed=2, n_prompts=1)
    result = run("lens", "merge", a, b, "-o", home / "m.safetensors", "--store", "float32")
    assert result.exit_code == 0, result.stderr
    one, two, both = (
        find.open_lens(p).tensors["1.jacobian"] for p in (a, b, home / "m.safetensors")
    )
    torch.testing.assert_close(both, one.float() * 0.75 + two.float() * 0.25)
