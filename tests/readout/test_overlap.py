"""On a GPU results are waited for one step late: the same results, in order, also where a step fails."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch

import logitlens
from logitlens.anatomy import check
from logitlens.lenses import LogitLens
from logitlens.model import assemble, score, together
from logitlens.readout import chunked, read, transfer
from tests.readout.heads import make_head, make_rows, make_targets
from tests.readout.test_candidates import Tail

PROMPTS = ["The Eiffel Tower is in", "Rome", "One two three four five six seven", "a b", "The"]


@pytest.fixture(scope="module")
def model():
    return logitlens.load()


@pytest.fixture
def late(monkeypatch):
    """As on a GPU, whose results this machine's CPU has early."""
    monkeypatch.setattr(transfer, "overlaps", lambda device: True)


def noted(said, number):
    def begun():
        for i in range(number):
            said.append(f"begin {i}")
            yield lambda i=i: said.append(f"end {i}") or i

    return begun()


def test_each_is_waited_for_when_the_next_has_begun():
    said: list[str] = []
    assert list(transfer.in_turn(noted(said, 3), behind=True)) == [0, 1, 2]
    assert said == ["begin 0", "begin 1", "end 0", "begin 2", "end 1", "end 2"]
    said.clear()
    assert list(transfer.in_turn(noted(said, 2), behind=False)) == [0, 1]
    assert said == ["begin 0", "end 0", "begin 1", "end 1"]
    assert list(transfer.in_turn(iter(()), behind=True)) == []


@pytest.mark.parametrize("behind", [False, True])
def test_what_was_begun_before_an_error_is_given(behind):
    def begun():
        yield lambda: 1
        yield lambda: 2
        raise MemoryError("full")

    found = transfer.in_turn(begun(), behind=behind)
    assert [next(found), next(found)] == [1, 2]
    with pytest.raises(MemoryError, match="full"):
        next(found)


@pytest.mark.parametrize("together", [True, False])
def test_what_arrives_is_what_was_sent_and_views_of_one_memory_in_one_copy(together, monkeypatch):
    memory = torch.arange(24, dtype=torch.int32)
    sent = {
        "ids": memory[4:16].view(2, 3, 2).transpose(0, 1),
        "sums": memory[16:20].view(torch.float32),
        "flags": memory[20:24].view(torch.bool)[1:5],
        "part": memory[4:16].view(3, 4)[:, 1:3],
    }
    if not together:
        sent = {name: tensor.clone() for name, tensor in sent.items()}
    copies, to = [], torch.Tensor.to
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "to", lambda *a, **k: copies.append(a) or to(*a, **k))
        arriving = transfer.Arriving(sent, memory.device)
    assert len(copies) == (1 if together else 4)
    for name, array in arriving.arrays().items():
        np.testing.assert_array_equal(array, sent[name].numpy())
        assert array.dtype == sent[name].numpy().dtype


