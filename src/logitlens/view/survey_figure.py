"""The figure of a survey's report: curves over layers with intervals, contrasts, heatmaps, histograms."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from logitlens.errors import MissingExtra
from logitlens.view.behind import urls
from logitlens.view.color import ink
from logitlens.view.fonts import Fonts
from logitlens.view.text import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from logitlens.survey.curves import Curve, Histogram, Summary

T = TypeVar("T")
L = TypeVar("L", "Curve", "Histogram")
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6d3b", "#7a5cc2")
MARKS = "os^Dv*PX"
DASHES = ("-", "--", ":", "-.")
MOST = 8  # lines of a panel; more become heatmaps, whose intervals the tables have
ZERO_TO_ONE = ("correct", "agree", "top1", "top5", "top10", "right", "exit_agree", "exit_right")


def name_of(curve: Curve | Histogram, summary: Summary) -> str:
    """What distinguishes a line, in one line: survey, lens and group, those of which there are several."""
    several = [
        visible(getattr(curve, what))
        for what in ("survey", "lens", "group")
        if len({getattr(c, what) for c in summary.curves}) > 1
    ]
    return " · ".join(several) or curve.lens


def title_of(measure: str, words: dict[str, tuple[str, str]]) -> tuple[str, str]:
    """What a measure is called, and its unit or nothing."""
    return words.get(measure, (visible(measure), ""))


def alike(name: str, items: Iterable[T]) -> list[list[T]]:
    """Those of one measure, or of one kind of histogram, together."""
    groups: dict[str, list[T]] = {}
    for item in items:
        groups.setdefault(getattr(item, name), []).append(item)
    return list(groups.values())


def shared(lines: Sequence[Curve | Histogram]) -> list[str]:
    """The layers, or thresholds, of several lines in order: one may lack some of another's."""
    every = dict.fromkeys(label for line in lines for label in line.layers)
    return sorted(every, key=lambda label: -1.0 if label == "embed" else float(label))


@dataclass(frozen=True)
class Heat:
    """A heatmap of one survey's lens: rows (layers, or thresholds) × groups.

    low, high   ends of the colours          curves   behind its columns, where points lead to prompts
    """

    values_LG: NDArray[np.float64]
    rows: list[str]
    groups: list[str]
    low: float = 0.0
    high: float = 1.0
    curves: Sequence[Curve] = ()


def figure(summary: Summary, words: dict[str, tuple[str, str]], *, title: str = "") -> Figure:
    """A panel for each measure, contrast, early exit, heatmap and histogram. A line looks the same in all.

    Raises MissingExtra without matplotlib.
    """
    try:
        from matplotlib import rc_context
    except ImportError:
        raise MissingExtra("matplotlib", "plot", "a figure") from None
    panels = _panels(summary, words)
    lines = [c for _, content in panels if not isinstance(content, Heat) for c in content]
    own = dict.fromkeys(name_of(c, summary) for c in lines if c not in summary.contrasts)
    contrasts = dict.fromkeys(name_of(c, summary) for c in summary.contrasts)
    groups = (name for _, content in panels if isinstance(content, Heat) for name in content.groups)
    said = [title, summary.by, *own, *contrasts, *groups, *(heading for heading, _ in panels)]
    fonts = Fonts.covering("".join(said))
    # No dollar sign begins a formula here: names are what users call things.
    with rc_context({"font.family": fonts.families, "text.parse_math": False}):
        return _Drawing(summary, fonts, _styles([*own, *contrasts])).drawn(panels, list(own), title)


def _panels(summary: Summary, words: dict[str, tuple[str, str]]) -> list[tuple[str, Any]]:
    """(heading, curves, histograms or a heatmap) in the order in which they stand."""

    def heading(measure: str) -> str:
        return ", ".join(filter(None, title_of(measure, words)))

    panels: list[tuple[str, Any]] = []
    for curves in (*alike("measure", summary.curves), *alike("measure", summary.exits)):
        panels += _of_measure(heading(curves[0].measure), curves, summary)
    for curves in alike("measure", summary.contrasts):
        panels.append((f"contrast: {heading(curves[0].measure)}", curves))
    agree = [curve for curve in summary.curves if curve.measure == "agree"]
    if len(agree) <= MOST:  # else it is among the heatmaps
        panels += _heats("agreement with the final layer", agree, summary)
    for bars in alike("what", summary.histograms):
        panels += _of_moment(bars, summary)
    return panels


def _of_measure(heading: str, curves: list[Curve], summary: Summary) -> list[tuple[str, Any]]:
    """Its lines, or where they are many a heatmap for each survey and lens."""
    if len(curves) <= MOST:
        return [(heading, curves)]
    return _heats(heading, curves, summary) or [(heading, curves)]


