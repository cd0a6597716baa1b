"""`logitlens compare`: two prompts, lenses or models, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from logitlens.cli.options import (
    busy,
    check_outputs,
    load_model,
    loading_options,
    output_console,
    print_json,
    prompt_text,
    reading_options,
)

if TYPE_CHECKING:
    from logitlens.reading import Reading

MOST = 8  # readings on one page


@click.command("compare")
@click.argument("prompts", nargs=-1, required=True, metavar="PROMPT…")
@click.option(
    "-m", "--model", "models", multiple=True, default=("demo",), show_default=True, metavar="MODEL",
    help="Hub name or directory; repeat it to compare models.",
)  # fmt: skip
@reading_options
@click.option(
    "-o", "--output", metavar="FILE",
    help="Write a page (.html). Default: print the grids one below the other.",
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
    output: str | None,
    open_browser: bool,
    as_json: bool,
    **loading: Any,
) -> None:
    """Show two readings side by side: two prompts, lenses or models.

    Give two prompts, or one prompt with two --lens or two -m, or more, up to eight readings. Tokens
    are aligned where the prompts agree, layers by label or by their relative depth in the model.
    """
    count = len(prompts) * len(models) * len(lenses)
    if count < 2:
        raise click.UsageError(
            "nothing to compare: give two prompts, or one prompt with two --lens or two -m"
        )
    if count > MOST:
        raise click.UsageError(f"that is {count} readings; at most {MOST} fit on one page")
    if prompts.count("-") > 1:
        raise click.UsageError("standard input can be read once: give - for one prompt only")
    if output and Path(output).suffix.lower() != ".html":
        raise click.UsageError(
            f"a comparison is written as .html, not as {Path(output).suffix or output!r}"
        )
    targets: list[Path | None] = list(check_outputs([output])) if output else [None]
    texts = [prompt_text(prompt) for prompt in prompts]
    readings = list(read_all(texts, models, lenses, top, track, loading))
    if output or open_browser:
        from logitlens.cli.view import open_page

        open_page(readings, targets[0], None, open_browser)
    if as_json:
        print_json(readings)
    elif not (output or open_browser):
        from logitlens.cli.read import show
        from logitlens.view import page

        titles = [f"{n} · {name}" for n, name in enumerate(page.labels(readings), 1)]
        show(readings, titles=titles, color="prob")
        for line in ["", *summary(readings)]:
            output_console().print(line, markup=False, soft_wrap=True)


def read_all(
    texts: list[str],
    models: tuple[str, ...],
    lenses: tuple[str, ...],
    top: int,
    track: tuple[str, ...],
    loading: dict[str, Any],
) -> list[Reading]:
    """Every prompt with every model and lens; one model in memory at a time."""
    readings = []
    for source in models:
        model = load_model(source, **loading)
        with busy("reading") as progress:
            for text in texts:
                residuals = model.capture(text, progress=progress)
                readings += [
                    model.readout(residuals, top=top, track=track, lens=lens, progress=progress)
                    for lens in lenses
                ]
        del model
    return readings


def summary(readings: Sequence[Reading]) -> list[str]:
    """One line for each reading after the first: where it agrees with the first, and its entropy."""
    from logitlens.view.page import align

    first = readings[0]
    lines = []
    for n, other in enumerate(readings[1:], 2):
        columns = align.columns([first.pieces, other.pieces])
        _, rows = align.layers([first.layers, other.layers])
        places = [(i, j) for i, j in zip(*columns) if min(i, j) >= 0]
        layers = [(d, e) for d, e in zip(*rows) if min(d, e) >= 0]
        last = sum(first.words[-1][i] == other.words[-1][j] for i, j in places)
        cells = [(d, i, e, j) for d, e in layers for i, j in places]
        same = sum(first.words[d][i] == other.words[e][j] for d, i, e, j in cells)
        gap = sum(float(other.entropy[e, j] - first.entropy[d, i]) for d, i, e, j in cells)
        lines.append(
            f"{n} vs 1: {len(places)} aligned positions; top tokens agree at {last} of them in the "
            f"last layer and in {same} of {len(cells)} cells; mean entropy "
            f"{gap / max(1, len(cells)):+.2f} nats"
        )
    return lines
