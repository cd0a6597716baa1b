"""What verbs share: options that name a model, loading it, and checking outputs beforehand."""

from __future__ import annotations

import gc
import importlib.util
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

from logitlens import statistics
from logitlens.errors import MissingExtra
from logitlens.storage import is_remote

if TYPE_CHECKING:
    from rich.console import Console

    from logitlens import LensModel
    from logitlens.edit import Edit
    from logitlens.survey.engines import Engine

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def together(*options: Decorator) -> Decorator:
    """Several options as one decorator, in the order of --help."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


loading_options = together(
    click.option("--tokenizer", metavar="NAME", help="Take the tokenizer of another hub name or directory."),
    click.option("--revision", metavar="REV", help="Branch, tag or commit on the hub."),
    click.option(
        "--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
        help="Dtype of the weights. Default: as saved; float16 becomes float32 on a CPU.",
    ),
    click.option("--device-map", metavar="MAP", help="Where the weights go: auto, cpu, cuda, cuda:1 …"),
    click.option("--attn", "attn_implementation", metavar="NAME", help="Attention: eager, sdpa …"),
    click.option("--trust-remote-code", is_flag=True, help="Run code from the model's repository."),
    click.option(
        "--ignore-unexpected", is_flag=True,
        help="Ignore weights of the checkpoint that its configuration does not use.",
    ),
)  # fmt: skip
LOADING = (  # what they are called as arguments of `logitlens.load`
    "tokenizer", "revision", "dtype", "device_map", "attn_implementation", "trust_remote_code",
    "ignore_unexpected",
)  # fmt: skip

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

edit_option = click.option(
    "--edit", "edits", multiple=True, metavar="EDIT|FILE",
    help="Change the stream while the model runs: 'add:layer=5,token= Paris,scale=4', "
    "project_out, swap, ablate, patch, or a .json file of edits; repeatable.",
)  # fmt: skip
truncate_option = click.option(
    "--truncate", is_flag=True, help="Read the last positions that fit the model's context."
)


class Number(click.FloatRange):
    """A finite number in a range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


class Folder(click.Path):
    """A folder, as a Path. An empty name is a variable that was not set, not the folder we are in.

    remote   whether it may be an address, s3://…; it is then given as text
    """

    def __init__(self, remote: bool = False):
        super().__init__(file_okay=False)
        self.remote = remote

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value):
            self.fail("expected a folder's name, not an empty one", param, ctx)
        if is_remote(value):
            if not self.remote:
                self.fail(
                    f"{value}: expected a folder of a disk, not of an object store", param, ctx
                )
            return value
        found = super().convert(value, param, ctx)
        return found if self.remote else Path(os.fsdecode(found))


def _renamed(context: click.Context, option: click.Parameter, value: str | None) -> None:
    """Refuse the former name of --layers by the new one."""
    if value is not None:
        raise click.UsageError(
            f"{option.opts[0]} is now --layers: the number 5 is the output of block 5, -1 the last, "
            "and embed has its name"
        )


layers_option = together(
    click.option(
        "--layers", metavar="LAYERS",
        help="Which layers: 5 is the output of block 5, -1 that of the last block, and embed what the "
        "first block receives. 0:12:2, -4:, or embed,4,8.",
    ),
    click.option("--depths", hidden=True, callback=_renamed, expose_value=False),
)  # fmt: skip
positions_option = click.option(
    "--positions", metavar="POSITIONS",
    help="Which token positions, from 0: -8: is the last eight, 3,9 two of them.",
)  # fmt: skip
color_option = partial(
    click.option, "--color", type=click.Choice(statistics.colors()), default="prob", show_default=True
)  # fmt: skip


def result_options(kinds: Sequence[str], *, least: int = 20, lines: str = "") -> Decorator:
    """-o, --json and --width.

    kinds   suffixes of the files   least   columns of the narrowest picture   lines   of JSON
    """
    return together(
        click.option(
            "-o", "--output", "outputs", multiple=True, metavar="FILE",
            help=f"Write {' '.join(kinds[:-1])} or {kinds[-1]}; repeatable.",
        ),
        click.option("--json", "as_json", is_flag=True, help=f"Print JSON instead{lines}."),
        click.option(
            "--width", type=click.IntRange(least, 10_000), metavar="COLUMNS",
            help="Columns to fit in. Default: the terminal's; elsewhere COLUMNS, or 120.",
        ),
    )  # fmt: skip


grid_options = together(
    click.option("-q", "--quiet", is_flag=True, help="Print no grid."),
    click.option(
        "--theme", type=click.Choice(["auto", "dark", "light"]), default="auto", show_default=True,
        help="Terminal background.",
    ),
)  # fmt: skip


def edits_of(texts: Sequence[str]) -> list[Edit]:
    """What --edit says. Raises PromptError, FormatError, OSError."""
    from logitlens import edit

    return [each for text in texts for each in edit.parse(text)]


def load_model(source: str, **options: Any) -> LensModel:
    """`logitlens.load` with a spinner on stderr, if that is a terminal."""
    known = {name: value for name, value in options.items() if value not in (None, False)}
    with busy(f"loading {source}"), uncollected():
        import transformers

        import logitlens

        # The bar for weights read from the disk only flickers; downloads keep theirs.
        transformers.utils.logging.disable_progress_bar()
        return logitlens.load(None if source == "demo" else source, **known)