def test_the_last_block_is_on_its_way_until_it_is_wanted(late, monkeypatch):
    monkeypatch.setattr(read, "BLOCK_BYTES", 4 * 4 * 16 * 3)  # 3 positions a block
    monkeypatch.setattr(chunked, "ROWS", 12)
    head, x, targets = make_head(300), make_rows(7, 4), make_targets(7, 300, 2)
    given = [list(x.transpose(0, 1)), range(4), Tail(head), LogitLens()]
    table, told = read.Table(7), []
    end = read.begin(
        *given, k=3, targets_TM=targets, candidates=2, into=table,
        progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    before = table.filled
    assert 0 < before < 7
    found = end()
    assert table.filled == 7
    assert told[-1] == (7, 7)
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert end() is found, "ended once"
    monkeypatch.undo()
    at_once = read.statistics(*given, k=3, targets_TM=targets, candidates=2)
    assert found.keys() == at_once.keys()
    for name, array in at_once.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_allclose(found[name], array, atol=1e-5)
    assert {a.dtype for n, a in found.items() if n.endswith(("ids", "ranks"))} == {
        np.dtype("int32")
    }


def test_batches_are_read_while_the_next_runs(model, late, monkeypatch):
    said: list[str] = []
    runs, ends = together.capture, assemble.ReadingBuilder.reading
    monkeypatch.setattr(together, "capture", lambda *a, **k: said.append("run") or runs(*a, **k))
    monkeypatch.setattr(
        assemble.ReadingBuilder, "reading", lambda *a, **k: said.append("made") or ends(*a, **k)
    )
    options = {"token_budget": 8, "track": [" Paris"], "candidates": 2}
    found = model.read_batch(PROMPTS, **options)
    assert said[:2] == ["run", "run"]
    assert said[-1] == "made"
    assert said.count("run") >= 3
    monkeypatch.undo()
    for late_one, at_once in zip(found, model.read_batch(PROMPTS, **options), strict=True):
        for name, value in vars(at_once).items():
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(getattr(late_one, name), value, err_msg=name)


def test_sequences_of_a_survey_too_by_every_lens(model, late, monkeypatch):
    asked = [
        score.Asked(ids, [0, len(ids) - 1], np.array([[3], [4]]))
        for ids in ([5, 6, 7], [8, 9], [10, 11, 12, 13], [14, 15])
    ]
    lenses = [logitlens.lenses.resolve(name, model) for name in ("logit", "tuned")]
    found = list(score.read_rows(model, asked, lenses, [[2], [0, 1], [3]]))
    monkeypatch.undo()
    at_once = list(score.read_rows(model, asked, lenses, [[2], [0, 1], [3]]))
    assert [i for i, _ in found] == [i for i, _ in at_once]
    assert sorted(i for i, _ in found) == [0, 1, 2, 3]
    for (_, ours), (_, theirs) in zip(found, at_once):
        assert len(ours) == len(theirs) == 2
        for one, other in zip(ours, theirs):
            assert one.layers == other.layers
            assert one.check == other.check
            for name, array in other.arrays.items():
                np.testing.assert_array_equal(one.arrays[name], array, err_msg=name)


def test_residuals_are_let_go_before_the_next_pass(model, monkeypatch):
    """Of a batch that has ended nothing is held while the next one runs."""
    import weakref

    kept, runs = [], together.capture

    def watched(*args, **kwargs):
        assert all(each() is None for each in kept)
        found = runs(*args, **kwargs)
        kept.extend(weakref.ref(part) for part in found)
        return found

    monkeypatch.setattr(together, "capture", watched)
    assert len(model.read_batch(PROMPTS, token_budget=4)) == len(PROMPTS)
    assert len(kept) == len(PROMPTS)


def test_a_check_waits_for_its_own_batch_only(monkeypatch):
    """The calls that a GPU would get: its stream for checks waits for what was queued before."""
    said: list[str] = []

    class Stream:
        def __init__(self, device, priority=0):
            self.name = "side" if priority < 0 else "main"

        def record_event(self):
            said.append(f"recorded on {self.name}")
            return "event"

        def wait_event(self, event):
            said.append(f"{self.name} waits for the {event}")

        def synchronize(self):
            said.append(f"{self.name} done")

    @contextmanager
    def stream(used):
        said.append(f"onto {used.name}")
        yield
        said.append("back")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    transfer._side_stream.cache_clear()
    aside = transfer.aside(torch.device("cuda", 0))
    said.append("next batch")
    with aside:
        said.append("check")
    assert said == [
        "recorded on main", "next batch", "side waits for the event", "onto side", "check", "back",
        "side done",
    ]  # fmt: skip
    transfer._side_stream.cache_clear()


def test_on_the_cpu_nothing_is_aside():
    with transfer.aside(torch.device("cpu")) as nothing:
        assert nothing is None


@pytest.mark.parametrize("way", ["read_batch", "survey"])
def test_every_batch_is_ended_aside(way, model, late, monkeypatch):
    entered: list[bool] = []

    @contextmanager
    def watched():
        entered.append(True)
        yield
        entered.append(False)

    monkeypatch.setattr(transfer, "aside", lambda *devices: watched())

    def compare(*args):
        assert entered[-1], "the check is made aside"
        return check.compare(*args)

    for module in (assemble, score):
        monkeypatch.setattr(module, "compare", compare)
    if way == "read_batch":
        assert len(model.read_batch(PROMPTS, token_budget=8)) == len(PROMPTS)
    else:
        asked = [score.Asked(ids, [0], np.array([[3]])) for ids in ([5, 6], [8, 9, 10])]
        lens = logitlens.lenses.resolve("logit", model)
        assert len(list(score.read_rows(model, asked, [lens], [[1], [0]]))) == 2
    assert entered
    assert entered == [True, False] * (len(entered) // 2)
