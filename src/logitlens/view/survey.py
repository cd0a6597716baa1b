"""A survey's report: curves over layers with intervals, contrasts, histograms; as figure, text, page.

It needs the numbers of `logitlens.survey.curves`, handed over as plain objects, and no model.
"""

from __future__ import annotations

import html
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from logitlens.errors import MissingExtra
from logitlens.view.behind import sections, style, urls

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from logitlens.survey.curves import Curve, Histogram, Summary

T = TypeVar("T")
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6d3b", "#7a5cc2")
MARKS = "os^Dv*PX"
ZERO_TO_ONE = ("correct", "agree", "top1", "top5", "top10", "right", "exit_agree", "exit_right")
MOST_LINES = 8  # of one panel; more groups become panels of their own


def name_of(curve: Curve | Histogram, summary: Summary) -> str:
    """What distinguishes a line: survey, lens and group, those of which there are several."""
    several = [
        getattr(curve, what)
        for what in ("survey", "lens", "group")
        if len({getattr(c, what) for c in summary.curves}) > 1
    ]
    return " · ".join(several) or curve.lens


def figure(summary: Summary, words: dict[str, tuple[str, str]], *, title: str = "") -> Figure:
    """A panel for each measure (and each group, where there are many), and the histograms.

    Raises MissingExtra without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("matplotlib", "plot", "a figure") from None
    panels: list[tuple[str, Any]] = []
    for what, curves in (("", summary.curves), ("contrast: ", summary.contrasts)):
        for measure in dict.fromkeys(c.measure for c in curves):
            lines = [c for c in curves if c.measure == measure]
            said, unit = words.get(measure, (measure, ""))
            panels.append((what + said + (f", {unit}" if unit else ""), lines))
    for curves in _by("measure", summary.exits):
        said, unit = words[curves[0].measure]
        panels.append((said + (f", {unit}" if unit else ""), curves))
    panels += [(heat_title(curves), Heat(curves)) for curves in heats(summary)]
    panels += [(bars[0].what, bars) for bars in _by("what", summary.histograms)]
    wide = min(3, len(panels))
    tall = math.ceil(len(panels) / wide)
    drawing = Figure(figsize=(4.2 * wide, 3.0 * tall + 0.4), layout="constrained")
    for number, (heading, content) in enumerate(panels):
        axes = drawing.add_subplot(tall, wide, number + 1)
        axes.set_title(heading, fontsize=9)
        if isinstance(content, Heat):
            _heat(axes, content.curves, summary)
        elif hasattr(content[0], "counts"):
            _bars(axes, content, summary)
        else:
            _lines(axes, content, summary)
    names = list(dict.fromkeys(name_of(c, summary) for c in summary.curves))
    if len(names) > 1:
        handles, labels = drawing.axes[0].get_legend_handles_labels()
        drawing.legend(handles, labels, loc="outside lower center", ncols=min(6, len(names)), fontsize=8,
                       frameon=False)  # fmt: skip
    if title:
        drawing.suptitle(title, fontsize=11)
    return drawing


@dataclass(frozen=True)
class Heat:
    """A heatmap of one survey's lens: agreement with the final layer, of several groups."""

    curves: list[Curve]


def heats(summary: Summary) -> list[list[Curve]]:
    """The curves of agreement that make a heatmap: those of one survey and lens with several groups."""
    found: dict[tuple[str, str], list[Curve]] = {}
    for curve in summary.curves:
        if curve.measure == "agree":
            found.setdefault((curve.survey, curve.lens), []).append(curve)
    return [curves for curves in found.values() if len(curves) > 1]


def heat_title(curves: Sequence[Curve]) -> str:
    return f"agreement with the final layer: {curves[0].lens}"


def _by(name: str, items: Sequence[T]) -> list[list[T]]:
    """Those of one measure, or of one kind of histogram, together."""
    groups: dict[str, list[T]] = {}
    for item in items:
        groups.setdefault(getattr(item, name), []).append(item)
    return list(groups.values())


def _heat(axes: Axes, curves: Sequence[Curve], summary: Summary) -> None:
    """Layers × groups; each cell says its share where there is room."""
    values_LG = np.stack([curve.mean for curve in curves], 1)
    axes.imshow(values_LG, aspect="auto", origin="lower", cmap="viridis", vmin=0, vmax=1)
    if values_LG.size <= 120:
        for (row, column), value in np.ndenumerate(values_LG):
            axes.text(column, row, f"{value:.2f}"[1:] if value < 0.995 else "1", ha="center", va="center",
                      fontsize=6, color="white" if value < 0.6 else "black")  # fmt: skip
    labels = curves[0].layers
    step = max(1, math.ceil(len(labels) / 12))
    axes.set_yticks(range(0, len(labels), step), labels[::step], fontsize=8)
    names = [curve.group.removeprefix("position ").removesuffix(" positions") for curve in curves]
    axes.set_xticks(range(len(names)), names, fontsize=7, rotation=30, ha="right")
    axes.set_ylabel("layer", fontsize=8)
    axes.set_xlabel(summary.by, fontsize=8)


