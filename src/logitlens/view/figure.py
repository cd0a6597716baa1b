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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, cast

import numpy as np

from logitlens.errors import FormatError, MissingExtra
from logitlens.files import write_bytes
from logitlens.reading import Reading
from logitlens.select import EMBED, Selection, renamed
from logitlens.view import color as paint
from logitlens.view import text as safe
from logitlens.view.columns import stride_rows
from logitlens.view.figure_layout import INCH, LEAST, STRIP, Layout, head_of, placed
from logitlens.view.fonts import Fonts
from logitlens.view.options import FigureOptions
from logitlens.view.words import source_text, word

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

    from logitlens.view.comparison import Comparison

_GREY = "#6b7280"
_WORDS = 800  # cells up to which a figure is as large as its words need
_NO_VALUE = "#e5e7eb"
_MUTED = "#5b6470"


@cache
def shown_figure() -> type[Figure]:
    """A Figure that a notebook shows by itself, though pyplot, which would see to it, is not used."""
    from matplotlib.figure import Figure

    class Heatmap(Figure):
        def _repr_png_(self) -> bytes:
            out = io.BytesIO()
            self.savefig(out, format="png")
            return out.getvalue()

    return Heatmap


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
    mpl = _matplotlib()
    rows, columns = reading.rows(layers), reading.columns(positions)
    scale = paint.scale(reading, color)
    trim = (lambda shown: shown) if spaces else safe.without_lead
    if words is None:  # as large as many words need, a figure fits no page
        words = ax is not None or figsize is not None or len(rows) * len(columns) <= _WORDS
    heads = [trim(safe.visible(reading.pieces[column])) for column in columns]
    labels = [safe.visible(reading.layers[row]) for row in rows]
    texts = [[trim(word(reading, y, x)) for x in columns] for y in rows] if words else []
    letters = "".join([*heads, *labels, *(w for line in texts for w in line), title or ""])
    grid = _Grid(
        unit=scale.unit[np.ix_(rows, columns)],
        early=1 - reading._settled_rows()[columns] / max(1, len(reading.layers) - 1),
        heads=heads,
        labels=labels,
        texts=texts,
        muted=[reading.layers[row] == EMBED for row in rows],
        colormap=colormap_of(cmap),
        fonts=Fonts.covering(letters),
    )
    with mpl.rc_context({"text.usetex": False}):
        if ax is not None:
            return grid.among_others(ax, scale, fontsize or 9.0, title)
        size, place = placed(
            texts, heads, labels, grid.fonts, fontsize, figsize, bool(title), caption
        )
        fig = grid.alone(scale, size, place, title)
        if caption:
            _caption(fig, reading, grid.fonts, size, place)
    return fig


