"""The desk: one model at a time, a line, words for failures."""

from __future__ import annotations

import queue
import re
import threading
import time
from types import SimpleNamespace

import pytest

from logitlens.errors import LogitLensError, PromptError
from logitlens.server import desk as desk_module
from logitlens.server.desk import ENDINGS, Desk, Job
from logitlens.server.order import Limits, Order
from tests.server.fakes import FakeModel

MODELS, LENSES = ["one", "two"], ["logit", "tuned"]


@pytest.fixture
def desk():
    FakeModel.gate.clear()
    FakeModel.reached.clear()
    loads: list[str] = []
    may_load = threading.Event()
    may_load.set()

    def load(name):
        assert may_load.wait(20)
        loads.append(name)
        return FakeModel()

    desk = Desk(MODELS, load, limits=Limits(waiting=2, history=3, tokens=6))
    desk.loads, desk.may_load = loads, may_load
    yield desk
    FakeModel.gate.set()
    may_load.set()
    assert desk.stop(20), "the worker's thread ends"


def ask(desk, prompt, model="one", **more):
    """Put an order and give the queue of its events."""
    events: queue.Queue = queue.Queue()
    job = Job(Order(prompt, model, **more), events.put)
    desk.put(job)
    return events, job


def ending(events):
    """The last event, and the states before it."""
    states = []
    while True:
        event = events.get(timeout=120)
        states.append(event["state"])
        if event["state"] in ENDINGS:
            return event, states


def until(events, state):
    """The first event of a state."""
    while (event := events.get(timeout=120))["state"] != state:
        assert event["state"] not in ENDINGS, event
    return event


def test_a_prompt_goes_through_its_states_and_is_kept(desk):
    event, states = ending(ask(desk, "a b c", top=3)[0])
    assert states == ["waiting", "loading", "running", "running", "done"]
    assert event["label"] == "a b c"
    assert event["shape"] == [5, 3, 3]
    assert desk.history.readings[event["id"]].prompt == "a b c"
    _, states = ending(ask(desk, "again")[0])
    assert "loading" not in states
    assert [entry["label"] for entry in desk.history.entries()] == ["again", "a b c"]


@pytest.mark.slow
def test_one_model_is_in_memory(desk):
    for model in ("one", "two", "two", "one"):
        ending(ask(desk, "x y", model)[0])
        assert desk.loaded == model
    assert desk.loads == ["one", "two", "one"]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("crash", "CUDA error: device-side assert triggered"),
        ("memory", "out of memory: shorten the prompt"),
        ("cuda memory", "out of memory: shorten the prompt"),
        ("forward", "Fake raises RuntimeError on 1 × 1 tokens: odd"),
        ("exit", "SystemExit"),
        (" ", "has no tokens"),
        ("1 2 3 4 5 6 7", "has 7 tokens, at most 6 are read here"),
    ],
)
@pytest.mark.slow
def test_a_failure_is_told_and_the_next_prompt_is_read(desk, prompt, words):
    event, _ = ending(ask(desk, prompt)[0])
    assert event["state"] == "error"
    assert words in event["message"]
    assert "\n" not in event["message"]
    assert ending(ask(desk, "fine")[0])[0]["state"] == "done"


@pytest.mark.slow
def test_a_crashed_model_is_loaded_anew_and_a_refused_prompt_keeps_it(desk):
    ending(ask(desk, "ok")[0])
    ending(ask(desk, "1 2 3 4 5 6 7")[0])
    ending(ask(desk, "ok", lenses=("tuned",))[0])
    assert desk.loads == ["one"]
    for prompt in ("crash", "forward", "cuda memory"):
        desk.loads.clear()
        ending(ask(desk, prompt)[0])
        ending(ask(desk, "ok")[0])
        assert desk.loads == ["one"]


def test_those_who_wait_are_told_how_many_are_ahead_and_a_full_line_refuses(desk):
    ask(desk, "wait")
    assert FakeModel.reached.wait(20)
    second, job = ask(desk, "b")
    third, other = ask(desk, "c")
    assert second.get(timeout=5) == {"state": "waiting", "job": job.id, "ahead": 1}
    assert third.get(timeout=5) == {"state": "waiting", "job": other.id, "ahead": 2}
    with pytest.raises(PromptError, match="2 prompts are waiting already"):
        ask(desk, "d")
    FakeModel.gate.set()
    assert ending(second)[0]["state"] == "done"
    assert third.get(timeout=5)["ahead"] == 1
    assert ending(third)[0]["state"] == "done"


