"""Ctrl-C and SIGTERM while a survey is read: the shards under way are dropped, all else is kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from logitlens.survey.plan import Settings
from logitlens.survey.run import DROPPED, run, status
from tests.survey.conftest import records, still_running, write_lines

pytestmark = pytest.mark.slow
ITEMS = records(400)


def command(path, folder, saved, *words) -> subprocess.Popen:
    """The command, in a group of processes of its own as a terminal would start it."""
    return subprocess.Popen(
        [sys.executable, "-m", "logitlens", "survey", "run", str(path), "-o", str(folder), "-m",
         str(saved), "--shard-size", "2", "--threads", "1", "--token-budget", "64", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=_heed_interrupts,
    )  # fmt: skip


def _heed_interrupts() -> None:
    """A shell that starts tests in the background ignores SIGINT, and so would the command."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def undisturbed(path, folder, saved, model) -> bytes:
    """The same survey in this process, to its end; its table."""
    settings = Settings(shard_size=2, threads=1, token_budget=64)
    run(path, folder, model, source=str(saved), loading={}, settings=settings)
    return (folder / "survey.parquet").read_bytes()


@pytest.fixture(scope="module")
def whole(saved, model, tmp_path_factory):
    """The prompts, and the table of the undisturbed run."""
    folder = tmp_path_factory.mktemp("undisturbed")
    path = write_lines(folder / "prompts.jsonl", ITEMS)
    return path, undisturbed(path, folder / "whole", saved, model)


def test_ctrl_c_while_workers_start_is_said_by_one_line(saved, tmp_path, whole):
    folder = tmp_path / "survey"
    driver = command(whole[0], folder, saved, "-j", "2")
    for _ in range(1200):
        if len(still_running(folder)) == 3:  # the driver and its workers, which import torch now
            break
        assert driver.poll() is None, driver.stderr.read()
        time.sleep(0.02)
    else:
        pytest.fail("the two workers never started")
    os.killpg(driver.pid, signal.SIGINT)
    said = driver.communicate(timeout=60)[1]
    assert driver.returncode == 130, said
    last = said.strip().splitlines()[-1]
    assert last == "logitlens: interrupted; 0 of 200 shards are committed, the same command goes on"
    assert "Traceback" not in said
    assert still_running(folder) == []


def test_a_worker_whose_asker_has_gone_ends_without_a_word(saved, tmp_path, whole):
    """As one does that was just being started when Ctrl-C came."""
    path, _ = whole
    command(path, tmp_path / "survey", saved, "--shard", "0/200").communicate(timeout=120)
    worker = subprocess.Popen(
        [sys.executable, "-m", "logitlens.survey.worker", str(tmp_path / "survey")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    worker.stdout.close()
    assert worker.communicate(timeout=120)[1] == b""
    assert worker.returncode == 1


@pytest.mark.parametrize(
    ("words", "number"),
    [
        ((), signal.SIGINT), (("-j", "2"), signal.SIGINT), (("-j", "2"), signal.SIGTERM),
        (("-j", "2", "--engine", "ray"), signal.SIGINT),
    ],
    ids=["one process", "two", "two, SIGTERM", "ray"],
)  # fmt: skip
def test_an_interrupt_keeps_what_is_committed_and_the_survey_goes_on(
    saved, model, tmp_path, whole, words, number
):
    """Ctrl-C is sent to all processes of a terminal; SIGTERM only to who started them."""
    if "ray" in words:
        pytest.importorskip("ray")
    path, table = whole
    folder = tmp_path / "survey"
    driver = command(path, folder, saved, *words)
    for _ in range(1200):
        if len(list(folder.glob("commits/[0-9]*.json"))) > 3:
            break
        assert driver.poll() is None, driver.stderr.read()
        time.sleep(0.05)
    if number == signal.SIGINT:
        os.killpg(driver.pid, number)
    else:
        driver.terminate()
    said = driver.communicate(timeout=60)[1]
    assert driver.returncode == 130, said
    assert still_running(folder) == []
    left = status(folder)
    kept = f"{len(left.records)} of 200 shards are committed, the same command goes on"
    assert said.strip().splitlines()[-1] == f"logitlens: interrupted; {kept}"
    assert 3 < len(left.records) < len(left.plan.shards)
    assert not left.failed
    assert not left.underway  # nobody reads any more, as the logs say
    begun = {p.stem for p in folder.glob("logs/*")} - {p.stem for p in folder.glob("commits/*")}
    assert {p.stem for p in folder.glob("logs/*") if DROPPED in p.read_text()} == begun
    assert not [p for p in folder.rglob("*") if "tmp" in p.name]
    parts = {p.stem for p in folder.glob("parts/*")}
    assert parts >= {p.stem for p in folder.glob("commits/*")}  # one may wait for its record
    assert undisturbed(path, folder, saved, model) == table