def _heats(heading: str, curves: Sequence[Curve], summary: Summary) -> list[tuple[str, Any]]:
    """For each survey and lens that has several groups, in the same colours: those of layers, as embed, where
    the logit lens shows the token itself, would leave none for them."""
    each = [those for those in _by_lens(curves) if len(those) > 1]
    cells = (cell for those in each for c in those for cell in zip(c.layers, c.mean))
    means = np.array([mean for layer, mean in cells if layer != "embed"])
    finite = means[np.isfinite(means)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if curves and curves[0].measure in ZERO_TO_ONE:
        low, high = 0.0, 1.0
    out = []
    for those in each:
        rows = shared(those)
        values_LG = np.full((len(rows), len(those)), np.nan)
        for g, curve in enumerate(those):
            values_LG[[rows.index(label) for label in curve.layers], g] = curve.mean
        heat = Heat(values_LG, rows, [c.group for c in those], low, high, those)
        out.append((f"{heading}: {_lens_of(those[0], summary)}", heat))
    return out


def _of_moment(bars: list[Histogram], summary: Summary) -> list[tuple[str, Any]]:
    """Its bars, or where they are many a heatmap of shares for each survey and lens."""
    each = [those for those in _by_lens(bars) if len(those) > 1]
    if len(bars) <= MOST or not each:
        return [(bars[0].what, bars)]
    out = []
    for those in each:
        rows = [*shared(those), "never"]
        values_LG = np.zeros((len(rows), len(those)))
        for g, one in enumerate(those):
            places = [rows.index(label) for label in (*one.layers, "never")]
            values_LG[places, g] = one.counts / max(1, one.counts.sum())
        heat = Heat(values_LG, rows, [h.group for h in those])
        out.append((f"{those[0].what}, share: {_lens_of(those[0], summary)}", heat))
    return out


def _by_lens(items: Iterable[L]) -> list[list[L]]:
    found: dict[tuple[str, str], list[L]] = {}
    for item in items:
        found.setdefault((item.survey, item.lens), []).append(item)
    return list(found.values())


def _lens_of(line: Curve | Histogram, summary: Summary) -> str:
    """Its lens, and its survey where there are several."""
    several = len({curve.survey for curve in summary.curves}) > 1
    return f"{line.lens}, {visible(line.survey)}" if several else line.lens


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

    def drawn(self, panels: Sequence[tuple[str, Any]], names: list[str], title: str) -> Figure:
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D

        wide = min(3, len(panels))
        tall = math.ceil(len(panels) / wide)
        drawing = Figure(figsize=(4.2 * wide, 3.0 * tall + 0.4), layout="constrained")
        for number, (heading, content) in enumerate(panels):
            axes = drawing.add_subplot(tall, wide, number + 1)
            axes.set_title(self.fonts.shown(heading), fontsize=9)
            if isinstance(content, Heat):
                self.heat(axes, content)
            elif hasattr(content[0], "counts"):
                self.bars(axes, content)
            else:
                self.lines(axes, content)
        if len(names) > 1:
            # The title is the legend's: above one another they have room. On the left, where a narrow screen
            # begins.
            handles = [Line2D([], [], **self.styles[name]) for name in names]
            drawing.legend(handles, [self.fonts.shown(name) for name in names], fontsize=8, frameon=False,
                           loc="outside upper left", ncols=min(2 * wide, len(names)), alignment="left",
                           title=self.fonts.shown(title), title_fontsize=11)  # fmt: skip
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
        for column, curve in enumerate(heat.curves):
            if links := urls(curve, self.summary) if curve in self.summary.curves else []:
                y = [heat.rows.index(label) for label in curve.layers]
                axes.scatter([column] * len(y), y, s=60, lw=0, alpha=0.01, zorder=9).set_urls(links)
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
        exits = heat.curves and heat.curves[0] in self.summary.exits
        axes.set_ylabel("threshold" if exits else "layer", fontsize=8)
        axes.set_xlabel(self.fonts.shown(visible(self.summary.by)), fontsize=8)

    def lines(self, axes: Axes, curves: Sequence[Curve]) -> None:
        summary, labels = self.summary, shared(curves)
        contrast = curves[0] in summary.contrasts
        for curve in curves:
            x = np.array([labels.index(label) for label in curve.layers])
            name = name_of(curve, summary)
            style = self.styles[name]
            axes.plot(x, curve.mean, label=self.fonts.shown(name), **style)
            if links := urls(curve, summary) if curve in summary.curves else []:
                # above all lines, and not quite clear: what is wholly clear cannot be clicked
                axes.scatter(
                    x, curve.mean, s=60, color=style["color"], lw=0, alpha=0.01, zorder=9
                ).set_urls(links)
            axes.fill_between(
                x, curve.low, curve.high, color=style["color"], alpha=0.18, linewidth=0
            )
        if contrast:
            axes.set_ylabel(
                self.fonts.shown(visible(curves[0].group or curves[0].survey)), fontsize=8
            )
            if len(curves) > 1:  # the figure's legend has none of them
                axes.legend(axes.get_lines(), [str(line.get_label()) for line in axes.get_lines()],
                            fontsize=7, frameon=False)  # fmt: skip
        elif curves[0].measure in ZERO_TO_ONE:
            axes.set_ylim(-0.03, 1.03)
        _layers(axes, labels, "threshold" if curves[0] in summary.exits else "layer")

    def bars(self, axes: Axes, histograms: Sequence[Histogram]) -> None:
        never = any(h.counts[-1] for h in histograms)
        layers = shared(histograms)
        labels = [*layers, *(["never"] if never else [])]
        width = 0.8 / len(histograms)  # side by side: none hides another
        for place, each in enumerate(histograms):
            share = each.counts / max(1, each.counts.sum())
            x = [layers.index(label) for label in each.layers] + [len(layers)] * never
            left = np.array(x) - 0.4 + place * width
            color = self.styles[name_of(each, self.summary)]["color"]
            axes.bar(left, share[: len(x)], width, align="edge", color=color)
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
