"""The desk with a real model in a real thread: cancelled or failing runs leave nothing behind."""

from __future__ import annotations

import re
import threading

import pytest
import torch

import logitlens
from logitlens.server.desk import Desk
from tests.server.test_desk import ask, ending

PROMPT = "The Eiffel Tower is in the city of"


@pytest.fixture
def loads():
    return []


@pytest.fixture
def desk(loads, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')

    def load(name):
        loads.append(name)
        return logitlens.load(None if name == "demo" else tmp_path)

    desk = Desk(["demo", "broken"], load)
    yield desk
    assert desk.stop(30)


def model_of(desk):
    return desk._model[1]


def hooks_on(model):
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.hf.modules()
    )


class Stop:
    """Makes the model stop after a block until it is let go, or do something there."""

    def __init__(self, model, block, act=None):
        self.reached, self.go, self.act = threading.Event(), threading.Event(), act
        self.armed = False
        self.handle = model.anatomy.blocks[block].register_forward_hook(self.hook)
        model.read([5, 6, 7])  # a model with a new hook is looked at again: before it is held
        self.armed = True

    def hook(self, *_):
        if not self.armed:
            return
        self.reached.set()
        if self.act:
            raise self.act
        assert self.go.wait(30)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.go.set()
        self.handle.remove()


def read(desk, prompt=PROMPT, model="demo", **more):
    return ending(ask(desk, prompt, model, **more)[0])


def test_a_cancelled_run_ends_within_one_block_and_leaves_the_model_as_it_was(desk, loads):
    before, states = read(desk)
    assert states[0] == "waiting"
    assert states[-1] == "done"
    model = model_of(desk)
    hooks = hooks_on(model)
    with Stop(model, block=2) as stop:
        events, job = ask(desk, PROMPT, "demo")
        assert stop.reached.wait(30)
        waiting, waits = ask(desk, "Rome is", "demo")
        stays, _ = ask(desk, PROMPT, "demo", lens="tuned")
        assert desk.cancel(waits.id)
        assert ending(waiting)[0]["message"] == "cancelled before its turn"
        assert desk.cancel(job.id)
        assert desk.cancel(job.id)
        stop.handle.remove()
        stop.go.set()
        # Block 1 where the new hook made the model be looked at again, which is where it stopped.
        ended = ending(events)[0]
        assert ended["state"] == "cancelled"
        assert re.fullmatch(rf"cancelled at block [13] of {model.n_blocks}", ended["message"])
        assert ending(stays)[0]["state"] == "done"
    assert not desk.cancel(job.id)
    assert hooks_on(model) == hooks
    after, _ = read(desk)
    one, other = (desk.readings[event["id"]] for event in (before, after))
    assert (one.top_ids == other.top_ids).all()
    assert (one.top_logprobs == other.top_logprobs).all()
    assert (loads, model_of(desk)) == (["demo"], model)
    assert len(desk.readings) == 3


def test_progress_counts_every_block_and_position_of_the_model(desk):
    read(desk)
    steps: list[tuple[str, int, int]] = []
    reading = model_of(desk).read(PROMPT, progress=lambda *step: steps.append(step))
    L, T, _ = reading.shape
    assert steps[: L - 1] == [("blocks", done, L - 1) for done in range(1, L)]
    assert {phase for phase, _, _ in steps[L - 1 :]} == {"positions"}
    assert steps[-1] == ("positions", T, T)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "out of memory: shorten"),
        (RuntimeError("[enforce fail] can't allocate memory: 9 GB"), "out of memory: sh"),
        (ValueError("odd\ninput"), "raises ValueError on 1 × 10 tokens: odd input"),
        (KeyboardInterrupt(), "the model failed (KeyboardInterrupt"),
    ],
)
def test_a_forward_that_raises_is_a_sentence_and_the_next_prompt_is_read(
    desk, loads, failure, words
):
    read(desk)
    with Stop(model_of(desk), 1, failure):
        event, _ = read(desk)
    assert event["state"] == "error"
    assert words in event["message"]
    assert "\n" not in event["message"]
    assert read(desk)[0]["state"] == "done"
    assert loads == ["demo", "demo"], "its state is not trusted"


def test_a_model_directory_that_is_broken_is_a_sentence(desk, loads):
    event, states = read(desk, model="broken")
    assert (event["state"], states) == ("error", ["waiting", "loading", "error"])
    assert "no weights" in event["message"]
    assert "\n" not in event["message"]
    assert read(desk)[0]["state"] == "done"
    assert loads == ["broken", "demo"]


def test_half_a_character_is_a_sentence(desk, loads):
    assert "lone surrogate" in read(desk, "half \ud83d")[0]["message"]
    assert "tokens (" in read(desk, track=(" antidisestablishmentarianism",))[0]["message"]
    assert "outside the vocabulary" in read(desk, track=(10**30,))[0]["message"]
    assert read(desk)[0]["state"] == "done"
    assert loads == ["demo"]
