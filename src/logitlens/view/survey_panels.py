"""What the figure of a survey's report shows: a panel, or a row of them, for each measure and each moment.

A panel holds up to eight lines. More are divided: a panel with all groups together, a line for each lens, and
beside it one for each lens, whose groups are lines, or where these are more than eight columns of a heatmap.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from logitlens.view.text import visible

if TYPE_CHECKING:
    from logitlens.survey.curves import Curve, Histogram, Summary

T = TypeVar("T")
L = TypeVar("L", "Curve", "Histogram")
MOST = 8  # lines of a panel
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
class Lines:
    """Curves, each with its name in the legend.

    axis   "layer" or "threshold"      contrast   differences, whose legend is the panel's
    low, high   ends of the scale where several panels share it; embed may exceed it
    """

    curves: Sequence[Curve]
    names: Sequence[str]
    axis: str = "layer"
    contrast: bool = False
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Bars:
    """Histograms side by side, each with its name in the legend; `high` as of Lines."""

    histograms: Sequence[Histogram]
    names: Sequence[str]
    high: float | None = None


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
    axis: str = "layer"


Panel = tuple[str, Lines | Bars | Heat]  # with its heading


def panels(summary: Summary, words: dict[str, tuple[str, str]]) -> list[list[Panel]]:
    """In the order in which they stand; those that belong in one row together."""

    def heading(measure: str) -> str:
        return ", ".join(filter(None, title_of(measure, words)))

    out: list[list[Panel]] = []
    for axis, several in (("layer", summary.curves), ("threshold", summary.exits)):
        for curves in alike("measure", several):
            out.append(_of_measure(heading(curves[0].measure), curves, summary, axis))
    for curves in alike("measure", summary.contrasts):
        lines = Lines(curves, [name_of(c, summary) for c in curves], contrast=True)
        out.append([(f"contrast: {heading(curves[0].measure)}", lines)])
    agree = [curve for curve in summary.curves if curve.measure == "agree"]
    if len(agree) <= MOST:  # else it is among the heatmaps, or the lines of a lens
        out += [[heat] for heat in _heats("agreement with the final layer", agree, summary)]
    for bars in alike("what", summary.histograms):
        out.append(_of_moment(bars, summary))
    return out


def _of_measure(heading: str, curves: list[Curve], summary: Summary, axis: str) -> list[Panel]:
    """Its lines; where they are many those of all groups together, then a panel for each survey and lens."""
    each = _by_lens(curves)
    if len(curves) <= MOST or max(map(len, each)) == 1:
        return [(heading, Lines(curves, [name_of(c, summary) for c in curves], axis))]
    together = _together(summary, "exits" if axis == "threshold" else "curves", curves[0].measure)
    many = max(map(len, each)) > MOST
    low, high = _scale(together if many else [*curves, *together])
    out: list[Panel] = []
    if together:
        names = [name_of(c, summary.together or summary) for c in together]
        lines = Lines(together, names, axis, low=low, high=high)
        out.append((f"{heading}\n{visible(together[0].group)}", lines))
    if many:
        return [*out, *_heats(heading, curves, summary, axis)]
    for those in each:
        lines = Lines(those, [visible(c.group) for c in those], axis, low=low, high=high)
        out.append((f"{heading}\n{_lens_of(those[0], summary)}", lines))
    return out


def _together(summary: Summary, place: str, measure: str) -> list[Curve]:
    found = getattr(summary.together, place) if summary.together else []
    return [curve for curve in found if curve.measure == measure]


def _scale(curves: Sequence[Curve]) -> tuple[float, float]:
    """Where an axis begins and ends that has room for curves with their intervals. Not for embed where it would
    take half of it: the logit lens shows the token itself there."""
    if curves and curves[0].measure in ZERO_TO_ONE:
        return -0.03, 1.03
    rows = [row for c in curves for row in zip(c.layers, c.mean, c.low, c.high)]
    low, high = _ends(number for layer, *numbers in rows if layer != "embed" for number in numbers)
    least, most = _ends(number for _, *numbers in rows for number in numbers)
    if most - least <= 2 * (high - low):
        low, high = least, most
    room = 0.04 * (high - low) or 1.0
    return low - room, high + room


def _ends(numbers: Iterable[float]) -> tuple[float, float]:
    finite = [float(number) for number in numbers if np.isfinite(number)]
    return (min(finite), max(finite)) if finite else (0.0, 1.0)


def _heats(
    heading: str, curves: Sequence[Curve], summary: Summary, axis: str = "layer"
) -> list[Panel]:
    """For each survey and lens that has several groups, in the same colours: those of layers, as embed, where
    the logit lens shows the token itself, would leave none for them."""
    each = [those for those in _by_lens(curves) if len(those) > 1]
    cells = (cell for those in each for c in those for cell in zip(c.layers, c.mean))
    low, high = _ends(mean for layer, mean in cells if layer != "embed")
    if curves and curves[0].measure in ZERO_TO_ONE:
        low, high = 0.0, 1.0
    out: list[Panel] = []
    for those in each:
        rows = shared(those)
        values_LG = np.full((len(rows), len(those)), np.nan)
        for g, curve in enumerate(those):
            values_LG[[rows.index(label) for label in curve.layers], g] = curve.mean
        heat = Heat(values_LG, rows, [c.group for c in those], low, high, those, axis)
        out.append((f"{heading}\n{_lens_of(those[0], summary)}", heat))
    return out


def _of_moment(bars: list[Histogram], summary: Summary) -> list[Panel]:
    """Its bars; where they are many divided as lines are."""
    what, each = bars[0].what, _by_lens(bars)
    if len(bars) <= MOST or max(map(len, each)) == 1:
        return [(what, Bars(bars, [name_of(h, summary) for h in bars]))]
    out: list[Panel] = []
    together = (
        [h for h in summary.together.histograms if h.what == what] if summary.together else []
    )
    ends = (number for h in (*bars, *together) for number in (*share(h), *h.high))
    high = 1.04 * _ends(ends)[1]
    if together:
        names = [name_of(h, summary.together or summary) for h in together]
        out.append((f"{what}\n{visible(together[0].group)}", Bars(together, names, high)))
    for those in each:
        if max(map(len, each)) <= MOST:
            mine = Bars(those, [visible(h.group) for h in those], high)
            out.append((f"{what}\n{_lens_of(those[0], summary)}", mine))
            continue
        rows = [*shared(those), "never"]
        values_LG = np.zeros((len(rows), len(those)))
        for g, one in enumerate(those):
            values_LG[[rows.index(label) for label in (*one.layers, "never")], g] = share(one)
        heat = Heat(values_LG, rows, [h.group for h in those])
        out.append((f"{what}, share\n{_lens_of(those[0], summary)}", heat))
    return out


def share(bars: Histogram) -> NDArray[np.float64]:
    """Of the prompts, at each layer and, last, never."""
    return bars.counts / max(1, bars.counts.sum())


def no_width(mean: float, low: float, high: float) -> bool:
    """Whether the interval of a mean has no width, as what it is over is all alike."""
    return high - low <= 1e-9 * abs(mean) and abs(mean - low) <= 1e-9 * abs(mean)


def all_alike(curve: Curve) -> NDArray[np.bool_]:
    """(L,) Where the mean of a curve is over what is all alike, by chance: the final layer's KL is 0 and its
    agreement 1 whatever the prompts, and a quantile's interval counts how many are alike."""
    where = np.array([no_width(*each) for each in zip(curve.mean, curve.low, curve.high)], bool)
    if curve.measure in ("kl", "agree"):
        where[-1] = False
    return where & (curve.share is None and curve.measure != "rank_p50")


def _by_lens(items: Iterable[L]) -> list[list[L]]:
    found: dict[tuple[str, str], list[L]] = {}
    for item in items:
        found.setdefault((item.survey, item.lens), []).append(item)
    return list(found.values())


def _lens_of(line: Curve | Histogram, summary: Summary) -> str:
    """Its lens, and its survey where there are several."""
    several = len({curve.survey for curve in summary.curves}) > 1
    lens = f"{line.lens} lens"
    return f"{lens}, {visible(line.survey)}" if several else lens
