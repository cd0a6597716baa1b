"""A waterfall: what every component added, as bars that sum to a line. In the terminal and as a figure."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from rich.style import Style
from rich.text import Text

from logitlens.errors import MissingExtra
from logitlens.view import text as safe
from logitlens.view.figure_grid import shown_figure
from logitlens.view.fonts import Fonts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from logitlens.attribution import Attribution

TOP = 24  # components shown by themselves; the others are one bar
_DIM, _UP, _DOWN = Style(dim=True), Style(color="green"), Style(color="red")
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_LEAST_BAR = 12


@dataclass(frozen=True)
class Bar:
    """One line of a waterfall: from the sum before it to the sum after it."""

    label: str
    part: float
    before: float

    @property
    def after(self) -> float:
        return self.before + self.part


def bars(found: Attribution, top: int = TOP) -> list[Bar]:
    """The `top` components with the largest parts, in the order in which they act, then the rest as one."""
    parts = found.parts
    shown = set(np.argsort(-np.abs(parts), kind="stable")[: max(1, top)].tolist())
    out, total, rest = [], 0.0, [p for i, p in enumerate(parts) if i not in shown]
    for i in sorted(shown):
        out.append(Bar(label(found, found.components[i]), float(parts[i]), total))
        total += float(parts[i])
    if rest:
        out.append(Bar(f"{len(rest)} others", float(sum(rest)), total))
    return out


def label(found: Attribution, component: str) -> str:
    """A component's name; of an expert with its router's weight, of a source with its token."""
    weight = found.meta.get("router", {}).get(component)
    if weight is not None:
        return f"{component} ×{weight:.2f}"
    name, at, source = component.partition("@")
    pieces = found.meta.get("pieces")
    if at and source.isdigit() and isinstance(pieces, list) and int(source) < len(pieces):
        return (
            f"{name}@{source} {safe.isolate(safe.clip(safe.visible(str(pieces[int(source)])), 10))}"
        )
    return component


def title(found: Attribution) -> str:
    """What was attributed: the logit of which token, after which text."""
    what = f"logit of {safe.quote(found.piece(found.token))}"
    if found.versus is not None:
        what += f" minus {safe.quote(found.piece(found.versus))}"
    piece = found.meta.get("piece")
    after = f" after {safe.quote(piece)}" if isinstance(piece, str) else ""
    return f"{what}{after} · {safe.visible(str(found.meta.get('model') or 'model unknown'))}"


def sentences(found: Attribution) -> list[str]:
    """The sum, the model's own logit, their difference, and what is between the two."""
    what = "logit" if found.versus is None else "difference of logits"
    edits = [e for e in found.meta.get("edits") or () if isinstance(e, dict)]
    out = [f"edited: {safe.visible(str(e.get('text')))}" for e in edits]
    scale, cap = found.meta.get("scale", 1.0), found.meta.get("softcap")
    if scale != 1.0:
        out.append(f"the model multiplies its logits by {scale:.6g}: the parts include it")
    if cap:
        slopes = " and ".join(f"{s:.3f}" for s in found.meta.get("slopes", []))
        out.append(
            f"before the softcap of {cap:.6g}, which makes {found.finished:.4f} of the sum "
            f"(slope {slopes} there)"
        )
    if found.meta.get("by") == "token":
        out.append(
            "head@position: what a head read there, by its attention weight, not what wrote it"
        )
    bound = found.meta["bound"]
    out.append(
        f"{len(found.components)} parts sum to {found.sum:.4f}; the model's own {what} is "
        f"{found.logit:.4f}: they differ by {abs(found.difference):.1e} (rounding may cost {bound:.1e})"
    )
    return out


