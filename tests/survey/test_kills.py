"""Workers that are really killed: every prompt is there exactly once, in the same bytes."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import time
from types import SimpleNamespace

import pytest

from logitlens.survey import plan as plans
from logitlens.survey.engines import local
from logitlens.survey.merge import merge
from logitlens.survey.plan import Settings
from logitlens.survey.run import run, status
from tests.survey.conftest import WORDS, records, write_lines

pytestmark = pytest.mark.slow
ITEMS = records(32)


def start(work) -> int:
    """Run `work` in a copy of this process, which has this number."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return child


def forked(work, kill_after: float | None = None) -> int:
    """Run `work` in a copy of this process, which is killed after some seconds; how it ended."""
    child = start(work)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def kill_before_name(patched, number: int) -> None:
    """The process is killed before the `number`-th file gets its name."""
    calls = 0

    def counted(function):
        def call(*args, **options):
            nonlocal calls
            calls += 1
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        return call

    for name in ("replace", "link"):
        patched.setattr(os, name, counted(getattr(os, name)))


@pytest.fixture(scope="module")
def whole(model, saved, tmp_path_factory):
    """The bytes of the undisturbed run."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run(
        write_lines(folder / "prompts.jsonl", ITEMS), folder / "whole", model, source=str(saved),
        loading={}, settings=Settings(shard_size=4, threads=1, token_budget=64),
    )  # fmt: skip
    return (folder / "whole" / "survey.parquet").read_bytes()


def check(survey, folder, whole):
    """The survey ends, as if nothing had happened, with nothing left over."""
    found = survey.run(ITEMS, folder=folder)
    assert found.done
    assert found.total("prompts") == len(ITEMS)
    assert (survey.folder / folder / "survey.parquet").read_bytes() == whole
    left = [p.name for p in (survey.folder / folder).rglob("*") if "tmp" in p.name]
    assert not left


def kill_at_random(times: int, go, check) -> None:
    """Kill `go(folder)` so many times while it runs, in folders that are then checked."""
    generator = random.Random(15)
    began = time.perf_counter()
    assert not forked(lambda: go("undisturbed"))
    lasts = time.perf_counter() - began
    kills = rounds = 0
    while kills < times:
        folder = f"random{rounds}"
        rounds += 1
        for _ in range(10):
            ended = forked(lambda f=folder: go(f), generator.uniform(0, lasts))
            kills += os.WIFSIGNALED(ended)
            if not os.WIFSIGNALED(ended):
                lasts *= 0.9  # it was faster than the first
                break
        check(folder)
        assert rounds < 2 * times


def test_fifty_kills_at_random_times_change_nothing(survey, whole):
    kill_at_random(50, lambda f: survey.run(ITEMS, folder=f), lambda f: check(survey, f, whole))


@pytest.mark.parametrize("number", [*range(1, 8), 18])
def test_a_kill_before_any_file_has_its_name_changes_nothing(survey, whole, monkeypatch, number):
    """The first is the plan, then even ones are parts, odd ones commit records, and the last is the table:
    killed between write and rename, and between rename and commit."""
    with monkeypatch.context() as patched:
        kill_before_name(patched, number)
        assert os.WIFSIGNALED(forked(lambda: survey.run(ITEMS, folder="renames")))
    check(survey, "renames", whole)


def test_workers_that_share_a_folder_remove_what_a_killed_one_left(survey, monkeypatch):
    """Killed before the rename of its part, which another then commits."""
    with monkeypatch.context() as patched:
        kill_before_name(patched, 4)
        assert os.WIFSIGNALED(forked(lambda: survey.run(ITEMS, folder="shared", share=(0, 2))))
    folder = survey.folder / "shared"
    (left,) = [p for p in folder.rglob("*") if "tmp" in p.name]
    with open(left, "rb") as held:  # one that still writes is left alone
        fcntl.flock(held, fcntl.LOCK_EX)
        survey.run(folder="shared", share=(1, 2))
        assert left.exists()
    survey.run(folder="shared", share=(0, 2))
    assert not [p for p in folder.rglob("*") if "tmp" in p.name]
    assert status(folder).merged


@pytest.fixture(scope="module")
def cells(model, saved, tmp_path_factory):
    """Runs a survey of a corpus whose cells are kept, and checks that it ends as the undisturbed one."""
    folder = tmp_path_factory.mktemp("corpus")
    lines = [
        {"text": " ".join(WORDS[(i + n) % len(WORDS)] for n in range(1 + 5 * (i % 3))), "number": i}
        for i in range(20)
    ]
    path = write_lines(folder / "text.jsonl", lines)
    settings = Settings(length=16, overlap=4, shard_size=64, token_budget=64, cells=True)

    def go(name, **options):
        return run(path, folder / name, model, source=str(saved), loading={}, settings=settings,
                   **options)  # fmt: skip

    def files(name):
        kinds = ("survey.parquet", "parts/*", "cells/*", "*.bin", "*.jsonl", "tokens.json")
        found = [p for kind in kinds for p in sorted((folder / name).glob(kind))]
        return {str(p.relative_to(folder / name)): p.read_bytes() for p in found}

    def check(name):
        assert go(name).done
        assert files(name) == whole
        assert not [p for p in (folder / name).rglob("*") if "tmp" in p.name]

    go("whole")
    whole = files("whole")
    assert len(whole) > 10
    return SimpleNamespace(run=go, check=check)


def test_kills_at_random_times_change_nothing_of_a_corpus_and_its_cells(cells):
    kill_at_random(25, cells.run, cells.check)


@pytest.mark.parametrize("number", range(1, 12))
def test_a_kill_before_any_file_has_its_name_changes_nothing_of_a_corpus(
    cells, monkeypatch, number
):
    """The first five are the ids, what belongs to them and the plan; then come cells, part and record of
    each shard."""
    with monkeypatch.context() as patched:
        kill_before_name(patched, number)
        assert os.WIFSIGNALED(forked(lambda: cells.run(f"renames{number}")))
    cells.check(f"renames{number}")


def test_processes_read_the_same_bytes_of_a_corpus(cells):
    cells.run("jobs", jobs=2)
    cells.check("jobs")


@pytest.mark.parametrize("share", [(0, 1), None])
def test_two_workers_on_one_shard_give_one_part(survey, whole, share):
    survey.run(ITEMS, folder="both", share=(0, 8))
    children = [start(lambda: survey.run(folder="both", share=share)) for _ in range(2)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    check(survey, "both", whole)


def test_processes_read_the_same_bytes_and_a_killed_one_is_replaced(survey, whole, monkeypatch):
    survey.run(ITEMS, folder="jobs", share=(0, 8))
    folder = survey.folder / "jobs"
    started = []
    honest = local._Worker.__init__

    def noted(self, *args):
        honest(self, *args)
        started.append(self)

    monkeypatch.setattr(local._Worker, "__init__", noted)
    shards = range(1, len(plans.load(folder).shards))
    for done, record in enumerate(local.run(str(folder), shards, 2), 1):
        assert "error" not in record
        if done == 2:
            os.kill(started[0].process.pid, signal.SIGKILL)
    assert len(started) == 3
    merge(folder)
    check(survey, "jobs", whole)
