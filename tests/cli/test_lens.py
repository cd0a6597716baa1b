"""`logitlens lens`: which lenses there are, what a lens file says, what it is, and how well it does."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest
import torch

import logitlens
from logitlens.lenses import TunedLens, find, save
from logitlens.lenses.interpretation import TEXT
from tests.cli.test_fit import place, run  # noqa: F401 - a fixture
from tests.lenses import tiny
from tests.lenses.test_published import jacobian_file, tuned_directory
from tests.lenses.test_store import tuned

DEMO = find.BUNDLED


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
    assert "layer embed  held-out KL 0.5000 nats" in shown
    assert "depth" not in shown
    facts = json.loads(run("lens", "show", path, "--json").stdout)
    assert facts["width"] == 32
    for name in ("tuned", f"tuned:{path}"):
        assert json.loads(run("lens", "show", name, "--json").stdout) == facts
    assert "0 jacobian lenses are here" in run("lens", "show", "jacobian").stderr
    assert facts["losses"] == {"embed": 0.5, "0": 0.4, "1": 0.3}
    assert facts["layers"] == ["embed", "0", "1"]
    (folder / "jacobian.safetensors").write_bytes(b"broken")
    result = run("lens", "ls", "--json")
    assert [entry["kind"] for entry in json.loads(result.stdout)] == ["tuned"]
    assert "skipped: " in result.stderr


def test_a_published_lens_that_does_not_fit_together_is_skipped_with_a_word(home):
    folder = tuned_directory(find.lens_folder() / "some--model", tiny.gpt2())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 99}))
    result = run("lens", "ls")
    assert (result.exit_code, "no lenses in" in result.stdout) == (0, True)
    assert "skipped: " in result.stderr
    assert "99" in result.stderr


def test_what_a_file_says_of_itself_reaches_a_terminal_as_text(home):
    lens = tuned(tiny.gpt2())
    header = dataclasses.replace(
        lens.header, model="\x1b]0;x\x07m", corpus={"name": "\x1b[31mtext"}
    )
    folder = find.lens_folder() / "some"
    folder.mkdir(parents=True)
    path = save(TunedLens(lens.tensors, header), folder / "tuned.safetensors")
    for said in (run("lens", "ls").stdout, run("lens", "show", path).stdout):
        assert "\x1b" not in said
        assert "\x07" not in said
        assert "␛]0;x␇m" in said


def test_what_a_killed_write_left_behind_is_no_lens(home):
    model = tiny.gpt2()
    folder = find.lens_folder() / "tiny--gpt2"
    folder.mkdir(parents=True)
    save(tuned(model), folder / ".tuned.safetensors.x.tmp.safetensors")
    jacobian_file(folder / ".a_jacobian_lens.pt.x.tmp.pt", model)
    assert "no lenses in" in run("lens", "ls").stdout
    path = jacobian_file(folder / "a_jacobian_lens.pt", model)
    assert find.resolve("jacobian", model).path == str(path)


def test_check_tells_what_a_file_is(home):
    demo = logitlens.load()
    lens = find.open_lens(DEMO / "jacobian.safetensors")
    J = {d - 1: lens.tensors[f"{d}.jacobian"] for d in range(1, 8)}
    right = jacobian_file(home / "right.pt", demo, layers=list(J), J=J)
    turned = {layer: J_DD.T.contiguous() for layer, J_DD in J.items()}
    wrong = jacobian_file(home / "wrong.pt", demo, layers=list(J), J=turned)
    result = run("lens", "check", right)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "relative error of J v, 128 tokens"
    assert lines[1].endswith("to the last block's output  (how it is read)")
    assert lines[-1].startswith("jacobian lens: J h, h leaving block i, to the last block's output")
    result = run("lens", "check", wrong)
    assert result.exit_code == 1
    assert "not what it is read as, but J transposed h" in result.stdout
    text = home / "text.txt"
    text.write_text(TEXT * 3)
    found = run("lens", "check", right, "--corpus", text, "--tokens", 60, "--json")
    assert json.loads(found.stdout)["tokens"] == 60
    assert json.loads(found.stdout)["as_read"] is True
    other = tuned_directory(home / "other", tiny.gpt2())
    assert run("lens", "check", other).exit_code == 1
    text.write_text("short")
    result = run("lens", "check", right, "--corpus", text)
    assert result.exit_code == 1
    assert "too few to tell" in result.stderr


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
    jacobian_file(folder / "Tiny-Model_jacobian_lens.pt", model)
    result = run("lens", "ls")
    listed = result.stdout.splitlines()
    assert [line.split()[0] for line in listed] == ["jacobian", "tuned"], result.stderr
    assert listed[1].endswith(str(folder))
    result = run("lens", "show", "tuned")
    assert "tuned-lens" in result.stdout, result.stderr
    (folder / "Tiny-Model_jacobian_lens.pt").unlink()
    assert run("lens", "pull", "someone/Tiny-Model").exit_code == 0  # the same again
    tuned_directory(folder, model, seed=5)
    result = run("lens", "pull", "someone/Tiny-Model")
    assert result.exit_code == 1
    assert "is another lens" in result.stderr
    assert run("lens", "pull", "someone/Tiny-Model", "--overwrite").exit_code == 0


def test_eval(home, place):  # noqa: F811
    files = [home / f"e.{suffix}" for suffix in ("parquet", "json", "png")]
    outputs = [part for file in files for part in ("-o", file)]
    result = run("lens", "eval", "-m", place / "model", "--lens", "logit", "--corpus",
                 place / "text.txt", "--facts", place / "facts.jsonl", "--length", 20, *outputs)  # fmt: skip
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split()[:3] == ["lens", "layer", "KL,"]
    assert [line.split()[1] for line in lines[1:6]] == ["embed", "0", "1", "2", "any"]
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
        (["eval", "--facts", "f", "-o", "e.txt"], 2, "end it in .parquet"),
        (
            ["eval", "--facts", "f", "-o", "e.html"],
            2,
            "end it in .parquet .json .png .svg .pdf",
        ),
        (["eval", "--facts", "f", "-o", "no/e.png"], 1, "there is no folder no"),
        (["merge", "none", "-o", "x"], 2, "end it in .safetensors"),
        (["merge", "none", "-o", "x.safetensors"], 4, "no lens at none"),
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


def test_another_lens_is_not_overwritten_without_asking(home):
    model = tiny.gpt2()
    a, b = (jacobian_file(home / f"{i}.pt", model, seed=i) for i in (1, 2))
    out = save(tuned(model), home / "kept.safetensors")
    before = out.read_bytes()
    result = run("lens", "merge", a, b, "-o", out)
    assert result.exit_code == 1
    assert "is another lens" in result.stderr
    assert out.read_bytes() == before
    assert run("lens", "merge", a, b, "-o", out, "--overwrite").exit_code == 0
    assert find.open_lens(out).kind == "jacobian"
    result = run("lens", "merge", a, a, "-o", home / "new.safetensors")
    assert result.exit_code == 1
    assert "would count twice" in result.stderr


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
