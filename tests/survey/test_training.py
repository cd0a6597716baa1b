"""A tuned lens by a group of processes: that of one process, whatever is killed on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from logitlens import FitError, PromptError
from logitlens.cli import main
from logitlens.fit import checkpoint, corpus, data_parallel, tuned
from logitlens.lenses import open_lens
from logitlens.survey import training
from logitlens.survey.engines import local
from tests.fit import words
from tests.fit.corpora import repeating
from tests.survey.conftest import still_running

SETTINGS = tuned.Settings(
    steps=250, tokens_per_step=80, length=20, lr=0.3, checkpoint_every=25, dtype="float32"
)


def fit(model, saved, folder, **options):
    given = {"source": str(saved), "loading": {}, "threads": 1, "jobs": 2} | options
    ids, settings = given.pop("corpus", repeating()), given.pop("settings", SETTINGS)
    return training.fit(model, ids, settings, folder, **given)


def alike(lens, whole):
    """The same lens but for the rounding of sums, made of the same."""
    assert lens.header.corpus == whole.header.corpus
    assert lens.header.settings == whole.header.settings
    assert lens.header.weight == whole.header.weight
    assert lens.header.losses == pytest.approx(whole.header.losses, rel=1e-3)
    for name, tensor in whole.tensors.items():
        torch.testing.assert_close(lens.tensors[name], tensor, atol=1e-3, rtol=1e-2)


def lens_alone(folder) -> bytes:
    """The bytes of a lens that nothing else was left beside."""
    assert os.listdir(folder) == [tuned.FILE]
    return (folder / tuned.FILE).read_bytes()


@pytest.fixture
def started(monkeypatch):
    """The processes that the local engine has started."""
    found, honest = [], local._Worker.__init__

    def noted(self, *args):
        honest(self, *args)
        found.append(self.process)

    monkeypatch.setattr(local._Worker, "__init__", noted)
    return found


@pytest.fixture(scope="module")
def whole(model, saved, tmp_path_factory):
    """The lens of one process, and the bytes of that of two whom nobody disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed") / "two"
    one = tuned.fit(model, repeating(), SETTINGS)
    alike(fit(model, saved, folder), one)
    return one, lens_alone(folder)


def test_the_command_line_shares_each_step_among_processes(saved, tmp_path, started):
    text = words.text(tmp_path / "text.txt")
    given = [
        str(text),
        "-m",
        str(saved),
        "--steps",
        "5",
        "--tokens-per-step",
        "80",
        "--length",
        "20",
    ]

    def run(out, *extra):
        arguments = ["fit", "tuned", *given, "-o", str(tmp_path / out), *extra]
        return CliRunner().invoke(main, arguments, prog_name="logitlens")

    alone, shared = run("one", "--evaluate", "-j", "1"), run("two", "--evaluate", "-j", "2")
    assert alone.exit_code == shared.exit_code == 0, alone.output + shared.output
    assert len(started) == 2
    assert shared.stdout.replace("two", "one") == alone.stdout
    assert sorted(os.listdir(tmp_path / "two")) == ["evaluation.parquet", tuned.FILE]
    alike(open_lens(tmp_path / "two", "tuned"), open_lens(tmp_path / "one", "tuned"))
    again = run("two", "-j", "2")
    assert again.exit_code == 1
    assert "is a finished lens: choose another folder, or replace it with --fresh" in again.stderr
    assert len(started) == 2


def test_what_cannot_be_shared_is_said_before_a_process_is_started(
    model, saved, tmp_path, started, monkeypatch
):
    text = words.text(tmp_path / "text.txt")
    for extra, why in (
        (
            ("--shard", "0/2"),
            "share each step among processes with -j N, --engine ray, or torchrun",
        ),
        (("--address", "auto"), "--address is of a Ray cluster: add --engine ray"),
        (("-j", "2"), "-j and --engine start processes themselves: leave out torchrun"),
        (("--engine", "ray"), "-j and --engine start processes themselves: leave out torchrun"),
    ):
        given = ["-m", str(saved), "-o", str(tmp_path / "out"), *extra]
        with monkeypatch.context() as torchrun:
            torchrun.setattr(data_parallel, "active", lambda why=why: "torchrun" in why)
            torchrun.setattr(data_parallel, "rank", lambda: 0)
            torchrun.setattr(data_parallel, "end", lambda: None)
            refused = CliRunner().invoke(
                main, ["fit", "tuned", str(text), *given], prog_name="logitlens"
            )
        assert refused.exit_code == 2
        assert why in " ".join(refused.stderr.split())
    for wrong, few, why in (
        ({"rank": 33}, repeating(), "at most 32"),
        ({}, repeating(documents=1, length=30), "is too short"),
    ):
        settings = replace(SETTINGS, **wrong)
        with pytest.raises(PromptError, match=why):
            fit(model, saved, tmp_path / "out", corpus=few, settings=settings)
    assert not started
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_killed_process_ends_its_group_and_another_goes_on_from_the_checkpoint(
    model, saved, tmp_path, whole, started
):
    """As many are killed as may fail at one checkpoint, but each of these got further."""
    steps = [[] for _ in range(4)]

    def kill(progress):
        group = len(started) // 2
        steps[group - 1].append(progress.step)
        if group < 4 and progress.step >= group * 40:
            started[2 * group - group % 2 - 1].kill()  # each of the two in turn

    fit(model, saved, tmp_path / "killed", report=kill)
    assert len(started) == 8
    assert all(process.returncode is not None for process in started)
    for group, reached in enumerate(steps[1:], 1):
        assert reached[0] > group * 40 // 25 * 25
    assert steps[-1][-1] == 250
    assert lens_alone(tmp_path / "killed") == whole[1]