@contextmanager
def uncollected() -> Iterator[None]:
    """Without garbage collection: a tenth of the time of loading went into searching what is imported,
    which stays for good and is not searched later either."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():  # the first time: a model loaded later may go again
            gc.freeze()
        if was:
            gc.enable()


def errors() -> Console:
    """The console for progress and remarks: stderr."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, emoji=False)


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


SUFFIXES = (".html", ".png", ".svg", ".pdf", ".txt", ".json", ".parquet")
# those of a Reading; --help does not wait for its module
_NEEDS = {
    ".csv": ("pandas", "data", "a table"),
    ".parquet": ("pyarrow", "data", "writing Parquet"),
    ".png": ("matplotlib", "plot", "a figure"),
    ".svg": ("matplotlib", "plot", "a figure"),
    ".pdf": ("matplotlib", "plot", "a figure"),
}


def check_outputs(paths: Sequence[str], suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
    """Check outputs before a model runs for minutes; suffixes: what may be written.

    Raises UsageError for an unknown suffix, MissingExtra where its writer is not installed, OSError
    where the file cannot be written.
    """
    from logitlens.files import check_writable

    out = []
    for given in paths:
        path = Path(given)
        suffix = path.suffix.lower()
        if suffix not in suffixes:
            raise click.UsageError(
                f"cannot tell a format from '{given}': end it in {' '.join(suffixes)}"
            )
        needs = _NEEDS.get(suffix)
        if needs and importlib.util.find_spec(needs[0]) is None:
            raise MissingExtra(*needs)
        check_writable(path)
        out.append(path)
    return out


def wrote(path: object) -> None:
    """Say on stderr what was written."""
    errors().print(f"wrote {path}", markup=False, soft_wrap=True)


class Result(Protocol):
    """A result that a verb prints as JSON and writes by the suffix of a path."""

    def to_dict(self) -> dict[str, Any]: ...
    @property
    def save(self) -> Callable[..., object]: ...


def show(
    found: Result,
    paths: Sequence[Path],
    as_json: bool,
    width: int | None,
    render: Callable[..., Any],
    **options: Any,
) -> None:
    """Write a result to files and print it, as JSON or as `render(found, width=…)` draws it.

    options   of the picture, in files as in the terminal
    """
    for path in paths:
        wrote(found.save(path, **options))
    if as_json:
        return print_json([found])
    console = output_console(width)
    return console.print(render(found, width=console.width, **options))


def print_json(results: Sequence[Result]) -> None:
    """Results on stdout as JSON, one on each line."""
    ascii_only = "utf" not in (sys.stdout.encoding or "").lower()
    for result in results:
        click.echo(json.dumps(result.to_dict(), ensure_ascii=ascii_only, allow_nan=False))


def output_console(width: int | None = None) -> Console:
    """The console for results: stdout; without a terminal 120 wide, or COLUMNS."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=False, emoji=False)  # `:pizza:` is what was read
    if width is None and not console.is_terminal:
        width = int(os.environ.get("COLUMNS", 120))
    if width is not None:
        console.width = width
    return console


engine_options = together(
    click.option("-j", "--jobs", type=click.IntRange(min=1), metavar="N",
                 help="Processes that each hold the model; with several GPUs, one each. Default: 1, with ray "
                 "as many as fit."),
    click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True,
                 help="Processes of this machine, or actors of a Ray cluster."),
    click.option("--address", metavar="ADDRESS",
                 help="The Ray cluster to join, like auto. Default: one is started on this machine."),
    click.option("--threads", type=click.IntRange(min=1), metavar="N",
                 help="Threads of each process (a survey keeps its own). Default: the machine's, shared."),
)  # fmt: skip


def check_engine(engine: str, address: str | None) -> None:
    """Raise UsageError for an address without Ray."""
    if address is not None and engine != "ray":
        raise click.UsageError("--address is of a Ray cluster: add --engine ray")


def engine_of(engine: str, address: str | None, jobs: int | None, threads: int) -> Engine | None:
    """The engine that was asked for; None: processes of this machine."""
    if engine != "ray":
        return None
    from logitlens.survey.engines import ray

    return partial(ray.run, address=address, jobs=jobs, threads=threads)


def threads_of_each(engine: str, jobs: int | None) -> int:
    """The machine's threads, shared by so many processes; with Ray, where nobody says, by its GPUs."""
    import torch

    sharing = jobs or (torch.cuda.device_count() if engine == "ray" else 1)
    return max(1, torch.get_num_threads() // max(1, sharing))


def loading_here(loading: dict[str, Any], engine: str, jobs: int | None) -> dict[str, Any]:
    """How this process loads the model: as asked, or where others read, the same weights in main memory
    and the devices left to them."""
    alone = engine == "local" and (jobs or 1) == 1
    if alone or loading["device_map"] in (None, "cpu"):
        return loading
    return loading | {"device_map": None, "dtype": loading["dtype"] or "auto"}


def shard_of(text: str | None) -> tuple[int, int] | None:
    """I/N as numbers. Raises UsageError."""
    if text is None:
        return None
    left, slash, right = text.partition("/")
    if not (slash and left.isdecimal() and right.isdecimal()):
        raise click.UsageError(f"--shard {text!r}: expected I/N, like 0/4")
    if not int(left) < int(right):
        raise click.UsageError(f"--shard {text!r}: expected 0/N to N-1/N")
    return int(left), int(right)