@dataclass(frozen=True)
class _Grid:
    """What is drawn: numbers in [0, 1] (L, T), and as text the heads, labels and words of their cells.

    early   (T,) 1 where a position settled in the first layer, 0 where only in the last
    muted   rows whose words are grey
    """

    unit: np.ndarray
    early: np.ndarray
    heads: Sequence[str]
    labels: Sequence[str]
    texts: Sequence[Sequence[str]]
    muted: Sequence[bool]
    colormap: Colormap
    fonts: Fonts

    def among_others(self, ax: Axes, scale: paint.Scale, largest: float, title: str | None) -> Axes:
        """Draw into `ax`, as large as it is."""
        box = ax.get_window_extent().transformed(ax.figure.dpi_scale_trans.inverted())
        L, T = self.unit.shape
        cell, line = INCH * box.width / T, INCH * box.height / L
        size = min(largest, max(LEAST, 0.62 * min(line, 0.45 * cell)))
        small = max(5.0, min(largest, _matplotlib().rcParams["font.size"]))
        mesh = _heatmap(ax, self.unit, self.colormap)
        _axes(ax, self.heads, self.labels, self.fonts, small, cell, line)
        self.settled(ax, small)
        if self.texts and 0.62 * line >= LEAST and cell >= 3 * LEAST:
            self.words(ax, size, cell)
        _ticks(ax.figure.colorbar(mesh, ax=ax, pad=0.02), scale, small)
        if title:
            ax.set_title(self.fonts.shown(title), fontfamily=self.fonts.families, parse_math=False)
        return ax

    def alone(self, scale: paint.Scale, size: float, place: Layout, title: str | None) -> Figure:
        """Draw a Figure of its own."""
        fig = shown_figure()(figsize=(place.width / INCH, place.height / INCH))
        ax = fig.add_axes(place.grid)
        mesh = _heatmap(ax, self.unit, self.colormap)
        _axes(ax, self.heads, self.labels, self.fonts, size, place.cell, place.line)
        self.settled(ax, size)
        if self.texts and place.readable(size):
            self.words(ax, size, place.cell)
        _ticks(fig.colorbar(mesh, cax=fig.add_axes(place.bar(size))), scale, size)
        if title:
            fig.suptitle(
                self.fonts.shown(title), x=place.middle, y=1 - 0.6 * size / place.height, va="top",
                fontfamily=self.fonts.families, fontsize=size + 3, parse_math=False,
            )  # fmt: skip
        return fig

    def settled(self, ax: Axes, size: float) -> None:
        """A strip below the tokens, as strong in colour as the answer settled early."""
        height = STRIP * size * ax.figure.dpi / INCH / ax.get_window_extent().height
        strip = ax.inset_axes((0, 1 + 0.4 * height, 1, height))
        strip.pcolormesh(self.early[None], cmap=self.colormap, vmin=0, vmax=1)
        strip.set_xticks([])
        strip.set_yticks([0.5], ["settled"], fontsize=max(LEAST, size - 2), color=_GREY)
        strip.tick_params(length=0)
        for spine in strip.spines.values():
            spine.set_visible(False)
        ax.tick_params(axis="x", pad=3.5 + 1.4 * STRIP * size)

    def words(self, ax: Axes, size: float, width: float) -> None:
        """The top tokens, in an ink that can be read on their cells."""
        cut = _cutter(self.fonts, size, width - 0.5 * size)
        cells = []
        for y, line in enumerate(self.texts):
            for x, shown in enumerate(line):
                ink = _MUTED if self.muted[y] else "black"
                if not np.isnan(self.unit[y, x]):
                    ink = _hex(paint.ink(_background(self.colormap, self.unit[y, x])))
                cells.append((x + 0.5, y + 0.5, cut(shown), ink))
        if len(cells) > _WORDS:
            return _outlines(ax, cells, self.fonts, size)
        for x, y, shown, ink in cells:
            text = ax.text(
                x, y, shown, color=ink, ha="center", va="center_baseline",
                fontfamily=self.fonts.families, fontsize=size, parse_math=False,
            )  # fmt: skip
            text.set_in_layout(False)  # words are inside the axes
        return None


def _outlines(
    ax: Axes, cells: Sequence[tuple[float, float, str, str]], fonts: Fonts, size: float
) -> None:
    """Thousands of words as one artist, of outlines: a Text takes a millisecond each time it is drawn."""
    from matplotlib.collections import PathCollection
    from matplotlib.font_manager import FontProperties
    from matplotlib.path import Path as Outline
    from matplotlib.textpath import text_to_path
    from matplotlib.transforms import Affine2D

    font = FontProperties(family=fonts.families)
    known: dict[str, Outline] = {}
    for _, _, shown, _ in cells:
        if shown not in known:
            points, codes = text_to_path.get_text_path(font, shown)
            points = np.asarray(points, float).reshape(-1, 2) / text_to_path.FONT_SCALE
            middle = (points[:, 0].min() + points[:, 0].max()) / 2 if len(points) else 0.0
            known[shown] = Outline(size * (points - [middle, 0.36]), codes if len(points) else None)
    words = PathCollection(
        [known[shown] for _, _, shown, _ in cells],
        offsets=[(x, y) for x, y, _, _ in cells],
        offset_transform=ax.transData,
        facecolors=[ink for _, _, _, ink in cells],
        linewidths=0,
    )
    words.set_transform(Affine2D().scale(1 / INCH) + ax.figure.dpi_scale_trans)
    words.set_in_layout(False)
    ax.add_collection(words, autolim=False)


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
    mpl = _matplotlib()
    figure = fig.get_figure(root=True) or fig
    kind = Path(path).suffix.lower().lstrip(".")
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})
    drawn = io.BytesIO()  # matplotlib's own files stay open where the disk is full
    with mpl.rc_context({"svg.hashsalt": "logitlens"}):
        cast("Figure", figure).savefig(
            drawn, format=kind, dpi=dpi, metadata=dates, bbox_inches="tight"
        )
    write_bytes(path, drawn.getvalue())


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtra("matplotlib", "plot", "a figure") from error
    return matplotlib


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
    mesh = _heatmap(ax, unit, colormap_of("less-more-day"))
    sizes = INCH * box.width / len(heads), INCH * box.height / len(labels)
    _axes(ax, heads, labels, Fonts.covering("".join(heads)), 9.0, *sizes)
    bar = ax.figure.colorbar(mesh, ax=ax, pad=0.02)
    bar.set_ticks([0, 0.5, 1], labels=[signed(statistic, -reach), "same", signed(statistic, reach)])
    bar.set_label(f"B − A: {statistic.label}")
    bar.outline.set_visible(False)
    ax.set_title("B − A")


