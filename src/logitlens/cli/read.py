"""`logitlens read`: prompts in; grids, files or JSON out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from logitlens.cli.options import (
    LOADING,
    SUFFIXES,
    busy,
    check_outputs,
    color_option,
    edit_option,
    edits_of,
    grid_options,
    layers_option,
    load_model,
    model_options,
    output_console,
    positions_option,
    print_json,
    reading_options,
    result_options,
    truncate_option,
    wrote,
)
from logitlens.cli.prompts import Prompt, asked, chat_options, check_quotes
from logitlens.errors import FormatError, PromptError, UnknownLens
from logitlens.select import select_positions

if TYPE_CHECKING:
    from logitlens import LensModel, Reading
    from logitlens.edit import Edit

PLOTS = ("heatmap", "trajectories", "curves", "settled", "exits", "reads_ahead")
STREAMS = ("resid", "mid", "attn", "mlp", "head")
KINDS = (*SUFFIXES, ".csv")
PICTURES = (".png", ".svg", ".pdf")


def read_all(
    model: LensModel,
    prompts: Sequence[Prompt],
    *,
    lenses: Sequence[str],
    top: int,
    track: Sequence[str],
    track_id: Sequence[int] = (),
    positions: str | None = None,
    chunk: int | None = None,
    edits: Sequence[str] = (),
    control: bool = False,
    attribute: str | None = None,
    **run: Any,
) -> list[list[Reading]]:
    """The readings of each prompt, one for each lens, and for its control below each edited one.

    run   other arguments of `LensModel.capture`
    """
    shown: dict[str, Any] = {"top": top, "track": [*track, *track_id], "positions": positions}
    changes = edits_of(edits)
    versions = [changes]
    if control:
        from logitlens.model.edits import controls

        versions.append(controls(model, changes))

    def read(prompt: Prompt, changes: list[Edit], progress: Any) -> list[Reading]:
        how = {**run, "edits": changes} if changes else run
        if chunk:
            both = {**how, **shown, "chunk": chunk, "progress": progress}
            found = [model.read(prompt, lens=lens, **both) for lens in lenses]
        else:
            residuals = model.capture(prompt, progress=progress, **how)  # once for all lenses
            found = [
                model.readout(residuals, lens=lens, progress=progress, **shown) for lens in lenses
            ]
        if attribute is None:
            return found
        shared = {"truncate": run.get("truncate", False), "edits": changes}
        return explained(model, prompt, found, attribute, **shared)

    out = []
    for n, prompt in enumerate(prompts, 1):
        try:
            with busy("reading") as progress:
                out.append([r for each in versions for r in read(prompt, each, progress)])
        except PromptError as error:
            if len(prompts) == 1 or isinstance(error, UnknownLens):
                raise
            raise PromptError(f"prompt {n} of {len(prompts)}: {error}") from error
    return out


def explained(
    model: LensModel, prompt: Prompt, readings: list[Reading], where: str, **run: Any
) -> list[Reading]:
    """Readings of a prompt with who wrote the model's own top token after the positions chosen.

    run   other arguments of `LensModel.attribute`
    """
    numbers = readings[0].positions
    for i in select_positions(where, numbers, readings[0].meta.get("prompt_tokens")):
        found = model.attribute(prompt, position=numbers[i], **run)
        readings = [found.added_to(reading) for reading in readings]
    return readings


@dataclass
class Session:
    """What the lines of a loop share: the model, what was asked last, and its readings."""

    asked: list[Prompt] = field(default_factory=list)
    loaded: tuple[Any, LensModel] | None = None
    last: tuple[Any, list[list[Reading]]] | None = None
    looping: bool = False

    def model(self, source: str, loading: dict[str, Any]) -> LensModel:
        """The model kept, or another, loaded after it has gone."""
        if self.loaded is None or self.loaded[0] != (source, loading):
            self.loaded = self.last = None
            self.loaded = (source, loading), load_model(source, **loading)
        return self.loaded[1]

    def readings(self, model: LensModel, how: dict[str, Any]) -> list[list[Reading]]:
        """Those of `asked`, made again only if they are to be read in another way."""
        if self.last is None or self.last[0] != (self.asked, how):
            self.last = (self.asked, how), read_all(model, self.asked, **how)
        return self.last[1]


@click.command("read")
@click.argument("prompts", metavar="PROMPT|-…", nargs=-1)
@click.option("--file", metavar="FILE|-", help="Prompts, one on each line.")
@click.option(
    "-i", "--interactive", is_flag=True,
    help="Keep the model and ask for prompts, with any of these flags, until Ctrl-D; flags alone show "
    "the last prompt again.",
)  # fmt: skip
@chat_options
@model_options
@reading_options
@click.option(
    "--track-id", multiple=True, type=int, metavar="ID", help="Follow a token id; repeatable."
)
@color_option(
    help="What the colour shows. prob and agree: of the top token; rank and next: of the token that "
    "really follows; final: the rank of the token that the final layer puts first."
)
@layers_option
@positions_option
@click.option(
    "--stream", type=click.Choice(STREAMS), default="resid", show_default=True,
    help="What to read: the residual stream after each block; mid: between attention and MLP; attn, "
    "mlp, head: what each adds to the stream.",
)  # fmt: skip
@truncate_option
@click.option(
    "--chunk", type=click.IntRange(min=1), metavar="N",
    help="Process long prompts N positions at a time through the KV cache, to bound memory.",
)  # fmt: skip
@edit_option
@click.option(
    "--control", is_flag=True,
    help="Read again with every edit along a direction (add, project_out, swap) made along a random one "
    "of equal length, and show both.",
)  # fmt: skip
@click.option(
    "--attribute", metavar="POSITIONS",
    help="Keep which components wrote the model's own top token after these positions, for the card of "
    "a .html: -1, 0,4, -8: or : for all. One more pass for each.",
)  # fmt: skip
@result_options(KINDS, lines=", one line for each prompt and lens")
@click.option(
    "--plot", type=click.Choice(PLOTS), default="heatmap", show_default=True,
    help="What a .png, .svg or .pdf shows: the grid; tokens over layers; --color over layers, a line "
    "for each lens; from which layer on positions have settled; how many could stop at a layer (exits); "
    "how many name a token that comes within four positions (reads_ahead).",
)  # fmt: skip
@click.option("--open", "open_browser", is_flag=True, help="Open a page in the browser.")
@grid_options
@click.option(
    "--values", is_flag=True, default=None, help="Write the numbers into the cells as well."
)
@click.pass_context
def command(
    ctx: click.Context,
    prompts: tuple[str, ...],
    file: str | None,
    interactive: bool,
    chat: str | None,
    system: str | None,
    source: str,
    color: str,
    outputs: tuple[str, ...],
    as_json: bool,
    width: int | None,
    plot: str,
    open_browser: bool,
    quiet: bool,
    theme: str,
    values: bool | None,
    **options: Any,
) -> int | None:
    """Read prompts and show what the model would say after every layer.

    PROMPT is text; - reads standard input (a final newline is dropped). Rows are layers, the model's
    own output at the bottom; columns are the prompt's tokens; each cell holds the top token. Of several
    prompts, and lenses, a .html is one page, a .csv one table, and any other kind a file each.
    """
    session = ctx.ensure_object(Session)
    paths = check_outputs(outputs, KINDS)
    asked_for = ctx.get_parameter_source("plot") == ParameterSource.COMMANDLINE
    asked_for &= session.looping or not interactive  # of a loop, each line may have a picture
    if asked_for and plot != "heatmap" and not any(_is_picture(path) for path in paths):
        raise click.UsageError(
            f"--plot {plot} is drawn into a file: add -o FILE with one of {' '.join(PICTURES)}"
        )
    if options["stream"] != "resid" and set(options["lenses"]) != {"logit"}:
        raise click.UsageError(
            f"--stream {options['stream']} is read by the logit lens: others are fitted to the stream after "
            "each block"
        )
    loading = {name: options.pop(name) for name in LOADING}
    check_quotes(prompts, several=True)
    if prompts or file or chat or not (session.asked or interactive):
        session.asked = asked(prompts, chat, system, file)
    model = session.model(source, loading)
    if session.asked:
        readings = session.readings(model, options)
        for path in paths:
            for written in save(readings, path, color, plot, options["lenses"]):
                wrote(written)
        every = [reading for one in readings for reading in one]
        if open_browser:
            from logitlens.cli.view import open_page

            open_page(every, None, None, True, color=color)
        if as_json:
            print_json(every)
        elif not (quiet or open_browser):
            _print(readings, output_console(width), color=color, values=values, theme=theme)
    if interactive and not session.looping:
        from logitlens.cli import shell

        return shell.loop(ctx)
    return None


def _print(readings: Iterable[list[Reading]], console: Any, **options: Any) -> None:
    """The grids of each prompt, one below the other."""
    from logitlens.view import terminal

    for n, one in enumerate(readings):
        console.print(*([""] if n else []), terminal.render_lenses(one, **options), sep="\n")


def save(
    readings: Sequence[list[Reading]],
    path: Path,
    color: str,
    plot: str = "heatmap",
    lenses: Sequence[str] = ("logit",),
) -> list[Path]:
    """Write readings, a list of lenses for each prompt; returns what was written.

    One page, one table, or curves of all; else a file each: `eiffel.tuned.png`, `eiffel.2.tuned.png`.
    """
    every = [reading for one in readings for reading in one]
    suffix = path.suffix.lower()
    drawn = plot != "heatmap" and _is_picture(path)
    if drawn and plot != "trajectories":
        from logitlens.view import figure, plots

        figure.write(plots.curves(every, color if plot == "curves" else plot), path)
        return [path]
    if suffix == ".csv":
        from logitlens.files import write_text
        from logitlens.tables import table

        write_text(path, table(every).to_csv(index=False))
        return [path]
    viewed: dict[str, Any] = {} if suffix in (".json", ".parquet") else {"color": color}
    if len(every) == 1:
        return [_saved(every[0], path, drawn, viewed)]
    if suffix == ".html":
        from logitlens.view import page

        page.save(every, path, **viewed)
        return [path]
    if not path.stem:
        raise FormatError(f"{path} has no name before its suffix")
    kinds = [name.partition(":")[0] for name in lenses]
    if len(set(kinds)) < len(kinds):
        kinds = [f"{kind}-{i}" for i, kind in enumerate(kinds, 1)]
    kinds += [f"{kind}.control" for kind in kinds]
    out = []
    for n, one in enumerate(readings, 1):
        for kind, reading in zip(kinds, one):
            parts = [str(n)] * (len(readings) > 1) + [kind] * (len(one) > 1)
            name = path.with_suffix(".".join(["", *parts]) + path.suffix)
            out.append(_saved(reading, name, drawn, viewed))
    return out


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURES


def _saved(reading: Reading, path: Path, drawn: bool, viewed: dict[str, Any]) -> Path:
    """One reading by its suffix, or its trajectories."""
    if not drawn:
        return reading.save(path, **viewed)
    from logitlens.view import figure

    figure.write(reading.trajectories(), path)
    return path
