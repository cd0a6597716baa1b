"""The routes over real connections: two askers at once, cancelling, and connections that drop."""

from __future__ import annotations

import http.client
import json
import threading

import pytest

from tests.server.fakes import TOKEN, FakeModel, serving

pytest.importorskip("uvicorn")

from logitlens.server.desk import ENDINGS, Desk
from logitlens.server.order import Limits


class Server:
    """A served desk, and what a page does with it."""

    def __init__(self, desk, port):
        self.desk, self.port = desk, port
        self.asked: list[Asked] = []

    def ask(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        kind = {"content-type": "application/json"}
        connection.request(method, f"/{TOKEN}/{path}", body and json.dumps(body), kind)
        return connection, connection.getresponse()

    def cancel(self, job):
        connection, answer = self.ask("DELETE", f"api/read/{job}")
        answer.read()
        connection.close()
        return answer.status

    def read(self, prompt):
        self.asked.append(Asked(*self.ask("POST", "api/read", {"prompt": prompt})))
        return self.asked[-1]


class Asked:
    """One prompt on its way."""

    def __init__(self, connection, answer):
        self.connection, self.answer = connection, answer
        assert answer.status == 200, answer.read()
        self.job, self.last = None, None

    def next(self):
        """The next event that is new."""
        event = last = self.last
        while event == last:
            event = json.loads(self.answer.readline())
        self.last = event
        self.job = event.get("job", self.job)
        return event

    def until(self, state):
        while (event := self.next())["state"] != state:
            assert event["state"] not in ENDINGS, event
        return event

    def close(self):
        """What closing the tab does: the connection goes, in the midst of the answer."""
        self.answer.close()
        self.connection.close()


@pytest.fixture
def server():
    FakeModel.gate.clear()
    FakeModel.reached.clear()
    desk = Desk(["one"], lambda name: FakeModel(), limits=Limits(patience=0.2))
    with serving(desk, "box.lan") as port:
        server = Server(desk, port)
        yield server
        FakeModel.gate.set()
        assert desk.stop(20)
        for asked in server.asked:
            asked.close()


def test_two_askers_wait_for_each_other_and_each_cancels_its_own(server):
    first, second, third = server.read("wait"), server.read("b"), server.read("c")
    first.until("running")
    assert FakeModel.reached.wait(20)
    assert [asked.next()["ahead"] for asked in (second, third)][1] == 2
    assert server.cancel(second.job) == 204
    assert second.until("cancelled")["message"] == "cancelled before its turn"
    assert server.cancel(second.job) == 404
    assert third.next()["ahead"] == 1
    assert server.cancel(first.job) == 202, "it will have ended"
    FakeModel.gate.set()
    assert first.until("cancelled")["message"] == "cancelled at block 3 of 4"
    assert third.until("done")["label"] == "c"
    for asked in server.asked:
        assert asked.answer.read() == b"", "nothing follows an ending"
    assert [entry["label"] for entry in server.desk.history.entries()] == ["c"]


@pytest.mark.parametrize("gone", ["running", "waiting"])
def test_a_connection_that_drops_cancels_what_it_asked_for(server, gone, monkeypatch):
    cancelled, cancel = threading.Event(), server.desk.cancel
    first, second = server.read("wait"), server.read("b")
    first.until("running")
    assert FakeModel.reached.wait(20)
    second.next()
    leaving = first if gone == "running" else second

    def watched(job):
        found = cancel(job)
        if job == leaving.job and found:
            cancelled.set()
        return found

    monkeypatch.setattr(server.desk, "cancel", watched)
    leaving.close()
    assert cancelled.wait(20), "the server sees that the asker has gone"
    FakeModel.gate.set()
    staying = second if gone == "running" else first
    assert staying.until("done")["state"] == "done"
    server.read("after").until("done")
    kept = [entry["label"] for entry in server.desk.history.entries()]
    assert kept == ["after", "b" if gone == "running" else "wait"]


def test_a_proxy_with_tls_on_this_machine_may_stand_before_it(server):
    for told, status in (({"x-forwarded-proto": "https"}, 200), ({}, 403)):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        headers = {"host": "box.lan", "origin": "https://box.lan", **told}
        connection.request("GET", f"/{TOKEN}/api/start", headers=headers)
        answer = connection.getresponse()
        assert (answer.status, bool(answer.read())) == (status, True)
        connection.close()


def test_a_model_that_hangs_is_said_to_those_who_wait_and_when_it_returns_so_is_that(server):
    first, second = server.read("wait"), server.read("b")
    assert FakeModel.reached.wait(20)
    first.until("running")
    assert second.next()["ahead"] == 1
    assert server.cancel(first.job) == 202
    for asked in (first, second):
        message = asked.until("stalled")["message"]
        assert message.startswith("the model has not returned for ")
        assert message.endswith(" s, after block 2 of 4; if it never does, restart the server")
    assert server.cancel(second.job) == 204, "one that waits can leave all the same"
    third = server.read("c")
    FakeModel.gate.set()
    assert first.until("cancelled")["message"] == "cancelled at block 3 of 4"
    assert third.until("done")["label"] == "c"