def shared(lines: Sequence[Curve | Histogram]) -> list[str]:
    """The layers, or thresholds, of several lines in order: one may lack some of another's."""
    every = dict.fromkeys(label for line in lines for label in line.layers)
    return sorted(every, key=lambda label: -1.0 if label == "embed" else float(label))


def _lines(axes: Axes, curves: Sequence[Curve], summary: Summary) -> None:
    labels = shared(curves)
    for i, curve in enumerate(curves):
        x = np.array([labels.index(label) for label in curve.layers])
        color = COLORS[i % len(COLORS)]
        axes.plot(x, curve.mean, color=color, marker=MARKS[i % len(MARKS)], ms=3, lw=1.3,
                  label=name_of(curve, summary))  # fmt: skip
        if links := urls(curve, summary) if curve in summary.curves else []:
            # above all lines, and not quite clear: what is wholly clear cannot be clicked
            axes.scatter(x, curve.mean, s=60, color=color, lw=0, alpha=0.01, zorder=9).set_urls(
                links
            )
        axes.fill_between(x, curve.low, curve.high, color=color, alpha=0.18, linewidth=0)
    if curves[0].measure in ZERO_TO_ONE and curves[0] not in summary.contrasts:
        axes.set_ylim(-0.03, 1.03)
    if curves[0] in summary.contrasts:
        axes.set_ylabel(curves[0].group or curves[0].survey, fontsize=8)
    _layers(axes, labels, "threshold" if curves[0] in summary.exits else "layer")


def _bars(axes: Axes, histograms: Sequence[Histogram], summary: Summary) -> None:
    never = any(h.counts[-1] for h in histograms)
    layers = shared(histograms)
    labels = [*layers, *(["never"] if never else [])]
    for i, each in enumerate(histograms):
        share = each.counts / max(1, each.counts.sum())
        x = [layers.index(label) for label in each.layers] + [len(layers)] * never
        axes.step(x, share[: len(x)], where="mid", lw=1.3,
                  color=COLORS[i % len(COLORS)], label=name_of(each, summary))  # fmt: skip
    axes.set_ylabel(f"share of {summary.unit}", fontsize=8)
    _layers(axes, labels)


def _layers(axes: Axes, labels: Sequence[str], what: str = "layer") -> None:
    step = max(1, math.ceil(len(labels) / 9))
    shown = list(range(len(labels)))[::-1][::step][::-1]
    axes.set_xticks(shown, [labels[i] for i in shown], fontsize=8)
    axes.tick_params(axis="y", labelsize=8)
    axes.set_xlabel(what, fontsize=8)


def markdown(summary: Summary, words: dict[str, tuple[str, str]], *, title: str = "Survey") -> str:
    """Tables of every measure: a line for each lens and group, a column for each layer."""
    out = [f"# {title}", ""]
    out += _about(summary)
    for heading, curves in (("", summary.curves), ("Contrast: ", summary.contrasts)):
        for measure in dict.fromkeys(c.measure for c in curves):
            mine = [c for c in curves if c.measure == measure]
            said, unit = words.get(measure, (measure, ""))
            out += [f"## {heading}{said}{f' ({unit})' if unit else ''}", ""]
            out += _of_layers(mine, summary)
    for mine in _by("measure", summary.quantiles):
        said, unit = words.get(mine[0].measure, (mine[0].measure, ""))
        out += [f"## Quantiles: {said}{f' ({unit})' if unit else ''}", ""]
        out += _of_layers(mine, summary)
    for mine in _by("measure", summary.exits):
        said, unit = words[mine[0].measure]
        out += [f"## {said[0].upper()}{said[1:]}{f' ({unit})' if unit else ''}, by threshold", ""]
        out += _of_layers(mine, summary)
    for bars in _by("what", summary.histograms):
        what = bars[0].what
        out += [f"## {what[0].upper()}{what[1:]} ({summary.unit})", ""]
        layers, spread = [*shared(bars), "never"], list(bars[0].spread)
        rows = []
        for each in bars:
            counts = dict(zip([*each.layers, "never"], map(str, each.counts)))
            cells = [_cell(*each.spread[name], name != "mean") for name in spread]
            cells += [counts.get(name, "") for name in layers]
            rows.append([name_of(each, summary), *cells])
        heads = [name.replace("%", " %") for name in spread]
        out += _table(rows, ["", *heads, *layers])
    if summary.shifts:
        out += ["## Contrast: layers", ""]
        rows = [
            [c.measure, name_of(c, summary), str(c.n), *map(_cell, c.mean, c.low, c.high)]
            for c in summary.shifts
        ]
        out += _table(rows, ["", "", "pairs to which it happens", "difference"])
    return "\n".join(out)