def test_progress_is_told_by_block_and_by_position_and_not_too_often(desk, monkeypatch):
    now, tick = 0.0, 0.0

    def monotonic():
        nonlocal now
        now += tick
        return now

    monkeypatch.setattr(desk_module, "time", SimpleNamespace(monotonic=monotonic))
    for per, blocks in ((1.1, [1, 2, 3, 4]), (0.6, [1, 3]), (0.0, [1])):
        tick = per * desk_module._EVENT_SECONDS
        events, _ = ask(desk, "a b c")
        seen = []
        while (event := events.get(timeout=120))["state"] not in ENDINGS:
            seen.append(event)
        running = [e for e in seen if e["state"] == "running"]
        assert [e["done"] for e in running if e["phase"] == "blocks"] == blocks
        assert {e["total"] for e in running if e["phase"] == "blocks"} == {4}
        positions = [(e["done"], e["total"]) for e in running if e["phase"] == "positions"]
        assert positions[0] == (1, 3)
        assert all((e["tokens"], e["lens"]) == (3, "logit") for e in running)


def test_one_that_waits_is_cancelled_at_once_and_the_line_moves_up(desk):
    first, _ = ask(desk, "wait")
    assert FakeModel.reached.wait(20)
    second, job = ask(desk, "b")
    third, _ = ask(desk, "c")
    assert [events.get(timeout=5)["ahead"] for events in (second, third)] == [1, 2]
    assert desk.cancel(job.id) == "ended"
    assert second.get(timeout=5) == {"state": "cancelled", "message": "cancelled before its turn"}
    assert third.get(timeout=5)["ahead"] == 1
    assert not desk.cancel(job.id), "cancelled twice"
    FakeModel.gate.set()
    assert ending(first)[0]["state"] == ending(third)[0]["state"] == "done"
    assert second.empty()
    assert len(desk.history.readings) == 2


def test_one_that_runs_is_cancelled_at_its_next_block_and_the_model_stays(desk):
    events, job = ask(desk, "wait")
    assert FakeModel.reached.wait(20)
    until(events, "running")
    after, _ = ask(desk, "a b")
    assert desk.cancel(job.id) == "ending"
    assert desk.cancel(job.id) == "ending", "twice is once"
    assert events.empty(), "it runs until the block has ended"
    FakeModel.gate.set()
    assert ending(events)[0] == {"state": "cancelled", "message": "cancelled at block 3 of 4"}
    assert ending(after)[0]["state"] == "done"
    assert desk.loads == ["one"]
    assert events.empty()
    assert not desk.cancel(job.id), "it is over"


def test_one_whose_model_is_loading_is_cancelled_at_once_and_the_model_is_kept(desk):
    desk.may_load.clear()
    events, job = ask(desk, "a", "two")
    assert until(events, "loading")["model"] == "two"
    assert desk.cancel(job.id) == "ended"
    expected = {"state": "cancelled", "message": "cancelled while two was being loaded"}
    assert events.get(timeout=5) == expected
    assert not desk.cancel(job.id), "twice"
    after, _ = ask(desk, "b", "two")
    desk.may_load.set()
    assert "loading" not in ending(after)[1]
    assert desk.loads == ["two"]
    assert events.empty(), "nothing follows an ending"


def test_done_and_foreign_jobs_cannot_be_cancelled(desk):
    events, job = ask(desk, "a")
    done, _ = ending(events)
    assert not desk.cancel(job.id)
    assert not desk.cancel(done["id"]), "the name of a reading is not the secret of a job"
    assert not desk.cancel("")
    assert list(desk.history.readings) == [done["id"]]
    assert len({Job(job.order, print).id for _ in range(100)}) == 100


def test_a_job_cancelled_when_all_is_read_is_not_kept(desk):
    events, job = ask(desk, "a")
    job.tell = lambda event: (
        events.put(event) or (event.get("phase") == "positions" and desk.cancel(job.id))
    )
    event, _ = ending(events)
    assert event == {"state": "cancelled", "message": "cancelled at the last moment"}
    assert not desk.history.readings


def test_the_oldest_readings_go_first(desk):
    for prompt in "abcde":
        ending(ask(desk, prompt)[0])
    assert [entry["label"] for entry in desk.history.entries()] == ["e", "d", "c"]


def test_the_history_is_bounded_by_bytes_and_keeps_the_latest_in_any_case(desk):
    ending(ask(desk, "a")[0])
    (size,) = (
        sum(v.nbytes for v in vars(r).values() if hasattr(v, "nbytes"))
        for r in desk.history.readings.values()
    )
    for limit, kept in ((2 * size, ["c", "b"]), (size - 1, ["c"])):
        desk.limits = Limits(tokens=6, history_bytes=limit)
        for prompt in "bc":
            ending(ask(desk, prompt)[0])
        assert [entry["label"] for entry in desk.history.entries()] == kept
        assert list(desk.history.orders) == list(desk.history.readings)


