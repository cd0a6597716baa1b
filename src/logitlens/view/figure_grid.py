"""A heatmap in matplotlib's Axes: colours, words, labels, and from which layer on an answer is settled."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from logitlens.errors import FormatError, MissingExtra
from logitlens.view import color as paint
from logitlens.view import text as safe
from logitlens.view.columns import stride_rows
from logitlens.view.figure_layout import INCH, LEAST, STRIP, Layout, head_of
from logitlens.view.fonts import Fonts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

GREY = "#6b7280"
MANY = (
    800  # cells from which on words are one artist, and a figure is no longer as large as they need
)
_NO_VALUE = "#e5e7eb"
_MUTED = "#5b6470"


def matplotlib() -> Any:
    """The module, without pyplot. Raises MissingExtra."""
    try:
        return import_module("matplotlib")
    except ImportError as error:
        raise MissingExtra("matplotlib", "plot", "a figure") from error


def check_place(ax: object, figsize: object) -> None:
    """Where to draw, as matplotlib takes it. Raises FormatError."""
    from matplotlib.axes import Axes

    if ax is not None and not isinstance(ax, Axes):
        raise FormatError(
            f"ax={safe.clip(repr(ax), 40)}: expected matplotlib's Axes, as of plt.subplots()"
        )
    try:
        right = figsize is None or (
            len(inches := np.asarray(figsize, float)) == 2 and min(inches) > 0
        )
    except (TypeError, ValueError):
        right = False
    if not right:
        raise FormatError(
            f"figsize={safe.clip(repr(figsize), 40)}: expected width and height in inches, like (7, 5)"
        )


@cache
def shown_figure() -> type[Figure]:
    """A Figure that a notebook shows by itself, though pyplot, which would see to it, is not used."""
    from matplotlib import figure

    class Figure(figure.Figure):
        def _repr_png_(self) -> bytes:
            out = io.BytesIO()
            self.savefig(out, format="png")
            return out.getvalue()

    return Figure


@dataclass(frozen=True)
class Grid:
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
        small = max(5.0, min(largest, matplotlib().rcParams["font.size"]))
        mesh = heatmap(ax, self.unit, self.colormap)
        label_axes(ax, self.heads, self.labels, self.fonts, small, cell, line)
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
        mesh = heatmap(ax, self.unit, self.colormap)
        label_axes(ax, self.heads, self.labels, self.fonts, size, place.cell, place.line)
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
        strip.set_yticks([0.5], ["settled"], fontsize=max(LEAST, size - 2), color=GREY)
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
        if len(cells) > MANY:
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


def heatmap(ax: Axes, unit: np.ndarray, colormap: Colormap) -> Any:
    """The colours; thin white lines between cells that are large enough for them."""
    thin = 0.5 if unit.size <= 2 * MANY else 0.0
    mesh = ax.pcolormesh(
        np.ma.masked_invalid(unit), cmap=colormap, vmin=0, vmax=1,
        edgecolors="white" if thin else "face", linewidth=thin, rasterized=unit.size > 20_000,
    )  # fmt: skip
    ax.set_facecolor(_NO_VALUE)
    ax.invert_yaxis()
    return mesh


def label_axes(
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
