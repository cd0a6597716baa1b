import json
import os
import stat
import sys
from pathlib import Path

import pytest

from logitlens import Reading, files
from logitlens.view import terminal
from tests.view.conftest import EIFFEL, make


def test_the_defaults(cli):
    result = cli("read", "The Eiffel")
    assert result.exit_code == 0
    assert cli.loaded == [((None,), {})]  # the bundled model
    assert cli.model.calls == [
        ("capture", {"prompt": "The Eiffel", "layers": None, "truncate": False, "stream": "resid"}),
        ("readout", {"lens": "logit", "top": 10, "track": [], "positions": None}),
    ]
    shown = make(EIFFEL, track=0, meta={"model": "fake", "lens": {"name": "logit"}})
    assert result.stdout.strip().split() == terminal.text(shown, width=140).split()
    assert "\x1b" not in result.stdout
    assert result.stderr == ""


def test_every_flag_arrives(cli):
    flags = (
        "-m gpt2 --tokenizer other --revision main --dtype bfloat16 --device-map auto --attn eager "
        "--trust-remote-code -k 3 --layers 0:12:2 --positions -8: --truncate --track-id 7"
    )
    assert cli("read", "x", *flags.split(), "--track", " Paris", "--track", "Rome").exit_code == 0
    ((args, options),) = cli.loaded
    assert args == ("gpt2",)
    assert options == {
        "tokenizer": "other", "revision": "main", "dtype": "bfloat16", "device_map": "auto",
        "attn_implementation": "eager", "trust_remote_code": True,
    }  # fmt: skip
    assert cli.model.calls == [
        ("capture", {"prompt": "x", "layers": "0:12:2", "truncate": True, "stream": "resid"}),
        (
            "readout",
            {"lens": "logit", "top": 3, "track": [" Paris", "Rome", 7], "positions": "-8:"},
        ),
    ]


def test_chunks_are_read_by_each_lens(cli):
    lenses = ("--lens", "logit", "--lens", "tuned")
    assert cli("read", "x", "--chunk", "256", *lenses).exit_code == 0
    assert [name for name, _ in cli.model.calls] == ["read", "read"]
    assert [(o["lens"], o["chunk"]) for _, o in cli.model.calls] == [("logit", 256), ("tuned", 256)]
    refused = cli("read", "x", "--chunk", "0")
    assert refused.exit_code == 2
    assert "x>=1" in refused.stderr


@pytest.mark.parametrize("color", ["prob", "entropy", "kl", "rank", "next"])
def test_colors(cli, color):
    result = cli("read", "x", "--color", color)
    label = {"prob": "its probability", "entropy": "entropy, nats", "kl": "KL to the final layer"}
    assert label.get(color, "of the token that follows") in result.stdout


def test_stdin(cli):
    result = cli("read", "-", input="Grüße\n")
    assert result.exit_code == 0, result.stderr
    assert cli.model.calls[0][1]["prompt"] == "Grüße"
    cli("read", "-", input="two\nlines\n\n")
    assert cli.model.calls[2][1]["prompt"] == "two\nlines\n"
    for raw, text in {
        b"a\r\nb\r\n": "a\r\nb",
        b"a\r": "a\r",
        b"\xef\xbb\xbfa\xef\xbb\xbf": "a\ufeff",
    }.items():
        cli("read", "-", input=raw)
        assert cli.model.calls[-2][1]["prompt"] == text
    result = cli("read", "-", input=b"\xff\xfe")
    assert result.exit_code == 1
    assert "the prompt is not UTF-8" in result.stderr


def test_json_is_one_reading_a_line(cli):
    result = cli("read", "x", "--json", "--lens", "logit", "--lens", "tuned")
    readings = [Reading.from_dict(json.loads(line)) for line in result.stdout.splitlines()]
    assert [r.lens_name for r in readings] == ["logit", "tuned"]
    assert readings[0].pieces == EIFFEL


def test_several_lenses_share_one_run_of_the_model(cli):
    result = cli("read", "x", "--lens", "logit", "--lens", "jacobian:/x")
    assert [name for name, _ in cli.model.calls] == ["capture", "readout", "readout"]
    assert "logit lens: no fitted map" in result.stdout
    assert "jacobian:/x lens" in result.stdout


def test_several_outputs(cli, tmp_path):
    names = ["a.json", "b.PNG", "c.txt"]
    result = cli("read", "x", *(f"-o{tmp_path / name}" for name in names), "-q", "--color", "kl")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    assert sorted(os.listdir(tmp_path)) == sorted(names)
    assert [
        line.split()[0] for line in result.stderr.replace("\n/", " /").splitlines() if line
    ] == ["wrote"] * 3
    assert Reading.load(tmp_path / "a.json").pieces == EIFFEL
    assert (tmp_path / "b.PNG").read_bytes().startswith(b"\x89PNG")
    assert "KL to the final layer" in (tmp_path / "c.txt").read_text()


