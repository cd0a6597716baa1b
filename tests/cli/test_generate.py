"""`logitlens generate` with a tiny model: the text, the grid, JSON, and what ends it early."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

import logitlens
from logitlens import Reading, UnsupportedModel
from logitlens.cli import generate
from tests.models import tiny_gpt2, tiny_tokenizer


@pytest.fixture(scope="module")
def tiny():
    return logitlens.load(tiny_gpt2(), tokenizer=tiny_tokenizer())


@pytest.fixture
def tiny_cli(cli, tiny):
    cli.model = tiny
    return cli


PROMPT = "The Eiffel Tower"


def test_edits_are_made_and_kept(tiny_cli, tiny, tmp_path):
    path, line = tmp_path / "out.json", "ablate:block=1,stream=mlp"
    assert tiny_cli("generate", PROMPT, "-n", "2", "--edit", line, "-o", str(path)).exit_code == 0
    assert Reading.load(path).meta["edits"][0]["text"] == "1.mlp set to zero"
    wrong = tiny_cli("generate", PROMPT, "--edit", "ablate:block=1")
    assert (wrong.exit_code, "lacks stream=" in wrong.stderr) == (2, True)


def test_the_text_and_then_the_grid_without_escapes(tiny_cli, tiny, tmp_path):
    path = tmp_path / "out.json"
    result = tiny_cli("generate", PROMPT, "-n", "4", "-k", "3", "-o", str(path))
    assert result.exit_code == 0, result.output
    reading = tiny.generate(PROMPT, max_new_tokens=4, top=3)
    text, grid = result.stdout.split("\n\n", 1)
    assert text.startswith(PROMPT)
    assert grid.split()[:3] == str(reading).split()[:3]
    assert "\x1b" not in result.stdout
    saved = Reading.load(path)
    assert saved.meta["generation"]["ids"] == reading.meta["generation"]["ids"]
    quiet = tiny_cli("generate", PROMPT, "-n", "4", "-k", "3", "-q")
    assert quiet.stdout == text + "\n"


def test_a_colon_word_is_printed_as_it_was_read(tiny_cli):
    result = tiny_cli("generate", "I like :pizza: and", "-n", "1")
    assert result.stdout.startswith("I like :pizza: and")


def test_json_is_one_line_a_token(tiny_cli, tiny):
    options = {"temperature": 1.5, "top_k": 9, "seed": 3}
    flags = "--temperature 1.5 --top-k 9 --seed 3"
    lines = tiny_cli("generate", PROMPT, "-n", "3", "--json", *flags.split()).stdout.splitlines()
    written = tiny.generate(PROMPT, max_new_tokens=3, **options).meta["generation"]
    records = [json.loads(line) for line in lines]
    assert [r["id"] for r in records] == written["ids"]
    assert [r["sampled_logprob"] for r in records] == pytest.approx(written["sampled_logprobs"])
    assert [r["position"] for r in records] == [written["prompt_tokens"] + i for i in range(3)]
    assert list(records[0]["layers"]) == ["embed", "0", "1", "2"]


def test_every_flag_arrives(cli):
    seen = {}
    cli.model.generate = lambda prompt, **options: seen.update(options)
    flags = (
        "-n 7 --temperature 0.5 --top-p 0.9 --top-k 4 --seed 1 --stop END --lens tuned -k 2 "
        "--track x --layers 0: --truncate -q"
    )
    assert cli("generate", "x", *flags.split()).exit_code == 0
    seen.pop("each")
    assert seen == {
        "max_new_tokens": 7, "temperature": 0.5, "top_p": 0.9, "top_k": 4, "seed": 1,
        "stop": ("END",), "lens": "tuned", "top": 2, "track": ["x"], "layers": "0:",
        "truncate": True, "progress": None, "edits": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "logitlens: interrupted"),
        (UnsupportedModel("it broke"), 1, "logitlens: it broke"),
    ],
    ids=["ctrl-c", "error"],
)
def test_what_ends_it_early_shows_and_saves_what_there_is(
    tiny_cli, tiny, monkeypatch, tmp_path, error, code, line
):
    real = tiny.generate

    def ended(prompt, **options):
        error.reading = real(prompt, **{**options, "max_new_tokens": 2})
        raise error

    monkeypatch.setattr(tiny, "generate", ended)
    path = tmp_path / "part.json"
    result = tiny_cli("generate", PROMPT, "-o", str(path))
    assert result.exit_code == code
    assert result.stderr.splitlines()[-1] == line
    assert "settled" in result.stdout
    assert len(Reading.load(path).meta["generation"]["ids"]) == 2


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("-n", "0"), "0 is not in the range x>=1"),
        (("-n", "99"), "at most"),
        (("--temperature", "-1"), "-1.0 is not in the range x>=0"),
        (("--top-p", "0.5"), "need a --temperature above 0"),
        (("--lens", "logit", "--lens", "tuned"), "expected one --lens"),
        (("--stop", ""), "expected texts that end the generation"),
        (("-o", "x.docx"), "cannot tell a format from"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_mistakes_are_one_line(tiny_cli, flags, line):
    result = tiny_cli("generate", PROMPT, *flags)
    assert result.exit_code in (1, 2)
    assert line in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


@pytest.mark.parametrize("live", [False, True])
def test_a_terminal_gets_colours_as_the_text_comes_and_a_live_grid(tiny_cli, monkeypatch, live):
    out = io.StringIO()
    console = Console(
        file=out, force_terminal=True, color_system="truecolor", width=100, height=60,
        legacy_windows=False, _environ={},
    )  # fmt: skip
    monkeypatch.setattr(generate, "output_console", lambda width: console)
    flags = ["--live"] if live else []
    assert tiny_cli("generate", PROMPT, "-n", "4", *flags).exit_code == 0
    shown = out.getvalue()
    assert "\x1b[38;2;" in shown.split("settled")[0]
    # A live grid is drawn after each token and as it is left; then comes the last.
    assert shown.count("settled") == (6 if live else 1)
