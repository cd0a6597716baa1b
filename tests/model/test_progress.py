"""Progress of a reading, and its end before it is done."""

from __future__ import annotations

import pytest

import logitlens
from tests.model.test_capture import state
from tests.models import tiny_gpt2

IDS = list(range(5, 25))


@pytest.fixture(scope="module")
def model():
    return logitlens.load(tiny_gpt2())


def told(model, **options):
    said = []
    model.read(IDS, progress=lambda *what: said.append(what), **options)
    return said


def test_every_block_and_then_all_positions(model):
    assert told(model) == [*(("blocks", i, 3) for i in (1, 2, 3)), ("positions", 20, 20)]


def test_in_chunks_blocks_are_counted_over_all_of_them(model):
    said = told(model, chunk=8)  # the first position alone, then 8, 8 and 3
    assert [s for s in said if s[0] == "blocks"] == [("blocks", i, 12) for i in range(1, 13)]
    assert [s for s in said if s[0] == "positions"] == [
        ("positions", t, 20) for t in (1, 9, 17, 20)
    ]


def test_a_long_readout_tells_of_its_blocks_of_positions(model, monkeypatch):
    from logitlens.readout import chunked, read

    monkeypatch.setattr(chunked, "ROWS", 4 * 6 // chunked.LIBRARY)
    monkeypatch.setattr(read, "BLOCK_BYTES", 6 * 4 * 32 * 4)  # six positions of 4 layers, width 32
    assert [done for what, done, _ in told(model) if what == "positions"] == [5, 10, 15, 20]


class Enough(Exception):
    pass


@pytest.mark.parametrize("phase", ["blocks", "positions"])
@pytest.mark.parametrize("error", [Enough, KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("chunk", [None, 8])
def test_what_progress_raises_ends_the_reading_and_nothing_stays(model, phase, error, chunk):
    before, raised, calls = state(model.hf), error("enough"), []

    def progress(what, done, total):
        calls.append((what, done))
        if what == phase:
            raise raised

    with pytest.raises(error) as caught:
        model.read(IDS, progress=progress, chunk=chunk)
    assert caught.value is raised
    assert calls[-1][0] == phase
    assert state(model.hf) == before
    assert model.read(IDS).meta["check"]["ok"]
