"""What surrounds a command: standard streams that may be closed or narrow, and the signals that end it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TextIO

_WIDEST = 10_000  # columns; more is a mistake, and would be filled with spaces


def prepare() -> None:
    """Make the standard streams usable, and ignore an invalid terminal size.

    A closed stream behaves like /dev/null: else the next file that is opened would take its number.
    A character that a stream's encoding lacks is written as an escape.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a stream that is no file, as in a notebook
            stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    for name in ("COLUMNS", "LINES"):
        size = os.environ.get(name, "")
        if not (size.isascii() and size.isdigit() and 0 < int(size[:9]) <= _WIDEST):
            os.environ.pop(name, None)


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP where Ctrl-C would not end the command."""


Handler = Callable[[int, FrameType | None], None]


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Do what Ctrl-C does just now; a background job, whose Ctrl-C is ignored, ends all the same."""
    handler = signal.getsignal(signal.SIGINT)
    if callable(handler):
        handler(signal.SIGINT, frame)
    else:
        raise KeyboardInterrupt


@contextmanager
def terminable(end: Handler = _interrupt) -> Iterator[None]:
    """Let SIGTERM and SIGHUP, where nobody else has asked otherwise, end a command as Ctrl-C does.

    Files are then removed or finished, and a fit writes its checkpoint.
    """
    taken = []
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) in (signal.SIG_DFL, _interrupt):
                taken.append((number, signal.signal(number, end)))
    try:
        yield
    finally:
        for number, before in taken:
            signal.signal(number, before)


@contextmanager
def keeping(words: Callable[[], str]) -> Iterator[None]:
    """Let Ctrl-C inside end with what is kept and how to go on, in words; an empty text says nothing."""
    try:
        yield
    except KeyboardInterrupt as error:
        said = ""
        with contextlib.suppress(Exception):  # the folder may be gone
            said = words()
        raise (KeyboardInterrupt(said) if said else error) from None


def gone() -> bool:
    """Whether the reader of stdout or stderr has left (`| head`).

    What a stream cannot write is dropped, else the interpreter would fail over it at its end.
    """
    found = False
    for stream in (sys.stdout, sys.stderr):
        left = _left(stream)
        found = found or left
        try:
            stream.flush()
        except OSError:
            left = True
        if left:
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return found


def _left(stream: TextIO) -> bool:
    if not hasattr(select, "poll"):
        return True  # Windows cannot tell
    poll = select.poll()
    try:
        poll.register(stream.fileno(), 0)
    except OSError:  # no stream of the system's
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
