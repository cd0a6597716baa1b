"""Whatever is typed wrong gets its exit code and one line, and leaves nothing behind."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from logitlens.cli import main
from tests.fit import words

USAGE, ERROR, ABSENT = 2, 1, 4


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, a text, and things that are neither."""
    folder = tmp_path_factory.mktemp("place")
    words.directory(folder / "model")
    words.text(folder / "text.txt", paragraphs=3)
    for name in ("empty", "bare", "torn", "list"):
        (folder / name).mkdir()
    config = (folder / "model" / "config.json").read_bytes()
    for name, content in {
        "bare/config.json": config,
        "torn/config.json": config,
        "torn/model.safetensors": b"x" * 100,
        "list/config.json": b"[]",
        "file.bin": b"xx",
        "zero.json": b"",
        "three.json": b"3",
        "x.safetensors": b"abc",
        "no-text.jsonl": b'{"a": 1}\n',
        "broken.jsonl": b"{\n",
        "latin.txt": b"\xff\xfe\xff",
        "empty.txt": b"",
    }.items():
        (folder / name).write_bytes(content)
    return folder


def mistake(place: Path, arguments: list[str], code: int, said: str) -> None:
    """Run it in a folder, and compare what it says and leaves."""
    before, here = sorted(place.rglob("*")), Path.cwd()
    os.chdir(place)
    try:
        result = CliRunner().invoke(main, arguments, prog_name="logitlens", input="")
    finally:
        os.chdir(here)
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    assert result.stderr.startswith("logitlens")
    assert result.stderr.count("\n") == 1, "one line"
    assert len(result.stderr) < 1100
    assert "unexpected: " not in result.stderr
    assert said in result.stderr
    assert sorted(place.rglob("*")) == before


