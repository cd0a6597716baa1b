"""`logitlens serve`: options arrive; a taken port and a missing extra are one line."""

import socket
import sys
import webbrowser

import pytest

pytest.importorskip("uvicorn")

from logitlens.server import run
from logitlens.server.order import Limits


@pytest.fixture
def served(monkeypatch):
    asked: dict = {}

    def serve(models, load, *, ready, **options):
        asked.update(models=models, load=load, **options)
        ready("http://127.0.0.1:1/word/")

    monkeypatch.setattr(run, "serve", serve)
    monkeypatch.setattr(webbrowser, "open", lambda address: asked.update(opened=address))
    return asked


def test_the_defaults(cli, served):
    result = cli("serve")
    assert (result.exit_code, result.stdout) == (0, "http://127.0.0.1:1/word/\n")
    assert served["models"] == ["demo"]
    assert served["host"] == "127.0.0.1"
    assert served["lenses"] == ["logit", "tuned", "jacobian"]
    assert served["opened"] == "http://127.0.0.1:1/word/"
    served["load"]("demo")
    assert cli.loaded == [((None,), {})]


def test_every_flag_arrives(cli, served):
    flags = "-m a -m b -m a --lens tuned:x --host 0.0.0.0 --port 0 --allow-host box --max-tokens 9 --no-open"
    result = cli("serve", *flags.split(), "--dtype", "bfloat16")
    assert "whoever learns the address below can use the model" in result.stderr
    assert served["models"] == ["a", "b"]
    assert served["lenses"][-1] == "tuned:x"
    assert (served["host"], served["port"], served["allow_hosts"]) == ("0.0.0.0", 0, ("box",))
    assert served["limits"] == Limits(tokens=9)
    assert "opened" not in served
    served["load"]("a")
    assert cli.loaded == [(("a",), {"dtype": "bfloat16"})]


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