def render(found: Attribution, *, width: int = 100, top: int = TOP) -> Text:
    """The waterfall for a rich Console, a line for each component.

    Where they do not fit the width, the running sums are left out, and then the ends of labels.
    """
    shown = bars(found, top)
    parts = [found.sum, *(bar.part for bar in shown)]
    sums = [found.sum, *(bar.after for bar in shown)]
    digits = max(9, *(len(f"{value:+.3f}") for value in parts))
    ends_in = max(9, *(len(f"{value:.3f}") for value in sums))
    lead = max(3, *(safe.width(bar.label) for bar in shown))
    around = digits + 3
    if running := width >= lead + around + 1 + ends_in + _LEAST_BAR:
        around += 1 + ends_in
    lead = max(3, min(lead, width - around - _LEAST_BAR))
    room = max(1, width - lead - around)
    ends = [0.0, *(bar.after for bar in shown)]
    low, high = min(ends), max(ends)
    unit = (high - low) / room or 1.0

    def place(value: float) -> float:
        return (value - low) / unit

    out = Text(f"{title(found)}\n", style=Style(bold=True), no_wrap=True, overflow="crop")
    plain = Text(no_wrap=True, overflow="crop")

    def after(value: float) -> str:
        return f" {value:{ends_in}.3f}\n" if running else "\n"

    for bar in shown:
        left, right = sorted((place(bar.before), place(bar.after)))
        plain.append(f"{safe.fit(bar.label, lead, 'right')} {bar.part:+{digits}.3f} ")
        plain.append(_bar(left, right, room), style=_UP if bar.part > 0 else _DOWN)
        plain.append(after(bar.after), style=_DIM)
    zero = _bar(place(min(0.0, found.sum)), place(max(0.0, found.sum)), room)
    plain.append(f"{'sum'.rjust(lead)} {found.sum:+{digits}.3f} ", style=Style(bold=True))
    plain.append(f"{zero}{after(found.sum)}", style=_DIM)
    return Text.assemble(out, plain, Text("\n".join(sentences(found)), style=_DIM))


def _bar(left: float, right: float, room: int) -> str:
    """Blocks from `left` to `right`, to an eighth of a column at the right end."""
    start = min(int(left), room - 1)
    eighths = max(1, round((right - start) * 8))
    full, part = divmod(eighths, 8)
    body = "█" * full + (_EIGHTHS[part] if part else "")
    return (" " * start + body)[: room + 1].ljust(room + 1)


def text(found: Attribution, *, width: int | None = None, top: int = TOP) -> str:
    """The waterfall as plain text. Width: COLUMNS or the terminal's, else 100."""
    columns = width or shutil.get_terminal_size((100, 50)).columns
    lines = render(found, width=columns, top=top).plain.splitlines()
    return "\n".join(line.rstrip() for line in lines)


def figure(found: Attribution, *, top: int = TOP) -> Figure:
    """The waterfall as a matplotlib Figure: components down, the logit across.

    Raises MissingExtra without matplotlib.
    """
    try:
        drawn = shown_figure()
    except ImportError:
        raise MissingExtra("matplotlib", "plot", "a figure") from None
    head, foot = title(found), sentences(found)[-1]
    shown = bars(found, top)
    fonts = Fonts.covering("".join([head, *(bar.label for bar in shown)]))
    rows = len(shown) + 1
    drawing = drawn(figsize=(7.0, 1.3 + 0.24 * rows), layout="constrained")
    axes = drawing.add_subplot()
    lines = [*shown, Bar("sum", found.sum, 0.0)]
    colors = ["#2b8a3e" if bar.part > 0 else "#c92a2a" for bar in shown] + ["#495057"]
    axes.barh(
        range(rows), [bar.part for bar in lines], left=[bar.before for bar in lines], color=colors
    )
    for i, bar in enumerate(shown):  # from each bar to the next
        axes.plot([bar.after] * 2, [i - 0.4, i + 1.4], color="#868e96", linewidth=0.6)
    for i, bar in enumerate(lines):
        axes.annotate(
            f"{bar.part:+.2f}".replace("-", "−"), (max(bar.before, bar.after), i), (3, 0),
            textcoords="offset points", va="center", fontsize=7,
            bbox={"pad": 0.6, "facecolor": axes.get_facecolor(), "linewidth": 0},
        )  # on a ground of its own, where the line of the sum would cross it  # fmt: skip
    names = [fonts.shown(bar.label).replace("$", r"\$") for bar in lines]
    axes.set_yticks(range(rows), names, fontsize=8, family=fonts.families)
    axes.invert_yaxis()
    axes.axvline(0, color="#212529", linewidth=0.8)
    axes.axvline(found.sum, color="#212529", linewidth=0.8, linestyle=":")
    axes.use_sticky_edges = False
    axes.margins(x=0.1, y=0.02)
    what = "logit" if found.versus is None else "difference of logits"
    axes.set_xlabel(f"{what}\n{foot}", fontsize=7)
    axes.tick_params(axis="x", labelsize=8)
    name = fonts.shown(head).replace("$", r"\$")
    axes.set_title(name, fontsize=9, loc="left", family=fonts.families)
    return drawing
