"""`logitlens serve`: options arrive; a taken port and a missing extra are one line."""

import os
import queue
import socket
import stat
import sys
import tempfile
import urllib.parse
import urllib.request
import webbrowser
from pathlib import Path

import pytest

pytest.importorskip("uvicorn")

from logitlens.cli import serve
from logitlens.server import run
from logitlens.server.order import Limits


def path_of(uri):
    return Path(urllib.request.url2pathname(urllib.parse.urlparse(uri).path))


@pytest.fixture
def served(monkeypatch):
    asked: dict = {"opened": queue.Queue(), "ended": True, "opens": False}

    def serve(models, load, *, ready, **options):
        asked.update(models=models, load=load, **options)
        ready("http://127.0.0.1:1/word/", options["host"] == "127.0.0.1")
        if asked["opens"]:
            asked["page"] = asked["opened"].get(timeout=5)
            asked["mode"] = stat.S_IMODE(os.stat(asked["page"]).st_mode)
            asked["text"] = asked["page"].read_text("utf-8")
        return asked["ended"]

    monkeypatch.setattr(run, "serve", serve)
    monkeypatch.setattr(webbrowser, "open", lambda uri: asked["opened"].put(path_of(uri)) or True)
    return asked


def test_the_defaults(cli, served, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    served["opens"] = True
    result = cli("serve")
    assert (result.exit_code, result.stdout) == (130, "http://127.0.0.1:1/word/\n")
    assert result.stderr == "stopped\n"
    assert served["models"] == ["demo"]
    assert served["host"] == "127.0.0.1"
    assert served["lenses"] == ["logit", "tuned", "jacobian"]
    assert served["page"].parent == tmp_path
    assert (served["mode"], "url=http://127.0.0.1:1/word/" in served["text"]) == (0o600, True)
    assert os.listdir(tmp_path) == [], "it is gone with the server"
    served["load"]("demo")
    assert cli.loaded == [((None,), {})]


def test_every_flag_arrives(cli, served):
    flags = "-m a -m b -m a --lens tuned:x/y --host 0.0.0.0 --port 0 --allow-host box --max-tokens 9 --no-open"
    result = cli("serve", *flags.split(), "--dtype", "bfloat16")
    assert (
        "listening on 0.0.0.0: anyone who learns the address below can use the model"
        in result.stderr
    )
    assert served["models"] == ["a", "b"]
    assert served["lenses"][-1] == "tuned:x/y"
    assert (served["host"], served["port"], served["allow_hosts"]) == ("0.0.0.0", 0, ("box",))
    assert served["limits"] == Limits(tokens=9)
    assert served["opened"].empty()
    served["load"]("a")
    assert cli.loaded == [(("a",), {"dtype": "bfloat16"})]


def test_without_a_browser_the_address_is_there_to_be_opened(served, monkeypatch, capsys):
    monkeypatch.setattr(webbrowser, "open", lambda address: False)
    serve.open_page(Path("/tmp/x.html"))
    assert capsys.readouterr().err == "no browser could be opened; open the address yourself\n"


def test_an_unwritable_runtime_folder_is_not_used(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "none"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with serve.redirecting("http://x/?a=1&b=<2>") as page:
        assert page.parent == tmp_path
        assert 'href="http://x/?a=1&amp;b=&lt;2&gt;"' in page.read_text("utf-8")


@pytest.mark.parametrize("host", ["", " "])
def test_an_empty_host_is_refused_because_it_would_mean_every_address(cli, served, host):
    result = cli("serve", "--host", host)
    assert (result.exit_code, "it is empty" in result.stderr) == (2, True)
    assert "models" not in served


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("nowhere.invalid", "give an address of this machine"),
        ("192.0.2.1", "give an address of this machine"),
        ("a" * 70 + ".b", "give an address of this machine"),
        ("::ffff:zz", "give an address of this machine"),
    ],
)
def test_an_address_that_is_not_of_this_machine_is_one_line(cli, host, words):
    result = cli("serve", "--no-open", "--host", host, "--port", "0")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert words in result.stderr


def test_a_thread_in_native_code_does_not_keep_the_program(cli, served, monkeypatch):
    """The interpreter would abort over it (exit code 134 and a core dump)."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    served["ended"] = False
    result = cli("serve", "--no-open")
    assert (codes, result.stderr) == ([130], "stopped\n")

    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "serve", interrupted)
    result = cli("serve", "--no-open")
    assert (codes, result.stderr) == ([130, 130], "stopped\n")


def test_a_taken_port_is_one_line(cli):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = cli("serve", "--no-open", "--port", str(taken.getsockname()[1]))
    assert result.exit_code == 1
    assert "choose another --port, 0 for any free one" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_without_the_extra_it_says_what_to_install(cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "logitlens.server.connection", raising=False)
    result = cli("serve", "--no-open", "--port", "0")
    assert result.exit_code == 1
    assert "pip install 'logitlens[serve]'" in result.stderr
