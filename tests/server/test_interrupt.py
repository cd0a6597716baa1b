"""Ctrl-C while a prompt waits, loads or runs: everybody is told, exit code 130, no traceback."""

from __future__ import annotations

import json
import signal
import urllib.request

import pytest

pytest.importorskip("uvicorn")

from tests.server.held import served

pytestmark = pytest.mark.slow


def read(address):
    """The stream of one prompt's events."""
    order = urllib.request.Request(
        f"{address}api/read",
        data=b'{"prompt": "The Eiffel Tower"}',
        headers={"content-type": "application/json"},
    )
    return urllib.request.urlopen(order)


def ended(process):
    assert process.wait(30) == 130
    assert process.stderr.read().strip() == "stopped"


def test_with_nothing_to_do(tmp_path):
    with served(tmp_path) as (process, _):
        process.send_signal(signal.SIGINT)
        ended(process)


@pytest.mark.parametrize("stuck", ["load", "run"])
def test_while_a_model_loads_or_runs_and_another_prompt_waits(tmp_path, stuck):
    (tmp_path / stuck).touch()
    with served(tmp_path) as (process, address), read(address) as first:
        state = "loading" if stuck == "load" else "running"
        while json.loads(first.readline())["state"] != state:
            pass
        with read(address) as second:
            assert json.loads(second.readline())["ahead"] == 1
            process.send_signal(signal.SIGINT)
            for answer in (first, second):
                last = json.loads(answer.read().splitlines()[-1])
                assert last == {"state": "error", "message": "the server has ended"}
            ended(process)


def test_a_second_one_does_not_wait(tmp_path):
    (tmp_path / "load").touch()
    with served(tmp_path) as (process, address), read(address) as answer:
        assert json.loads(answer.readline())["state"] == "waiting"
        process.send_signal(signal.SIGINT)
        answer.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert "Traceback" not in process.stderr.read()