def _about(summary: Summary) -> list[str]:
    meta = summary.meta
    lines = [f"Model {meta['model']}."] if meta.get("model") else []
    lines.append(meta["about"])
    return [" ".join(lines), ""]


def _of_layers(curves: Sequence[Curve], summary: Summary) -> list[str]:
    """A table with a line for each curve, and a column for each layer."""
    layers = shared(curves)
    rows = []
    for curve in curves:
        cells = _cells(curve)
        mine = [cells.get(layer, "") for layer in layers]
        share = "" if curve.share is None else f" · {curve.share:.0%}".replace("%", " %")
        rows.append([name_of(curve, summary) + share, str(curve.n), *mine])
    return _table(rows, ["", summary.unit, *layers])


def _cells(curve: Curve) -> dict[str, str]:
    """Layer → what its cell says."""
    ends = curve.share is not None
    each = zip(curve.layers, curve.mean, curve.low, curve.high)
    return {layer: _cell(mean, low, high, ends) for layer, mean, low, high in each}


def _cell(mean: float, low: float, high: float, ends: bool = False) -> str:
    """A number with its interval: by its half, or by both ends."""
    if math.isnan(mean):
        return "–"
    around = f" [{low:.2f}, {high:.2f}]" if ends else f" ±{(high - low) / 2:.2f}"
    return f"{mean:.2f}" + ("" if math.isnan(high - low) else around)


def _table(rows: Sequence[Sequence[str]], heads: Sequence[str]) -> list[str]:
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return [*lines, ""]


def page(
    summary: Summary,
    words: dict[str, tuple[str, str]],
    *,
    title: str = "Survey",
    prompts: Sequence[dict[str, Any]] = (),
) -> str:
    """One HTML file that needs no network: the figure, the tables, and the prompts behind them."""
    buffer = io.StringIO()
    figure(summary, words).savefig(buffer, format="svg", metadata={"Date": None})
    picture = buffer.getvalue().replace(' target="_blank"', "")  # links within this page
    parts = [
        f'<h1 id="top">{html.escape(title)}</h1><p>{html.escape(" ".join(_about(summary)))}</p>',
        *([f"<p>A click on a point opens some of its {summary.unit}.</p>"] if summary.kept else []),
        picture[picture.index("<svg") :],  # inside the page, so that its points are links
        *sections(summary),
    ]
    text = markdown(summary, words).splitlines()[4:]
    parts += _as_html(text)
    if prompts:
        columns = list(prompts[0])
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(_said(row[c]))}</td>" for c in columns) + "</tr>"
            for row in prompts
        )
        heads = "".join(f"<th>{html.escape(c)}</th>" for c in columns)
        parts.append(
            f"<details open><summary>{len(prompts)} prompts, those that settle last first</summary>"
            f"<table><tr>{heads}</tr>{body}</table></details>"
        )
    return _PAGE.format(title=html.escape(title), style=style(), body="\n".join(parts))


def _said(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _as_html(lines: Sequence[str]) -> list[str]:
    """The tables of `markdown` as HTML, folded."""
    out: list[str] = []
    rows: list[str] = []
    for line in [*lines, "## "]:
        if line.startswith("## "):
            if rows:
                out.append("<table>" + "".join(rows) + "</table></details>")
            rows = []
            if line[3:]:
                out.append(f"<details><summary>{html.escape(line[3:])}</summary>")
        elif line.startswith("| ") and not line.startswith("| ---"):
            tag = "td" if rows else "th"
            cells = line[2:-2].replace("\\|", "\0").split(" | ")
            cells = [html.escape(cell.replace("\0", "|").strip()) for cell in cells]
            rows.append("<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>")
    return out


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content=
"default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 84rem; padding: 0 1rem;
       color: #1b1b1b; background: #fff }}
img {{ max-width: 100% }} table {{ border-collapse: collapse; font-size: 13px; margin: .5rem 0 }}
details {{ overflow-x: auto }} summary {{ cursor: pointer; padding: .3rem 0 }}
svg {{ max-width: 100%; height: auto }}
{style}
th, td {{ border-bottom: 1px solid #ddd; padding: .2rem .6rem; text-align: left; white-space: pre }}
</style></head><body>
{body}
</body></html>
"""
