"""Where the parts of a heatmap are, in points: cells as wide as their words need, or what a size leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from logitlens.errors import FormatError
from logitlens.view import text as safe
from logitlens.view.fonts import Fonts

INCH = 72.0  # points
LEAST = 5.0  # points: smaller words cannot be read
STRIP = 0.6  # of the text's size: the height of the strip below the tokens


def head_of(text: str) -> str:
    """A token as the label of its column."""
    return safe.clip(text, 16)


def placed(
    words: Sequence[Sequence[str]],
    heads: Sequence[str],
    labels: Sequence[str],
    fonts: Fonts,
    fontsize: float | None,
    figsize: tuple[float, float] | None,
    title: bool,
    caption: bool,
) -> tuple[float, Layout]:
    """The largest text that fits, from 9 points down to 5, and where things are with it."""
    sizes = [fontsize] if fontsize else [9.0] if figsize is None else [9.0, 8.0, 7.0, 6.0, 5.0]
    for size in sizes:
        place = Layout.of(words, heads, labels, fonts, size, figsize, title, caption)
        if figsize is None or not words or place.readable(size):
            return size, place
    size = fontsize or 7.0  # of the labels; there is no room for words
    return size, Layout.of([], heads, labels, fonts, size, figsize, title, caption)


@dataclass(frozen=True)
class Layout:
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
    ) -> Layout:
        rows, columns = len(labels), len(heads)
        left = max(fonts.measure(label, size) for label in labels) + 3.2 * size
        # Gap, bar, its numbers and its label; its ticks do not shrink with the text.
        right = 5.25 * size + 20.25
        # A head rotated by 45° is as high as it is wide: 1/√2 of its length and of its own height.
        top = (
            0.71 * max(fonts.measure(head_of(head), size) + 1.2 * size for head in heads)
            + 3.4 * size
        )
        top += 2.2 * size if title else 0
        bottom = 2.6 * size if caption else 0.6 * size
        if figsize is not None:
            cell = (INCH * figsize[0] - left - right) / columns
            line = (INCH * figsize[1] - top - bottom) / rows
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
        return Layout(width, height, left, bottom, cell, line, columns, rows)

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
        return size >= LEAST and self.line >= 1.5 * size and self.cell >= 2.8 * size

    def bar(self, size: float) -> tuple[float, float, float, float]:
        right = self.left + self.columns * self.cell + 1.2 * size
        return self.box(right, self.bottom, 1.4 * size, self.rows * self.line)

    @property
    def middle(self) -> float:
        """The middle of the grid, as a part of the width."""
        return (self.left + self.columns * self.cell / 2) / self.width
