"""What a fit shows on a terminal while it runs; on anything else, nothing."""

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
def test_other_processes_and_files_get_nothing(terminal, monkeypatch, watched):
    with watched(False) as report:
        assert report is None
    monkeypatch.setattr(fit_progress, "errors", lambda: Console(file=terminal))
    with watched(True) as report:
        assert report is None
    assert terminal.getvalue() == ""
