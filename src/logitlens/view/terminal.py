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
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Unpack

import numpy as np
from rich.color import Color
from rich.console import Console, ConsoleOptions, RenderResult
from rich.style import Style
from rich.text import Text

from logitlens.files import write_text
from logitlens.reading import Reading
from logitlens.select import Selection, renamed
from logitlens.view import color as paint
from logitlens.view import text as safe
from logitlens.view.columns import fit_columns, stride_rows
from logitlens.view.options import GridOptions, Theme
from logitlens.view.words import check_line, cut_line, source_line, word

_DIM = Style(dim=True)
_LEGEND = 31
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
    width       columns to fit in (default: the console's); where not all positions fit, the last
                ones are shown and a line says so
    height      lines to fit in (default: the terminal's; no limit elsewhere); where not all layers
                fit, every second, third … counted from the last is shown and a line says so
    layers, positions   what to show, by number, slice or label (`logitlens.select`)
    top         how many of the final layer's top tokens to list below (default 5, 0: none)
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
        map="day" if _is_light(theme) else "night",
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

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(self.width or options.max_width, options.max_width)
        brush = _Brush.of(console, self.map)
        shows_values = self.values if self.values is not None else not brush.paints
        limit = self.height
        if limit is None and console.is_terminal:
            limit = console.size.height
        rows = self._rows_that_fit(limit)
        label_width = max(len("layer"), *(safe.width(safe.visible(d)) for d in self.reading.layers))
        size = self._value_width(rows) if shows_values else 0
        natural = [self._natural(c, rows, size) for c in self.columns]
        fitted = fit_columns(natural, width - label_width, size and size + 1)
        columns = self.columns[fitted.first :]

        yield source_line(self.reading)
        yield Text()
        for line in self._grid(rows, columns, fitted.widths, label_width, brush, size):
            line.no_wrap, line.overflow = True, "crop"
            yield line
        yield Text()
        yield self._legend(label_width, brush, width)
        yield from self._likeliest(columns[-1], brush)
        yield from self._tracked(columns[-1], width, brush)
        yield check_line(self.reading)
        cut = cut_line(len(self.rows), rows, len(self.columns), len(columns), width)
        if cut:
            yield Text(cut, style=_DIM)

    def _rows_that_fit(self, limit: int | None) -> list[int]:
        around = 10 + 4 * len(self.reading.track_ids)
        if limit is None or len(self.rows) + around <= limit:
            return self.rows
        return [self.rows[i] for i in stride_rows(len(self.rows), max(_LEAST_ROWS, limit - around))]

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

    def _grid(
        self,
        rows: list[int],
        columns: list[int],
        widths: list[int],
        label: int,
        brush: _Brush,
        size: int,
    ) -> Iterator[Text]:
        head = Text()
        head.append("layer".rjust(label), style=_DIM)
        for column, width in zip(columns, widths):
            head.append(" ")
            shown = safe.fit(safe.visible(self.reading.pieces[column]), width)
            head.append_text(_faint_spaces(shown, Style(bold=True)))
        yield head
        last = len(self.reading.layers) - 1
        for row in rows:
            line = Text(style=Style(bold=row == last))
            shown = safe.fit(safe.visible(self.reading.layers[row]), label, "right")
            line.append(shown, style=Style(dim=row != last))
            for column, width in zip(columns, widths):
                line.append(" ")
                line.append_text(self._cell(row, column, width, brush, size))
            yield line

    def _cell(self, row: int, column: int, width: int, brush: _Brush, size: int) -> Text:
        shown = word(self.reading, row, column)
        if size and width > size + 2:
            shown = safe.fit(shown, width - size - 1) + " " + self._value(row, column).rjust(size)
        else:
            shown = safe.fit(shown, width)
        return brush.cell(shown, float(self.scale.unit[row, column]))

    def _legend(self, label: int, brush: _Brush, width: int) -> Text:
        lead = " " * (label + 1)
        if not brush.paints:
            unit = ", %" if self.scale.statistic.scale == "probability" else ""
            what = "its probability" if self.scale.statistic.color == "prob" else self.scale.label
            return Text(f"{lead}cells: top token, {what}{unit}", style=_DIM)
        bar = [" "] * _LEGEND
        for name, place in self.scale.ticks:
            start = round(place * (_LEGEND - len(name)))
            bar[start : start + len(name)] = name
        line = Text(lead)
        for i, char in enumerate(bar):
            line.append_text(brush.cell(char, i / (_LEGEND - 1)))
        line.append(f"  {self.scale.label}", style=_DIM)
        return line

    def _likeliest(self, column: int, brush: _Brush) -> Iterator[Text]:
        """What the model itself says after the last position shown."""
        reading = self.reading
        count = min(self.top, reading.top_ids.shape[2])
        if count < 1:
            return
        line = Text()
        line.append("next  ", style=_DIM)
        for k in range(count):
            token, p = (
                int(reading.top_ids[-1, column, k]),
                float(np.exp(reading.top_logprobs[-1, column, k])),
            )
            line.append("   " if k else "", style=_DIM)
            line.append(
                safe.isolate(safe.clip(safe.visible(reading.piece(token)), 20)), Style(bold=k == 0)
            )
            line.append(f" {paint.format_value('probability', p)}", style=_DIM)
        yield line

    def _tracked(self, column: int, width: int, brush: _Brush) -> Iterator[Text]:
        """Probability and rank of every tracked token at each layer, at the last position shown."""
        reading = self.reading
        size, lead = 6, 6
        per_line = max(1, (width - lead) // size)
        for m, token in enumerate(reading.track_ids):
            name = safe.quote(reading.piece(int(token)))
            after = safe.quote(reading.pieces[column])
            yield Text(f"track {name} after {after}", style=Style(bold=True))
            for start in range(0, len(self.rows), per_line):
                rows = self.rows[start : start + per_line]
                heads, probs, ranks = (
                    Text.assemble((name.ljust(lead), _DIM)) for name in ("layer", "prob", "rank")
                )
                for row in rows:
                    p = float(np.exp(reading.track_logprobs[row, column, m]))
                    rank = int(reading.track_ranks[row, column, m]) or float("nan")
                    heads.append(
                        safe.visible(reading.layers[row]).rjust(size - 1) + " ", style=_DIM
                    )
                    probs.append_text(
                        brush.cell(paint.format_value("probability", p).rjust(size - 1), p)
                    )
                    probs.append(" ")
                    ranks.append(paint.format_value("rank", rank).rjust(size - 1) + " ")
                for line in (heads, probs, ranks):
                    line.no_wrap, line.overflow = True, "crop"
                    yield line


@dataclass(frozen=True)
class _Brush:
    """How this console paints: `truecolor`, `256`, or not at all."""

    system: str | None
    map: str

    @staticmethod
    def of(console: Console, map: str) -> _Brush:
        usable = console.color_system if console.color_system in ("truecolor", "256") else None
        return _Brush(None if console.no_color else usable, map)

    @property
    def paints(self) -> bool:
        return self.system is not None

    def cell(self, shown: str, t: float) -> Text:
        """Text on the colour of `t`; without a value, or without colours, on none."""
        if not self.paints or not np.isfinite(t):
            return Text(shown)
        if self.system == "256":
            number, background = paint.step_256(t, self.map)
            ground = Color.from_ansi(number)
            ink = Color.from_ansi(paint.ink_256(background))
            return Text(shown, style=Style(color=ink, bgcolor=ground))
        background = paint.rgb(t, self.map)
        ink_rgb = paint.ink(background)
        style = Style(color=Color.from_rgb(*ink_rgb), bgcolor=Color.from_rgb(*background))
        faint = tuple(round(0.45 * i + 0.55 * b) for i, b in zip(ink_rgb, background))
        return _faint_spaces(
            shown, style, Style(color=Color.from_rgb(*faint), bgcolor=style.bgcolor)
        )


def _faint_spaces(shown: str, style: Style, faint: Style = _DIM) -> Text:
    """Text whose leading ␣ recedes: it belongs to nearly every token and says little."""
    out = Text(shown, style=style)
    lead = len(shown) - len(shown.lstrip(" \u2068"))
    if shown[lead : lead + 1] == safe.SPACE and len(shown[lead:].strip()) > 1:
        out.stylize(faint, lead, lead + 1)
    return out


def _is_light(theme: Theme) -> bool:
    if theme != "auto":
        return theme == "light"
    ground = os.environ.get("COLORFGBG", "").rpartition(";")[2]
    return ground in ("7", "15")
