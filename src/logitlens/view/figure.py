"""The classic heatmap as a matplotlib Figure: layers down, positions across, the top token in each cell.

    reading.figure()                                   every layer and position, by probability
    reading.figure(color="kl", layers="0:", cmap="seed") no embedding row, the tutorial's colours
    reading.save("eiffel.svg")                         .png .svg .pdf

The arrangement is that of the nnsight logit-lens tutorial (after nostalgebraist, "interpreting GPT:
the logit lens", 2020). pyplot is never imported, so nothing global changes and no display is needed.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Unpack, cast

import numpy as np

from logitlens.errors import FormatError
from logitlens.files import write_bytes
from logitlens.reading import Reading
from logitlens.select import EMBED, Selection, renamed
from logitlens.view import color as paint
from logitlens.view import text as safe
from logitlens.view.figure_grid import (
    GREY,
    MANY,
    Grid,
    check_place,
    heatmap,
    label_axes,
    matplotlib,
)
from logitlens.view.figure_layout import INCH, Layout, placed
from logitlens.view.fonts import Fonts
from logitlens.view.options import FigureOptions
from logitlens.view.words import source_text, word

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

    from logitlens.view.comparison import Comparison


@renamed(rows="layers", depths="layers")
def figure(
    reading: Reading,
    *,
    color: str = "prob",
    layers: Selection = None,
    positions: Selection = None,
    cmap: str | Colormap | None = None,
    title: str | None = None,
    caption: bool = True,
    spaces: bool = False,
    words: bool | None = None,
    fontsize: float | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> Figure | Axes:
    """Draw a reading.

    color       what the colour shows, one of `logitlens.statistics.colors()`: prob, entropy, kl, …
    layers, positions   what to draw, by number, slice or label (`logitlens.select`); default: all
    cmap        `day` (default, perceptually uniform), `night`, `seed` (the tutorial's diverging one),
                or any name or Colormap that matplotlib knows
    title       a line above; none by default
    caption     below: model, lens, and how close the last row is to the model's own logits
    spaces      show a token's one leading space as `␣`; left out by default, as in the tutorial
    words       write the top token into each cell; default: where it can be read, from 5 points on
    fontsize    points; default: 9, or as much as the cells of `figsize` or `ax` hold
    figsize     inches (width, height); default: as large as the words need
    ax          draw into these Axes, beside others: returned instead of a Figure; no caption

    Words too wide for their cell are cut with `…`; characters that no installed font has are shown as
    `\\uXXXX`; of crowded labels every second, third … is written. Raises FormatError (unknown colour,
    map, or an empty choice) and MissingExtra.
    """
    mpl = matplotlib()
    check_place(ax, figsize)
    rows, columns = reading.rows(layers), reading.columns(positions)
    scale = paint.scale(reading, color)
    if words is None:  # as large as many words need, a figure fits no page
        words = ax is not None or figsize is not None or len(rows) * len(columns) <= MANY
    trim = (lambda shown: shown) if spaces else safe.without_lead
    heads = [trim(safe.visible(reading.pieces[column])) for column in columns]
    labels = [safe.visible(reading.layers[row]) for row in rows]
    texts = [[trim(word(reading, y, x)) for x in columns] for y in rows] if words else []
    fonts = Fonts.covering("".join([*heads, *labels, *(w for t in texts for w in t), title or ""]))
    early = 1 - reading._settled_rows()[columns] / max(1, len(reading.layers) - 1)
    muted = [reading.layers[row] == EMBED for row in rows]
    unit = scale.unit[np.ix_(rows, columns)]
    grid = Grid(unit, early, heads, labels, texts, muted, colormap_of(cmap), fonts)
    with mpl.rc_context({"text.usetex": False}):
        if ax is not None:
            return grid.among_others(ax, scale, fontsize or 9.0, title)
        size, place = placed(texts, heads, labels, fonts, fontsize, figsize, bool(title), caption)
        fig = grid.alone(scale, size, place, title)
        if caption:
            _caption(fig, reading, fonts, size, place)
    return fig


def save(
    reading: Reading,
    path: str | os.PathLike[str],
    *,
    dpi: int = 200,
    **options: Unpack[FigureOptions],
) -> None:
    """Write .png, .svg or .pdf, whole or not at all; the same bytes for the same reading.

    `options` are those of `figure`. Raises FormatError, MissingExtra, OSError.
    """
    write(figure(reading, **options), path, dpi=dpi)


def write(fig: Figure | Axes, path: str | os.PathLike[str], *, dpi: int = 200) -> None:
    """A Figure (or that of Axes) as .png, .svg or .pdf, atomically and undated. Raises OSError."""
    mpl = matplotlib()
    figure = fig.get_figure(root=True) or fig
    kind = Path(path).suffix.lower().lstrip(".")
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})
    drawn = io.BytesIO()  # matplotlib's own files stay open where the disk is full
    with mpl.rc_context({"svg.hashsalt": "logitlens"}):
        cast("Figure", figure).savefig(
            drawn, format=kind, dpi=dpi, metadata=dates, bbox_inches="tight"
        )
    write_bytes(path, drawn.getvalue())


def colormap_of(name: str | Colormap | None) -> Colormap:
    """One of ours by name, else matplotlib's. Raises FormatError."""
    import matplotlib
    from matplotlib.colors import Colormap, ListedColormap

    if isinstance(name, Colormap):
        return name
    name = name or "day"
    if name in paint.MAPS:
        return ListedColormap(paint.table(name) / 255, name=f"logitlens-{name}")
    if name not in matplotlib.colormaps:
        raise FormatError(
            f"no colour map {name!r}: expected {', '.join(paint.MAPS)}, or one of matplotlib's, like viridis"
        )
    return matplotlib.colormaps[name]


def difference(ax: Axes, comparison: Comparison) -> None:
    """B − A in `ax`, from blue over white to orange; see `logitlens.view.comparison`."""
    from logitlens import statistics
    from logitlens.view.comparison import signed

    a, reach = comparison.a, comparison.reach
    statistic = statistics.by_color(comparison.color)
    heads = [safe.without_lead(safe.visible(a.pieces[i])) for i, _ in comparison.columns]
    labels = [safe.visible(a.layers[p]) for p, _ in comparison.rows]
    unit = 0.5 + comparison.difference() / (2 * reach)
    unit[[label == EMBED for label in labels]] = np.nan
    box = ax.get_window_extent().transformed(ax.figure.dpi_scale_trans.inverted())
    mesh = heatmap(ax, unit, colormap_of("less-more-day"))
    sizes = INCH * box.width / len(heads), INCH * box.height / len(labels)
    label_axes(ax, heads, labels, Fonts.covering("".join(heads)), 9.0, *sizes)
    bar = ax.figure.colorbar(mesh, ax=ax, pad=0.02)
    bar.set_ticks([0, 0.5, 1], labels=[signed(statistic, -reach), "same", signed(statistic, reach)])
    bar.set_label(f"B − A: {statistic.label}")
    bar.outline.set_visible(False)
    ax.set_title("B − A")


def _caption(fig: Figure, reading: Reading, fonts: Fonts, size: float, place: Layout) -> None:
    """Model, lens and check, below the grid, in as many lines as its width needs."""
    parts = [*source_text(reading).split(" · "), reading.check_text()[1]]
    small, lines = max(6.0, size - 2), [""]
    room = place.left + place.columns * place.cell
    for part in parts:
        longer = f"{lines[-1]} · {part}" if lines[-1] else part
        if lines[-1] and fonts.measure(longer, small) > room:
            lines.append(part)
        else:
            lines[-1] = longer
    fig.text(
        place.left / place.width, (place.bottom - 0.9 * size) / place.height, fonts.shown("\n".join(lines)),
        fontsize=small, color=GREY, fontfamily=fonts.families, parse_math=False, va="top", linespacing=1.3,
    )  # fmt: skip
