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
from logitlens.view.fonts import Fonts
from logitlens.view.options import FigureOptions
from logitlens.view.words import source_text, word

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

    from logitlens.view.comparison import Comparison

_INCH = 72.0  # points
_GREY = "#6b7280"
_WORDS = 800  # cells up to which a figure is as large as its words need
_LEAST = 5.0  # points: smaller words cannot be read
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
    colormap = colormap_of(cmap)
    trim = (lambda shown: shown) if spaces else safe.without_lead
    heads = [trim(safe.visible(reading.pieces[column])) for column in columns]
    labels = [safe.visible(reading.layers[row]) for row in rows]
    fixed = ax is not None or figsize is not None
    if words is None:  # as large as many words need, a figure fits no page
        words = fixed or len(rows) * len(columns) <= _WORDS
    texts = (
        [[trim(word(reading, row, column)) for column in columns] for row in rows] if words else []
    )
    fonts = Fonts.covering(
        "".join([*heads, *labels, *(w for line in texts for w in line), title or ""])
    )
    unit = scale.unit[np.ix_(rows, columns)]
    muted = [reading.layers[row] == EMBED for row in rows]

    with mpl.rc_context({"text.usetex": False}):
        if ax is not None:
            box = ax.get_window_extent().transformed(ax.figure.dpi_scale_trans.inverted())
            cell, line = _INCH * box.width / len(columns), _INCH * box.height / len(rows)
            size = min(fontsize or 9.0, max(_LEAST, 0.62 * min(line, 0.45 * cell)))
            small = max(5.0, min(fontsize or 9.0, mpl.rcParams["font.size"]))
            mesh = _heatmap(ax, unit, colormap)
            _axes(ax, heads, labels, fonts, small, cell, line)
            if texts and 0.62 * line >= _LEAST and cell >= 3 * _LEAST:
                _words(ax, texts, unit, muted, colormap, fonts, size, cell)
            _ticks(ax.figure.colorbar(mesh, ax=ax, pad=0.02), scale, small)
            if title:
                ax.set_title(fonts.shown(title), fontfamily=fonts.families, parse_math=False)
            return ax
        size, place = _placed(texts, heads, labels, fonts, fontsize, figsize, bool(title), caption)
        fig = shown_figure()(figsize=(place.width / _INCH, place.height / _INCH))
        grid = fig.add_axes(place.grid)
        mesh = _heatmap(grid, unit, colormap)
        _axes(grid, heads, labels, fonts, size, place.cell, place.line)
        if texts and place.readable(size):
            _words(grid, texts, unit, muted, colormap, fonts, size, place.cell)
        _ticks(fig.colorbar(mesh, cax=fig.add_axes(place.bar(size))), scale, size)
        if title:
            fig.suptitle(
                fonts.shown(title), x=place.middle, y=1 - 0.6 * size / place.height, va="top",
                fontfamily=fonts.families, fontsize=size + 3, parse_math=False,
            )  # fmt: skip
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


