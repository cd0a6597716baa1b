"""A survey's report as text and as a page: its figure, tables, and the prompts behind its points.

It needs the numbers of `logitlens.survey.curves`, handed over as plain objects, and no model.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from logitlens.view.behind import sections, style, table
from logitlens.view.document import svg
from logitlens.view.survey_figure import figure
from logitlens.view.survey_panels import (
    alike,
    all_alike,
    name_of,
    no_width,
    share,
    shared,
    title_of,
)

if TYPE_CHECKING:
    from logitlens.survey.curves import Curve, Summary


ALIKE = " (all alike)"


def markdown(summary: Summary, words: dict[str, tuple[str, str]], *, title: str = "Survey") -> str:
    """Tables of every measure: a line for each lens and group, a column for each layer."""
    out = [f"# {title}", ""]
    out += _about(summary)
    for heading, curves, counted in (
        ("", _and_together("curves", summary), summary.unit),
        ("Contrast: ", summary.contrasts, "pairs"),
    ):
        for mine in alike("measure", curves):
            said, unit = title_of(mine[0].measure, words)
            out += [f"## {heading}{said}{f' ({unit})' if unit else ''}", ""]
            out += _of_layers(mine, summary, counted)
    for mine in alike("measure", _and_together("quantiles", summary)):
        said, unit = title_of(mine[0].measure, words)
        out += [f"## Quantiles: {said}{f' ({unit})' if unit else ''}", ""]
        out += _of_layers(mine, summary, f"{summary.unit}{', or pairs' * bool(summary.contrasts)}")
    for mine in alike("measure", summary.exits):
        said, unit = words[mine[0].measure]
        out += [f"## {said[0].upper()}{said[1:]}{f' ({unit})' if unit else ''}, by threshold", ""]
        out += _of_layers(mine, summary, summary.unit)
    for bars in alike("what", _and_together("histograms", summary)):
        what = bars[0].what
        layers, spread = [*shared(bars), "never"], list(bars[0].spread)
        means = "mean and quantiles" if len(spread) > 1 else "mean"
        over = f"; {means} over those to which it happens" if spread else ""
        out += [f"## {what[0].upper()}{what[1:]} (share of {summary.unit}{over})", ""]
        rows = []
        for each in bars:
            numbers = zip([*each.layers, "never"], share(each), each.low, each.high)
            shares = {layer: _cell(*around) for layer, *around in numbers}
            cells = [str(each.counts.sum()), str(each.counts[:-1].sum())]
            cells += [
                _mean(*each.spread[name]) if name == "mean" else _cell(*each.spread[name])
                for name in spread
            ]
            cells += [shares.get(name, "") for name in layers]
            rows.append([name_of(each, summary), *cells])
        heads = [name.replace("%", " %") for name in spread]
        out += _table(rows, ["", summary.unit, "to which it happens", *heads, *layers])
    if summary.shifts:
        out += ["## Contrast: layers", ""]
        rows = [
            [c.measure, name_of(c, summary), str(c.n), *map(_mean, c.mean, c.low, c.high)]
            for c in summary.shifts
        ]
        out += _table(rows, ["", "", "pairs to which it happens", "difference"])
    return "\n".join(out)


def _and_together(place: str, summary: Summary) -> list[Any]:
    """The curves or histograms of every group, then those of all together, unless these are a group."""
    groups = getattr(summary, place)
    together = getattr(summary.together, place) if summary.together else []
    return [*groups, *(one for one in together if all(one is not each for each in groups))]


def _about(summary: Summary) -> list[str]:
    meta = summary.meta
    lines = [f"Model {meta['model']}."] if meta.get("model") else []
    lines.append(meta["about"])
    return [" ".join(lines), ""]


def _of_layers(curves: Sequence[Curve], summary: Summary, counted: str) -> list[str]:
    """A table with a line for each curve, and a column for each layer; `counted` is what n is of."""
    layers = shared(curves)
    rows = []
    for curve in curves:
        cells = _cells(curve)
        if curve.measure == "rank_p50":
            cells = {layer: cell.replace(".00", "") for layer, cell in cells.items()}
        mine = [cells.get(layer, "") for layer in layers]
        which = "" if curve.share is None else f" · {curve.share:.0%}".replace("%", " %")
        rows.append([name_of(curve, summary) + which, str(curve.n), *mine])
    return _table(rows, ["", counted, *layers])


def _cells(curve: Curve) -> dict[str, str]:
    """Layer → what its cell says."""
    each = list(zip(curve.layers, curve.mean, curve.low, curve.high))
    cells = {layer: _cell(*numbers) for layer, *numbers in each}
    if curve.share is None and curve.measure in ("kl", "agree"):  # what it is by definition
        cells[curve.layers[-1]] = _cell(curve.mean[-1], math.nan, math.nan)
    return cells | {
        layer: _number(mean) + ALIKE
        for layer, mean, alike in zip(curve.layers, curve.mean, all_alike(curve))
        if alike
    }


def _cell(mean: float, low: float, high: float) -> str:
    """A number with its interval, of which an end may be unknown."""
    if math.isnan(mean):
        return "–"
    if math.isnan(low) and math.isnan(high):
        return _number(mean)
    ends = ("…" if math.isnan(end) else _number(end) for end in (low, high))
    return f"{_number(mean)} [{', '.join(ends)}]"


def _mean(mean: float, low: float, high: float) -> str:
    """A mean with its interval; where all are alike words for it, as a width of 0 would say more than that."""
    return _number(mean) + ALIKE if no_width(mean, low, high) else _cell(mean, low, high)


def _number(value: float) -> str:
    """Two decimals; of smaller numbers two digits."""
    return f"{value:.2f}" if value == 0 or round(abs(value), 2) >= 0.1 else f"{value:.2g}"


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
    picture = svg(figure(summary, words)).replace(' target="_blank"', "")  # links within this page
    parts = [
        f'<h1 id="top">{html.escape(title)}</h1><p>{html.escape(" ".join(_about(summary)))}</p>',
        *([f"<p>A click on a point opens some of its {summary.unit}.</p>"] if summary.kept else []),
        # inside the page, so that its points are links
        f'<div class="figure">{picture}</div>',
        *sections(summary),
    ]
    text = markdown(summary, words).splitlines()[4:]
    parts += _as_html(text)
    if prompts:
        columns = list(prompts[0])
        rows = [[html.escape(_said(row[c])) for c in columns] for row in prompts]
        parts.append(
            f"<details open><summary>{len(prompts)} prompts, those that settle last first</summary>"
            f"{table([html.escape(c) for c in columns], rows)}</details>"
        )
    return _PAGE.format(title=html.escape(title), style=style(), body="\n".join(parts))


def _said(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _as_html(lines: Sequence[str]) -> list[str]:
    """The tables of `markdown` as HTML, folded."""
    out: list[str] = []
    rows: list[list[str]] = []
    for line in [*lines, "## "]:
        if line.startswith("## "):
            if rows:
                out.append(f"{table(rows[0], rows[1:])}</details>")
            rows = []
            if line[3:]:
                out.append(f"<details><summary>{html.escape(line[3:])}</summary>")
        elif line.startswith("| ") and not line.startswith("| ---"):
            cells = line[2:-2].replace("\\|", "\0").split(" | ")
            rows.append([html.escape(cell.replace("\0", "|").strip()) for cell in cells])
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
details, .figure {{ overflow-x: auto }} summary {{ cursor: pointer; padding: .3rem 0 }}
/* of a narrow screen it is wider, and moves sideways: made smaller it could not be read */
svg {{ max-width: max(100%, 60rem); height: auto }}
{style}
th, td {{ border-bottom: 1px solid #ddd; padding: .2rem .6rem; text-align: left; white-space: pre }}
</style></head><body>
{body}
</body></html>
"""
