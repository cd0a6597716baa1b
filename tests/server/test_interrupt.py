"""The process and its signals: everybody hears of the end, exit code 130, no traceback."""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import socket
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlparse

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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_with_nothing_to_do(tmp_path, number):
    with served(tmp_path) as (process, _):
        process.send_signal(number)
        ended(process)


def test_while_a_body_never_comes_and_a_client_has_gone(tmp_path):
    with served(tmp_path) as (process, address):
        place = urlparse(address)
        head = f"POST {place.path}api/read HTTP/1.1\r\nhost: {place.netloc}\r\n"
        head += "content-type: application/json\r\ncontent-length: 9\r\n\r\n{"
        with (
            socket.create_connection((place.hostname, place.port)) as left,
            socket.create_connection((place.hostname, place.port)) as stays,
        ):
            for client in (left, stays):
                client.sendall(head.encode())
            left.close()
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            ended(process)


def test_nobody_is_shut_out_by_more_connections_than_the_process_may_have(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, limits[1]))  # inherited
    try:
        with served(tmp_path) as (process, address), contextlib.ExitStack() as crowd:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            place = urlparse(address)
            for _ in range(200):
                client = crowd.enter_context(
                    socket.create_connection((place.hostname, place.port), timeout=20)
                )
                client.sendall(b"GET / HTTP/1.1\r\nx-a: ")
            start = time.monotonic()
            with urllib.request.urlopen(f"{address}api/start", timeout=20) as answer:
                assert answer.status == 200
            assert time.monotonic() - start < 5
            crowd.close()
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
            assert len(process.stderr.read()) < 200, "a line at most, and no log"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_the_secret_word_is_in_no_argument_of_a_process(tmp_path, monkeypatch):
    browser = tmp_path / "browser"
    browser.write_text(
        '#!/bin/sh\ntr "\\0" " " < /proc/$$/cmdline > "$0.arguments"\ncp "${1#file://}" "$0.page"\n'
    )
    browser.chmod(0o700)
    monkeypatch.setenv("BROWSER", str(browser))
    with served(tmp_path, "--open") as (process, address):
        copied = Path(f"{browser}.page")
        for _ in range(400):
            if copied.exists():
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    word = urlparse(address).path.strip("/")
    assert word in copied.read_text("utf-8")
    assert word not in Path(f"{browser}.arguments").read_text()


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