USAGES = [
    ("--nope", "--nope"),
    ("raed x", "did you mean: logitlens read"),
    ("fti", "did you mean: logitlens fit"),
    ("'The Eiffel Tower'", 'did you mean: logitlens read "The Eiffel Tower"'),
    ("The Eiffel Tower --lens tuned", 'did you mean: logitlens read "The Eiffel Tower"'),
    ("''", "did you mean: logitlens read"),
    ("-m demo read x", "-m"),
    ("read", "Missing argument 'PROMPT|-'"),
    ("read The Eiffel Tower", 'put the prompt in quotes: logitlens read "The Eiffel Tower"'),
    ("read x --nope", "--nope"),
    ("read x -k", "requires an argument"),
    ("read x -k 0", "0 is not in the range"),
    ("read x -k -3", "-3 is not in the range"),
    ("read x -k 1.5", "not a valid integer"),
    ("read x -k ''", "not a valid integer"),
    ("read x --color loss", "'loss' is not one of"),
    ("read x --stream q", "'q' is not one of"),
    ("read x --theme pink", "'pink' is not one of"),
    ("read x --dtype int3", "'int3' is not one of"),
    ("read x --width 5", "5 is not in the range"),
    ("read x --width 100000000", "100000000 is not in the range"),
    ("read x --chunk 0", "0 is not in the range"),
    ("read x --track-id Paris", "'Paris' is not a valid integer"),
    ("read x --json=3", "does not take a value"),
    ("read x -o", "requires an argument"),
    ("compare", "Missing argument 'PROMPT|FILE…'"),
    ("compare x", "nothing to compare: give two prompts"),
    ("compare - -", "standard input can be read once"),
    ("compare a b -o x.json", "written as .html, not as '.json'"),
    ("compare a b c d e f g h i", "9 readings; at most 8"),
    ("view", "Missing argument 'FILE…'"),
    ("view x.json --port 3", "--port"),
    ("serve x", "extra argument"),
    ("serve --port 99999", "99999 is not in the range"),
    ("serve --port x", "not a valid integer"),
    ("serve --max-tokens 0", "0 is not in the range"),
    ("serve --host ''", "it is empty: expected an address"),
    ("check model model", "extra argument"),
    ("check --jsn", "--jsn"),
    ("lens nope", "No such command 'nope'"),
    ("lens show", "Missing argument"),
    ("lens ls x", "extra argument"),
    ("lens pull", "Missing argument"),
    ("lens pull x --kind logit", "'logit' is not one of"),
    ("lens merge", "Missing argument"),
    ("lens push x.safetensors", "Missing argument"),
    *((f"lens eval --corpus text.txt {given}", said) for given, said in [
        ("--length 1", "1 is not in the range"),
        ("--tokens 0", "0 is not in the range"),
        ("--bootstrap -1", "-1 is not in the range"),
    ]),
    ("generate x --temperature nan", "nan is not a finite number"),
    ("generate x --temperature inf", "inf is not a finite number"),
    ("generate x --top-p nan", "nan is not a finite number"),
    ("patch The Eiffel Tower --token x", "expected two prompts, CLEAN and CORRUPTED, each in quotes"),
    ("attribute The Eiffel Tower", 'put the prompt in quotes: logitlens attribute "The Eiffel'),
    ("fit nope", "No such command 'nope'"),
    *((f"fit {kind} {given}", said) for kind in ("tuned", "jacobian") for given, said in [
        ("", "Missing argument 'CORPUS'"),
        ("text.txt", "Missing option '-o'"),
        ("text.txt -o file.bin", "is a file"),
        ("text.txt -o lens --length 0", "0 is not in the range"),
        ("text.txt -o lens --store int8", "'int8' is not one of"),
        ("text.txt -o lens --seed -1", "-1 is not in the range"),
        ("text.txt -o lens --seed 99999999999999999999", "is not in the range"),
    ]),
    ("fit tuned text.txt -o ''", "expected a folder's name, not an empty one"),
    *((f"fit tuned text.txt -o lens {given}", said) for given, said in [
        ("--steps 0", "0 is not in the range"),
        ("--tokens-per-step -1", "-1 is not in the range"),
        ("--max-tokens 0", "0 is not in the range"),
        ("--optimizer adam", "'adam' is not one of"),
        ("--precision int8", "'int8' is not one of"),
        ("--lr x", "'x' is not a valid"),
        ("--lr nan", "nan is not a finite number"),
        ("--lr inf", "inf is not a finite number"),
        ("--lr 0", "0.0 is not in the range"),
        ("--clip -1", "-1.0 is not in the range"),
        ("--clip nan", "nan is not a finite number"),
        ("--warmup -5", "-5 is not in the range"),
        ("--weight-decay -1", "-1.0 is not in the range"),
        ("--holdout 1", "1.0 is not in the range"),
        ("--rank 0", "0 is not in the range"),
        ("--patience -1", "-1 is not in the range"),
        ("--evaluate-every 0", "0 is not in the range"),
        ("--checkpoint-every 0", "0 is not in the range"),
    ]),
    *((f"fit jacobian text.txt -o lens {given}", said) for given, said in [
        ("--prompts 0", "0 is not in the range"),
        ("--cotangents 0", "0 is not in the range"),
        ("--skip-first -1", "-1 is not in the range"),
        ("--tokens-per-pass 0", "0 is not in the range"),
        ("--shard 3", "expected I/N"),
        ("--shard x/y", "expected I/N"),
    ]),
]  # fmt: skip

