"""The command line: one file per verb, no logic; every mistake is one line and an exit code.

Exit codes: 0 done, also where the reader of a pipe has left; 1 error; 2 usage, which is also a value that
cannot be; 3 a survey with shards that failed; 4 model or lens not available; 130 interrupted, by Ctrl-C or
SIGTERM. Errors raised on purpose know theirs (`errors.py`). `LOGITLENS_DEBUG=1` shows the traceback. A verb
is `logitlens.cli.VERB.command` and is imported when it is called, so that `--help` is quick.
"""

from __future__ import annotations

import atexit
import contextlib
import difflib
import importlib
import itertools
import os
import sys
from collections.abc import Callable
from typing import Any

import click

from logitlens import __version__
from logitlens.cli.process import Terminated, gone, prepare, terminable
from logitlens.cli.prompts import quoted
from logitlens.errors import FormatError, LogitLensError, out_of_memory

VERBS = {  # in the order of --help; the line is the first of the command's own help
    "read": "Read prompts and show what the model would say after every layer.",
    "generate": "Continue a prompt, and show what the model would have said after every layer.",
    "compare": "Show two readings side by side: two prompts, lenses or models.",
    "attribute": "Show which components wrote a token: a waterfall that sums to the model's own logit.",
    "patch": "Show how much of the clean prompt's answer each patched cell brings back.",
    "view": "Open stored readings as a page, or convert them.",
    "serve": "Explore prompts in the browser.",
    "survey": "Read many prompts into one table, resumable, and report it with intervals.",
    "fit": "Fit a tuned or a Jacobian lens to a model.",
    "lens": "List, show, check, fetch, publish and judge lenses.",
    "check": "Show how a model was parsed and how exactly it is reproduced.",
}
_LONGEST = 1000  # characters of a line: it may quote what was given
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class Verbs(click.Group):
    """A group that imports a verb when it is called, and turns errors into lines and codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        return importlib.import_module(f"{__name__}.{cmd_name}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in VERBS and not name.startswith("-"):
            near = difflib.get_close_matches(name, VERBS, 1)
            words = itertools.takewhile(lambda word: not word.startswith("-"), args)
            meant = near[0] if near else f"read {quoted([*words])}"
            raise click.UsageError(f"no command {name!r}; did you mean: logitlens {meant}", ctx)
        return super().resolve_command(ctx, args)

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        if not standalone_mode:
            return super().main(*args, standalone_mode=False, **extra)
        prepare()
        with terminable():
            code = self._code(*args, **extra)
        gone()
        sys.exit(code)

    def _code(self, *args: Any, **extra: Any) -> int:
        """Run, and give the exit code; what went wrong is on stderr in one line."""
        run = super().main
        try:
            code = code_of(lambda: run(*args, standalone_mode=False, **extra))
            sys.stdout.flush()
        except BrokenPipeError:
            return 0
        except SystemExit as error:  # rich's way to say the same
            if isinstance(error.__context__, BrokenPipeError):
                return 0
            raise
        return code

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        try:
            return super().make_context(*args, **extra)  # prints --help
        except BrokenPipeError:
            raise click.exceptions.Exit(0) from None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise click.Abort(*error.args) from None
        except EOFError as error:  # click would take it for Ctrl-D at a question
            raise FormatError(f"unexpected end of input: {error}") from error
        except BrokenPipeError as error:
            if not gone():  # then it was not the reader of our output who left
                raise ConnectionError(
                    f"a connection was closed at its other end: {error}"
                ) from error
            return 0


def code_of(run: Callable[[], Any]) -> int:
    """Run, and give the exit code; an error is one line on stderr. BrokenPipeError passes."""
    try:
        result = run()
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as error:  # after --help
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "", err=True)
        return 2
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "logitlens"
        line = f"{where}: {_one_line(error.format_message()).rstrip('.')} (see {where} --help)"
        return _say(line, 2, named=True)
    except click.ClickException as error:
        return _say(_one_line(error.format_message()), error.exit_code)
    except Terminated:
        raise
    except (click.Abort, KeyboardInterrupt) as error:
        return _say("; ".join(["interrupted", *filter(None, [_one_line(str(error))])]), 130)
    except BrokenPipeError:
        raise
    except Exception as error:
        if os.environ.get("LOGITLENS_DEBUG", "0") not in ("", "0"):
            raise
        return _say(*explain(error))


def explain(error: Exception) -> tuple[str, int]:
    """One line and the exit code for an exception that nobody caught."""
    if out_of_memory(error):
        return "out of memory: use a shorter prompt, a smaller model, or --dtype bfloat16", 1
    if isinstance(error, LogitLensError):
        return _one_line(str(error)), error.exit_code
    if isinstance(error, OSError):
        named = (
            f"{error.filename}: {error.strerror}"
            if error.filename and error.strerror
            else error.strerror or str(error)
        )
        return _one_line(named), 1
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"unexpected: {_one_line(what)}; set LOGITLENS_DEBUG=1 to see where", 1


def _one_line(text: str) -> str:
    """Text without line ends or control characters, and not too long: it may quote what was given."""
    line = "".join(c if c.isprintable() else " " for c in " ".join(text.split()))
    half = _LONGEST // 2
    return line if len(line) <= _LONGEST else f"{line[:half]} … {line[-half:]}"


def _say(line: str, code: int, named: bool = False) -> int:
    """Say who speaks, where the line is not `named` already, as with `python -m logitlens read`."""
    named = named or line.startswith("logitlens")
    with contextlib.suppress(OSError):  # nobody reads stderr: the code says it
        click.echo(line if named else f"logitlens: {line}", err=True)
    return code


@click.group(cls=Verbs, context_settings=CONTEXT, no_args_is_help=True)
@click.version_option(__version__, "-V", "--version", message="logitlens %(version)s")
def main() -> None:
    """What a language model would say if it stopped after each layer.

    Try: logitlens read "The Eiffel Tower is in the city of" --track " Paris"
    """


def program() -> None:
    """`main` as a process of its own, which ends without freeing piece by piece what the system takes
    back anyway: that took 0.2 s with torch and a model."""
    code: list[int] = []

    def end() -> None:
        if code:  # else an exception on its way: the interpreter shows it
            gone()
            os._exit(code[0])

    atexit.register(end)  # the first to register is the last to be called
    try:
        main()
    except SystemExit as error:
        if isinstance(error.code, int):
            code.append(error.code)
        raise
