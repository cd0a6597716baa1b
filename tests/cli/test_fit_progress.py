"""What a fit shows while it runs: on a terminal a bar, on anything else plain lines."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from logitlens.cli import fit_progress
from logitlens.fit import jacobian, tuned


@pytest.fixture
def terminal(monkeypatch):
    """What is written to a terminal 100 columns wide."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100)
    monkeypatch.setattr(fit_progress, "errors", lambda: console)
    return out


def test_a_tuned_lens_shows_its_losses_and_keeps_the_last_judgement(terminal):
    with fit_progress.watched_tuned(True) as report:
        report(tuned.Progress(2, 8, {0: 1.25, 1: 0.5}, 300, 2.0, 0.1, {0: 1.5, 1: 0.75}))
        report(tuned.Progress(3, 8, {0: 1.125, 1: 0.4}, 450, 2.0, 0.1))
    last = terminal.getvalue().rpartition("training")[2]
    assert "3/8" in last
    assert "225 tokens/s" in last
    rows = [line.split() for line in last.splitlines()]
    assert ["embed", "1.1250", "1.5000"] in rows
    assert ["0", "0.4000", "0.7500"] in rows


def test_a_jacobian_lens_shows_the_largest_error(terminal):
    with fit_progress.watched_jacobian(True) as report:
        report(jacobian.Progress(1, 4, 20, 1.0, {}))
        report(jacobian.Progress(2, 4, 40, 2.0, {0: 0.125, 1: 0.25}))
    last = terminal.getvalue().rpartition("averaging")[2]
    assert "2/4" in last
    assert "standard error ≤ 25.0%" in last


@pytest.mark.parametrize("watched", [fit_progress.watched_tuned, fit_progress.watched_jacobian])
def test_other_processes_show_nothing(terminal, watched):
    with watched(False) as report:
        assert report is None
    assert terminal.getvalue() == ""


@pytest.fixture
def log(monkeypatch):
    """What is written to standard error that is a file, and a clock that is set by hand."""
    out, clock = io.StringIO(), [0.0]
    monkeypatch.setattr(fit_progress, "errors", lambda: Console(file=out))
    monkeypatch.setattr(fit_progress.time, "monotonic", lambda: clock[0])
    return out, clock


def test_without_a_terminal_each_judgement_is_a_line_and_each_minute(log):
    out, clock = log
    with fit_progress.watched_tuned(True) as report:
        report(tuned.Progress(1, 2000, {0: 1.5, 1: 0.5}, 150, 2.0, 0.1))
        for step in (2, 3):  # the same judgement, as several processes tell it
            judged = {0: 1.5, 1: 0.75}
            report(tuned.Progress(step, 2000, {0: 1.25, 1: 0.5}, 300, 63.0, 0.1, judged))
        clock[0] = 61.0
        report(tuned.Progress(1004, 2000, {0: 1.0, 1: 0.5}, 600, 3725.0, 0.1))
        report(tuned.Progress(1005, 2000, {0: 1.0, 1: 0.5}, 600, 3725.0, 0.1))
    assert out.getvalue().splitlines() == [
        "step 2 of 2,000 · mean loss 0.8750 · mean held-out KL 1.1250 · 1:03",
        "step 1,004 of 2,000 · mean loss 0.7500 · 62:05",
    ]


def test_without_a_terminal_a_jacobian_lens_says_once_a_minute_how_far_it_is(log):
    out, clock = log
    with fit_progress.watched_jacobian(True) as report:
        report(jacobian.Progress(1, 4, 20, 1.0, {}))
        clock[0] = 60.0
        report(jacobian.Progress(2, 4, 40, 60.0, {0: 0.125, 1: 0.25}))
        report(jacobian.Progress(3, 4, 60, 61.0, {0: 0.125, 1: 0.25}))
    assert out.getvalue() == "prompt 2 of 4 · standard error ≤ 25.0% · 1:00\n"


def test_that_nobody_reads_the_lines_ends_no_fit(monkeypatch):
    class Left(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(fit_progress, "errors", lambda: Console(file=Left()))
    with fit_progress.watched_tuned(True) as report:
        report(tuned.Progress(1, 2, {0: 1.0}, 10, 1.0, 0.1, {0: 1.0}))


@pytest.mark.parametrize(
    ("files", "fresh", "said"),
    [
        ({}, False, ""),
        ({"checkpoint.pt": 1}, False, "the checkpoint in {} is kept, the same command goes on"),
        ({"checkpoint.pt": 1}, True, ""),  # of the fit before
        ({"checkpoint.pt": 2}, True, "the checkpoint in {} is kept, the same command without --fresh goes on"),
        ({"checkpoint.pt": 1, "shard-00003.pt": 2}, False, "1 shard in {} is kept, the same command goes on"),
    ],
    ids=["none", "kept", "of another", "fresh", "shards"],
)  # fmt: skip
def test_an_interrupted_fit_says_what_it_goes_on_from(tmp_path, files, fresh, said):
    for name, when in files.items():
        if when == 1:
            (tmp_path / name).touch()

    def interrupted():
        for name, when in files.items():
            if when == 2:
                (tmp_path / name).touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as ended, fit_progress.kept(tmp_path, fresh, True):
        interrupted()
    assert str(ended.value) == said.format(tmp_path)
    with pytest.raises(KeyboardInterrupt) as ended, fit_progress.kept(tmp_path, fresh, False):
        raise KeyboardInterrupt
    assert str(ended.value) == "", "another process says it"