@pytest.mark.slow
def test_where_processes_die_again_and_again_it_is_an_error_in_one_line(
    model, saved, tmp_path, started
):
    def kill(progress):
        started[-1].kill()

    settings = replace(SETTINGS, checkpoint_every=1000)
    with pytest.raises(
        FitError, match=r"lost a process 3 times without .*its worker died \(signal 9\)"
    ) as said:
        fit(model, saved, tmp_path, report=kill, settings=settings)
    assert "\n" not in str(said.value)
    assert len(started) == 6
    assert {process.returncode for process in started[1::2]} == {-9}
    assert all(process.returncode is not None for process in started)
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_a_fit_that_cannot_go_on_says_what_one_process_says_and_is_not_tried_again(
    model, saved, tmp_path, started
):
    settings = replace(SETTINGS, lr=1e30, clip=1e30, checkpoint_every=1)
    said = []
    for train in (
        lambda: tuned.fit(model, repeating(), settings, folder=tmp_path),
        lambda: fit(model, saved, tmp_path, settings=settings, fresh=True),
    ):
        with pytest.raises(FitError) as error:
            train()
        said.append(str(error.value))
    assert said[0] == said[1]
    assert len(started) == 2
    assert all(process.returncode is not None for process in started)


def command(saved, text, out, *extra) -> subprocess.Popen:
    """The command, in a group of processes of its own as a terminal would start it."""
    words = ["-j", "2", "--steps", "4000", "--tokens-per-step", "80", "--length", "20", *extra]
    return subprocess.Popen(
        [sys.executable, "-m", "logitlens", "fit", "tuned", str(text), "-m", str(saved),
         "-o", str(out), "--checkpoint-every", "20", *words],
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def trained(out: Path) -> None:
    """Wait until a checkpoint is there."""
    for _ in range(600):
        if (out / checkpoint.NAME).exists():
            return
        time.sleep(0.1)
    raise AssertionError("no checkpoint within a minute")


@pytest.mark.slow
@pytest.mark.parametrize("to_all", [True, False], ids=["Ctrl-C", "SIGTERM"])
def test_an_interrupt_keeps_a_checkpoint_that_one_process_goes_on_from(
    model, saved, tmp_path, to_all
):
    """Ctrl-C is sent to the workers too; SIGTERM only to who started them."""
    text, out = words.text(tmp_path / "text.txt"), tmp_path / "out"
    driver = command(saved, text, out)
    trained(out)
    if to_all:
        os.killpg(driver.pid, signal.SIGINT)
    else:
        driver.terminate()
    _, said = driver.communicate(timeout=60)
    assert driver.returncode == 130, said
    kept = f"the checkpoint in {out} is kept, the same command goes on"
    assert said.strip() == f"logitlens: interrupted; {kept}"
    assert os.listdir(out) == [checkpoint.NAME]
    assert still_running(out) == []
    step = torch.load(out / checkpoint.NAME, weights_only=True)["state"]["step"]
    assert 20 <= step < 4000
    seen = []

    def stop(progress):
        seen.append(progress.step)
        os.kill(os.getpid(), signal.SIGINT)

    settings = tuned.Settings(steps=4000, tokens_per_step=80, length=20, checkpoint_every=20)
    read = corpus.read(text, model, max_tokens=4000 * 80 * 21 // 20)
    with pytest.raises(KeyboardInterrupt):
        tuned.fit(model, read, settings, folder=out, report=stop)
    assert seen[0] == step + 1
    with pytest.raises(KeyboardInterrupt):  # and the other way round
        training.fit(
            model,
            read,
            settings,
            out,
            source=str(saved),
            loading={},
            threads=1,
            jobs=2,
            report=stop,
        )
    assert seen[-1] > seen[0]
    assert os.listdir(out) == [checkpoint.NAME]


@pytest.mark.slow
def test_processes_whose_driver_is_killed_end_and_the_command_goes_on(
    model, saved, tmp_path, whole
):
    text, out = words.text(tmp_path / "text.txt"), tmp_path / "out"
    driver = command(saved, text, out)
    trained(out)
    driver.kill()
    driver.communicate(timeout=60)
    for _ in range(100):
        if not still_running(out):
            break
        time.sleep(0.1)
    assert still_running(out) == []
    assert [name for name in os.listdir(out) if name.startswith(checkpoint.PROCESSES)]
    fit(model, saved, out, fresh=True)
    assert lens_alone(out) == whole[1]


@pytest.mark.slow
def test_a_report_that_fails_stops_the_fit_and_is_raised(model, saved, tmp_path, started):
    def report(progress):
        raise ValueError("no picture")

    with pytest.raises(ValueError, match="no picture"):
        fit(model, saved, tmp_path, report=report)
    assert all(process.returncode is not None for process in started)
    assert os.listdir(tmp_path) == [checkpoint.NAME]
