"""`logitlens read -i`, from a pipe and in a terminal, with a model that is not there."""

from __future__ import annotations

import os
import select
import signal
import sys
import time

import click
import pytest

from logitlens.cli import shell
from tests.server.held import ROOT

FLAGS = {"--color", "--track", "-k", "-o", "--top"}


@pytest.mark.parametrize(
    ("line", "args"),
    [
        ("The Eiffel Tower", ["The Eiffel Tower"]),
        (
            "It's 5 -4 and -x --color kl -k 3",
            ["It's 5 -4 and -x", "--color", "kl", "-k", "3"],
        ),
        ("the city of --track ' Paris'", ["the city of", "--track", " Paris"]),
        ('"in the city of "', ["in the city of "]),
        ('"say --color " --color kl', ["say --color ", "--color", "kl"]),
        ('"Hello," she said', ['"Hello," she said']),
        ("--color kl", ["--color", "kl"]),
        ("-k3", ["-k3"]),
        ("what --colour kl", ["what", "--colour", "kl"]),
        ("a-b --", ["a-b --"]),
        ('"- item" -k 3', ["-k", "3", "--", "- item"]),
    ],
)
def test_a_line_is_a_prompt_as_it_is_and_then_flags(line, args):
    assert shell.arguments(line, FLAGS) == args


def test_a_quotation_mark_without_a_partner_is_an_error_among_flags_only():
    with pytest.raises(click.UsageError, match="no closing quotation"):
        shell.arguments("x --track ' Paris", FLAGS)


def captured(cli):
    return [options["prompt"] for name, options in cli.model.calls if name == "capture"]


def readout(cli):
    return [options for name, options in cli.model.calls if name == "readout"]


def test_the_model_stays_and_flags_alone_show_the_last_prompt_again(cli):
    lines = "The Eiffel\n\n--color kl\n--lens tuned -k 3\nThe Colosseum --track ' Rome'\n"
    result = cli("read", "-i", "--top", "7", input=lines)
    assert result.exit_code == 0, result.output
    assert len(cli.loaded) == 1
    assert captured(cli) == ["The Eiffel", "The Eiffel", "The Colosseum"]
    assert [(o["lens"], o["top"], o["track"]) for o in readout(cli)] == [
        ("logit", 7, []), ("tuned", 3, []), ("logit", 7, [" Rome"]),
    ]  # fmt: skip
    assert "KL to the final layer" in result.stdout, "drawn again, not read again"


def test_a_model_named_in_a_line_stays_too(cli):
    cli("read", "-i", "x", input="-m other\ny\nz --dtype bfloat16\nw\n")
    assert [(args, options.get("dtype")) for args, options in cli.loaded] == [
        ((None,), None), (("other",), None), (("other",), "bfloat16"),
    ]  # fmt: skip
    assert captured(cli) == ["x", "x", "y", "z", "w"]


def test_a_mistake_is_one_line_and_the_loop_goes_on(cli):
    result = cli("read", "-i", input="x --nope\ny --color\nz -o /none/z.json\n--help\nfine\n")
    assert result.exit_code == 2
    errors = result.stderr.splitlines()
    assert ["such option" in errors[0], "requires an argument" in errors[1]] == [True, True]
    assert "there is no folder" in errors[2]
    assert "Usage: logitlens read" in result.stdout
    assert captured(cli) == ["fine"]


def test_flags_alone_need_a_prompt_before_them(cli):
    assert "Missing argument" in cli("read", "-i", input="--color kl\n").stderr


PROGRAM = """
import logitlens, sys, time
from tests.cli.conftest import FakeModel

class Model(FakeModel):
    def capture(self, prompt, *, progress=None, **options):
        if prompt == "slow":
            print("started", flush=True)
            for _ in range(300):  # a signal that comes just before a sleep does not end it
                time.sleep(0.1)
        return super().capture(prompt, **options)

    def readout(self, residuals, *, progress=None, **options):
        return super().readout(residuals, **options)

logitlens.load = lambda *a, **k: Model()
if sys.argv[1] == "plain":
    sys.modules["prompt_toolkit"] = None
del sys.argv[1]
from logitlens.cli import main
main(prog_name="logitlens")
"""


class Terminal:
    """The loop in a terminal of its own, started as scripts start background jobs: with Ctrl-C ignored."""

    def __init__(self, kind):
        import pty

        self.ready = b"> " if kind == "plain" else b"\x1b[?2004h"
        self.child, self.fd = pty.fork()
        if not self.child:
            os.chdir(ROOT)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            env = os.environ | {"TERM": "xterm", "COLUMNS": "120", "PROMPT_TOOLKIT_NO_CPR": "1"}
            command = [sys.executable, "-c", PROGRAM, kind, "read", "-i"]
            os.execvpe(sys.executable, command, env)
        self.seen = b""

    def until(self, text, again=b""):
        """What came before `text`. `again` is pressed after a second of silence: readline notices a signal
        that came just before it waits for input with the next key only."""
        end = time.monotonic() + 120
        while text not in self.seen:
            assert time.monotonic() < end, self.seen
            if select.select([self.fd], [], [], 1)[0]:
                self.seen += os.read(self.fd, 65536)
            else:
                os.write(self.fd, again)
        before, _, self.seen = self.seen.partition(text)
        return before.decode()

    def type(self, keys):
        self.until(self.ready)
        os.write(self.fd, keys)

    def end(self):
        while True:
            try:  # Linux: EIO, macOS: nothing more
                if not os.read(self.fd, 65536):
                    break
            except OSError:
                break
        os.close(self.fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.child, 0)[1])


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX terminals")
@pytest.mark.parametrize("kind", ["prompt_toolkit", "plain"])
def test_ctrl_c_clears_or_stops_arrow_up_repeats_and_ctrl_d_ends(kind):
    if kind == "prompt_toolkit":
        pytest.importorskip("prompt_toolkit")
    terminal = Terminal(kind)
    terminal.type(b"The Eiffel Tower --color kl\r")
    assert "logit lens" in terminal.until(b"KL to the final layer")
    terminal.type(b"half a li")
    terminal.until(b"li")
    os.write(terminal.fd, b"\x03")
    terminal.until(terminal.ready, again=b"\x03")
    os.write(terminal.fd, b"\x1b[A\r")  # arrow up
    terminal.until(b"KL to the final layer")
    terminal.type(b"slow\r")
    terminal.until(b"started")
    os.write(terminal.fd, b"\x03")
    terminal.until(b"interrupted")
    terminal.type(b"\x04")
    assert terminal.end() == 0


@pytest.mark.skipif(os.name == "nt", reason="POSIX terminals")
def test_a_signal_ends_the_loop_though_ctrl_c_does_not():
    pytest.importorskip("prompt_toolkit")
    terminal = Terminal("prompt_toolkit")
    terminal.until(terminal.ready)
    os.kill(terminal.child, signal.SIGTERM)
    assert terminal.end() == 130
