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
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from logitlens.errors import FormatError, MissingExtra
from logitlens.files import write_bytes
from logitlens.reading import Reading
from logitlens.select import Selection, renamed
from logitlens.view import color as paint
from logitlens.view import text as safe
from logitlens.view.fonts import Fonts
from logitlens.view.options import FigureOptions
from logitlens.view.words import source_text, word

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

_INCH = 72.0  # points
_GREY = "#6b7280"
_NO_VALUE = "#e5e7eb"


@cache
def _shown_figure() -> type[Figure]:
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
    fontsize: float | None = None,
    figsize: tuple[float, float] | None = None,
) -> Figure:
    """Draw a reading.

    color       what the colour shows, one of `logitlens.statistics.colors()`: prob, entropy, kl, …
    layers, positions   what to draw, by number, slice or label (`logitlens.select`); default: all
    cmap        `day` (default, perceptually uniform), `night`, `seed` (the tutorial's diverging one),
                or any name or Colormap that matplotlib knows
    title       a line above; none by default
    caption     below: model, lens, and how close the last row is to the model's own logits
    spaces      show a token's one leading space as `␣`; left out by default, as in the tutorial
    fontsize    points; default 9, down to 7 for large grids
    figsize     inches (width, height); default: as large as the words need

    Words too wide for their cell are cut with `…`; characters that no installed font has are shown as
    `\\uXXXX`. Raises FormatError (unknown colour, map, or an empty choice) and MissingExtra.
    """
    mpl = _matplotlib()

    row_ids = reading.rows(layers)
    column_ids = reading.columns(positions)
    scale = paint.scale(reading, color)
    colormap = _colormap(cmap)
    trim = (lambda shown: shown) if spaces else safe.without_lead
    words = [[trim(word(reading, row, column)) for column in column_ids] for row in row_ids]
    heads = [trim(safe.visible(reading.pieces[column])) for column in column_ids]
    labels = [safe.visible(reading.layers[row]) for row in row_ids]

    size = fontsize or (9.0 if len(row_ids) * len(column_ids) <= 600 else 7.0)
    everything = "".join(heads + labels + [w for line in words for w in line])
    fonts = Fonts.covering(everything + (title or ""))
    place = _Layout.of(words, heads, labels, fonts, size, figsize, bool(title), caption)

    with mpl.rc_context({"text.usetex": False}):
        fig = _shown_figure()(figsize=(place.width / _INCH, place.height / _INCH))
        ax = fig.add_axes(place.grid)
        unit = scale.unit[np.ix_(row_ids, column_ids)]
        masked = np.ma.masked_invalid(unit)
        mesh = ax.pcolormesh(
            masked, cmap=colormap, vmin=0, vmax=1, edgecolors="white", linewidth=0.5
        )
        ax.set_facecolor(_NO_VALUE)
        ax.invert_yaxis()
        _axes(ax, heads, labels, fonts, size)
        _words(ax, words, unit, colormap, fonts, size, place.cell)
        _bar(fig, place, mesh, scale, size)
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
    mpl = _matplotlib()
    kind = Path(path).suffix.lower().lstrip(".")
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})
    fig = figure(reading, **options)
    drawn = io.BytesIO()  # matplotlib's own files stay open where the disk is full
    with mpl.rc_context({"svg.hashsalt": "logitlens"}):
        fig.savefig(drawn, format=kind, dpi=dpi, metadata=dates, bbox_inches="tight")
    write_bytes(path, drawn.getvalue())


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtra("matplotlib", "plot", "a figure") from error
    return matplotlib


def _colormap(name: str | Colormap | None) -> Colormap:
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
        rows, columns = len(words), len(words[0])
        left = max(fonts.measure(label, size) for label in labels) + 3.2 * size
        right = 7.5 * size  # gap, bar, its numbers and its label
        # A head rotated by 45° is as high as it is wide: 1/√2 of its length and of its own height.
        top = (
            0.71 * max(fonts.measure(_head(head), size) + 1.2 * size for head in heads) + 2.6 * size
        )
        top += 2.2 * size if title else 0
        bottom = 2.6 * size if caption else 0.6 * size
        if figsize is None:
            widths = sorted(fonts.measure(w, size) for w in {w for line in words for w in line})
            wanted = widths[int(0.9 * (len(widths) - 1))] + size
            cell, line = float(np.clip(wanted, 4.5 * size, 7.5 * size)), 2.3 * size
            # The last head leans out over the bar; a single column still needs room for its labels.
            cell = max(cell, 24 * size / columns)
            line = max(line, 9 * size / rows)
        else:
            cell = (_INCH * figsize[0] - left - right) / columns
            line = (_INCH * figsize[1] - top - bottom) / rows
            if cell < size or line < size:
                raise FormatError(
                    f"{columns} positions × {rows} layers do not fit {figsize[0]:g} × {figsize[1]:g} inches "
                    f"at {size:g} points: leave figsize out, or choose fewer with layers= and positions="
                )
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

    def bar(self, size: float) -> tuple[float, float, float, float]:
        right = self.left + self.columns * self.cell + 1.2 * size
        return self.box(right, self.bottom, 1.4 * size, self.rows * self.line)

    @property
    def middle(self) -> float:
        """The middle of the grid, as a part of the width."""
        return (self.left + self.columns * self.cell / 2) / self.width


def _head(text: str) -> str:
    return safe.clip(text, 16)


def _axes(ax: Axes, heads: Sequence[str], labels: Sequence[str], fonts: Fonts, size: float) -> None:
    style: dict[str, Any] = {"fontfamily": fonts.families, "fontsize": size}
    ax.xaxis.tick_top()
    ax.xaxis.set_label_position("top")
    shown = [fonts.shown(_head(head)) for head in heads]
    ax.set_xticks(
        np.arange(len(heads)) + 0.5, shown, rotation=45, ha="left", rotation_mode="anchor", **style
    )
    ax.set_yticks(np.arange(len(labels)) + 0.5, [fonts.shown(label) for label in labels], **style)
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
    colormap: Colormap,
    fonts: Fonts,
    size: float,
    width: float,
) -> None:
    cut = _cutter(fonts, size, width - 0.5 * size)
    for y, line in enumerate(words):
        for x, shown in enumerate(line):
            ink = (
                "black"
                if np.isnan(unit[y, x])
                else _hex(paint.ink(_background(colormap, unit[y, x])))
            )
            text = ax.text(
                x + 0.5, y + 0.5, cut(shown), color=ink, ha="center", va="center_baseline",
                fontfamily=fonts.families, fontsize=size, parse_math=False,
            )  # fmt: skip
            text.set_in_layout(
                False
            )  # words lie inside the axes; measuring thousands again is slow


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


def _bar(fig: Figure, place: _Layout, mesh: Any, scale: paint.Scale, size: float) -> None:
    bar = fig.colorbar(mesh, cax=fig.add_axes(place.bar(size)))
    bar.set_ticks([at for _, at in scale.ticks], labels=[name for name, _ in scale.ticks])
    bar.set_label(scale.label[0].upper() + scale.label[1:], fontsize=size + 1)
    bar.ax.tick_params(labelsize=size, length=2)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]


def _caption(fig: Figure, reading: Reading, fonts: Fonts, size: float, place: _Layout) -> None:
    """Model, lens and proof, below the grid, in as many lines as its width needs."""
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
