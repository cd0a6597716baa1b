"""The grid in a terminal: layers down, positions across, the top token in each cell.

    print(terminal.text(reading))                      plain, no escapes
    rich.print(terminal.render(reading, color="kl"))   colours as far as the terminal has them

With 256 colours or more a cell's background is its value and the ink is chosen to be legible on it
(contrast ≥ 4.5). With fewer, under NO_COLOR, or into a file, the value stands beside the word. No
character of a token reaches the terminal unless it is visible and harmless (`logitlens.view.text`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from itertools import groupby
from pathlib import Path
from typing import Unpack

import numpy as np
from rich.console import Console, ConsoleOptions, RenderResult
from rich.style import Style
from rich.text import Text

from logitlens.files import write_text
from logitlens.reading import Reading
from logitlens.select import EMBED, Selection, layer_number, renamed
from logitlens.view import color as paint
from logitlens.view import text as safe
from logitlens.view.brush import DIM, Brush, faint_spaces, map_for
from logitlens.view.columns import Columns, bands_of, stride_rows, whole_bands
from logitlens.view.followed import table
from logitlens.view.options import GridOptions, Theme
from logitlens.view.words import check_line, cut_line, source_line, word

_LEGEND = 31
_SETTLED = "settled"
_TINT = 0.35  # of the colours, for the tokens of the prompt
_LEAST_ROWS = 12


@renamed(depths="layers")
def render(
    reading: Reading,
    *,
    color: str = "prob",
    width: int | None = None,
    height: int | None = None,
    layers: Selection = None,
    positions: Selection = None,
    top: int | None = None,
    values: bool | None = None,
    theme: Theme = "auto",
) -> Grid:
    """Something for a rich Console to print.

    color       what the background shows, one of `logitlens.statistics.colors()`: prob, entropy, kl, …
    width       columns to fit in (default: the console's); where not all positions fit, the grid
                wraps into bands; in a terminal the last ones that fit its height are shown, and a
                line says so
    height      lines to fit in (default: the terminal's; no limit elsewhere); where not all layers
                fit, every second, third … counted from the last is shown and a line says so
    layers, positions   what to show, by number, slice or label (`logitlens.select`)
    top         how many of the last position's candidates to follow below (default 5, 0: none)
    values      write the values into the cells (default: only where colours cannot show them)
    theme       the ground: `dark`, `light`, or `auto`, from COLORFGBG where set, else dark

    Raises FormatError for an unknown colour or a choice that picks nothing.
    """
    rows = reading.rows(layers)
    columns = reading.columns(positions)
    return Grid(
        reading=reading,
        scale=paint.scale(reading, color),
        rows=rows,
        columns=columns,
        width=width,
        height=height if layers is None else 1 << 30,
        top=5 if top is None else top,
        values=values,
        map=map_for(theme),
    )


def text(reading: Reading, **options: Unpack[GridOptions]) -> str:
    """The grid as plain text; the options of `render`. Width: COLUMNS or the terminal's, else 120."""
    width = options.get("width") or shutil.get_terminal_size((120, 50)).columns
    grid = render(reading, **{**options, "width": width})
    console = Console(
        file=StringIO(), width=width, color_system=None, no_color=True, force_terminal=False,
        force_jupyter=False, legacy_windows=False, _environ={},
    )  # fmt: skip
    with console.capture() as captured:
        console.print(grid)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def save(reading: Reading, path: str | os.PathLike[str], **options: Unpack[GridOptions]) -> None:
    """Write the plain text to `path`, whole or not at all, as wide as the reading needs."""
    options.setdefault("width", 10_000)
    write_text(Path(path), text(reading, **options) + "\n")


def render_lenses(readings: Sequence[Reading], **options: Unpack[GridOptions]) -> Lenses:
    """One prompt read through several lenses: their grids, then one table with a row for each."""
    return Lenses([render(reading, **options) for reading in readings])


@dataclass(frozen=True, eq=False)
class Lenses:
    """Grids of the same positions, with one legend and one table; made by `render_lenses`."""

    grids: list[Grid]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from _laid_out(self.grids, console, options)


def _laid_out(grids: list[Grid], console: Console, options: ConsoleOptions) -> Iterator[Text]:
    """The grids; then once for all of them legend, followed tokens and checks."""
    first = grids[0]
    width = min(first.width or options.max_width, options.max_width)
    brush = Brush.of(console, first.map)
    limit = console.size.height if first.height is None and console.is_terminal else first.height
    cut = ""
    for n, grid in enumerate(grids):
        rows = grid.rows_for(limit)
        bands = grid.bands_for(rows, width, brush, limit)
        if n:
            yield Text()
        yield source_line(grid.reading)
        for band in bands:
            yield Text()
            yield from grid.lines(rows, band, brush)
        whole = len(grid.columns)
        cut = cut or cut_line(len(grid.rows), rows, whole, whole - bands[0].first)
    yield Text()
    yield first.legend(brush)
    column, readings = first.columns[-1], [grid.reading for grid in grids]
    followed = table(
        readings, column, width=width, brush=brush, candidates=first.top,
        rows=first.rows_for(limit) if len(grids) == 1 else None,
    )  # fmt: skip
    lines = list(followed) if first.top else []
    yield from [Text(), *lines] if lines else []
    if not first.reading.candidate_ids.shape[1]:
        yield from first.likeliest(column)
    checks = {reading.check_text()[1]: check_line(reading) for reading in readings}
    yield from checks.values()
    if cut:
        yield Text(cut, style=DIM)


@dataclass(frozen=True, eq=False)
class Grid:
    """A reading laid out for whatever console prints it; made by `render`."""

    reading: Reading
    scale: paint.Scale
    rows: list[int]
    columns: list[int]
    width: int | None
    height: int | None
    top: int
    values: bool | None
    map: str

    @cached_property
    def since(self) -> list[int]:
        """(T,) the row from which the final top token stays the top token."""
        return self.reading._settled_rows().tolist()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from _laid_out([self], console, options)

    def rows_for(self, limit: int | None) -> list[int]:
        """The layers that fit so many lines, at an even stride where not all of them do."""
        around = self._around + self._lines
        if limit is None or len(self.rows) + around <= limit:
            return self.rows
        return [self.rows[i] for i in stride_rows(len(self.rows), max(_LEAST_ROWS, limit - around))]

    def bands_for(
        self, rows: list[int], width: int, brush: Brush, limit: int | None
    ) -> list[Columns]:
        """The positions in bands: into a file all of them, no word cut; else as many as fit."""
        size = self._value_width(rows) if self._shows_values(brush) else 0
        natural = [self._natural(c, rows, size) for c in self.columns]
        if limit is None:
            return whole_bands(natural, width - self._label)
        most = max(1, (limit - self._around) // (len(rows) + self._lines))
        return bands_of(natural, width - self._label, size and size + 1, most)

    def _shows_values(self, brush: Brush) -> bool:
        return self.values if self.values is not None else not brush.paints

    @property
    def _label(self) -> int:
        """Columns of the names of the rows."""
        return max(len(_SETTLED), *(safe.width(safe.visible(d)) for d in self.reading.layers))

    @cached_property
    def _begins_later(self) -> bool:
        """Whether there are layers below the lowest that was read."""
        lowest = layer_number(self.reading.layers[0])  # None: embed
        first = 0 if (self.reading.meta.get("stream") or "resid") == "resid" else 1
        return lowest is not None and lowest >= first

    @cached_property
    def _is_chat(self) -> bool:
        return bool((self.reading.section != "").any())

    @property
    def _lines(self) -> int:
        """Lines of a band beside its rows."""
        return 3 + self._is_chat

    @property
    def _around(self) -> int:
        """Lines above and below the bands."""
        C = min(self.top, self.reading.candidate_ids.shape[1])
        return 8 + C + 2 * len(self.reading.track_ids)

    def _value_width(self, rows: list[int]) -> int:
        return max(len(self._value(row, column)) for row in rows for column in self.columns)

    def _value(self, row: int, column: int) -> str:
        """The number in a cell; the legend says that probabilities are in percent."""
        return self.scale.format(float(self.scale.values[row, column])).rstrip("%")

    def _natural(self, column: int, rows: list[int], size: int) -> int:
        """Columns that nothing at this position would have to be cut at."""
        extra = size + 1 if size else 0
        head = safe.width(safe.visible(self.reading.pieces[column]))
        cells = max(safe.width(word(self.reading, row, column)) for row in rows)
        return max(head, cells + extra, 3)

    def lines(self, rows: list[int], band: Columns, brush: Brush) -> Iterator[Text]:
        """One band: the tokens of the prompt, the layers, and from which layer on each has settled."""
        label = self._label
        size = self._value_width(rows) if self._shows_values(brush) else 0
        columns = self.columns[band.first : band.first + len(band.widths)]
        last = len(self.reading.layers) - 1
        head = Text()
        head.append("layer".rjust(label), style=DIM)
        for column, width in zip(columns, band.widths):
            head.append(" ")
            shown = safe.fit(safe.visible(self.reading.pieces[column]), width)
            style = DIM if self.reading.section[column] == "template" else Style(bold=True)
            token = faint_spaces(shown, style)
            if brush.paints:  # the earlier its answer is settled, the stronger
                token = brush.cell(shown, _TINT * (1 - self.since[column] / max(1, last)))
                token.stylize(style)
            head.append_text(token)
        lines = [self._speakers(columns, band.widths), head] if self._is_chat else [head]
        for row in rows:
            line = Text(style=Style(bold=row == last))
            shown = safe.fit(safe.visible(self.reading.layers[row]), label, "right")
            line.append(shown, style=Style(dim=row != last))
            for column, width in zip(columns, band.widths):
                line.append(" ")
                line.append_text(self._cell(row, column, width, brush, size))
            lines.append(line)
        line = Text(_SETTLED.rjust(label), style=DIM)
        for column, width in zip(columns, band.widths):
            since = int(self.since[column])
            least = "≤" if since == 0 and self._begins_later else ""
            shown = safe.fit(least + safe.visible(self.reading.layers[since]), width)
            line.append(" ")
            line.append_text(brush.cell(shown, 1 - since / max(1, last), DIM))
        for each in [*lines, line]:
            each.no_wrap, each.overflow = True, "crop"
            yield each

    def _speakers(self, columns: Sequence[int], widths: Sequence[int]) -> Text:
        """Over the tokens of a chat: whose words they are, or that they are thought."""
        role, section = self.reading.role, self.reading.section
        line = Text(" " * self._label, style=DIM)
        names = ("thinking" if section[c] == "thinking" else str(role[c]) for c in columns)
        for name, run in groupby(zip(names, widths), key=lambda each: each[0]):
            width = sum(1 + width for _, width in run) - 1
            named = safe.clip(safe.visible(name), width) + " " if name else " "
            line.append(" " + named.ljust(width, "─" if name else " ")[:width])
        return line

    def _cell(self, row: int, column: int, width: int, brush: Brush, size: int) -> Text:
        shown = word(self.reading, row, column)
        if size and width > size + 2:
            shown = safe.fit(shown, width - size - 1) + " " + self._value(row, column).rjust(size)
        else:
            shown = safe.fit(shown, width)
        embed = DIM if self.reading.layers[row] == EMBED else None
        return brush.cell(shown, float(self.scale.unit[row, column]), embed)

    def legend(self, brush: Brush) -> Text:
        lead = " " * (self._label + 1)
        if not brush.paints:
            unit = ", %" if self.scale.statistic.scale == "probability" else ""
            what = "its probability" if self.scale.statistic.color == "prob" else self.scale.label
            return Text(f"{lead}cells: top token, {what}{unit}", style=DIM)
        bar = [" "] * _LEGEND
        for name, place in self.scale.ticks:
            start = round(place * (_LEGEND - len(name)))
            bar[start : start + len(name)] = name
        line = Text(lead)
        for i, char in enumerate(bar):
            line.append_text(brush.cell(char, i / (_LEGEND - 1)))
        line.append(f"  {self.scale.label}", style=DIM)
        return line

    def likeliest(self, column: int) -> Iterator[Text]:
        """What the model itself says after the last position shown."""
        reading = self.reading
        count = min(self.top, reading.top_ids.shape[2])
        if count < 1:
            return
        line = Text()
        line.append("next  ", style=DIM)
        for k in range(count):
            token, p = (
                int(reading.top_ids[-1, column, k]),
                float(np.exp(reading.top_logprobs[-1, column, k])),
            )
            line.append("   " if k else "", style=DIM)
            line.append(
                safe.isolate(safe.clip(safe.visible(reading.piece(token)), 20)), Style(bold=k == 0)
            )
            line.append(f" {paint.format_value('probability', p)}", style=DIM)
        yield line
