"""A grid of patches, in the terminal and as a figure: layers down, positions across, what each brings back."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
from rich.color import Color
from rich.style import Style
from rich.text import Text

from logitlens.errors import MissingExtra
from logitlens.view import color as paint
from logitlens.view import text as safe
from logitlens.view.figure_grid import shown_figure
from logitlens.view.fonts import Fonts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from logitlens.patch_grid import PatchGrid

_CELL = 8
_PROMPT = 70  # columns of a line that shows a prompt
_INCHES = 6.0  # of a figure, which these lines fit
_NONE = "–"  # a share that there is not
_DIM, _BOLD = Style(dim=True), Style(bold=True)


def title(grid: PatchGrid) -> str:
    """What was patched, and what is measured."""
    what = safe.quote(grid.piece(grid.token))
    if grid.versus is not None:
        what += f" minus {safe.quote(grid.piece(grid.versus))}"
    stream = str(grid.meta.get("stream") or "resid")
    of = "the stream after each layer" if stream == "resid" else f"what each {stream} adds"
    return f"logit of {what} · patched: {of} · {safe.visible(str(grid.meta.get('model')))}"


def prompts(grid: PatchGrid, columns: int) -> list[str]:
    """A line for each prompt whose text is known, cut at its beginning: its end is what the grid shows."""
    texts = grid.meta.get("prompts")
    pairs = zip(("clean", "corrupted"), texts if isinstance(texts, list) else [])
    lines = ((name, safe.visible(text)) for name, text in pairs if isinstance(text, str))
    return [f"{name}: {_end(text, columns - len(name) - 2)}" for name, text in lines]


def _end(text: str, columns: int) -> str:
    """The end of a text, at most `columns` wide; isolated, as `safe.fit` does."""
    if safe.width(text) > columns:
        kept = safe.clip(text[::-1], columns).removesuffix(safe.ELLIPSIS)[::-1]
        text = safe.ELLIPSIS + kept
    return safe.isolate(text)


def sentences(grid: PatchGrid) -> list[str]:
    """How columns are named, and the two ends of the scale."""
    out = []
    if grid.pieces != grid.clean_pieces:
        out.append("columns: tokens of both prompts; clean→corrupted where they differ")
    clean, corrupted = grid.clean["logit"], grid.corrupted["logit"]
    if not grid.differ:
        return [*out, f"both prompts give {clean:+.3f}: no patch has anything to bring back"]
    off = grid.meta.get("unpatched_nats")
    check = f"; run again unpatched, within {off:.1e} nats" if isinstance(off, float) else ""
    out.append(
        f"1 is the clean prompt ({clean:+.3f}), 0 the corrupted one ({corrupted:+.3f}){check}"
    )
    if clean < corrupted:
        out.append("the clean prompt has the lower logit: 1 means lowered as far")
    return out


def heads(grid: PatchGrid) -> list[str]:
    """The corrupted prompt's tokens; where the clean one has another, that comes first."""
    return [
        safe.visible(mine) if mine == clean else f"{safe.visible(clean)}→{safe.visible(mine)}"
        for mine, clean in zip(grid.pieces, grid.clean_pieces)
    ]


def render(grid: PatchGrid, *, width: int = 100) -> Text:
    """The grid for a rich Console; the last positions where not all fit."""
    lead = max(5, *(len(label) for label in grid.layers))
    count = max(1, min(len(grid.pieces), (width - lead) // (_CELL + 1)))
    columns = range(len(grid.pieces) - count, len(grid.pieces))
    out = Text(no_wrap=True, overflow="crop")
    out.append(f"{title(grid)}\n", style=_BOLD)
    for line in prompts(grid, width):
        out.append(f"{line}\n", style=_DIM)
    names = heads(grid)
    out.append("layer".ljust(lead), style=_DIM)
    for t in columns:
        out.append(" " + safe.fit(names[t], _CELL, "right"), style=_DIM)
    for label, row in zip(grid.layers, grid.restored):
        out.append(f"\n{label.rjust(lead)}", style=_DIM)
        for t in columns:
            out.append(" ")
            number = _NONE if np.isnan(row[t]) else f"{row[t]:+.2f}"
            out.append(number.rjust(_CELL), style=_style(row[t]))
    if count < len(names):
        out.append(f"\nthe last {count} of {len(names)} positions fit {width} columns", style=_DIM)
    for line in sentences(grid):
        out.append(f"\n{line}", style=_DIM)
    return out


def _style(value: float) -> Style:
    if not np.isfinite(value):
        return Style()
    ground = paint.rgb(float(np.clip(value, 0, 1)), "night")
    ink = paint.ink(ground)
    return Style(color=Color.from_rgb(*ink), bgcolor=Color.from_rgb(*ground))


def text(grid: PatchGrid, *, width: int | None = None) -> str:
    """The grid as plain text. Width: COLUMNS or the terminal's, else 120."""
    columns = width or shutil.get_terminal_size((120, 50)).columns
    lines = render(grid, width=columns).plain.splitlines()
    return "\n".join(line.rstrip() for line in lines)


def figure(grid: PatchGrid) -> Figure:
    """The grid as a matplotlib heatmap. Raises MissingExtra without matplotlib."""
    try:
        drawn = shown_figure()
    except ImportError:
        raise MissingExtra("matplotlib", "plot", "a figure") from None
    L, T = grid.logits.shape
    wide = max(_INCHES, 2.2 + 0.55 * T)
    names, above, below = heads(grid), [title(grid), *prompts(grid, _PROMPT)], sentences(grid)
    fonts = Fonts.covering("".join([*above, *below, *names]))
    drawing = drawn(figsize=(wide, 1.9 + 0.26 * L), layout="constrained")
    axes = drawing.add_subplot()
    limit = max(1.0, float(np.nanmax(np.abs(grid.restored), initial=0.0)))
    image = axes.imshow(grid.restored, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    for row, column in np.argwhere(np.isnan(grid.restored)):
        axes.text(column, row, _NONE, ha="center", va="center", fontsize=8)
    shown = [fonts.shown(name).replace("$", r"\$") for name in names]
    axes.set_xticks(range(T), shown, rotation=45, ha="right", fontsize=8, family=fonts.families)
    axes.set_yticks(range(L), grid.layers, fontsize=8)
    axes.set_xlabel("\n".join(below), fontsize=7, family=fonts.families)
    head = "\n".join(fonts.shown(line).replace("$", r"\$") for line in above)
    axes.set_title(head, fontsize=9, family=fonts.families)
    bar = drawing.colorbar(image, ax=axes)
    bar.set_label("restored", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return drawing
