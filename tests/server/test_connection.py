"""Connections that are not a page's: half a request, no HTTP at all, too many, gone in the middle."""

from __future__ import annotations

import socket
import time

import pytest

from tests.server.fakes import TOKEN, FakeModel, serving

pytest.importorskip("uvicorn")

from logitlens.server import connection
from logitlens.server.desk import Desk
from logitlens.server.guard import HEADERS

POST = f"POST /{TOKEN}/api/read HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"


@pytest.fixture
def port(capfd):
    """A server's port; whatever is written on the terminal fails the test."""
    FakeModel.gate.set()
    desk = Desk(["one"], lambda name: FakeModel())
    with serving(desk) as port:
        yield port
        assert ask(port, f"GET /{TOKEN}/api/start HTTP/1.1\r\nhost: 127.0.0.1\r\n").startswith(
            "HTTP/1.1 200"
        ), "the server goes on"
    desk.stop(20)
    assert capfd.readouterr() == ("", "")


def connect(port, text=""):
    client = socket.create_connection(("127.0.0.1", port), timeout=20)
    client.sendall(text.encode("latin-1"))
    return client


def until_closed(client):
    """Everything that is answered until the server closes the connection."""
    data = b""
    try:
        while part := client.recv(65536):
            data += part
    except ConnectionResetError:
        pass
    client.close()
    return data.decode("latin-1")


def ask(port, head):
    return until_closed(connect(port, head + "connection: close\r\n\r\n"))


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        ("OPTIONS * HTTP/1.1", 403),
        ("GET foo HTTP/1.1", 403),
        ("GET ? HTTP/1.1", 403),
        ("GET / HTTP/1.1", 403),
        ("GET // HTTP/1.1", 403),
        (f"GET {TOKEN} HTTP/1.1", 403),
        (f"GET {TOKEN}/api/start HTTP/1.1", 403),
        (f"GET //{TOKEN}/api/start HTTP/1.1", 403),
        (f"GET /{TOKEN}%3Fx/api/start HTTP/1.1", 403),
        (f"GET http://127.0.0.1/{TOKEN}/ HTTP/1.1", 403),
        ("CONNECT h:1 HTTP/1.1", 403),
        ("GET /%ff%00%0d%0a HTTP/1.1", 403),
        ("PROPFIND / HTTP/1.1", 403),
        (f"GET /{TOKEN}/ HTTP/1.0", 200),
        (f"HEAD /{TOKEN}/ HTTP/1.1", 200),
        (f"PUT /{TOKEN}/ HTTP/1.1", 405),
        (f"GET /{TOKEN}/assets/%00 HTTP/1.1", 404),
        (f"GET /{TOKEN}/api/page/%ff,, HTTP/1.1", 400),
        ("GET /\N{LATIN SMALL LETTER U WITH DIAERESIS} HTTP/1.1", 400),
        ("GET", 400),
        ("", 400),
        ("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        ("GET / HTTP/1.1\r\nhost: a\r\nhost: b", 400),
        ("GET / HTTP/1.1\r\nbad header", 400),
        (f"POST /{TOKEN}/api/read HTTP/1.1\r\ncontent-length: \xb2", 400),
        (f"POST /{TOKEN}/api/read HTTP/1.1\r\ncontent-length: {'9' * 30}", 400),
        (f"POST /{TOKEN}/api/read HTTP/1.1\r\ncontent-length: {'9' * 15}", 413),
        (f"POST /{TOKEN}/api/read HTTP/1.1\r\ncontent-length: -1", 400),
        (f"POST /{TOKEN}/api/read HTTP/1.1\r\ntransfer-encoding: gzip", 400),
        (f"GET /{TOKEN}/ HTTP/1.1\r\nupgrade: websocket\r\nconnection: upgrade", 200),
    ],
)
def test_what_is_malformed_gets_a_status_and_every_header(port, request_line, status):
    host = "" if "host" in request_line else "host: 127.0.0.1\r\n"
    answer = ask(port, f"{request_line}\r\n{host}")
    assert answer.startswith(f"HTTP/1.1 {status} ")
    head = answer.partition("\r\n\r\n")[0].lower()
    for name, value in HEADERS.items():
        assert f"{name}: {value}".lower() in head


@pytest.mark.parametrize(
    "half",
    [
        "",
        "GET / HTTP/1.1\r\nx-a: ",
        POST + "content-length: 100\r\n\r\n{",
        POST + "transfer-encoding: chunked\r\n\r\n5\r\n{",
    ],
)
def test_half_a_request_is_cut_off_after_seconds(port, monkeypatch, half):
    monkeypatch.setattr(connection, "REQUEST_SECONDS", 0.3)
    start = time.monotonic()
    until_closed(connect(port, half))
    assert 0.2 < time.monotonic() - start < 8


def trickle(client):
    for _ in range(200):
        client.sendall(b"x")
        time.sleep(0.05)


def test_a_request_that_trickles_in_is_cut_off_too(port, monkeypatch):
    monkeypatch.setattr(connection, "REQUEST_SECONDS", 0.5)
    client, start = connect(port), time.monotonic()
    with pytest.raises(OSError), client:
        trickle(client)
    assert time.monotonic() - start < 8


def test_a_long_answer_to_a_whole_request_is_not_cut_off(port, monkeypatch):
    monkeypatch.setattr(connection, "REQUEST_SECONDS", 0.2)
    FakeModel.gate.clear()
    FakeModel.reached.clear()
    body = '{"prompt": "wait"}'
    client = connect(port, POST + f"content-length: {len(body)}\r\n\r\n{body}")
    assert FakeModel.reached.wait(20)
    time.sleep(0.6)
    FakeModel.gate.set()
    answer = b""
    while b'"done"' not in answer.rpartition(b'"state":')[2]:
        part = client.recv(65536)
        assert part, answer
        answer += part
    client.close()


def test_many_half_requests_shut_nobody_out(port):
    many = connection.CONNECTIONS + 20
    halves = [connect(port, "GET / HTTP/1.1\r\nx-a: ") for _ in range(many)]
    start = time.monotonic()
    assert "403" in ask(port, "GET / HTTP/1.1\r\nhost: 127.0.0.1\r\n")
    assert time.monotonic() - start < 5
    closed = 0
    for client in halves:
        client.setblocking(False)
        try:
            closed += client.recv(1) == b""
        except BlockingIOError:
            pass
        except ConnectionResetError:
            closed += 1
        client.close()
    assert 20 <= closed < many, "the oldest made way, and no others"


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_news(port):
    for part in ("", "{", '{"prompt": "a b"'):
        client = connect(port, POST + f"content-length: 100\r\n\r\n{part}")
        time.sleep(0.1)
        client.close()
    client = connect(port, POST + "transfer-encoding: chunked\r\n\r\nno length\r\n")
    assert until_closed(client).startswith("HTTP/1.1 400 ")


def test_the_end_does_not_wait_for_a_body_that_never_comes(capfd):
    desk = Desk(["one"], lambda name: FakeModel())
    with serving(desk) as port:
        client = connect(port, POST + "content-length: 100\r\n\r\n{")
        time.sleep(0.2)
        start = time.monotonic()
    assert time.monotonic() - start < 0.9, "within the time that whole requests have to end"
    client.close()
    desk.stop(20)
    assert capfd.readouterr() == ("", "")