def test_several_lenses_make_a_file_each(cli, tmp_path):
    cli(
        "read",
        "x",
        "--lens",
        "logit",
        "--lens",
        "tuned:/a",
        "--lens",
        "tuned:/b",
        "-o",
        str(tmp_path / "x.json"),
    )
    assert sorted(os.listdir(tmp_path)) == ["x.logit-1.json", "x.tuned-2.json", "x.tuned-3.json"]
    cli("read", "x", "--lens", "logit", "--lens", "tuned", "-o", str(tmp_path / "y.txt"))
    assert (tmp_path / "y.logit.txt").exists()
    assert (tmp_path / "y.tuned.txt").exists()


@pytest.mark.parametrize(
    ("name", "code", "line"),
    [
        ("x.jpg", 2, "cannot tell a format from"),
        ("x", 2, "cannot tell a format from"),
        ("none/x.png", 1, "there is no folder"),
        ("folder.json", 1, "it is a directory"),
    ],
)
def test_a_bad_output_is_found_before_the_model_runs(cli, tmp_path, name, code, line):
    (tmp_path / "folder.json").mkdir()
    result = cli("read", "x", "-o", str(tmp_path / "good.json"), "-o", str(tmp_path / name))
    assert result.exit_code == code
    assert line in result.stderr
    assert result.stderr.count("\n") == 1
    assert not cli.loaded
    assert os.listdir(tmp_path) == ["folder.json"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder_is_found_before_the_model_runs(cli, tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    result = cli("read", "x", "-o", str(tmp_path / "x.json"))
    assert "Permission denied" in result.stderr
    assert not cli.loaded


def test_a_folder_that_refuses_is_found_before_the_model_runs(cli, tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(files, "_create", refuse)
    result = cli("read", "x", "-o", str(tmp_path / "x.json"))
    assert (
        result.stderr == f"logitlens: cannot write {tmp_path / 'x.json'}: Read-only file system\n"
    )
    assert not cli.loaded


@pytest.mark.parametrize(
    ("suffix", "module", "extra"), [("png", "matplotlib", "plot"), ("parquet", "pyarrow", "data")]
)
def test_a_missing_extra_is_found_before_the_model_runs(
    cli, tmp_path, monkeypatch, suffix, module, extra
):
    monkeypatch.setitem(sys.modules, module, None)
    result = cli("read", "x", "-o", str(tmp_path / f"x.{suffix}"))
    assert result.exit_code == 1
    assert f"pip install 'logitlens[{extra}]'" in result.stderr
    assert not cli.loaded


def test_a_narrow_output_wraps_into_bands(cli):
    result = cli("read", "x", "--width", "60")
    assert result.stdout.count("  layer ") > 1
    assert all(len(line) <= 60 for line in result.stdout.splitlines())


def test_an_encoding_without_the_signs_is_no_error():
    import subprocess

    code = (
        "import logitlens\nfrom tests.cli.conftest import FakeModel\n"
        "logitlens.load = lambda *a, **k: FakeModel()\nfrom logitlens.cli import main\nmain(['read', 'x'])"
    )
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=env)
    assert done.returncode == 0, done.stderr
    assert b"\\u2423Paris" in done.stdout


def test_figures_over_layers(cli, tmp_path):
    pytest.importorskip("matplotlib")
    for plot, names in (
        ("curves", ["x.svg"]),
        ("settled", ["x.svg"]),
        ("exits", ["x.svg"]),
        ("trajectories", ["x.logit.svg", "x.tuned.svg"]),
    ):
        folder = tmp_path / plot
        folder.mkdir()
        result = cli(
            "read", "x", "--lens", "logit", "--lens", "tuned", "--track", " Paris", "-q",
            "--plot", plot, "-o", str(folder / "x.svg"),
        )  # fmt: skip
        assert result.exit_code == 0, result.stderr
        assert sorted(path.name for path in folder.iterdir()) == names


def test_a_plot_without_a_picture_to_draw_it_into_is_refused(cli, tmp_path):
    for flags in ([], ["-o", str(tmp_path / "x.html")], ["--json"]):
        result = cli("read", "x", "--plot", "curves", *flags)
        assert (result.exit_code, cli.loaded) == (2, [])
        assert "--plot curves is drawn into a file" in result.stderr
    assert not list(tmp_path.iterdir())
    assert cli("read", "x", "--plot", "heatmap").exit_code == 0
    pytest.importorskip("matplotlib")
    lines = f"x\n-o {tmp_path / 'x.svg'}\n"
    assert cli("read", "-i", "--plot", "curves", "-q", input=lines).exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["x.svg"], "held for each line of a loop"
    assert cli("read", "-i", input="x --plot curves\n").exit_code == 2


def test_a_page_is_opened_instead_of_a_grid(cli, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)
    result = cli("read", "x", "--open")
    assert result.exit_code == 0
    assert result.stdout.strip().endswith("page.html")
    assert opened == [Path(result.stdout.strip()).resolve().as_uri()]


def test_several_prompts_and_prompts_of_a_file(cli, tmp_path):
    (tmp_path / "prompts.txt").write_bytes("\ufeffone two\r\n\n three \n".encode())
    result = cli("read", "The Eiffel", "--file", str(tmp_path / "prompts.txt"), "--lens", "logit")
    prompts = [options["prompt"] for name, options in cli.model.calls if name == "capture"]
    assert prompts == ["The Eiffel", "one two", " three "]
    assert result.stdout.count("logit lens: no fitted map") == 3
    cli("read", "--file", "-", input="from a pipe\n")
    assert cli.model.calls[-2][1]["prompt"] == "from a pipe"
    (tmp_path / "empty.txt").write_text("\n\n")
    assert "holds no prompts" in cli("read", "--file", str(tmp_path / "empty.txt")).stderr
    twice = cli("read", "-", "--file", "-", input="x")
    assert (twice.exit_code, "can be read once" in twice.stderr) == (2, True)


@pytest.mark.parametrize("verb", ["read", "generate"])
def test_the_name_of_a_file_is_not_read_as_a_prompt(cli, tmp_path, monkeypatch, verb):
    monkeypatch.chdir(tmp_path)
    for name in ("a.json", "b.html", "p.txt"):
        Path(name).write_text("x")
    for names, hint in [
        (["a.json"], "`logitlens view a.json` shows the readings in it"),
        (["b.html"], "`logitlens compare` compares those of files"),
        (["p.txt"], "`logitlens read --file p.txt` reads each line of it"),
    ]:
        result = cli(verb, *names)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert f"{names[0]} is a file, not a prompt: " in result.stderr
        assert hint in result.stderr
    assert "a.json is a file" in cli("read", "a.json", "b.html").stderr
    assert cli("read", "c.json").exit_code == 0, "no such file: it is text"


def test_words_without_quotes_are_not_taken_for_prompts(cli):
    result = cli("read", "The", "Eiffel", "Tower")
    assert result.exit_code == 2
    assert 'put the prompt in quotes: logitlens read "The Eiffel Tower"' in result.stderr
    assert not cli.loaded


def test_prompts_and_lenses_make_one_page_one_table_or_a_file_each(cli, tmp_path):
    pandas = pytest.importorskip("pandas")
    names = ["a.json", "b.html", "c.csv"]
    result = cli(
        "read", "one prompt", "another one", "--lens", "logit", "--lens", "tuned", "-q",
        *(f"-o{tmp_path / name}" for name in names),
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    jsons = [f"a.{n}.{lens}.json" for n in (1, 2) for lens in ("logit", "tuned")]
    assert sorted(os.listdir(tmp_path)) == [*jsons, "b.html", "c.csv"]
    frame = pandas.read_csv(tmp_path / "c.csv")
    L, T, _ = Reading.load(tmp_path / "a.2.tuned.json").shape
    assert len(frame) == 4 * L * T
    assert set(frame.lens) == {"logit", "tuned"}


def test_the_suffixes_of_the_command_line_are_those_of_a_reading():
    from logitlens import reading
    from logitlens.cli import options

    assert options.SUFFIXES == reading.SUFFIXES


def test_an_edit_is_shown_beside_a_random_direction_of_equal_length(tmp_path, capsys):
    """The vector of " Rome" turns the answer; one that points anywhere does not."""
    from logitlens.cli import main as run

    rome = "add:layer=5,token= Rome,positions=-1,scale=40"
    read = ["read", "The Eiffel Tower is in the city of"]
    files = tmp_path / "e.json"
    with pytest.raises(SystemExit) as end:
        run([*read, "--edit", rome, "--control", "-o", str(files)])
    assert not end.value.code
    shown = " ".join(capsys.readouterr().out.split())
    assert "edited: added 40 × ' Rome' after layer 5" in shown
    assert "its direction replaced by a random one" in shown
    edited, control = (Reading.load(tmp_path / f"e.logit{c}.json") for c in ("", ".control"))
    assert edited.words[6][-1].strip() == "Rome" != control.words[6][-1].strip()
    with pytest.raises(SystemExit) as end:
        run(["read", "The", "--edit", "ablate:block=5,head=2", "--control"])
    assert end.value.code == 2
    assert "no edit to control: expected one along a direction" in capsys.readouterr().err
