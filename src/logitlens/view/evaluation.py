"""How well lenses do, as a table and as a figure. Rows are those of `logitlens lens eval`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from logitlens.errors import MissingExtra
from logitlens.select import layer_number

MEASURES = {  # name: (heading, what it is, better)
    "kl": ("KL", "KL(final ‖ layer), nats", "lower"),
    "next": ("next", "−log p(next token), nats", "lower"),
    "top1": ("top-1", "top-1 agrees with the final row", "higher"),
    "top10": ("top-10", "share of the final row's top 10", "higher"),
    "fact1": ("fact@1", "facts with the answer's first token at rank 1", "higher"),
    "fact5": ("fact@5", "facts with the answer's first token at rank ≤ 5", "higher"),
    "fact10": ("fact@10", "facts with the answer's first token at rank ≤ 10", "higher"),
}


def measured(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The measures that some row has a number for."""
    return [m for m in MEASURES if any(not math.isnan(row[m]) for row in rows)]


def text(rows: Sequence[dict[str, Any]], meta: Mapping[str, Any]) -> str:
    """The table as plain text: a line per lens and layer, `value [95 % interval]`, n in the heading.

    meta   of the Evaluation: how many sequences and facts there were
    """
    columns = measured(rows)
    n = {m: meta["facts" if m.startswith("fact") else "sequences"] for m in columns}
    head = ["lens", "layer", *(f"{MEASURES[m][0]}, n = {n[m]:,}" for m in columns)]
    body = [[str(row["lens"]), row["layer"], *(_cell(row, m) for m in columns)] for row in rows]
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    lines = []
    for number, line in enumerate([head, *body]):
        new_lens = number > 1 and line[0] != body[number - 2][0]
        if new_lens:
            lines.append("")
        left = [cell.ljust(width) for cell, width in zip(line[:2], widths)]
        right = [cell.rjust(width) for cell, width in zip(line[2:], widths[2:])]
        lines.append("  ".join([*left, *right]).rstrip())
    notes = ["n: sequences of text, or facts; [95 % interval]"]
    if any(row["layer"] == "any" for row in rows):
        notes.append("any: the answer's best rank at any layer before the last")
    return "\n".join([*lines, "", *notes])


def _cell(row: dict[str, Any], measure: str) -> str:
    value, low, high = (row[f"{measure}{end}"] for end in ("", "_low", "_high"))
    if math.isnan(value):
        return "–"
    digits = 3 if measure in ("kl", "next") else 2
    interval = "" if math.isnan(low) else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{value:.{digits}f}{interval}"


def figure(rows: Sequence[dict[str, Any]], *, title: str = "") -> Any:
    """matplotlib Figure: one panel per measure, layer along x, a line and a band per lens.

    Raises MissingExtra without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("matplotlib", "plot", "a figure") from None
    columns = measured(rows)
    wide = min(3, len(columns))
    tall = math.ceil(len(columns) / wide)
    drawing = Figure(figsize=(3.6 * wide, 2.8 * tall + 0.4), layout="constrained")
    lenses = list(dict.fromkeys(row["lens"] for row in rows))
    labels = list(dict.fromkeys(row["layer"] for row in rows if row["layer"] != "any"))
    labels.sort(key=lambda label: -1 if (number := layer_number(label)) is None else number)
    for number, measure in enumerate(columns):
        axes = drawing.add_subplot(tall, wide, number + 1)
        for i, lens in enumerate(lenses):
            mine = [r for r in rows if r["lens"] == lens and r["layer"] != "any"]
            x = [labels.index(r["layer"]) for r in mine]
            axes.plot(
                x, [r[measure] for r in mine], marker=_MARKS[i % len(_MARKS)], ms=3.5, label=lens
            )
            low, high = ([r[f"{measure}_{end}"] for r in mine] for end in ("low", "high"))
            axes.fill_between(x, low, high, alpha=0.2, linewidth=0)
        _, what, better = MEASURES[measure]
        axes.set_title(f"{what}\n({better} is better)", fontsize=9)
        step = max(1, math.ceil(len(labels) / 8))
        shown = range(len(labels))[::-1][::step][::-1]
        axes.set_xticks(shown, [labels[d] for d in shown], fontsize=8)
        axes.set_xlabel("layer", fontsize=8)
        if number == 0:
            axes.legend(fontsize=8, frameon=False)
    if title:
        drawing.suptitle(title, fontsize=11)
    return drawing


_MARKS = "os^Dv*"
