"""The desk with a real model in a real thread: cancelled or failing runs leave nothing behind."""

from __future__ import annotations

import json
import queue
import re
import threading
from dataclasses import replace

import pytest
import torch

import logitlens
from logitlens.edit import parse
from logitlens.errors import PromptError
from logitlens.model.edits import prepare
from logitlens.server.desk import Desk, Job
from logitlens.server.gallery import Gallery
from logitlens.server.order import Limits, Order, Patch
from logitlens.view import page
from tests.server.test_desk import ask, ending, until

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
    assert desk.stop(120)


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
        stays, _ = ask(desk, PROMPT, "demo", lenses=("tuned",))
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
    one, other = (desk.history.readings[event["id"]] for event in (before, after))
    assert (one.top_ids == other.top_ids).all()
    assert (one.top_logprobs == other.top_logprobs).all()
    assert (loads, model_of(desk)) == (["demo"], model)
    assert len(desk.history.readings) == 3


def test_a_text_is_written_once_and_read_with_every_lens(desk):
    done, _ = read(desk, lenses=("logit", "tuned"), write={"max_new_tokens": 3})
    logit, tuned = (desk.history.readings[entry["id"]] for entry in done["entries"])
    assert [r.lens_name for r in (logit, tuned)] == ["logit", "tuned"]
    assert logit.ids.tolist() == tuned.ids.tolist()
    assert logit.generated.tolist() == tuned.generated.tolist()
    assert [entry["order"]["lenses"] for entry in done["entries"]] == [["logit"], ["tuned"]]


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


def test_lenses_are_read_from_one_run_and_an_edit_beside_what_was_before(desk):
    done, _ = read(desk, lenses=("logit", "tuned"), edits=("ablate:block=3,stream=mlp",))
    made = [desk.history.readings[entry["id"]] for entry in done["entries"]]
    assert [r.lens_name for r in made] == ["logit", "tuned"] * 2
    assert ["edits" in r.meta and bool(r.meta["edits"]) for r in made] == [False, False, True, True]
    assert "3.mlp set to zero" in done["entries"][2]["lens"]
    # each alone is what the form asks for
    assert done["entries"][3]["order"]["lenses"] == ["tuned"]
    assert done["entries"][0]["order"]["edits"] == []


def test_a_text_grows_column_by_column_is_stopped_followed_and_gone_on_with(desk):
    events, _ = ask(desk, PROMPT, "demo", write={"max_new_tokens": 8})
    until(events, "column")  # the prompt
    until(events, "column")
    done, states = ending(events)
    assert (
        states.count("column")
        == len(desk.history.readings[done["id"]].meta["generation"]["ids"]) - 1
    )
    whole = desk.history.readings[done["id"]]
    written = whole.meta["generation"]["ids"]
    assert written == model_of(desk).generate(PROMPT, max_new_tokens=8).meta["generation"]["ids"]
    # pinned tokens are followed in the place of the reading, and the text stays as it is
    order = Order.of(
        desk.history.order_of({"again": done["id"], "track": [7]}), ["demo"], ["logit"], Limits()
    )
    again, _ = ending(put(desk, replace(order, replaces=done["id"])))
    followed = desk.history.readings[again["id"]]
    assert again["id"] == done["id"]
    assert followed.ids.tolist() == whole.ids.tolist()
    assert (followed.generated == whole.generated).all()
    assert followed.meta["generation"] == whole.meta["generation"]
    assert followed.track_ids.tolist() == [7]
    # from any position, with any token
    start = {"id": done["id"], "position": 9, "token": written[0]}
    data = desk.history.order_of({"from": start, "model": "broken"})  # as the form happens to say
    order = Order.of(data, ["demo", "broken"], ["logit"], Limits())
    assert order.model == "demo"
    longer, _ = ending(put(desk, order))
    assert longer["order"]["prompt"].startswith(PROMPT), "ids that are a text are shown as one"
    assert desk.history.readings[longer["id"]].ids.tolist() == [
        *whole.ids.tolist()[:10],
        written[0],
    ]
    # who wrote it: parts that sum to the model's own logit
    question = desk.history.question({"id": done["id"], "position": 9, "token": written[0]})
    found = ending(put(desk, question))[0]["attribution"]
    assert sum(v for _, v in found["parts"]) + found["rest"] == pytest.approx(found["sum"])
    assert abs(found["difference"]) < 1e-2
    patch = Patch("demo", PROMPT, "The Colosseum is in the city of", " Paris", " Rome")
    events = put(desk, patch)
    assert until(events, "running")["phase"] == "layers", "a word that the page knows"
    grid = ending(events)[0]["grid"]
    assert grid["restored"][-1][-1] == pytest.approx(1, abs=1e-2), "all of it, after the last layer"


def again(desk, name, *track):
    """A reading with more tokens tracked, in its place."""
    data = desk.history.order_of({"again": name, "track": list(track)})
    order = Order.of(data, ["demo"], ["logit", "tuned"], Limits())
    return ending(put(desk, replace(order, replaces=name)))[0]


def test_a_token_is_pinned_in_an_edited_reading(desk):
    done, _ = read(desk, edits=("ablate:block=3,stream=mlp",))
    edited = done["entries"][1]["id"]
    before = desk.history.readings[edited]
    followed = again(desk, edited, 7)
    assert (followed["state"], followed["id"]) == ("done", edited)
    assert desk.history.readings[edited].track_ids.tolist() == [7]
    assert (desk.history.readings[edited].top_ids == before.top_ids).all()
    assert desk.loaded == "demo"


