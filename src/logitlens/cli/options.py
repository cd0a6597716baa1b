"""What verbs share: options that name a model, loading it, and checking outputs beforehand."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from logitlens.errors import MissingExtra, PromptError

if TYPE_CHECKING:
    from rich.console import Console

    from logitlens import LensModel
    from logitlens.edit import Edit
    from logitlens.reading import Reading

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def together(*options: Decorator) -> Decorator:
    """Several options as one decorator, in the order of --help."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


loading_options = together(
    click.option(
        "--tokenizer", metavar="NAME", help="Take the tokenizer of another hub name or directory."
    ),
    click.option("--revision", metavar="REV", help="Branch, tag or commit on the hub."),
    click.option(
        "--dtype",
        type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
        help="Number type of the weights. Default: as saved; float16 becomes float32 on a CPU.",
    ),
    click.option(
        "--device-map", metavar="MAP", help="Where the weights go: auto, cpu, cuda, cuda:1 …"
    ),
    click.option("--attn", "attn_implementation", metavar="NAME", help="Attention: eager, sdpa …"),
    click.option("--trust-remote-code", is_flag=True, help="Run code from the model's repository."),
    click.option(
        "--ignore-unexpected",
        is_flag=True,
        help="Read a checkpoint without weights that its configuration has no place for.",
    ),
)
LOADING = (
    "tokenizer",
    "revision",
    "dtype",
    "device_map",
    "attn_implementation",
    "trust_remote_code",
    "ignore_unexpected",
)  # what they are called as arguments of `logitlens.load`

model_options = together(
    click.option(
        "-m", "--model", "source", default="demo", show_default=True, metavar="MODEL",
        help="Hub name or directory; demo is the bundled model and needs no network.",
    ),
    loading_options,
)  # fmt: skip

reading_options = together(
    click.option(
        "--lens", "lenses", multiple=True, default=("logit",), show_default=True, metavar="LENS",
        help="logit, tuned[:PATH] or jacobian[:PATH]; repeat it for several.",
    ),
    click.option(
        "-k", "--top", default=10, show_default=True, type=click.IntRange(min=1),
        help="Tokens to keep in each cell, the likeliest first.",
    ),
    click.option(
        "--track", multiple=True, metavar="TOKEN", help='Follow a token, like " Paris"; repeatable.'
    ),
)  # fmt: skip

STORED = ["float16", "bfloat16", "float32"]  # number types of a lens file


def edit_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """--edit."""
    return click.option(
        "--edit", "edits", multiple=True, metavar="EDIT|FILE",
        help="Change the stream while the model runs: 'add:layer=5,token= Paris,scale=4', "
        "project_out, swap, ablate, patch, or a .json file of edits; repeatable.",
    )(function)  # fmt: skip


def edits_of(texts: Sequence[str]) -> list[Edit]:
    """What --edit says. Raises PromptError, FormatError, OSError."""
    from logitlens import edit

    return [each for text in texts for each in edit.parse(text)]


