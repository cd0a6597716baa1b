"""`logitlens compare`: two prompts, lenses or models, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from logitlens.cli.options import (
    LOADING,
    check_outputs,
    color_option,
    layers_option,
    load_model,
    loading_options,
    output_console,
    positions_option,
    print_json,
    reading_options,
    wrote,
)
from logitlens.cli.prompts import STORED, asked, is_stored, quoted
from logitlens.cli.read import read_all
from logitlens.cli.view import load, open_page

if TYPE_CHECKING:
    from logitlens.reading import Reading

MOST = 8  # readings on one page


@click.command("compare")
@click.argument("prompts", nargs=-1, required=True, metavar="PROMPT|FILE…")
@click.option(
    "-m", "--model", "models", multiple=True, default=("demo",), show_default=True, metavar="MODEL",
    help="Hub name or directory; repeat it to compare models.",
)  # fmt: skip
@reading_options
@color_option(help="What is subtracted.")
@layers_option
@positions_option
@click.option(
    "-o", "--output", metavar="FILE",
    help="Write a page (.html); of two readings also a figure (.png .svg .pdf) or text (.txt). "
    "Default: print what changed.",
)  # fmt: skip
@click.option("--open", "open_browser", is_flag=True, help="Open the page in the browser.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print JSON instead, one line for each reading."
)
@loading_options
def command(
    prompts: tuple[str, ...],
    models: tuple[str, ...],
    lenses: tuple[str, ...],
    top: int,
    track: tuple[str, ...],
    color: str,
    layers: str | None,
    positions: str | None,
    output: str | None,
    open_browser: bool,
    as_json: bool,
    **loading: Any,
) -> None:
    """Show two readings side by side: two prompts, lenses or models.

    Give two prompts, or one prompt with two --lens or two -m, or more, up to eight readings; or files
    that logitlens wrote (.json, .parquet, .html), which need no model. Tokens
    are aligned where the prompts agree, layers by label or by their relative depth in the model.
    Printed are what changed in words, and a grid of differences between the first reading, A, and
    each other.
    """
    from logitlens.view.comparison import Comparison

    kept = _kept(prompts)
    count = len(kept) if kept else len(prompts) * len(models) * len(lenses)
    if count < 2:
        raise click.UsageError(
            "nothing to compare: give two prompts, or one prompt with two --lens or two -m"
        )
    if count > MOST:
        raise click.UsageError(f"that is {count} readings; at most {MOST} fit on one page")
    suffix = Path(output).suffix.lower() if output else ".html"
    if suffix != ".html" and (count > 2 or suffix in (".json", ".parquet")):
        raise click.UsageError(
            f"a comparison of {count} readings is written as .html, not as {suffix or output!r}"
        )
    targets: list[Path | None] = list(check_outputs([output])) if output else [None]
    texts = [] if kept else asked(prompts)
    readings: list[Reading] = list(kept)
    for source in () if kept else models:  # one in memory at a time
        model = load_model(source, **loading)
        found = read_all(model, texts, lenses=lenses, top=top, track=track)
        readings += [reading for one in found for reading in one]
        del model
    pairs = [
        Comparison(readings[0], other, color, layers, positions, letters="A" + letter)
        for letter, other in zip("BCDEFGH", readings[1:])
    ]
    if suffix != ".html":
        pairs[0].save(str(output))
        wrote(output)
    elif output or open_browser:
        open_page(readings, targets[0], None, open_browser, color=color)
    if as_json:
        print_json(readings)
    elif not (output or open_browser):
        for n, pair in enumerate(pairs):
            output_console().print(*([""] if n else []), pair, sep="\n")


def _kept(given: tuple[str, ...]) -> list[Reading]:
    """The readings of files; none where prompts are given. Raises UsageError for both at once."""
    files = [text for text in given if is_stored(text)]
    for text in given:
        if text not in files and text.lower().endswith(STORED) and not text.split()[1:]:
            raise FileNotFoundError(f"no reading at {text}")
    if not files:
        return []
    if len(files) < len(given):
        raise click.UsageError(
            f"{quoted(files[:1])} is a file and others are prompts: give files alone, or prompts alone"
        )
    context = click.get_current_context()
    for name in ("models", "lenses", "top", "track", *LOADING):
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(
                "readings from files are as they were made: leave out what loads a model and reads "
                "(-m, --lens, -k, --track, …)"
            )
    return [reading for path in files for reading in load(Path(path))]
