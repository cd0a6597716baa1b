"""How a terminal paints a cell: in 24-bit colour, in 256 colours, or not at all."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

from logitlens.view import color as paint
from logitlens.view import text as safe
from logitlens.view.options import Theme

DIM = Style(dim=True)


@dataclass(frozen=True)
class Brush:
    """How this console paints: `truecolor`, `256`, or not at all."""

    system: str | None
    map: str

    @staticmethod
    def of(console: Console, map: str) -> Brush:
        usable = console.color_system if console.color_system in ("truecolor", "256") else None
        return Brush(None if console.no_color else usable, map)

    @property
    def paints(self) -> bool:
        return self.system is not None

    def cell(self, shown: str, t: float, empty: Style | None = None) -> Text:
        """Text on the colour of `t`; without a value, or without colours, on none."""
        if not self.paints or not np.isfinite(t):
            return Text(shown, style=empty or "")
        if self.system == "256":
            number, background = paint.step_256(t, self.map)
            ground = Color.from_ansi(number)
            ink = Color.from_ansi(paint.ink_256(background))
            return Text(shown, style=Style(color=ink, bgcolor=ground))
        background = paint.rgb(t, self.map)
        ink_rgb = paint.ink(background)
        style = Style(color=Color.from_rgb(*ink_rgb), bgcolor=Color.from_rgb(*background))
        faint = tuple(round(0.45 * i + 0.55 * b) for i, b in zip(ink_rgb, background))
        return faint_spaces(
            shown, style, Style(color=Color.from_rgb(*faint), bgcolor=style.bgcolor)
        )


def faint_spaces(shown: str, style: Style, faint: Style = DIM) -> Text:
    """Text whose leading ␣ recedes: it belongs to nearly every token and says little."""
    out = Text(shown, style=style)
    lead = len(shown) - len(shown.lstrip(" \u2068"))
    if shown[lead : lead + 1] == safe.SPACE and len(shown[lead:].strip()) > 1:
        out.stylize(faint, lead, lead + 1)
    return out


def map_for(theme: Theme) -> str:
    """`day` on a light ground, `night` on a dark one; "auto": from COLORFGBG, else dark."""
    ground = os.environ.get("COLORFGBG", "").rpartition(";")[2]
    light = theme == "light" or (theme == "auto" and ground in ("7", "15"))
    return "day" if light else "night"
