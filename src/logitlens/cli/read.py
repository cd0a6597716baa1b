"""`logitlens read`: one prompt in, the grid, files or JSON out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from logitlens import statistics
from logitlens.cli.options import (
    PromptCommand,
    busy,
    chat_options,
    check_outputs,
    edit_option,
    edits_of,
    errors,
    load_model,
    model_options,
    output_console,
    print_json,
    prompt_or_chat,
    reading_options,
    renamed_option,
)
from logitlens.errors import FormatError

if TYPE_CHECKING:
    from logitlens import Reading

PLOTS = ("heatmap", "trajectories", "curves", "settled")
STREAMS = ("resid", "mid", "attn", "mlp")


@click.command("read", cls=PromptCommand)
@click.argument("prompt", metavar="PROMPT|-", required=False)
@chat_options
@model_options
@reading_options
@click.option(
    "--track-id", multiple=True, type=int, metavar="ID", help="Follow a token id; repeatable."
)
@click.option(
    "--color", type=click.Choice(statistics.colors()), default="prob", show_default=True,
    help="What the colour shows. prob and agree: of the top token; rank and next: of the token that "
    "really follows; final: the rank of the token that the final layer puts first.",
)  # fmt: skip
@click.option(
    "--layers", metavar="LAYERS",
    help="Layers to read: 5 is the output of block 5, -1 that of the last block, which is always "
    "kept, and embed what the first block receives. 0:12:2, -4:, or embed,4,8.",
)  # fmt: skip
@click.option("--depths", hidden=True, callback=renamed_option("--layers"), expose_value=False)
@click.option(
    "--positions", metavar="POSITIONS",
    help="Token positions to show, from 0: -8: is the last eight, 3,9 two of them.",
)  # fmt: skip
@click.option(
    "--stream", type=click.Choice(STREAMS), default="resid", show_default=True,
    help="What to read: the residual stream after each block; mid: between attention and MLP; attn, "
    "mlp: what each adds to the stream.",
)  # fmt: skip
@click.option(
    "--truncate", is_flag=True, help="Read the last positions that fit the model's context."
)
@click.option(
    "--chunk", type=click.IntRange(min=1), metavar="N",
    help="Process long prompts N positions at a time through the KV cache, to bound memory.",
)  # fmt: skip
@edit_option
@click.option(
    "-o", "--output", "outputs", multiple=True, metavar="FILE",
    help="Write .html .png .svg .pdf .txt .json or .parquet; repeatable.",
)  # fmt: skip
@click.option(
    "--plot", type=click.Choice(PLOTS), default="heatmap", show_default=True,
    help="What a .png, .svg or .pdf shows: the grid; tokens over layers; --color over layers, a line "
    "for each lens; from which layer on positions have settled.",
)  # fmt: skip
@click.option("--open", "open_browser", is_flag=True, help="Open a page in the browser.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead, one line for each lens.")
@click.option("-q", "--quiet", is_flag=True, help="Print no grid; for use with -o.")
@click.option(
    "--width", type=click.IntRange(20, 10_000), metavar="COLUMNS", help="Width of the grid."
)
@click.option(
    "--values", is_flag=True, default=None, help="Write the numbers into the cells as well."
)
@click.option(
    "--theme", type=click.Choice(["auto", "dark", "light"]), default="auto", show_default=True,
    help="Terminal background.",
)  # fmt: skip
def command(
    prompt: str | None,
    chat: str | None,
    system: str | None,
    source: str,
    lenses: tuple[str, ...],
    top: int,
    track: tuple[str, ...],
    track_id: tuple[int, ...],
    color: str,
    layers: str | None,
    positions: str | None,
    stream: str,
    truncate: bool,
    chunk: int | None,
    edits: tuple[str, ...],
    outputs: tuple[str, ...],
    plot: str,
    open_browser: bool,
    as_json: bool,
    quiet: bool,
    width: int | None,
    values: bool | None,
    theme: str,
    **loading: Any,
) -> None:
    """Read one prompt and show what the model would say after every layer.

    PROMPT is text; - reads standard input (a final newline is dropped). Rows are layers, the model's
    own output at the bottom; columns are the prompt's tokens; each cell holds the top token.
    """
    paths = check_outputs(outputs)
    text = prompt_or_chat(prompt, chat, system)
    changes = edits_of(edits)
    model = load_model(source, **loading)
    run = {"layers": layers, "truncate": truncate, "stream": stream}
    run |= {"edits": changes} if changes else {}
    shown = {"top": top, "track": [*track, *track_id], "positions": positions}
    with busy("reading") as progress:
        if chunk:
            both = {**run, **shown, "chunk": chunk, "progress": progress}
            readings = [model.read(text, lens=lens, **both) for lens in lenses]
        else:  # the model runs once for all lenses
            residuals = model.capture(text, progress=progress, **run)
            readings = [
                model.readout(residuals, lens=lens, progress=progress, **shown) for lens in lenses
            ]
    for path in paths:
        for written in save(readings, list(lenses), path, color, plot):
            errors().print(f"wrote {written}", markup=False, soft_wrap=True)
    if open_browser:
        from logitlens.cli.view import open_page

        open_page(readings, None, None, True, color=color)
    if as_json:
        print_json(readings)
    elif not (quiet or open_browser):
        from logitlens.view import terminal

        options = {"color": color, "values": values, "theme": theme}
        output_console(width).print(terminal.render_lenses(readings, **options))


def save(
    readings: list[Reading], names: list[str], path: Path, color: str, plot: str = "heatmap"
) -> list[Path]:
    """Write one page or curves of all readings, or one file each (`eiffel.tuned.png`); returns what was
    written."""
    drawn = plot != "heatmap" and path.suffix.lower() in (".png", ".svg", ".pdf")
    if drawn and plot != "trajectories":
        from logitlens.view import figure, plots

        figure.write(plots.curves(readings, color if plot == "curves" else plot), path)
        return [path]
    viewed: dict[str, Any] = (
        {"color": color} if path.suffix.lower() not in (".json", ".parquet") else {}
    )
    if len(readings) == 1:
        return [_saved(readings[0], path, drawn, viewed)]
    if path.suffix.lower() == ".html":
        from logitlens.view import page

        page.save(readings, path, **viewed)
        return [path]
    kinds = [name.partition(":")[0] for name in names]
    if len(set(kinds)) < len(kinds):
        kinds = [f"{kind}-{i}" for i, kind in enumerate(kinds, 1)]
    if not path.stem:
        raise FormatError(f"{path} has no name before its suffix")
    return [
        _saved(r, path.with_suffix(f".{kind}{path.suffix}"), drawn, viewed)
        for r, kind in zip(readings, kinds)
    ]


def _saved(reading: Reading, path: Path, drawn: bool, viewed: dict[str, Any]) -> Path:
    """One reading by its suffix, or its trajectories."""
    if not drawn:
        return reading.save(path, **viewed)
    from logitlens.view import figure

    figure.write(reading.trajectories(), path)
    return path
