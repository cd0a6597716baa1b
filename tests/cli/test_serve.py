"""`logitlens serve`: options arrive; a taken port and a missing extra are one line."""

import os
import queue
import socket
import sys
import webbrowser

import pytest

pytest.importorskip("uvicorn")

from logitlens.cli import serve
from logitlens.server import run
from logitlens.server.order import Limits


@pytest.fixture
def served(monkeypatch):
    asked: dict = {"opened": queue.Queue(), "ended": True}

    def serve(models, load, *, ready, **options):
        asked.update(models=models, load=load, **options)
        ready("http://127.0.0.1:1/word/")
        return asked["ended"]

    monkeypatch.setattr(run, "serve", serve)
    monkeypatch.setattr(webbrowser, "open", lambda address: asked["opened"].put(address) or True)
    return asked


def test_the_defaults(cli, served):
    result = cli("serve")
    assert (result.exit_code, result.stdout) == (130, "http://127.0.0.1:1/word/\n")
    assert result.stderr == "stopped\n"
    assert served["models"] == ["demo"]
    assert served["host"] == "127.0.0.1"
    assert served["lenses"] == ["logit", "tuned", "jacobian"]
    assert served["opened"].get(timeout=5) == "http://127.0.0.1:1/word/"
    served["load"]("demo")
    assert cli.loaded == [((None,), {})]


def test_every_flag_arrives(cli, served):
    flags = "-m a -m b -m a --lens tuned:x --host 0.0.0.0 --port 0 --allow-host box --max-tokens 9 --no-open"
    result = cli("serve", *flags.split(), "--dtype", "bfloat16")
    assert (
        "whoever learns the address below can use the model (with this machine's own name in it)"
        in result.stderr
    )
    assert served["models"] == ["a", "b"]
    assert served["lenses"][-1] == "tuned:x"
    assert (served["host"], served["port"], served["allow_hosts"]) == ("0.0.0.0", 0, ("box",))
    assert served["limits"] == Limits(tokens=9)
    assert served["opened"].empty()
    served["load"]("a")
    assert cli.loaded == [(("a",), {"dtype": "bfloat16"})]


def test_without_a_browser_the_address_is_there_to_be_opened(served, monkeypatch, capsys):
    monkeypatch.setattr(webbrowser, "open", lambda address: False)
    serve.open_page("http://127.0.0.1:1/word/")
    assert capsys.readouterr().err == "no browser could be opened; open the address yourself\n"


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
    result = cli("serve", "--no-open", "--port", "0")
    assert result.exit_code == 1
    assert "pip install 'logitlens[serve]'" in result.stderr
