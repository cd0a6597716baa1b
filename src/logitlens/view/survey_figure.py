"""The figure of a survey's report: curves over layers with intervals, contrasts, heatmaps, histograms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from logitlens.errors import MissingExtra
from logitlens.view.behind import urls
from logitlens.view.color import ink
from logitlens.view.fonts import Fonts
from logitlens.view.survey_panels import (
    ZERO_TO_ONE,
    Bars,
    Heat,
    Lines,
    Panel,
    all_alike,
    panels,
    share,
    shared,
)
from logitlens.view.text import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from logitlens.survey.curves import Summary

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6d3b", "#7a5cc2")
MARKS = "os^Dv*PX"
HOLLOW = "hollow: all alike, and so without an interval"
DASHES = ("-", "--", ":", "-.")


def figure(summary: Summary, words: dict[str, tuple[str, str]], *, title: str = "") -> Figure:
    """A panel for each measure, contrast, early exit, heatmap and histogram. A line looks the same in all.

    Raises MissingExtra without matplotlib.
    """
    try:
        from matplotlib import rc_context
    except ImportError:
        raise MissingExtra("matplotlib", "plot", "a figure") from None
    rows = panels(summary, words)
    own, contrasts, groups = dict[str, None](), dict[str, None](), []
    for _, content in (panel for row in rows for panel in row):
        if isinstance(content, Heat):
            groups += content.groups
        else:
            contrast = isinstance(content, Lines) and content.contrast
            (contrasts if contrast else own).update(dict.fromkeys(content.names))
    headings = (heading for row in rows for heading, _ in row)
    fonts = Fonts.covering("".join([title, summary.by, *own, *contrasts, *groups, *headings]))
    # No dollar sign begins a formula here: names are what users call things.
    with rc_context({"font.family": fonts.families, "text.parse_math": False}):
        return _Drawing(summary, fonts, _styles([*own, *contrasts])).drawn(rows, list(own), title)


def _placed(rows: Sequence[Sequence[Panel]]) -> tuple[int, list[int]]:
    """How many panels stand side by side, and the place of each: what belongs together is in one row."""
    most = max(map(len, rows))
    wide = min({1: 3, 2: 4, 3: 3, 5: 5}.get(most, 4), sum(map(len, rows)))
    places, at = [], 0
    for row in rows:
        if at % wide and at % wide + len(row) > wide:
            at += wide - at % wide
        places += range(at, at + len(row))
        at += len(row)
    return wide, places


def _styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """How each line is drawn: no two of 256 alike, and no two of 32 without their marks."""
    return {
        name: {
            "color": COLORS[i % 8], "ls": DASHES[i // 8 % 4], "marker": MARKS[(i + i // 32) % 8],
            "ms": 3, "lw": 1.3,
        }
        for i, name in enumerate(names)
    }  # fmt: skip


@dataclass(frozen=True)
class _Drawing:
    """What all panels share: styles by the lines' names, and the fonts that have their characters."""

    summary: Summary
    fonts: Fonts
    styles: dict[str, dict[str, Any]]

    def drawn(self, rows: Sequence[Sequence[Panel]], names: list[str], title: str) -> Figure:
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D

        wide, places = _placed(rows)
        tall = places[-1] // wide + 1
        drawing = Figure(figsize=(4.2 * wide, 3.0 * tall + 0.4), layout="constrained")
        for place, (heading, content) in zip(places, (panel for row in rows for panel in row)):
            axes = drawing.add_subplot(tall, wide, place + 1)
            axes.set_title(self.fonts.shown(heading), fontsize=9)
            if isinstance(content, Heat):
                self.heat(axes, content)
            elif isinstance(content, Bars):
                self.bars(axes, content)
            else:
                self.lines(axes, content)
        several = names if len(names) > 1 else []
        entries = {name: Line2D([], [], **self.styles[name]) for name in several}
        lines = (
            c
            for row in rows
            for _, content in row
            if isinstance(content, Lines)
            for c in content.curves
        )
        if any(all_alike(curve).any() for curve in lines):
            entries[HOLLOW] = Line2D([], [], ls="", marker="o", mfc="white", mec="#555555", ms=5)
        if entries:
            # The title is the legend's: above one another they have room. On the left, where a narrow screen
            # begins.
            drawing.legend([*entries.values()], [self.fonts.shown(name) for name in entries], fontsize=8,
                           frameon=False, loc="outside upper left", ncols=min(2 * wide, len(entries)),
                           alignment="left", title=self.fonts.shown(title), title_fontsize=11)  # fmt: skip
        elif title:
            drawing.suptitle(self.fonts.shown(title), fontsize=11)
        return drawing

    def heat(self, axes: Axes, heat: Heat) -> None:
        """Each cell says its value where there is room, and leads to its prompts."""
        values_LG, whole = heat.values_LG, (heat.low, heat.high) == (0.0, 1.0)
        image = axes.imshow(
            values_LG, aspect="auto", origin="lower", cmap="viridis", vmin=heat.low, vmax=heat.high
        )
        if not whole:
            beyond = (values_LG < heat.low).any(), (values_LG > heat.high).any()
            extend = ("neither", "min", "max", "both")[beyond[0] + 2 * beyond[1]]
            axes.figure.colorbar(image, ax=axes, extend=extend).ax.tick_params(labelsize=7)
        if values_LG.size <= 120:
            colours_LG4 = image.to_rgba(values_LG, bytes=True)
            digits = 0 if np.array_equal(values_LG, np.rint(values_LG), equal_nan=True) else 1
            for (row, column), value in np.ndenumerate(values_LG):
                red, green, blue = ink(tuple(colours_LG4[row, column, :3].tolist()))
                axes.text(column, row, _cell(value, whole, digits), ha="center", va="center", fontsize=6,
                          color=(red / 255, green / 255, blue / 255))  # fmt: skip
        places, links = [], []
        for column, curve in enumerate(heat.curves if heat.axis == "layer" else []):
            if mine := urls(curve, self.summary):
                places += [(column, heat.rows.index(label)) for label in curve.layers]
                links += mine
        if links:
            clear = axes.scatter(*zip(*places), s=60, color="#7f7f7f", lw=0, alpha=0.01, zorder=9)
            clear.set_urls(links)
        step = max(1, math.ceil(len(heat.rows) / 12))
        axes.set_yticks(range(0, len(heat.rows), step), heat.rows[::step], fontsize=8)
        names = [
            visible(group).removeprefix("position ").removesuffix(" positions")
            for group in heat.groups
        ]
        slant: dict[str, Any] = (
            {"rotation": 30, "ha": "right"} if len(names) <= 10 else {"rotation": 90}
        )
        axes.set_xticks(range(len(names)), [self.fonts.shown(name) for name in names], fontsize=7,
                        parse_math=False, **slant)  # fmt: skip
        axes.set_ylabel(heat.axis, fontsize=8)
        axes.set_xlabel(self.fonts.shown(visible(self.summary.by)), fontsize=8)

    def lines(self, axes: Axes, lines: Lines) -> None:
        curves, labels = lines.curves, shared(lines.curves)
        for curve, name in zip(curves, lines.names):
            x = np.array([labels.index(label) for label in curve.layers])
            style = self.styles[name]
            axes.plot(x, curve.mean, label=self.fonts.shown(name), **style)
            lead = lines.axis == "layer" and not lines.contrast
            if links := urls(curve, self.summary) if lead else []:
                # above all lines, and not quite clear: what is wholly clear cannot be clicked
                y = curve.mean if lines.low is None else curve.mean.clip(lines.low, lines.high)
                axes.scatter(x, y, s=60, color=style["color"], lw=0, alpha=0.01, zorder=9).set_urls(
                    links
                )
            if (alike := all_alike(curve)).any():
                axes.scatter(
                    x[alike], curve.mean[alike], s=22, marker=style["marker"], zorder=3,
                    facecolors="white", edgecolors=style["color"],
                )  # fmt: skip
            axes.fill_between(
                x, curve.low, curve.high, color=style["color"], alpha=0.18, linewidth=0
            )
        if lines.contrast:
            axes.set_ylabel(
                self.fonts.shown(visible(curves[0].group or curves[0].survey)), fontsize=8
            )
            if len(curves) > 1:  # the figure's legend has none of them
                axes.legend(axes.get_lines(), [str(line.get_label()) for line in axes.get_lines()],
                            fontsize=7, frameon=False)  # fmt: skip
        elif curves[0].measure in ZERO_TO_ONE:
            axes.set_ylim(-0.03, 1.03)
        elif lines.low is not None:
            axes.set_ylim(lines.low, lines.high)
        _layers(axes, labels, lines.axis)

    def bars(self, axes: Axes, bars: Bars) -> None:
        never = any(h.counts[-1] for h in bars.histograms)
        layers = shared(bars.histograms)
        labels = [*layers, *(["never"] if never else [])]
        width = 0.8 / len(bars.histograms)  # side by side: none hides another
        for place, (each, name) in enumerate(zip(bars.histograms, bars.names)):
            x = [layers.index(label) for label in each.layers] + [len(layers)] * never
            middle = np.array(x) - 0.4 + (place + 0.5) * width
            color = self.styles[name]["color"]
            axes.bar(middle, share(each)[: len(x)], width, color=color, alpha=0.7)
            axes.vlines(middle, each.low[: len(x)], each.high[: len(x)], color=color, lw=1)
        if bars.high is not None:
            axes.set_ylim(0, bars.high)
        axes.set_ylabel(f"share of {self.summary.unit}", fontsize=8)
        _layers(axes, labels)


def _cell(value: float, whole: bool = True, digits: int = 1) -> str:
    """.25, 1, or nothing where there is none; of other scales 12.3, or 12 where all are whole numbers."""
    if math.isnan(value):
        return ""
    if not whole:
        return f"{round(value, digits) + 0.0:.{digits}f}"  # no -0.0
    return f"{value:.2f}"[1:] if value < 0.995 else "1"


def _layers(axes: Axes, labels: Sequence[str], what: str = "layer") -> None:
    step = max(1, math.ceil(len(labels) / 9))
    shown = list(range(len(labels)))[::-1][::step][::-1]
    axes.set_xticks(shown, [labels[i] for i in shown], fontsize=8)
    axes.tick_params(axis="y", labelsize=8)
    axes.set_xlabel(what, fontsize=8)
