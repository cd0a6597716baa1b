"""Routes and guard: progress, page data, files; and everybody who may not ask."""

from __future__ import annotations

import ipaddress
import json
import socket

import pytest

from tests.server.fakes import TOKEN, FakeModel

pytest.importorskip("starlette")

from starlette.testclient import TestClient

from logitlens.server.app import create
from logitlens.server.desk import Desk
from logitlens.server.guard import MAX_BODY, Guard, names
from logitlens.view import page

LOOPBACK = ["127.0.0.1", "localhost", "[::1]"]


@pytest.fixture
def client():
    FakeModel.gate.set()
    desk = Desk(["one"], lambda name: FakeModel())
    app = Guard(create(desk, ["logit", "tuned"]), token=TOKEN, hosts=["127.0.0.1:80", "127.0.0.1"])
    client = TestClient(app, base_url="http://127.0.0.1", follow_redirects=False)
    client.desk = desk
    yield client
    desk.stop()


def read(client, prompt="The Eiffel Tower", **more):
    answer = client.post(f"/{TOKEN}/api/read", json={"prompt": prompt, **more})
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def test_the_shell_holds_no_inline_script(client):
    answer = client.get(f"/{TOKEN}/")
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "unsafe-inline" not in policy
    assert "<script>" not in answer.text
    assert "style=" not in answer.text
    for name in ("page.js", "page.css", "serve.js", "serve.css"):
        assert f"assets/{name}" in answer.text
        assert client.get(f"/{TOKEN}/assets/{name}").status_code == 200
    assert client.get(f"/{TOKEN}/assets/..%2Fpage.py").status_code == 404
    assert client.get(f"/{TOKEN}").headers["location"] == f"/{TOKEN}/"


def test_a_prompt_becomes_a_page_and_a_file(client, tmp_path):
    events = read(client, top=4, track=[" Paris"])
    assert [e["state"] for e in events] == ["waiting", "loading", "running", "running", "done"]
    name = events[-1]["id"]
    reading = client.desk.history.readings[name]
    head = client.get(f"/{TOKEN}/api/page/{name}").json()
    blocks = {
        block: client.get(f"/{TOKEN}/api/page/{name}/{block}").content
        for block in [head["readings"][0]["head"], *head["readings"][0]["tiles"]]
    }
    back = page.decode(head["readings"][0], blocks)
    assert (back.top_ids == reading.top_ids).all()
    export = client.get(f"/{TOKEN}/api/export/{name}?state=color%3Dentropy")
    assert "attachment" in export.headers["content-disposition"]
    (tmp_path / "page.html").write_bytes(export.content)
    assert (page.load(tmp_path / "page.html")[0].top_ids == reading.top_ids).all()
    assert '"state":"color=entropy"' in export.text
    start = client.get(f"/{TOKEN}/api/start").json()
    assert [entry["id"] for entry in start["history"]] == [name]
    assert start["loaded"] == "one"


def test_readings_are_compared(client):
    ids = ",".join(read(client, prompt)[-1]["id"] for prompt in ("a b c", "a x c"))
    head = client.get(f"/{TOKEN}/api/page/{ids}").json()
    assert len(head["readings"]) == 2
    assert head["frame"]["columns"] == [[[0, 3]], [[0, 3]]]
    gone = client.get(f"/{TOKEN}/api/page/{ids},r99")
    assert (gone.status_code, "no reading 'r99' here any more" in gone.text) == (400, True)
    many = client.get(f"/{TOKEN}/api/page/" + ",".join(["r1"] * 9))
    assert "at most 8" in many.text


def test_a_reading_is_made_again_with_more_tokens_tracked(client):
    name = read(client, "a b c", track=[" Paris"], top=3)[-1]["id"]
    answer = client.post(f"/{TOKEN}/api/read", json={"again": name, "track": [7, " Paris"]})
    again = json.loads(answer.text.splitlines()[-1])
    assert again["state"] == "done"
    assert client.desk.history.orders[again["id"]].track == (" Paris", 7)
    assert client.desk.history.orders[again["id"]].top == 3
    gone = client.post(f"/{TOKEN}/api/read", json={"again": "r99", "track": []})
    assert (gone.status_code, "no reading 'r99'" in gone.text) == (400, True)
    for track, words in [
        ("x", "track is 'x': expected a list of tokens"),
        (None, "track is None: expected a list of tokens"),
        ([[1]], "tokens to track are texts or ids"),
        ([{"a": 1}], "tokens to track are texts or ids"),
        (list(range(40)), "41 tokens to track; at most 32 are"),
    ]:
        wrong = client.post(f"/{TOKEN}/api/read", json={"again": name, "track": track})
        assert (wrong.status_code, wrong.text) == (400, words + "\n")


def test_a_prompt_that_is_over_or_of_nobody_cannot_be_cancelled(client):
    events = read(client, "a b")
    for name in (events[0]["job"], events[-1]["id"], "nothing", ".."):
        answer = client.delete(f"/{TOKEN}/api/read/{name}")
        assert answer.status_code == 404
    assert client.delete(f"/{TOKEN}/api/read/x").text == (
        "no such prompt waits or runs here: it has ended\n"
    )
    assert client.delete(f"/{TOKEN}/api/read").status_code == 405
    assert client.get(f"/{TOKEN}/api/read/{events[0]['job']}").status_code == 405
    other = client.delete(f"/{TOKEN}/api/read/x", headers={"origin": "http://evil.example"})
    assert other.status_code == 403
    assert read(client, "a b")[-1]["state"] == "done"


