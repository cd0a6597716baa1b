"""Two readings against each other: what changed, in words, as a grid of differences, as a page.

    print(logitlens.compare(reading, other))           words and a grid
    logitlens.compare(reading, other, color="kl")      in a notebook: the page, side by side
    logitlens.compare(logit, tuned).figure()           both heatmaps and their difference

Tokens and layers are aligned as on the page (`logitlens.view.page.align`): by the text of the tokens,
and by label where the models have equally many blocks, else by their share of the way.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from numpy.typing import NDArray
from rich.console import Console, ConsoleOptions, RenderResult
from rich.style import Style
from rich.text import Text

from logitlens import statistics
from logitlens.errors import FormatError
from logitlens.reading import Reading, known_suffix
from logitlens.select import EMBED, Selection
from logitlens.view import text as safe
from logitlens.view.brush import DIM, Brush, faint_spaces, map_for
from logitlens.view.columns import bands_of
from logitlens.view.options import PageOptions, Theme
from logitlens.view.page import align
from logitlens.view.words import word

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LEGEND = 31
_UNITS = {"probability": ", percentage points", "rank": ", as a factor", "yes or no": ""}


def compare(
    a: Reading,
    b: Reading,
    *,
    color: str = "prob",
    layers: Selection = None,
    positions: Selection = None,
    width: int | None = None,
    theme: Theme = "auto",
) -> Comparison:
    """Compare two readings: of two prompts, lenses or models.

    color              what is subtracted, b − a: one of `logitlens.statistics.colors()`
    layers, positions  of `a`, with what is aligned to them in `b`; default: all

    What it returns prints what changed and a grid of differences, shows itself as the page in a
    notebook, and has `changes()`, `difference()`, `figure()` and `save("x.html")`. Raises FormatError
    for an unknown colour and what is no reading, PromptError for a layer or position that `a` does not hold.
    """
    statistics.by_color(color)
    for given in (a, b):
        if not isinstance(given, Reading):
            raise FormatError(f"compare takes two readings, got {type(given).__name__}")
    return Comparison(a, b, color, layers, positions, width, theme)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two readings, aligned; made by `compare`."""

    a: Reading
    b: Reading
    color: str = "prob"
    layers: Selection = None
    positions: Selection = None
    width: int | None = None
    theme: Theme = "auto"
    letters: str = "AB"  # what they are called, beside others

    @cached_property
    def rows(self) -> list[tuple[int, int]]:
        """Rows of `a` and `b` for each layer that both hold."""
        _, rows = align.layers([self.a.layers, self.b.layers])
        chosen = set(self.a.rows(self.layers))
        found = [(i, j) for i, j in zip(*rows) if min(i, j) >= 0 and i in chosen]
        if not found:
            raise FormatError("the readings have no layers in common: choose others")
        return found

    @cached_property
    def columns(self) -> list[tuple[int, int]]:
        """Columns of `a` and `b` for each position that both have."""
        columns = align.columns([self.a.pieces, self.b.pieces])
        chosen = set(self.a.columns(self.positions))
        found = [(i, j) for i, j in zip(*columns) if min(i, j) >= 0 and i in chosen]
        if not found:
            raise FormatError("the readings have no positions in common: choose others")
        return found

    def difference(self, color: str | None = None) -> NDArray[np.float64]:
        """(layers, positions) b − a of a statistic; of ranks, log10(b / a). nan: missing in one."""
        statistic = statistics.by_color(color or self.color)
        i, j = (list(side) for side in zip(*self.rows))
        s, t = (list(side) for side in zip(*self.columns))
        first = statistic.values(self.a)[np.ix_(i, s)]
        second = statistic.values(self.b)[np.ix_(j, t)]
        if statistic.scale == "rank":
            return np.log10(second) - np.log10(first)
        return second - first

    def changes(self) -> list[str]:
        """What changed, in sentences; the first is about the last position."""
        a, b = self.a, self.b
        i, j = self.columns[-1]
        place = f"after {safe.quote(a.pieces[i])}"
        if a.pieces[i] != b.pieces[j]:
            place += f" and {safe.quote(b.pieces[j])}"
        ends = [safe.isolate(each) for each in self._words(-1, -1, i, j)]
        settled = [r.settled()[c] for r, c in ((a, i), (b, j))]
        if ends[0] == ends[1]:
            A, B = self.letters
            since = f"settled from layer {settled[0]} in {A}, {settled[1]} in {B}"
            out = [f"{place}, both end in {ends[0]}: {since}"]
        elif settled[0] == settled[1]:
            out = [f"{place}, from layer {settled[0]} on: {ends[1]} instead of {ends[0]}"]
        else:
            out = [
                f"{place}: {ends[1]} (from layer {settled[1]} on) instead of {ends[0]} "
                f"(from layer {settled[0]} on)"
            ]
        last = self.rows[-1]
        agree = sum(self._same(*last, s, t) for s, t in self.columns)
        cells = [(p, q, s, t) for p, q in self.rows for s, t in self.columns]
        same = sum(self._same(*cell) for cell in cells)
        out.append(
            f"same top token in {same} of {len(cells)} cells, and at {agree} of "
            f"{len(self.columns)} aligned positions in the last layer"
        )
        gaps = self.difference("entropy")
        out.append(
            f"entropy is {np.nanmean(gaps):+.2f} nats in {self.letters[1]} on average".replace(
                "-", "−"
            )
        )
        for letter, reading in zip(self.letters, (a, b)):
            edits = [e for e in reading.meta.get("edits") or () if isinstance(e, dict)]
            if edits:
                said = "; ".join(safe.visible(str(e.get("text"))) for e in edits)
                out.append(f"{letter} was edited: {said}")
        return out

    # -- seeing -------------------------------------------------------------------------------

    def __str__(self) -> str:
        import shutil

        width = self.width or shutil.get_terminal_size((120, 50)).columns
        console = Console(
            file=StringIO(), width=width, color_system=None, no_color=True, force_terminal=False,
            force_jupyter=False, legacy_windows=False, _environ={},
        )  # fmt: skip
        with console.capture() as captured:
            console.print(self)
        return "\n".join(line.rstrip() for line in captured.get().splitlines())

    def __repr__(self) -> str:
        return f"Comparison of {self.a!r} and {self.b!r}"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from logitlens.view import page

        width = min(self.width or options.max_width, options.max_width)
        brush = Brush.of(console, "less-more-" + map_for(self.theme))
        for letter, name in zip(self.letters, page.labels([self.a, self.b])):
            yield Text.assemble(
                (f"{letter}  ", Style(bold=True)), safe.clip(safe.visible(name), width - 3)
            )
        yield Text()
        for sentence in self.changes():
            yield Text(sentence)
        yield from self._grid(width, brush)
        yield Text()
        yield self._legend(brush)

    def _grid(self, width: int, brush: Brush) -> Iterator[Text]:
        """B minus A: the colour is the difference, a word that changed is `A→B`."""
        statistic = statistics.by_color(self.color)
        delta, reach = self.difference(), self.reach
        size = 0 if brush.paints else 6
        label = max(len("layer"), *(len(self.a.layers[i]) for i, _ in self.rows))
        heads = [safe.visible(self.a.pieces[i]) for i, _ in self.columns]
        for c, (i, j) in enumerate(self.columns):
            if self.a.pieces[i] != self.b.pieces[j]:
                heads[c] += "→" + safe.visible(self.b.pieces[j])
        cells = [[self._cell(p, q, s, t) for s, t in self.columns] for p, q in self.rows]
        natural = [
            max(safe.width(heads[c]), *(safe.width(line[c]) + size for line in cells), 3)
            for c in range(len(heads))
        ]
        for band in bands_of(natural, width - label, size):
            yield Text()
            places = range(band.first, band.first + len(band.widths))
            head = Text()
            head.append("layer".rjust(label), style=DIM)
            for c, room in zip(places, band.widths):
                head.append(" ")
                head.append_text(faint_spaces(safe.fit(heads[c], room), Style(bold=True)))
            lines = [head]
            for r, (p, _) in enumerate(self.rows):
                line = Text()
                line.append(safe.fit(self.a.layers[p], label, "right"), style=DIM)
                for c, room in zip(places, band.widths):
                    value = float(delta[r, c])
                    shown = safe.fit(cells[r][c], room - size)
                    if size:
                        shown += signed(statistic, value).rjust(size)
                    muted = self.a.layers[p] == EMBED
                    unit = np.nan if muted else 0.5 + value / (2 * reach)
                    line.append(" ")
                    plain = Style(dim=muted)
                    line.append_text(brush.cell(shown, unit, plain))
                lines.append(line)
            for each in lines:
                each.no_wrap, each.overflow = True, "crop"
                yield each

    def _cell(self, p: int, q: int, s: int, t: int) -> str:
        first, second = self._words(p, q, s, t)
        return first if first == second else f"{first}→{second}"

    def _words(self, p: int, q: int, s: int, t: int) -> tuple[str, str]:
        """The top tokens of two cells; with their ids where two tokens have one text."""
        first, second = word(self.a, p, s), word(self.b, q, t)
        if first != second or self._same(p, q, s, t):
            return first, second
        return f"{first}⟨{self.a.top_ids[p, s, 0]}⟩", f"{second}⟨{self.b.top_ids[q, t, 0]}⟩"

    def _same(self, p: int, q: int, s: int, t: int) -> bool:
        """Whether two cells have one top token: by its id, between two tokenizers by its text."""
        if self._one_vocabulary:
            return bool(self.a.top_ids[p, s, 0] == self.b.top_ids[q, t, 0])
        return word(self.a, p, s) == word(self.b, q, t)

    @cached_property
    def _one_vocabulary(self) -> bool:
        first, second = align.vocabularies([self.a, self.b])
        return first == second

    @property
    def reach(self) -> float:
        """Where the scale of differences ends on either side: their 99 % quantile without `embed`."""
        counted = [self.a.layers[p] != EMBED for p, _ in self.rows]
        delta = self.difference()[counted] if any(counted) else self.difference()
        sizes = np.abs(delta[np.isfinite(delta)])
        return float(np.quantile(sizes, 0.99)) or 1.0 if sizes.size else 1.0

    def _legend(self, brush: Brush) -> Text:
        statistic = statistics.by_color(self.color)
        A, B = self.letters
        what = f"{B} − {A}: {statistic.label}" + _UNITS.get(statistic.scale, f", {statistic.unit}")
        if not brush.paints:
            return Text(f"cells: top token, {A}→{B} where it changed; {what}", style=DIM)
        bar = [" "] * _LEGEND
        for name, start in (
            (signed(statistic, -self.reach), 0),
            ("same", _LEGEND // 2 - 1),
            (signed(statistic, self.reach), _LEGEND - len(signed(statistic, self.reach))),
        ):
            bar[start : start + len(name)] = name
        line = Text()
        for i, char in enumerate(bar):
            line.append_text(brush.cell(char, i / (_LEGEND - 1)))
        line.append(f"  {what}", style=DIM)
        return line

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        from logitlens.view.page import notebook

        shown = notebook.cell([self.a, self.b], color=self.color)
        return {"text/plain": str(self), "text/html": shown}

    def save(self, path: str | os.PathLike[str], **options: Unpack[PageOptions]) -> Path:
        """Write the page (.html), the text (.txt) or the figure (.png .svg .pdf), by suffix.

        Raises FormatError for another suffix, OSError where the file cannot be written.
        """
        from logitlens.files import write_text
        from logitlens.view import figure, page

        target = Path(path)
        suffix = known_suffix(path)
        if suffix == ".html":
            return page.save([self.a, self.b], target, **{"color": self.color, **options})
        if suffix == ".txt":
            write_text(target, str(self) + "\n")
        elif suffix in (".png", ".svg", ".pdf"):
            figure.write(self.figure(), target)
        else:
            raise FormatError(
                f"a comparison is saved as .html, .txt, .png, .svg or .pdf, not {suffix}"
            )
        return target

    def figure(self, *, figsize: tuple[float, float] | None = None) -> Figure:
        """Both heatmaps and B − A, beside each other, as a matplotlib Figure. Raises MissingExtra."""
        from logitlens.view import figure, page
        from logitlens.view.figure_grid import check_place, shown_figure

        figure.matplotlib()
        check_place(None, figsize)
        i, j = (list(side) for side in zip(*self.rows))
        s, t = (list(side) for side in zip(*self.columns))
        size = figsize or (min(16.0, 5 + 0.9 * len(s)), 1.6 + 0.24 * len(i))
        fig = shown_figure()(figsize=size, layout="constrained")
        room = max(12, int(8 * size[0] / 3))  # characters over one of three panels
        left, middle, right = fig.subplots(1, 3)
        names = page.labels([self.a, self.b])
        sides = zip("AB", names, (left, middle), (self.a, self.b), (i, j), (s, t))
        for letter, name, ax, reading, rows, columns in sides:
            lines = wrap(f"{letter}  {name}", room, max_lines=2, placeholder=safe.ELLIPSIS)
            figure.figure(
                reading, ax=ax, color=self.color, title="\n".join(lines),
                layers=[reading.layers[r] for r in rows],
                positions=[reading.positions[c] for c in columns],
            )  # fmt: skip
        figure.difference(right, self)
        return fig


def signed(statistic: statistics.Statistic, value: float) -> str:
    """A difference with its sign: percentage points, a factor of ranks, or in the statistic's unit."""
    if np.isnan(value):
        return "–"
    if statistic.scale == "rank":
        return f"×{10**value:.2g}"
    shown = f"{100 * value:+.0f}" if statistic.scale == "probability" else f"{value:+.1f}"
    return "0" if not float(shown) else shown.replace("-", "−")