def renamed_option(new: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    """A callback for an option by its former name: a usage error that gives the new one."""

    def refuse(context: click.Context, option: click.Parameter, value: Any) -> None:
        if value is not None:
            raise click.UsageError(
                f"{option.opts[0]} is now {new}: the number 5 is the output of block 5, -1 the last, "
                "and embed has its name"
            )

    return refuse


class PromptCommand(click.Command):
    """A command with one prompt, which a shell takes apart where the quotes are missing."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.allow_extra_args = True
        more = super().parse_args(ctx, args)
        if more:
            prompt = quoted([ctx.params["prompt"] or "", *more])
            raise click.UsageError(f"put the prompt in quotes: {ctx.command_path} {prompt}", ctx)
        return more


def quoted(words: Sequence[str]) -> str:
    """Words as one argument for a shell."""
    text = " ".join(words)
    return shlex.quote(text) if set(text) & set('"$`\\!') else f'"{text}"'


def load_model(source: str, **options: Any) -> LensModel:
    """`logitlens.load` with a spinner on stderr, if that is a terminal."""
    known = {name: value for name, value in options.items() if value not in (None, False)}
    with busy(f"loading {source}"):
        import transformers

        import logitlens

        # The bar for weights read from the disk only flickers; downloads keep theirs.
        transformers.utils.logging.disable_progress_bar()
        return logitlens.load(None if source == "demo" else source, **known)


def errors() -> Console:
    """The console for progress and remarks: stderr."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


@contextmanager
def busy(what: str) -> Iterator[Callable[[str, int, int], None] | None]:
    """A spinner on stderr while something takes long; nothing if stderr is not a terminal.

    Yields a callback that shows progress (see `LensModel.read`), or None.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.text import Text

    with errors().status(Text(what)) as status:
        yield lambda unit, done, of: status.update(Text(f"{what}: {unit} {done:,} of {of:,}"))


def prompt_text(prompt: str) -> str:
    """The prompt, from stdin for `-`.

    Not part of it: one newline at its end, which `echo` and editors put there, and a byte order mark
    at its beginning. Everything else is read as it is, Windows line ends within it too.

    Raises PromptError for bytes that are not UTF-8.
    """
    try:
        if prompt == "-":
            text = sys.stdin.buffer.read().decode("utf-8-sig")
            return text[:-2] if text.endswith("\r\n") else text.removesuffix("\n")
        prompt.encode("utf-8")
        return prompt
    except UnicodeError as error:
        raise PromptError(f"the prompt is not UTF-8 ({error}): convert it first") from error


chat_options = together(
    click.option(
        "--chat", metavar="FILE|-",
        help='Messages as JSON, [{"role": "user", "content": …}, …]; PROMPT, if there is one, is '
        "asked after them.",
    ),
    click.option("--system", metavar="TEXT", help="Ask as a chat, with this system message."),
)  # fmt: skip


def prompt_or_chat(
    prompt: str | None, chat: str | None, system: str | None
) -> str | list[dict[str, Any]]:
    """The prompt as text, or the messages that PROMPT, --chat and --system make together.

    Raises PromptError for a file that holds no messages.
    """
    if chat is None and system is None:
        if prompt is None:
            raise click.UsageError("Missing argument 'PROMPT|-'.")
        return prompt_text(prompt)
    messages: list[dict[str, Any]] = []
    if chat is not None:
        if chat == "-" == prompt:
            raise click.UsageError("standard input is either --chat or PROMPT")
        messages = _messages(chat)
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    if prompt is not None:
        messages.append({"role": "user", "content": prompt_text(prompt)})
    return messages


def _messages(chat: str) -> list[dict[str, Any]]:
    data = sys.stdin.buffer.read() if chat == "-" else Path(chat).read_bytes()
    expected = f'{chat}: expected a JSON list of messages, {{"role": "user", "content": "…"}}'
    try:
        found = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{expected} ({error})") from error
    if not isinstance(found, list) or not all(isinstance(m, dict) and "role" in m for m in found):
        raise PromptError(expected)
    return found


_NEEDS = {
    ".parquet": ("pyarrow", "data", "writing Parquet"),
    ".png": ("matplotlib", "plot", "a figure"),
    ".svg": ("matplotlib", "plot", "a figure"),
    ".pdf": ("matplotlib", "plot", "a figure"),
}


def check_outputs(paths: Sequence[str], suffixes: Sequence[str] | None = None) -> list[Path]:
    """Check outputs before a model runs for minutes.

    suffixes   what may be written; None: whatever a Reading can be saved as

    Raises FormatError for an unknown suffix, MissingExtra where its writer is not installed, OSError
    where the file cannot be written.
    """
    from logitlens.errors import FormatError
    from logitlens.files import check_writable
    from logitlens.reading import known_suffix

    out = []
    for path in map(Path, paths):
        if suffixes is not None and path.suffix not in suffixes:
            raise FormatError(f"{path}: expected {', '.join(suffixes[:-1])} or {suffixes[-1]}")
        needs = _NEEDS.get(known_suffix(path))
        if needs and importlib.util.find_spec(needs[0]) is None:
            raise MissingExtra(*needs)
        check_writable(path)
        out.append(path)
    return out


def print_json(readings: Sequence[Reading]) -> None:
    """Readings on stdout as JSON, one on each line."""
    ascii_only = "utf" not in (sys.stdout.encoding or "").lower()
    for reading in readings:
        click.echo(json.dumps(reading.to_dict(), ensure_ascii=ascii_only, allow_nan=False))


def output_console(width: int | None = None) -> Console:
    """The console for results: stdout; without a terminal 120 wide, or COLUMNS."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=False)
    if width is None and not console.is_terminal:
        width = int(os.environ.get("COLUMNS", 120))
    if width is not None:
        console.width = width
    return console