ERRORS = [
    ("read x --edit add:layer=5,token=a,scale=x", ERROR, "scale=x: expected a number"),
    ("read x --edit ablate:block=z,stream=mlp", ERROR, "block=z: expected a whole number"),
    ("survey report none -o none/x.html", ERROR, "there is no folder none; make it first"),
    ("survey find none --open x.png", ERROR, "cannot tell a format from 'x.png'"),
    ("compare a b -o x", ERROR, "cannot tell a format from 'x': end it in .html"),
    ("read x -o x.jpg", ERROR, "cannot tell a format from 'x.jpg'"),
    ("read x -o ''", ERROR, "cannot tell a format from '': end it in"),
    ("read x -o none/x.json", ERROR, "there is no folder none; make it first"),
    ("read x -o file.bin/x.json", ERROR, "cannot write file.bin/x.json: Not a directory"),
    ("read x -o list/config.json/x.png", ERROR, "cannot write"),
    ("compare a b -o none/x.html", ERROR, "there is no folder none; make it first"),
    ("view none.json", ERROR, "no reading at none.json"),
    ("view none.html", ERROR, "none.html: No such file"),
    ("view none.parquet", ERROR, "no reading at none.parquet"),
    ("view text.txt", ERROR, "expected a .json, .parquet or .html file"),
    ("view empty", ERROR, "expected a .json, .parquet or .html file"),
    ("view ''", ERROR, "expected a .json, .parquet or .html file"),
    ("view zero.json", ERROR, "zero.json"),
    ("view three.json", ERROR, "three.json"),
    ("view three.json -o x.jpg", ERROR, "cannot tell a format from 'x.jpg'"),
    (f"view {'y' * 300}.json", ERROR, "File name too long"),
    ("serve --no-open --port 0 --host nowhere.invalid", ERROR, "give an address of this machine"),
    ("lens show file.bin", ERROR, "file.bin is not a lens file"),
    ("lens show x.safetensors", ERROR, "x.safetensors is not a lens file"),
    ("lens show none", ABSENT, "no lens at none"),
    ("lens show empty", ABSENT, "no fitted lens in empty"),
    ("lens show a--b", ABSENT, "no lens at a--b"),
    ("lens pull a/b", ABSENT, "no published tuned or jacobian lens for a/b"),
    ("lens merge none none -o y.safetensors", ABSENT, "no lens at none"),
    *((f"check {name}", ABSENT, said) for name, said in [
        ("/none", "no such directory, and not a valid hub name"),
        ("./none", "not a valid hub name"),
        ("a--b", "not a valid hub name"),
        ("x.git", "not a valid hub name"),
        ("x.", "not a valid hub name"),
        ("a/b/c", "not a valid hub name"),
        ("a/b@c", "not a valid hub name"),
        ("gptü/x", "not a valid hub name"),
        ("'a b'", "not a valid hub name"),
        ("hf://x", "not a valid hub name"),
        ("https://x/y", "not a valid hub name"),
        ("~nosuchuser/x", "not a valid hub name"),
        ("z" * 5000, "not a valid hub name"),
        ("''", "name is empty"),
        ("none", "HF_HUB_OFFLINE is set"),
        ("empty", "expected config.json and weights"),
        ("bare", "no weights"),
        ("torn", "its weights cannot be read"),
        ("list", "expected a JSON object"),
        ("file.bin", "is a file"),
        ("model --tokenizer none", "none is not in the cache"),
        ("model --tokenizer file.bin", "is a file"),
        ("model --revision main", "not on the hub"),
        ("model --device-map nonsense", "nonsense"),
        ("model --attn nonsense", "nonsense"),
    ]),
    *((f"read 'The Eiffel' -m model {given}", code, said) for given, code, said in [
        ("--layers foo", ERROR, "no layer 'foo'"),
        ("--layers 99", ERROR, "no layer 99"),
        ("--layers ''", ERROR, "no layer ''"),
        ("--layers 2:1", ERROR, "no layer selected"),
        ("--layers 0:2:0", ERROR, "from '0:2:0': the step of a slice cannot be 0"),
        ("--depths 5", USAGE, "--depths is now --layers"),
        ("--positions a:b", ERROR, "cannot read positions from 'a:b'"),
        ("--positions 99", ERROR, "no position 99"),
        ("--attribute 99", ERROR, "no position 99"),
        ("--track ''", ERROR, "is empty"),
        ("--track nosuchtoken", ERROR, "is 11 tokens"),
        ("--track-id -1", ERROR, "outside the vocabulary"),
        ("--track-id 99999999999999999999", ERROR, "outside the vocabulary"),
        ("-k 99999999", ERROR, "the size of the vocabulary"),
        ("--lens nope", ERROR, "no lens called 'nope'"),
        ("--lens jacobian:", ERROR, "no lens called 'jacobian:'"),
        ("--lens tuned:file.bin", ERROR, "not a lens file"),
        ("--lens tuned:/none", ABSENT, "no lens at /none"),
        ("--lens tuned:~nosuchuser/x", ABSENT, "no lens at ~nosuchuser/x"),
        ("--lens tuned:empty", ABSENT, "no tuned lens in empty"),
        ("--lens jacobian", ABSENT, "no jacobian lens found"),
    ]),
    ("read '' -m model", ERROR, "the prompt is empty"),
    ("read - -m model", ERROR, "the prompt is empty"),
    (f"read '{'x ' * 500}' -m model", ERROR, "the model's context holds 64"),
    *((f"fit {kind} {given} -o lens -m model", code, said) for kind in ("tuned", "jacobian")
      for given, code, said in [
        ("none.txt", 1, "no corpus at none.txt"),
        ("~nosuchuser/x.txt", 1, "no corpus at ~nosuchuser/x.txt"),
        ("empty", ERROR, "holds no corpus files"),
        ("empty.txt", ERROR, "holds no text"),
        ("latin.txt", ERROR, "cannot be read as UTF-8"),
        ("no-text.jsonl", ERROR, "expected a field 'text'"),
        ("broken.jsonl", ERROR, "is not JSON"),
        ("file.bin", ERROR, "expected .txt"),
        ("hf://x", ERROR, "expected hf://datasets/owner/name"),
    ]),
    ("fit tuned '' -o lens -m model", ERROR, "the corpus has an empty name"),
    ("fit tuned text.txt -o file.bin/lens -m none", ERROR, "cannot write file.bin/lens: Not a dir"),
    ("fit jacobian text.txt -o /proc/lens -m none", ERROR, "cannot write /proc/lens"),
    ("fit jacobian text.txt -o lens -m model --shard 4/4", ERROR, "shard 4/4"),
    ("fit jacobian text.txt -o lens -m model --layers 99", ERROR, "no layer 99"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "said"), USAGES, ids=lambda text: text[:60])