@dataclass(frozen=True)
class _Layout:
    """Where things lie, in points from the lower left: cells are as wide as their words need."""

    width: float
    height: float
    left: float
    bottom: float
    cell: float
    line: float
    columns: int
    rows: int

    @staticmethod
    def of(
        words: Sequence[Sequence[str]],
        heads: Sequence[str],
        labels: Sequence[str],
        fonts: Fonts,
        size: float,
        figsize: tuple[float, float] | None,
        title: bool,
        caption: bool,
    ) -> _Layout:
        rows, columns = len(labels), len(heads)
        left = max(fonts.measure(label, size) for label in labels) + 3.2 * size
        right = 7.5 * size  # gap, bar, its numbers and its label
        # A head rotated by 45° is as high as it is wide: 1/√2 of its length and of its own height.
        top = (
            0.71 * max(fonts.measure(_head(head), size) + 1.2 * size for head in heads) + 2.6 * size
        )
        top += 2.2 * size if title else 0
        bottom = 2.6 * size if caption else 0.6 * size
        if figsize is not None:
            cell = (_INCH * figsize[0] - left - right) / columns
            line = (_INCH * figsize[1] - top - bottom) / rows
            if cell <= 0 or line <= 0:
                raise FormatError(
                    f"{figsize[0]:g} × {figsize[1]:g} inches leave no room for cells beside labels of "
                    f"{size:g} points: give a smaller fontsize, or leave figsize out"
                )
        elif words:
            widths = sorted(fonts.measure(w, size) for w in {w for line in words for w in line})
            wanted = widths[int(0.9 * (len(widths) - 1))] + size
            cell, line = float(np.clip(wanted, 4.5 * size, 7.5 * size)), 2.3 * size
            # The last head leans out over the bar; a single column still needs room for its labels.
            cell = max(cell, 24 * size / columns)
            line = max(line, 9 * size / rows)
        else:
            cell, line = (max(least, room / n) for least, room, n in (
                (1.0, min(36.0 * size, 1.6 * size * columns), columns),
                (1.0, min(26.0 * size, 1.4 * size * rows), rows),
            ))  # fmt: skip
        width, height = left + columns * cell + right, bottom + rows * line + top
        return _Layout(width, height, left, bottom, cell, line, columns, rows)

    def box(
        self, left: float, bottom: float, width: float, height: float
    ) -> tuple[float, float, float, float]:
        """Points as the parts of the figure that matplotlib counts in."""
        return left / self.width, bottom / self.height, width / self.width, height / self.height

    @property
    def grid(self) -> tuple[float, float, float, float]:
        return self.box(self.left, self.bottom, self.columns * self.cell, self.rows * self.line)

    def readable(self, size: float) -> bool:
        """Whether words of this size fit into the cells."""
        return size >= _LEAST and self.line >= 1.5 * size and self.cell >= 2.8 * size

    def bar(self, size: float) -> tuple[float, float, float, float]:
        right = self.left + self.columns * self.cell + 1.2 * size
        return self.box(right, self.bottom, 1.4 * size, self.rows * self.line)

    @property
    def middle(self) -> float:
        """The middle of the grid, as a part of the width."""
        return (self.left + self.columns * self.cell / 2) / self.width


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
    sizes = _INCH * box.width / len(heads), _INCH * box.height / len(labels)
    _axes(ax, heads, labels, Fonts.covering("".join(heads)), 9.0, *sizes)
    bar = ax.figure.colorbar(mesh, ax=ax, pad=0.02)
    bar.set_ticks([0, 0.5, 1], labels=[signed(statistic, -reach), "same", signed(statistic, reach)])
    bar.set_label(f"B − A: {statistic.label}")
    bar.outline.set_visible(False)
    ax.set_title("B − A")


def _placed(
    words: Sequence[Sequence[str]],
    heads: Sequence[str],
    labels: Sequence[str],
    fonts: Fonts,
    fontsize: float | None,
    figsize: tuple[float, float] | None,
    title: bool,
    caption: bool,
) -> tuple[float, _Layout]:
    """The largest text that fits, from 9 points down to 5, and where things are with it."""
    sizes = [fontsize] if fontsize else [9.0] if figsize is None else [9.0, 8.0, 7.0, 6.0, 5.0]
    for size in sizes:
        place = _Layout.of(words, heads, labels, fonts, size, figsize, title, caption)
        if figsize is None or not words or place.readable(size):
            return size, place
    size = fontsize or 7.0  # of the labels; there is no room for words
    return size, _Layout.of([], heads, labels, fonts, size, figsize, title, caption)


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


def _head(text: str) -> str:
    return safe.clip(text, 16)


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
    shown = [fonts.shown(_head(heads[i])) for i in xs]
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


def _words(
    ax: Axes,
    words: Sequence[Sequence[str]],
    unit: np.ndarray,
    muted: Sequence[bool],
    colormap: Colormap,
    fonts: Fonts,
    size: float,
    width: float,
) -> None:
    cut = _cutter(fonts, size, width - 0.5 * size)
    for y, line in enumerate(words):
        for x, shown in enumerate(line):
            ink = _MUTED if muted[y] else "black"
            if not np.isnan(unit[y, x]):
                ink = _hex(paint.ink(_background(colormap, unit[y, x])))
            text = ax.text(
                x + 0.5, y + 0.5, cut(shown), color=ink, ha="center", va="center_baseline",
                fontfamily=fonts.families, fontsize=size, parse_math=False,
            )  # fmt: skip
            # Words are inside the axes; measuring thousands of them again is slow.
            text.set_in_layout(False)


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


def _caption(fig: Figure, reading: Reading, fonts: Fonts, size: float, place: _Layout) -> None:
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
