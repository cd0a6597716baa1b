"""The figure of a survey's report: curves over layers with intervals, contrasts, heatmaps, histograms."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from logitlens.errors import MissingExtra
from logitlens.view.behind import urls
from logitlens.view.fonts import Fonts
from logitlens.view.text import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from logitlens.survey.curves import Curve, Histogram, Summary

T = TypeVar("T")
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6d3b", "#7a5cc2")
MARKS = "os^Dv*PX"
DASHES = ("-", "--", ":", "-.")
SHADED = 8  # lines of a panel at most, for their intervals to be seen; the tables have all
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


def heats(summary: Summary) -> list[list[Curve]]:
    """The curves of agreement that make a heatmap: those of one survey and lens with several groups."""
    found: dict[tuple[str, str], list[Curve]] = {}
    for curve in summary.curves:
        if curve.measure == "agree":
            found.setdefault((curve.survey, curve.lens), []).append(curve)
    return [curves for curves in found.values() if len(curves) > 1]


@dataclass(frozen=True)
class Heat:
    """A heatmap of one survey's lens: agreement with the final layer, of several groups."""

    curves: list[Curve]

    @property
    def title(self) -> str:
        return f"agreement with the final layer: {self.curves[0].lens}"


def figure(summary: Summary, words: dict[str, tuple[str, str]], *, title: str = "") -> Figure:
    """A panel for each measure, contrast, early exit, heatmap and histogram. A line looks the same in all.

    Raises MissingExtra without matplotlib.
    """
    try:
        from matplotlib import rc_context
    except ImportError:
        raise MissingExtra("matplotlib", "plot", "a figure") from None
    panels = _panels(summary, words)
    own = dict.fromkeys(name_of(c, summary) for c in summary.curves)
    contrasts = dict.fromkeys(name_of(c, summary) for c in summary.contrasts)
    said = [title, summary.by, *own, *contrasts, *(heading for heading, _ in panels)]
    fonts = Fonts.covering("".join(said))
    # No dollar sign begins a formula here: names are what users call things.
    with rc_context({"font.family": fonts.families, "text.parse_math": False}):
        return _Drawing(summary, fonts, _styles([*own, *contrasts])).drawn(panels, list(own), title)


def _panels(summary: Summary, words: dict[str, tuple[str, str]]) -> list[tuple[str, Any]]:
    """(heading, curves, histograms or a heatmap) in the order in which they stand."""

    def heading(measure: str) -> str:
        return ", ".join(filter(None, title_of(measure, words)))

    several = len({curve.survey for curve in summary.curves}) > 1
    panels: list[tuple[str, Any]] = []
    for what, curves in (("", summary.curves), ("contrast: ", summary.contrasts)):
        panels += [(what + heading(each[0].measure), each) for each in alike("measure", curves)]
    panels += [(heading(each[0].measure), each) for each in alike("measure", summary.exits)]
    for curves in heats(summary):
        heat = Heat(curves)
        panels.append((heat.title + (f", {curves[0].survey}" if several else ""), heat))
    panels += [(bars[0].what, bars) for bars in alike("what", summary.histograms)]
    return panels


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
                self.heat(axes, content.curves)
            elif hasattr(content[0], "counts"):
                self.bars(axes, content)
            else:
                self.lines(axes, content)
        if len(names) > 1:
            handles = [Line2D([], [], **self.styles[name]) for name in names]
            drawing.legend(handles, [self.fonts.shown(name) for name in names], fontsize=8, frameon=False,
                           loc="outside lower center", ncols=min(6, len(names)))  # fmt: skip
        if title:
            drawing.suptitle(self.fonts.shown(title), fontsize=11)
        return drawing

    def heat(self, axes: Axes, curves: Sequence[Curve]) -> None:
        """Layers × groups; each cell says its share where there is room."""
        values_LG = np.stack([curve.mean for curve in curves], 1)
        axes.imshow(values_LG, aspect="auto", origin="lower", cmap="viridis", vmin=0, vmax=1)
        if values_LG.size <= 120:
            for (row, column), value in np.ndenumerate(values_LG):
                axes.text(column, row, _share(value), ha="center", va="center", fontsize=6,
                          color="white" if value < 0.6 else "black")  # fmt: skip
        labels = curves[0].layers
        step = max(1, math.ceil(len(labels) / 12))
        axes.set_yticks(range(0, len(labels), step), labels[::step], fontsize=8)
        names = [
            visible(curve.group).removeprefix("position ").removesuffix(" positions")
            for curve in curves
        ]
        axes.set_xticks(range(len(names)), [self.fonts.shown(name) for name in names], fontsize=7,
                        rotation=30, ha="right", parse_math=False)  # fmt: skip
        axes.set_ylabel("layer", fontsize=8)
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
            if len(curves) <= SHADED:
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
        for each in histograms:
            share = each.counts / max(1, each.counts.sum())
            x = [layers.index(label) for label in each.layers] + [len(layers)] * never
            style = self.styles[name_of(each, self.summary)]
            axes.step(x, share[: len(x)], where="mid", color=style["color"], ls=style["ls"], lw=1.3)
        axes.set_ylabel(f"share of {self.summary.unit}", fontsize=8)
        _layers(axes, labels)


def _share(value: float) -> str:
    """.25, 1, or nothing where there is none."""
    if math.isnan(value):
        return ""
    return f"{value:.2f}"[1:] if value < 0.995 else "1"


def _layers(axes: Axes, labels: Sequence[str], what: str = "layer") -> None:
    step = max(1, math.ceil(len(labels) / 9))
    shown = list(range(len(labels)))[::-1][::step][::-1]
    axes.set_xticks(shown, [labels[i] for i in shown], fontsize=8)
    axes.tick_params(axis="y", labelsize=8)
    axes.set_xlabel(what, fontsize=8)