def test_what_is_not_understood_is_one_line_and_code_2(place, line, said):
    mistake(place, shlex.split(line), USAGE, said)


@pytest.mark.parametrize(("line", "code", "said"), ERRORS, ids=lambda text: str(text)[:60])
def test_what_cannot_be_done_is_one_line_and_its_code(place, line, code, said):
    mistake(place, shlex.split(line), code, said)


@pytest.mark.parametrize(
    "arguments",
    [
        ["read", "half \udcff", "-m", "model"],
        ["read", "x", "-m", "model", "--track", "\udcff"],
        ["check", "x\udcff"],
        ["view", "x\udcff.json"],
        ["fit", "tuned", "x\udcff.txt", "-o", "lens", "-m", "model"],
    ],
)
def test_bytes_that_are_no_text_are_one_line(place, arguments):
    mistake(place, arguments, 4 if arguments[0] == "check" else 1, "")


@pytest.mark.parametrize(
    ("environment", "arguments", "code", "said"),
    [
        ({"LOGITLENS_HOME": "~nosuchuser/x"}, "read x -m model --lens tuned", 4, "no tuned lens"),
        ({"LOGITLENS_HOME": "/dev/null/x"}, "read x -m model --lens tuned", 4, "no tuned lens"),
        ({"WORLD_SIZE": "x"}, "fit tuned text.txt -o lens -m model", 1, "WORLD_SIZE"),
        ({"WORLD_SIZE": "2"}, "fit tuned text.txt -o lens -m model", 1, "start them with torchrun"),
    ],
)
def test_an_environment_that_is_odd_is_one_line(
    place, monkeypatch, environment, arguments, code, said
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    mistake(place, shlex.split(arguments), code, said)