def test_a_failing_model_leaves_the_server_up(client):
    assert "the model failed" in read(client, "crash")[-1]["message"]
    assert read(client, "fine")[-1]["state"] == "done"
    assert "no tuned lens found" in read(client, "fine", lenses=["tuned"])[-1]["message"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"host": "10.0.0.1"}, 403),
        ({"host": ""}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "https://127.0.0.1"}, 403),
        ({"origin": "http://127.0.0.1"}, 200),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "same-origin"}, 200),
    ],
)
def test_only_this_page_may_ask(client, headers, status):
    answer = client.get(f"/{TOKEN}/api/start", headers=headers)
    assert answer.status_code == status
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "content-security-policy" in answer.headers


@pytest.mark.parametrize("path", ["/", "/wrong/", "/api/start", "/w0rd-xy/", "/w0rd-xyzz/", "//"])
def test_without_the_secret_word_nothing_is_told(client, path):
    answer = client.get(path)
    assert answer.status_code == 403
    assert "logitlens serve" in answer.text
    assert TOKEN not in answer.text


def test_requests_of_the_wrong_size_or_kind_are_refused_in_words(client):
    path = f"/{TOKEN}/api/read"
    large = client.post(
        path, content=b"x" * (MAX_BODY + 1), headers={"content-type": "application/json"}
    )
    assert (large.status_code, "larger than 256 KiB" in large.text) == (413, True)

    def pieces():
        for _ in range(5):
            yield b"x" * (MAX_BODY // 4)

    streamed = client.post(path, content=pieces(), headers={"content-type": "application/json"})
    assert (streamed.status_code, "too large" in streamed.text) == (413, True)
    assert (
        client.post(path, content="{}", headers={"content-type": "text/plain"}).status_code == 415
    )
    broken = client.post(path, content="{", headers={"content-type": "application/json"})
    assert (broken.status_code, broken.text[:9]) == (400, "not JSON:")
    deep = client.post(path, content="[" * 100_000, headers={"content-type": "application/json"})
    assert (deep.status_code, deep.text) == (400, "not JSON: nested too deeply\n")
    empty = client.post(path, json={"prompt": ""})
    assert (empty.status_code, empty.text) == (400, "the prompt is empty: type some text\n")
    assert client.get(path).status_code == 405
    assert client.get(f"/{TOKEN}/nothing").status_code == 404


@pytest.mark.parametrize(
    ("host", "address", "also", "anywhere"),
    [
        ("127.0.0.1", "127.0.0.1", LOOPBACK, False),
        ("localhost", "127.0.0.1", LOOPBACK, False),
        ("127.1", "127.0.0.1", [*LOOPBACK, "127.1"], False),
        ("::1", "::1", LOOPBACK, False),
        ("0.0.0.0", "0.0.0.0", [*LOOPBACK, socket.gethostname()], True),
        ("0", "0.0.0.0", [*LOOPBACK, socket.gethostname()], True),
        ("::", "::", [*LOOPBACK, socket.gethostname()], True),
        ("192.168.1.5", "192.168.1.5", ["192.168.1.5"], False),
        ("fd00::5", "fd00::5", ["[fd00::5]"], False),
    ],
)
def test_names_that_are_answered_to(host, address, also, anywhere):
    expected = [*also, "box.lan"]
    known = [*(f"{name}:7" for name in expected), *expected]
    assert names(host, 7, ipaddress.ip_address(address), ["box.lan"]) == (known, anywhere)


@pytest.mark.parametrize(
    ("path", "mode", "dest", "status"),
    [
        ("", "navigate", "document", 200),
        ("", "navigate", "iframe", 403),
        ("", "no-cors", "script", 403),
        ("api/start", "navigate", "document", 403),
        ("api/export/r1", "navigate", "document", 403),
    ],
)
def test_a_link_from_elsewhere_may_open_the_page_and_nothing_else(client, path, mode, dest, status):
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": mode, "sec-fetch-dest": dest}
    assert client.get(f"/{TOKEN}/{path}", headers=headers).status_code == status


def test_a_failure_is_one_line_on_the_terminal_and_a_sentence_for_the_asker(
    client, monkeypatch, capsys
):
    def fail(self):
        raise TypeError("odd\noperand")

    monkeypatch.setattr(type(client.desk.history), "entries", fail)
    answer = client.get(f"/{TOKEN}/api/start")
    assert (answer.status_code, answer.text) == (
        500,
        "this request failed on the server; the others go on\n",
    )
    assert "content-security-policy" in answer.headers
    told = capsys.readouterr().err
    line = "logitlens serve: unexpected, at GET /api/start: TypeError: odd operand\n"
    assert told == line
    monkeypatch.setenv("LOGITLENS_DEBUG", "1")
    client.get(f"/{TOKEN}/api/start")
    assert "Traceback" in capsys.readouterr().err
