"""`logitlens read -i`: a loop that keeps the model, the lines typed, and the last prompt and its readings.

    > The Eiffel Tower is in the city of --track " Paris"     a prompt, and flags
    > --color kl                                              flags alone: the last prompt again
    > "the prompt ends in a blank, and has a --flag "         quotes keep both

Ctrl-C clears the line or stops a reading, Ctrl-D ends the loop. From a pipe, lines are read as they come.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import signal
import sys
from collections.abc import Callable, Collection
from functools import partial
from types import FrameType
from typing import Any

import click
from click.core import ParameterSource

from logitlens.cli.options import LOADING, errors
from logitlens.cli.process import Terminated, terminable

_FLAG = re.compile(r"(?<!\S)(--[A-Za-z][\w-]*|-[A-Za-z](?=\s|$))")
_QUOTED = re.compile(r"""("(?:[^"\\]|\\.)*"|'[^']*')(?=\s|$)""")
_NOT_HELD = {"prompts", "file", "chat", "interactive"}


def loop(ctx: click.Context) -> int:
    """Read and answer lines until they end; what `ctx` was called with holds for each of them.

    Returns 0 from a terminal, else the worst exit code of a line.
    """
    from logitlens.cli import code_of

    ctx.obj.looping = True
    held = {name: ctx.params[name] for name in _given(ctx) - _NOT_HELD}
    flags = {flag for option in ctx.command.params for flag in option.opts if flag[0] == "-"}
    typed, next_line = _lines(flags)
    if typed:  # what a script starts in the background inherits a Ctrl-C that is ignored
        signal.signal(signal.SIGINT, signal.default_int_handler)
    worst = 0
    with terminable(_end):
        while True:
            try:
                line = next_line().strip()
            except KeyboardInterrupt as error:
                if isinstance(error, Terminated) or not typed:
                    raise
                continue
            except EOFError:
                return 0 if typed else worst
            if line:
                worst = max(worst, code_of(partial(_answer, ctx, line, flags, held)))
                sys.stdout.flush()


def _answer(ctx: click.Context, line: str, flags: Collection[str], held: dict[str, Any]) -> None:
    """One line. A model named in it stays."""
    args = arguments(line, flags)
    with ctx.command.make_context(
        "read", args, parent=ctx.parent, obj=ctx.obj, default_map=held
    ) as answered:
        model = _given(answered) & {"source", *LOADING}
        held.update({name: answered.params[name] for name in model})
        ctx.command.invoke(answered)


def _given(ctx: click.Context) -> set[str]:
    given = ParameterSource.COMMANDLINE
    return {name for name in ctx.params if ctx.get_parameter_source(name) == given}


def arguments(line: str, flags: Collection[str]) -> list[str]:
    """A line as arguments: what is before the first flag is the prompt, as it is or in quotes.

    Raises UsageError for a quotation mark without its partner among the flags.
    """
    quoted = _QUOTED.match(line)
    start = quoted.end() if quoted else 0
    found = (m.start() for m in _FLAG.finditer(line, start) if m[0][:2] == "--" or m[0] in flags)
    at = next(found, len(line)) if not line.startswith("-") else 0
    prompt = line[:at].strip()
    if quoted and prompt == quoted[0]:
        (prompt,) = shlex.split(prompt)
    try:
        rest = shlex.split(line[at:])
    except ValueError as error:
        raise click.UsageError(f"{str(error).lower()}: {line[at:]}") from error
    return [*rest, "--", prompt] if prompt[:1] == "-" else [*[prompt] * bool(prompt), *rest]


def _lines(flags: Collection[str]) -> tuple[bool, Callable[[], str]]:
    """Whether lines are typed, and a function for the next, which raises EOFError after the last."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False, _piped
    errors().print(
        "Type a prompt, with flags if you like (--help lists them); flags alone show the last prompt "
        "again. Ctrl-D ends.", style="dim", markup=False,
    )  # fmt: skip
    try:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.shortcuts import CompleteStyle
    except ImportError:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # editing and history for input()
        return True, _plain
    session: PromptSession[str] = PromptSession(
        completer=WordCompleter(sorted(flags), WORD=True), complete_while_typing=False,
        complete_style=CompleteStyle.READLINE_LIKE, reserve_space_for_menu=0,
    )  # fmt: skip
    return True, lambda: session.prompt("> ")


def _plain() -> str:
    try:
        return input("> ")
    except KeyboardInterrupt:
        click.echo()  # the cursor is behind what was typed
        raise


def _piped() -> str:
    line = sys.stdin.buffer.readline()
    if not line:
        raise EOFError
    return line.decode("utf-8-sig", errors="replace")


def _end(number: int, frame: FrameType | None) -> None:
    raise Terminated