def test_a_reading_that_is_followed_is_not_the_one_that_goes(desk):
    for prompt in "ab":
        ending(ask(desk, prompt)[0])
    oldest = next(iter(desk.history.readings))
    desk.limits = Limits(tokens=6, history_bytes=1)
    done, _ = ending(ask(desk, "a", replaces=oldest)[0])
    assert (done["state"], done["id"]) == ("done", oldest)
    assert list(desk.history.readings) == list(desk.history.orders) == [oldest]


def test_a_name_with_half_a_character_is_a_name(desk):
    done, _ = ending(ask(desk, "a")[0])
    desk.history.rename(done["id"], "a \ud800")
    assert desk.history.entries()[0]["label"] == "a ?"


def test_a_model_that_gives_no_sign_is_said_after_some_seconds(desk):
    assert desk.stalled() == ""
    desk.limits = Limits(patience=0.05)
    desk.may_load.clear()
    loading, _ = ask(desk, "wait")
    until(loading, "loading")
    time.sleep(0.1)
    assert desk.stalled() == "", "a download may take its time"
    desk.may_load.set()
    assert FakeModel.reached.wait(20)
    time.sleep(0.1)
    assert re.fullmatch(
        r"the model has not returned for 0 s, after block 2 of 4; if it never does, restart the server",
        desk.stalled(),
    )
    FakeModel.gate.set()
    ending(loading)
    ending(ask(desk, "a")[0])
    assert desk.stalled() == ""


def test_stopping_tells_those_who_wait_and_ends_the_thread(desk):
    running, _ = ask(desk, "wait")
    assert FakeModel.reached.wait(20)
    waiting, _ = ask(desk, "b")
    assert not desk.stop(), "the model is in the midst of its block"
    late, _ = ask(desk, "c")
    for events in (running, waiting, late):
        assert ending(events)[0]["message"] == "the server has ended"
    FakeModel.gate.set()
    assert desk.stop(20)
    assert desk._worker not in threading.enumerate()
    assert not desk.history.readings, "the reading in hand ended at its next block"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "expected a JSON object"),
        ({}, "the prompt is empty"),
        ({"prompt": 3}, "the prompt is 3: expected text, messages or token ids"),
        ({"prompt": []}, "the prompt is empty"),
        ({"prompt": [1, "x"]}, "1: expected a message"),
        ({"prompt": [{}]}, "{}: expected a message, with its role and its content"),
        ({"prompt": [{"content": "hi"}]}, "expected a message"),
        ({"prompt": "x", "write": {"stop": "x" * 201}}, "at most 200 characters end a text"),
        ({"prompt": "x" * 20_001}, "20,001 characters, at most 20,000"),
        ({"prompt": "x", "model": "/etc"}, "no model '/etc' here: expected one of one, two"),
        ({"prompt": "x", "lenses": ["tuned:/etc/passwd"]}, "no lens"),
        ({"prompt": "x", "lenses": []}, "choose a lens"),
        ({"prompt": [{"role": 3, "content": "x"}]}, "a chat's messages have a role and a content"),
        ({"prompt": "x", "edits": ["add:layer=x"]}, "lacks token="),
        ({"prompt": "x", "edits": ["/etc/passwd.json"]}, "the server reads no files"),
        ({"prompt": "x", "edits": ["add:layer=1,vector=/etc/x.npy"]}, "the server reads no files"),
        ({"prompt": "x", "write": {"max_new_tokens": 9999}}, "at most 1,024 tokens are written"),
        (
            {"prompt": "x", "write": {"temperature": "hot"}},
            "'temperature' is 'hot': expected a number",
        ),
        ({"prompt": "x", "write": {"custom_generate": "x"}}, "'custom_generate' is 'x'"),
        ({"prompt": "x", "top": 0}, "top is 0: expected 1 to 50"),
        ({"prompt": "x", "top": True}, "top is True"),
        ({"prompt": "x", "top": 1e99}, "top is"),
        ({"prompt": "x", "track": "Paris"}, "track is 'Paris': expected a list of tokens"),
        ({"prompt": "x", "track": [*range(33)]}, "33 tokens to track; at most 32 are"),
        ({"prompt": "x", "model": ["y" * 10_000]}, "no model ['yyyy"),
        ({"prompt": "x", "track": [[]]}, "texts or ids"),
    ],
)
def test_an_order_that_does_not_fit_is_refused_in_words(data, words):
    with pytest.raises(LogitLensError) as caught:
        Order.of(data, MODELS, LENSES, Limits())
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_token_is_tracked_once():
    order = Order.of({"prompt": "x", "track": [1, "a", 1] * 20}, MODELS, LENSES, Limits())
    assert order.track == (1, "a")