@pytest.mark.parametrize(
    "edit", ["add:layer=5,token= Paris,scale=3,positions=-1", "ablate:block=3,stream=mlp"]
)
def test_edits_stay_where_they_acted_while_a_text_was_written(desk, edit):
    """At positions of its prompt, whichever text is read again."""
    done, _ = read(desk, lenses=("logit", "tuned"), write={"max_new_tokens": 4}, edits=(edit,))
    logit, tuned = (desk.history.readings[entry["id"]] for entry in done["entries"])
    # The final rows are the model's own by any lens.
    assert (logit.top_ids[-1] == tuned.top_ids[-1]).all()
    assert logit.top_logprobs[-1] == pytest.approx(tuned.top_logprobs[-1], abs=1e-4)
    entry = again(desk, done["entries"][0]["id"], 7)
    followed = desk.history.readings[entry["id"]]
    assert followed.top_logprobs == pytest.approx(logit.top_logprobs, abs=1e-4)
    assert followed.entropy == pytest.approx(logit.entropy, abs=1e-4)
    # What wrote a token is asked of the same run: its logit is that of the reading.
    for position in (4, len(logit.ids) - 1):
        token = int(logit.top_ids[-1, position, 0])
        question = desk.history.question({"id": entry["id"], "position": position, "token": token})
        found = ending(put(desk, question))[0]["attribution"]
        assert abs(found["difference"]) < 1e-2
        model = model_of(desk)
        ready = prepare(model, parse(edit)).chunk(0, logit.meta["generation"]["prompt_tokens"])
        residuals = model.capture(logit.ids.tolist(), edits=ready)
        own = model.tail.logits(residuals.h[-1][position : position + 1])[0, token]
        assert found["sum"] == pytest.approx(float(own), abs=1e-2)


def test_equal_prompts_make_a_grid_of_nothing_that_is_json(desk):
    grid = ending(put(desk, Patch("demo", PROMPT, PROMPT, " Paris", None)))[0]["grid"]
    assert {x for row in grid["restored"] for x in row} == {None}
    json.dumps(grid, allow_nan=False)


def test_a_gallery_that_cannot_be_written_stops_no_reading(desk, tmp_path, monkeypatch, capsys):
    desk.history.changed = Gallery(tmp_path / "shared")

    def full(path, text):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("logitlens.server.gallery.write_text", full)
    done, _ = read(desk)
    assert done["state"] == "done"
    assert desk.loaded == "demo"
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert said[0].startswith("logitlens serve: --share: [Errno 28] No space left")


def test_a_text_that_is_stopped_is_kept_as_far_as_it_came(desk):
    read(desk)
    events, job = ask(
        desk, PROMPT, "demo", write={"max_new_tokens": 60, "temperature": 1.0, "seed": 1}
    )
    for _ in range(3):  # the prompt, and two words
        until(events, "column")
    assert desk.cancel(job.id) == "ending"
    done, _ = ending(events)
    assert done["state"] == "done"
    assert 2 <= len(desk.history.readings[done["id"]].meta["generation"]["ids"]) < 60


def test_settings_are_refused_before_anything_is_read(desk):
    for wrong in ({"temperature": float("nan")}, {"max_new_tokens": 0}, {"top_p": 10**400}):
        event, states = read(desk, write=wrong)
        assert event["state"] == "error"
        assert "expected" in event["message"]
        assert len(event["message"]) < 200
        assert not {"running", "column"} & set(states)


def test_a_text_whose_model_fails_half_way_is_kept_as_far_as_it_came(desk):
    read(desk)
    model, passes = model_of(desk), []

    def fails(*_):
        passes.append(1)
        if len(passes) > 4:
            raise RuntimeError("out of luck")

    handle = model.hf.register_forward_hook(fails)
    model.read([5, 6, 7])  # a model with a new hook is looked at again
    passes.clear()
    event, states = read(desk, write={"max_new_tokens": 8, "temperature": 1.0, "seed": 1})
    handle.remove()
    assert event["state"] == "error"
    assert "out of luck; what was written until then is kept" in event["message"]
    kept = list(desk.history.readings.values())[-1].meta["generation"]["ids"]
    assert 0 < len(kept) == states.count("column") - 1
    assert desk.history.entries()[0]["order"]["write"]["max_new_tokens"] == 8


def test_readings_are_named_and_deleted_and_a_gallery_follows(desk, tmp_path):
    gallery = Gallery(tmp_path / "shared")
    desk.history.changed = gallery
    done, _ = read(desk)
    desk.history.rename(done["id"], "the <tower>")
    index = (tmp_path / "shared/index.html").read_text("utf-8")
    assert "the &lt;tower&gt;" in index
    path = tmp_path / "shared" / f"{done['id']}.html"
    assert page.load(path)[0].prompt == PROMPT
    version = desk.history.version
    desk.history.forget(done["id"])
    assert desk.history.version > version
    assert not path.exists()
    with pytest.raises(PromptError, match="no reading"):
        desk.history.forget(done["id"])


def put(desk, order):
    events: queue.Queue = queue.Queue()
    desk.put(Job(order, events.put))
    return events
