"""`logitlens fit` on a tiny model: files written, words said, mistakes in one line."""

from __future__ import annotations

import os

import pytest
import torch
from click.testing import CliRunner

from logitlens.cli import main
from logitlens.lenses import open_lens
from tests.fit import words


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fit")
    words.directory(folder / "model")
    words.text(folder / "text.txt")
    (folder / "facts.jsonl").write_text('{"prompt": "In the city of", "answer": " Paris"}\n' * 3)
    return folder


def run(*arguments):
    result = CliRunner().invoke(main, [str(a) for a in arguments], prog_name="logitlens")
    assert "Traceback" not in result.output
    return result


BRIEF = ["--steps", "4", "--tokens-per-step", "80", "--length", "20"]


def test_tuned(place, tmp_path):
    out = tmp_path / "lens"
    result = run("fit", "tuned", place / "text.txt", "-m", place / "model", "-o", out, *BRIEF,
                 "--evaluate", "--facts", place / "facts.jsonl")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    lines = result.stderr.splitlines()  # progress, since stderr is no terminal here
    assert [line.partition(" · ")[0] for line in lines] == [f"step {n} of 4" for n in range(1, 5)]
    assert "held-out KL(final ‖ lens) in nats" in result.stdout
    assert "fact@10" in result.stdout
    assert sorted(os.listdir(out)) == ["evaluation.parquet", "tuned.safetensors"]
    lens = open_lens(out, "tuned")
    assert lens.header.corpus["name"] == "text.txt"
    assert lens.header.settings["steps"] == 4
    assert {t.dtype for t in lens.tensors.values()} == {torch.float16}
    read = run("read", "In the city of", "-m", place / "model", "--lens", f"tuned:{out}", "--json")
    assert read.exit_code == 0, read.stderr
    assert '"tuned"' in read.stdout


def test_jacobian_in_shards(place, tmp_path):
    whole, parts = tmp_path / "whole", [tmp_path / "0", tmp_path / "1"]
    common = (place / "text.txt", "-m", place / "model", "--prompts", 7, "--length", 24)
    result = run("fit", "jacobian", *common, "-o", whole, "--store", "float32")
    assert result.exit_code == 0, result.stderr
    assert "mean over 7 prompts" in result.stdout
    for i, part in enumerate(parts):
        extra = ("-o", part, "--shard", f"{i}/2", "--store", "float32")
        assert run("fit", "jacobian", *common, *extra).exit_code == 0
    merged = tmp_path / "merged.safetensors"
    result = run("lens", "merge", *parts, "-o", merged, "--store", "float32")
    assert result.stdout.strip() == f"{merged}: 7 prompts"
    one, two = open_lens(whole), open_lens(merged)
    for name in one.tensors:
        torch.testing.assert_close(two.tensors[name], one.tensors[name], atol=1e-5, rtol=1e-4)


def test_options_of_the_jacobian(place, tmp_path):
    result = run("fit", "jacobian", place / "text.txt", "-m", place / "model", "-o", tmp_path,
                 "--prompts", 5, "--cotangents", 4, "--layers", "0:", "--tokens-per-pass", 60,
                 "--evaluate")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "relative standard error" in result.stdout
    assert open_lens(tmp_path, "jacobian").header.depths == (1, 2)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["tuned", "SHORT"], 1, "too short"),
        (["jacobian", "TEXT", "--length", "5"], 2, "at least 18 tokens"),
    ],
)
def test_what_is_too_short_is_one_line_and_writes_nothing(
    place, tmp_path, arguments, code, message
):
    words.text(place / "short.txt", paragraphs=1)
    known = {"TEXT": place / "text.txt", "SHORT": place / "short.txt"}
    result = run(
        "fit", *(known.get(a, a) for a in arguments), "-m", place / "model", "-o", tmp_path / "lens"
    )
    assert result.exit_code == code
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "lens").exists()


def test_a_fit_writes_into_no_object_store(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(
        "fit", "tuned", place / "text.txt", "-m", place / "model", "-o", "s3://bucket/lens"
    )
    assert result.exit_code == 2
    assert "s3://bucket/lens: expected a folder of a disk, not of an object store" in result.stderr
    assert not list(tmp_path.iterdir())