def _heatmap(ax: Axes, unit: np.ndarray, colormap: Colormap) -> Any:
    """The colours; thin white lines between cells that are large enough for them."""
    thin = 0.5 if unit.size <= 2 * _WORDS else 0.0
    mesh = ax.pcolormesh(
        np.ma.masked_invalid(unit), cmap=colormap, vmin=0, vmax=1,
        edgecolors="white" if thin else "face", linewidth=thin, rasterized=unit.size > 20_000,
    )  # fmt: skip
    ax.set_facecolor(_NO_VALUE)
    ax.invert_yaxis()
    return mesh


def _axes(
    ax: Axes,
    heads: Sequence[str],
    labels: Sequence[str],
    fonts: Fonts,
    size: float,
    cell: float,
    line: float,
) -> None:
    """Labels of positions and layers; where they would overlap, every second, third …"""
    style: dict[str, Any] = {"fontfamily": fonts.families, "fontsize": size}
    ax.xaxis.tick_top()
    ax.xaxis.set_label_position("top")
    xs = stride_rows(len(heads), max(1, int(len(heads) * cell / (1.3 * size))))
    ys = stride_rows(len(labels), max(1, int(len(labels) * line / (1.15 * size))))
    shown = [fonts.shown(head_of(heads[i])) for i in xs]
    ax.set_xticks(
        np.array(xs) + 0.5, shown, rotation=45, ha="left", rotation_mode="anchor", **style
    )
    ax.set_yticks(np.array(ys) + 0.5, [fonts.shown(labels[i]) for i in ys], **style)
    for label in (*ax.get_xticklabels(), *ax.get_yticklabels()):
        label.set_parse_math(False)  # a token may well hold dollar signs
    ax.set_xlabel("Input tokens", fontsize=size + 1)
    ax.set_ylabel("Layer", fontsize=size + 1)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)


def _cutter(fonts: Fonts, size: float, room: float) -> Callable[[str], str]:
    """Cut words to `room` points, remembering what was cut: words repeat."""
    known: dict[str, str] = {}

    def cut(word: str) -> str:
        if word not in known:
            kept = fonts.shown(word)
            whole = kept
            while (
                len(kept) > 1
                and fonts.measure(kept if kept == whole else kept + safe.ELLIPSIS, size) > room
            ):
                kept = kept[:-1]
            known[word] = kept if kept == whole else kept + safe.ELLIPSIS
        return known[word]

    return cut


def _background(colormap: Colormap, t: float) -> paint.RGB:
    r, g, b = (round(255 * c) for c in colormap(float(t))[:3])
    return r, g, b


def _hex(rgb: paint.RGB) -> str:
    return "#{:02x}{:02x}{:02x}".format(*rgb)


def _ticks(bar: Any, scale: paint.Scale, size: float) -> None:
    bar.set_ticks([at for _, at in scale.ticks], labels=[name for name, _ in scale.ticks])
    bar.set_label(scale.label[0].upper() + scale.label[1:], fontsize=size + 1)
    bar.ax.tick_params(labelsize=size, length=2)
    bar.outline.set_visible(False)


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
        fontsize=small, color=_GREY, fontfamily=fonts.families, parse_math=False, va="top", linespacing=1.3,
    )  # fmt: skip
