"""The command line: one file per verb, no logic; every mistake is one line and an exit code.

Exit codes: 0 done, 1 error, 2 usage, 3 a survey with failed shards, 4 model or lens not available,
130 interrupted. `LOGITLENS_DEBUG=1` shows the traceback. A verb lives in `logitlens.cli.VERB` as
`command` and is imported when it is called, so that `--help` answers at once.
"""

from __future__ import annotations

import errno
import importlib
import importlib.util
import os
import sys
from typing import Any

import click

from logitlens import __version__
from logitlens.errors import LogitLensError, ModelNotAvailable, out_of_memory

VERBS = {  # in the order of --help; the line is the first of the command's own help
    "read": "Read one prompt and show what the model would say after every layer.",
    "compare": "Show two readings side by side: two prompts, lenses or models.",
    "view": "Open stored readings as a page, or convert them.",
    "serve": "Open the page on 127.0.0.1.",
    "survey": "Read a corpus, and reduce and store what is read.",
    "fit": "Fit a tuned or a Jacobian lens to a model.",
    "lens": "List, show, fetch, publish and judge lenses.",
    "check": "Show the anatomy found in a model and the figures of its verification.",
}

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class Verbs(click.Group):
    """A group that imports a verb when it is called, and turns errors into lines and codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [verb for verb in VERBS if importlib.util.find_spec(f"{__name__}.{verb}")]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        return importlib.import_module(f"{__name__}.{cmd_name}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(verb, VERBS[verb]) for verb in self.list_commands(ctx)])

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        if not standalone_mode:
            return super().main(*args, standalone_mode=False, **extra)
        sys.exit(self._code(*args, **extra))

    def _code(self, *args: Any, **extra: Any) -> int:
        """Run, and give the exit code; what went wrong is on stderr in one line."""
        try:
            result = super().main(*args, standalone_mode=False, **extra)
            sys.stdout.flush()
            return result if isinstance(result, int) else 0
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.ctx.get_help() if error.ctx else "", err=True)
            return 2
        except click.UsageError as error:
            where = error.ctx.command_path if error.ctx else "logitlens"
            return _say(
                f"{where}: {_one_line(error.format_message()).rstrip('.')} (see {where} --help)", 2
            )
        except click.ClickException as error:
            return _say(_one_line(error.format_message()), error.exit_code)
        except click.Abort:
            return _say("interrupted", 130)
        except Exception as error:
            if os.environ.get("LOGITLENS_DEBUG", "0") not in ("", "0"):
                raise
            return _say(*explain(error))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise click.Abort from None
        except OSError as error:
            if error.errno != errno.EPIPE:
                raise
            # The reader has had enough (`| head`): nothing more can be written, nothing is wrong.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0


def explain(error: Exception) -> tuple[str, int]:
    """One line and the exit code for an exception that nobody caught."""
    if out_of_memory(error):
        return "out of memory: use a shorter prompt, a smaller model, or --dtype bfloat16", 1
    if isinstance(error, ModelNotAvailable):
        return _one_line(str(error)), 4
    if isinstance(error, LogitLensError):
        return _one_line(str(error)), 1
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
    """Text without line ends or control characters: it may quote a token or a file name."""
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))


def _say(line: str, code: int) -> int:
    click.echo(f"logitlens: {line}" if not line.startswith("logitlens") else line, err=True)
    return code


@click.group(cls=Verbs, context_settings=CONTEXT, no_args_is_help=True)
@click.version_option(__version__, "-V", "--version", message="logitlens %(version)s")
def main() -> None:
    """What a language model would say if it stopped after each layer.

    Try: logitlens read "The Eiffel Tower is in the city of" --track " Paris"
    """
