"""Closed and narrow streams, readers that leave, terminal sizes that are none, and signals."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from logitlens.cli import process
from tests.cli.test_fit import place  # noqa: F401
from tests.fit import words
from tests.server.held import ROOT

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX streams and signals")

PROGRAM = """
import logitlens, sys
from tests.cli.conftest import FakeModel
logitlens.load = lambda *a, **k: FakeModel()
from logitlens.cli import main
main()
"""


def shell(line):
    """Run a line in which `L` is the program, with a model that is not there."""
    script = f'set -o pipefail; L() {{ "$PYTHON" -c "$PROGRAM" "$@"; }}; {line}'
    env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    env |= {"PYTHON": sys.executable, "PROGRAM": PROGRAM}
    return subprocess.run(
        ["bash", "-c", script], env=env, cwd=ROOT, capture_output=True, timeout=120
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "code", "out", "err"),
    [
        ("L --help | true", 0, "", ""),
        ("L --version | true", 0, "", ""),
        ("L lens --help | true", 0, "", ""),
        ("L read x | true", 0, "", ""),
        ("L compare x y | head -1 | wc -l", 0, "1", ""),
        ("L read x --json --lens logit --lens logit | head -c 10", 0, '{"format":', ""),
        ("L read x --nope 2>&1 | true", 2, "", ""),
        ("L --version >&-", 0, "", ""),
        ("L read x >&-", 0, "", ""),
        ("L read x 2>&- | head -1 | cut -c1-4", 0, "fake", ""),
        ("L read x --nope 2>&-", 2, "", ""),
        ("L read x --json <&- | wc -l", 0, "1", ""),
        ("L read x <&- >&- 2>&-", 0, "", ""),
        ("L --version > /dev/full", 1, "", "logitlens: No space left on device"),
        ("L read x > /dev/full", 1, "", "logitlens: No space left on device"),
        ("L read x --nope 2> /dev/full", 2, "", ""),
    ],
)
def test_streams_that_are_closed_or_full_and_readers_that_leave(line, code, out, err):
    done = shell(line)
    found = (done.returncode, done.stdout.decode().strip(), done.stderr.decode().strip())
    assert found == (code, out, err)


def test_a_closed_stream_is_a_null_device_under_its_own_number():
    code = (
        "import os, sys\nfrom logitlens.cli.process import prepare\nprepare()\n"
        "null = os.stat(os.devnull)\n"
        "assert all(os.path.samestat(os.fstat(n), null) for n in range(3))\n"
        "print('x'); print('y', file=sys.stderr); assert sys.stdin.buffer.read() == b''"
    )
    line = f'"{sys.executable}" -c "$CODE" <&- >&- 2>&-'
    done = subprocess.run(["bash", "-c", line], env=os.environ | {"CODE": code}, cwd=ROOT)
    assert done.returncode == 0


@pytest.mark.parametrize("size", ["0", "\N{SUPERSCRIPT TWO}", "-5", "wide", "", "9" * 30, "10001"])
def test_a_terminal_size_that_is_none_is_forgotten(cli, monkeypatch, size):
    for name in ("COLUMNS", "LINES"):
        monkeypatch.setenv(name, size)
    assert max(map(len, cli("read", "x").stdout.splitlines())) <= 120
    assert "COLUMNS" not in os.environ
    assert "LINES" not in os.environ
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, cli("read", "x").stdout.splitlines())) <= 80


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "shift_jis"])
def test_a_console_that_lacks_a_character_gets_an_escape(monkeypatch, encoding):
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", out)
    process.prepare()
    print("KL(final ‖ lens) ␣ \ud800 \N{GRINNING FACE}", flush=True)
    shown = out.buffer.getvalue().decode(encoding)
    assert "\\ud800 \\U0001f600" in shown


def receive(number):
    with process.terminable():
        os.kill(os.getpid(), number)
        time.sleep(5)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_every_signal_that_ends_a_program_is_an_interrupt(name):
    number = getattr(signal, name)
    usual = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
    old = signal.signal(number, usual)  # a shell that starts tests in the background ignores SIGINT
    try:
        with pytest.raises(KeyboardInterrupt):
            receive(number)
        assert signal.getsignal(number) == usual
    finally:
        signal.signal(number, old)


def test_a_signal_that_somebody_ignores_or_handles_stays_so():
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what nohup does
    try:
        with process.terminable():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, old)


def test_in_another_thread_signals_are_left_alone():
    failed = []

    def run():
        try:
            with process.terminable():
                pass
        except ValueError as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not failed


WRITES = """
import logitlens, signal, sys, time
from logitlens.files import replacing
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job may have it ignored
def load(*args, **options):
    with replacing(sys.argv.pop()) as temporary:
        temporary.write_text("half")
        print("writing", flush=True)
        for _ in range(600):  # a signal that comes just before a sleep does not end it
            time.sleep(0.1)
logitlens.load = load
from logitlens.cli import main
main(["read", "x"])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_real_signal_is_130_and_nothing_is_left_half_written(tmp_path, number):
    command = [sys.executable, "-c", WRITES, tmp_path / "x.json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline() == "writing\n"
        child.send_signal(number)
        _, errors = child.communicate(timeout=30)
    assert (child.returncode, errors) == (130, "logitlens: interrupted\n")
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_a_fit_that_is_terminated_keeps_its_last_step(place, tmp_path):  # noqa: F811
    command = [
        sys.executable, "-m", "logitlens", "fit", "tuned", place / "text.txt", "-m", place / "model",
        "-o", tmp_path, "--steps", "100000", "--length", "16", "--tokens-per-step", "32",
        "--checkpoint-every", "3",
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as child:
        saved = tmp_path / "checkpoint.pt"
        while not saved.exists():
            assert child.poll() is None, child.stderr.read()
            time.sleep(0.02)
        time.sleep(0.2)
        asked = time.time_ns()
        child.send_signal(signal.SIGTERM)
        _, errors = child.communicate(timeout=60)
    kept = f"interrupted; the checkpoint in {tmp_path} is kept, the same command goes on\n"
    assert (child.returncode, errors[-len(kept) :]) == (130, kept)
    assert os.listdir(tmp_path) == ["checkpoint.pt"]
    assert saved.stat().st_mtime_ns > asked - 20_000_000, "a file's time may be a tick behind"


@pytest.mark.slow
def test_a_fit_in_shards_that_is_interrupted_says_how_many_it_keeps(place, tmp_path):  # noqa: F811
    # so much that the fit has not ended before the interrupt comes
    text, out = words.text(tmp_path / "text.txt", paragraphs=4000), tmp_path / "fit"
    command = [
        sys.executable, "-m", "logitlens", "fit", "jacobian", text, "-m", place / "model",
        "-o", out, "-j", "2", "--tokens-per-pass", "1", "--threads", "1",
    ]  # fmt: skip
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background has it ignored
    ) as child:  # fmt: skip
        while not list(out.glob("shard-*.pt")):
            assert child.poll() is None, child.stderr.read()
            time.sleep(0.01)
        os.killpg(child.pid, signal.SIGINT)
        _, errors = child.communicate(timeout=60)
    kept = len(list(out.glob("shard-*.pt")))
    assert child.returncode == 130
    assert re.search(
        rf"interrupted; {kept} shards? in {out} (is|are) kept, the same command", errors
    )
