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
    """A folder with a model, a text, two surveys, and things that are neither."""
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
        "file.npy": b"xx",
        "zero.json": b"",
        "three.json": b"3",
        "x.safetensors": b"abc",
        "no-text.jsonl": b'{"a": 1}\n',
        "broken.jsonl": b"{\n",
        "latin.txt": b"\xff\xfe\xff",
        "empty.txt": b"",
        "clash.jsonl": b'{"prompt": "The Eiffel", "answer": " x", "wrong": " x"}\n',
        "p.jsonl": b'{"prompt": "The Eiffel", "answer": " x", "lang": "en"}\n',
    }.items():
        (folder / name).write_bytes(content)
    for name, given in (("S", ["p.jsonl"]), ("C", ["text.txt", "--corpus", "--length", "16"])):
        at = [folder / given[0], *given[1:], "-o", folder / name, "-m", folder / "model"]
        made = CliRunner().invoke(main, ["survey", "run", *map(str, at)])
        assert made.exit_code == 0, made.output
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
    ("read x --edit add:layer=5,token=a,scale=x", USAGE, "scale=x: expected a number"),
    ("read x --edit ablate:block=z,stream=mlp", USAGE, "block=z: expected a whole number"),
    ("survey report none -o none/x.html", ERROR, "there is no folder none; make it first"),
    ("survey find none --open x.png", USAGE, "cannot tell a format from 'x.png'"),
    ("compare a b -o x", USAGE, "cannot tell a format from 'x': end it in .html"),
    ("read x -o x.jpg", USAGE, "cannot tell a format from 'x.jpg'"),
    ("read x -o ''", USAGE, "cannot tell a format from '': end it in"),
    ("read x -o none/x.json", ERROR, "there is no folder none; make it first"),
    ("read x -o file.bin/x.json", ERROR, "cannot write file.bin/x.json: Not a directory"),
    ("read x -o list/config.json/x.png", ERROR, "cannot write"),
    ("compare a b -o none/x.html", ERROR, "there is no folder none; make it first"),
    ("view none.json", ERROR, "no reading at none.json"),
    ("view none.html", ERROR, "none.html: No such file"),
    ("view none.parquet", ERROR, "no reading at none.parquet"),
    ("view text.txt", USAGE, "expected a .json, .parquet or .html file"),
    ("view empty", USAGE, "expected a .json, .parquet or .html file"),
    ("view ''", USAGE, "expected a .json, .parquet or .html file"),
    ("view zero.json", ERROR, "zero.json"),
    ("view three.json", ERROR, "three.json"),
    ("view three.json -o x.jpg", USAGE, "cannot tell a format from 'x.jpg'"),
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
    ]),
    ("check model --device-map nonsense", USAGE, "device_map='nonsense'"),
    ("check model --attn nonsense", USAGE, "attn_implementation='nonsense'"),
    *((f"read 'The Eiffel' -m model {given}", code, said) for given, code, said in [
        ("--layers foo", USAGE, "no layer 'foo'"),
        ("--layers 99", USAGE, "no layer 99"),
        ("--layers ''", USAGE, "no layer ''"),
        ("--layers 2:1", USAGE, "no layer selected"),
        ("--layers 0:2:0", USAGE, "from '0:2:0': the step of a slice cannot be 0"),
        ("--depths 5", USAGE, "--depths is now --layers"),
        ("--positions a:b", USAGE, "cannot read positions from 'a:b'"),
        ("--positions 99", USAGE, "no position 99"),
        ("--attribute 99", USAGE, "no position 99"),
        ("--track ''", USAGE, "is empty"),
        ("--track nosuchtoken", USAGE, "is 11 tokens"),
        ("--track-id -1", USAGE, "outside the vocabulary"),
        ("--track-id 99999999999999999999", USAGE, "outside the vocabulary"),
        ("-k 99999999", USAGE, "the size of the vocabulary"),
        ("--lens nope", ABSENT, "no lens called 'nope'"),
        ("--lens jacobian:", ABSENT, "no lens called 'jacobian:'"),
        ("--lens tuned:file.bin", ERROR, "not a lens file"),
        ("--lens tuned:/none", ABSENT, "no lens at /none"),
        ("--lens tuned:~nosuchuser/x", ABSENT, "no lens at ~nosuchuser/x"),
        ("--lens tuned:empty", ABSENT, "no tuned lens in empty"),
        ("--lens jacobian", ABSENT, "no jacobian lens found"),
    ]),
    ("read '' -m model", USAGE, "the prompt is empty"),
    ("read - -m model", USAGE, "the prompt is empty"),
    (f"read '{'x ' * 500}' -m model", USAGE, "the model's context holds 64"),
    *((f"fit {kind} {given} -o lens -m model", code, said) for kind in ("tuned", "jacobian")
      for given, code, said in [
        ("none.txt", 1, "no corpus at none.txt"),
        ("~nosuchuser/x.txt", 1, "no corpus at ~nosuchuser/x.txt"),
        ("empty", ERROR, "holds no corpus files"),
        ("empty.txt", ERROR, "holds no text"),
        ("latin.txt", ERROR, "cannot be read as UTF-8"),
        ("no-text.jsonl", ERROR, "expected a field 'text'"),
        ("broken.jsonl", ERROR, "is not JSON"),
        ("file.bin", USAGE, "expected .txt"),
        ("hf://x", USAGE, "expected hf://datasets/owner/name"),
    ]),
    ("fit tuned '' -o lens -m model", USAGE, "the corpus has an empty name"),
    ("fit tuned text.txt -o file.bin/lens -m none", ERROR, "cannot write file.bin/lens: Not a dir"),
    ("fit jacobian text.txt -o /proc/lens -m none", ERROR, "cannot write /proc/lens"),
    ("fit jacobian text.txt -o lens -m model --shard 4/4", USAGE, "expected 0/N to N-1/N"),
    ("fit jacobian text.txt -o lens -m model --layers 99", USAGE, "no layer 99"),
    ("fit tuned text.txt -o lens -m model --rank 9999", USAGE, "expected at most 32"),
    ("fit tuned text.txt -o lens -m model --facts empty.txt", USAGE, "--facts is of --evaluate"),
    ("fit tuned text.txt -o lens -m model --evaluate --facts none", ERROR, "no facts at none"),
    ("read x -m model --stream attn --lens tuned", USAGE, "read by the logit lens"),
    ("read x -m model --edit add:layer=1,vector=file.npy", ERROR, "is not a .npy file of numbers"),
    ("read 'x y' z -m model --lens nope", ABSENT, "logitlens: no lens called 'nope'"),
    ("read -m model --file latin.txt", ERROR, "not UTF-8"),
    ("read -m model --file empty.txt", ERROR, "holds no prompts"),
    ("read -m model --chat zero.json", ERROR, "expected a JSON list of messages"),
    ("read text.txt -m model", USAGE, "is a file, not a prompt"),
    ("generate x -m model -n 9999", USAGE, "at most 63"),
    ("generate x -m model --lens nope", ABSENT, "no lens called 'nope'"),
    ("compare x y -m model --lens tuned:/none", ABSENT, "no lens at /none"),
    ("compare x y -m model --layers foo", USAGE, "no layer 'foo'"),
    ("attribute x nosuch -m model", USAGE, "is 6 tokens"),
    ("attribute x -m model --position 9", USAGE, "no position 9"),
    ("patch x xy -m model --token x", USAGE, "expected as many"),
    ("patch x y -m model --token x --layers foo", USAGE, "no layer 'foo'"),
    ("serve --no-open --lens nope", ABSENT, "no lens called 'nope'"),
    ("serve --no-open --lens tuned:/none", ABSENT, "no lens at /none"),
    ("lens eval -m model --corpus text.txt --lens nope", ABSENT, "no lens called 'nope'"),
    ("lens eval -m model --facts broken.jsonl", ERROR, "expected lines of JSON"),
    ("lens merge none none -o y.txt", USAGE, "cannot tell a format from 'y.txt'"),
    *((f"survey {given}", code, said) for given, code, said in [
        ("run '' -o new -m model", USAGE, "has an empty name"),
        ("run none.jsonl -o new -m model", ERROR, "no prompts at none.jsonl"),
        ("run text.txt -o new -m model", USAGE, "running text is read with --corpus"),
        ("run broken.jsonl -o new -m model", ERROR, "broken.jsonl line 1 cannot be read"),
        ("run clash.jsonl -o new -m model", ERROR, "clash.jsonl line 1: ' x' is a right answer"),
        ("run p.jsonl -o file.bin -m model", USAGE, "is a file"),
        ("run p.jsonl -o '' -m model", USAGE, "not an empty one"),
        ("run p.jsonl -o nope://x -m model", USAGE, "nope"),
        ("run p.jsonl -o new -m none", ABSENT, "HF_HUB_OFFLINE is set"),
        ("run p.jsonl -o new -m model --lens nope", ABSENT, "no lens called 'nope'"),
        ("run p.jsonl -o new -m model --lens tuned:/none", ABSENT, "no lens at /none"),
        ("run p.jsonl -o new -m model --layers foo", USAGE, "no layer 'foo'"),
        ("run p.jsonl -o new -m model --layers 20:", USAGE, "no layer selected"),
        ("run p.jsonl -o new -m model --edit nope", USAGE, "no edit 'nope'"),
        ("run p.jsonl -o new -m model --token-budget -1", USAGE, "-1 is not in the range"),
        ("run p.jsonl -o new -m model --shard 4/4", USAGE, "expected 0/N to N-1/N"),
        ("run p.jsonl -o new -m model --overlap 3", USAGE, "add --corpus"),
        ("run p.jsonl -o S -m model --layers 0", ERROR, "the survey in S is another"),
        ("run text.txt -o new -m model --corpus --overlap 256", USAGE, "expected less"),
        ("run text.txt -o new -m model --corpus --length 65", USAGE, "context holds 64"),
        ("run text.txt -o new -m model --corpus --length 9 --keep cells --top 999", USAGE, "at most"),
        ("run empty -o new -m model --corpus --length 16", ERROR, "holds no corpus files"),
        ("run file.bin -o new -m model --corpus --length 16", USAGE, "expected .txt"),
        ("status none", ERROR, "no survey in none"),
        ("status ''", USAGE, "not an empty one"),
        ("merge S -o x.csv", USAGE, "cannot tell a format from 'x.csv'"),
        ("report S -o r.txt", USAGE, "cannot tell a format from 'r.txt'"),
        ("report S -o r.html --by nope", USAGE, "no condition 'nope'"),
        ("report S -o r.html --by lang --contrast a b", USAGE, "no prompts of 'a'"),
        ("report S -o r.png --readings", USAGE, "no room for readings"),
        ("report C -o r.html --by lang", USAGE, "leave out --by"),
        ("report C -o r.html --readings", USAGE, "run the survey with --keep cells"),
        ("report S C -o r.html", USAGE, "share no numbers"),
        ("find S --where 'nope > 3'", USAGE, "--where 'nope > 3'"),
        ("find S --lens nope", USAGE, "this survey has logit"),
        ("find C", USAGE, "keeps no positions"),
    ]),
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
    mistake(place, arguments, {"check": ABSENT, "read": USAGE}.get(arguments[0], ERROR), "")


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
