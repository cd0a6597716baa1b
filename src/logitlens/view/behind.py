"""Behind a report's curves: each point opens a sample of its prompts, and each of these its reading.

Links within one page and no script: `:target` shows the section whose name is in the address.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from logitlens.view import color
from logitlens.view.text import piece_html

if TYPE_CHECKING:
    from logitlens.reading import Reading
    from logitlens.survey.curves import Curve, Kept, Summary

COLUMNS = ("top", "logprob", "rank", "margin", "kl", "entropy")
STYLE = """.behind { display: none; border: 1px solid #bbb; padding: .5rem 1rem; margin: 1rem 0;
           overflow-x: auto }
.behind:target { display: block } svg a:hover use { fill-opacity: .5 !important }
.grid td, .grid th { padding: .1rem .4rem; border: 1px solid #fff }"""
STEPS = 10  # shades of a grid; none is a blue on which neither black nor white is easily read


def urls(curve: Curve, summary: Summary) -> list[str]:
    """Where the points of a curve lead; empty where nothing was kept."""
    for number, kept in enumerate(summary.kept):
        if (kept.survey, kept.lens, kept.group) == (curve.survey, curve.lens, curve.group):
            return [f"#point-{number}-{i}" for i in range(len(curve.layers))]
    return []


def style() -> str:
    """The CSS of `sections`, with a class for each shade of a grid."""
    shades = []
    for step in range(STEPS):
        background = color.rgb(step / (STEPS - 1), "day")
        paint, ink = (f"rgb{each}".replace(" ", "") for each in (background, color.ink(background)))
        shades.append(f".p{step} {{ background: {paint}; color: {ink} }}")
    return "\n".join([STYLE, *shades])


def sections(summary: Summary) -> list[str]:
    """The HTML of all points and of all readings."""
    out = []
    heads = ("prompt", "answer") if summary.unit == "prompts" else ("text", "next")
    for number, kept in enumerate(summary.kept):
        every = [row for each in kept.prompts for row in each.rows]
        columns = [name for name in COLUMNS if any(_text(row.get(name)) for row in every)]
        layers = [row["layer"] for row in kept.prompts[0].rows]
        for i, layer in enumerate(layers):
            ordered = sorted(
                enumerate(kept.prompts), key=lambda pair: -_number(pair[1].rows[i]["kl"])
            )
            rows = [
                [f'<a href="#reading-{number}-{n}">{_text(each.prompt)}</a>', _text(each.answer)]
                + _cells(each.rows[i], columns)
                for n, each in ordered
            ]
            said = f"{_title(kept)}layer {layer}: {len(rows)} of {kept.of:,} {summary.unit}, by KL"
            out.append(_section(f"point-{number}-{i}", said, [*heads, *columns], rows))
        for n, each in enumerate(kept.prompts):
            rows = [[_text(row["layer"]), *_cells(row, columns)] for row in each.rows]
            said = f"{_title(kept)}{each.prompt}" + (f" → {each.answer}" if each.answer else "")
            name, what = f"reading-{number}-{n}", "All its positions, as a page"
            if summary.unit != "prompts":
                what = "All positions of its window, as a page"
            again = f"<p>{what}: <code>{_text(each.again)}</code></p>"
            if each.reading is not None:
                again = grid(each.reading) + again
            out.append(_section(name, said, ["layer", *columns], rows, again))
    return out


def grid(reading: Reading) -> str:
    """The top token of every layer and position, painted by its probability, as an HTML table."""
    L, T, _ = reading.shape
    painted, of = color.scale(reading, "prob"), reading.meta.get("prompt_tokens", T)
    where = f"{T} of {of} positions" if of > T else "position"
    head = "".join(f"<th>{piece_html(each)}" for each in reading.pieces)
    body = ""
    for row in range(L):
        cells = ""
        for t in range(T):
            token, unit = int(reading.top_ids[row, t, 0]), painted.unit[row, t]
            shade = "" if np.isnan(unit) else f" class=p{round(unit * (STEPS - 1))}"
            said = piece_html(reading.piece(token)) if token >= 0 else "–"
            cells += f'<td{shade} title="{painted.format(painted.values[row, t])}">{said}'
        body += f"<tr><th>{_text(reading.layers[row])}{cells}"
    said = f"The top token at every layer and {where}, darker where it is likelier"
    if not color.counted(reading).all():
        said += " (embed is not painted: it is mostly the input itself)"
    return f'<p>{said}:</p><table class="grid"><tr><th>layer{head}{body}</table>'


def _title(kept: Kept) -> str:
    return " · ".join(filter(None, [kept.survey, kept.lens, kept.group])) + " · "


def _section(
    name: str, said: str, heads: Sequence[str], rows: Sequence[Sequence[str]], again: str = ""
) -> str:
    return (
        f'<section class="behind" id="{name}"><p>{_text(said)} · <a href="#top">close</a></p>'
        f"{table([_text(each) for each in heads], rows)}{again}</section>"
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Of cells that are HTML. What ends a cell or a row may be left out there: it was a tenth of a page."""
    lines = [("th", heads), *(("td", row) for row in rows)]
    body = "".join("<tr>" + "".join(f"<{tag}>{cell}" for cell in row) for tag, row in lines)
    return f"<table>{body}</table>"


def _cells(row: dict[str, Any], columns: Sequence[str]) -> list[str]:
    return [_text(row[name]) for name in columns]


def _number(value: Any) -> float:
    return float(value) if isinstance(value, float) and not math.isnan(value) else -1.0


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() else f"{value:.3g}"
    return html.escape(str(value))
