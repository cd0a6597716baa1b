"""Colours of the views: what a number is painted with, and an ink that can be read on it.

`scale(reading, "prob")` says which statistic a cell shows, where its scale starts and ends, and what
to write on the legend; `colors(t, map)` turns its 0 … 1 into sRGB; `ink(rgb)` is the text colour. In
every scale 1 is the confident end (likely, certain, already settled), so that the same picture
emerges whichever statistic is asked for.

The house maps `night` (for dark ground) and `day` (for light ground) run through OKLCH and are
spaced so that equal steps in value are equal steps in OKLab (Björn Ottosson, "A perceptual color
space for image processing", 2020). `seed` is the diverging blue-grey-red of the nnsight logit-lens
tutorial, which is seaborn's `diverging_palette(255, 0)`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from logitlens import statistics
from logitlens.errors import FormatError
from logitlens.reading import Reading
from logitlens.select import EMBED
from logitlens.statistics import Statistic

RGB = tuple[int, int, int]

MAPS = ("night", "day", "seed", "less-more-day", "less-more-night")

# sRGB stops at even steps, made by recipes/palette.py; between them colours are linear.
_STOPS = {
    "night": (
        "1b1f291f2435232941272e4e2b335b2f3867323f7435467f364e8a365694345f9d3068a52a72ac227bb2"
        "1785b6078eb90098bb00a1bc00aabc00b3bc02bcbb13c4b924cdb735d5b248dcad5de3a673e89d8aec94"
        "a1f08ab8f280cef376e3f46ef7f569"
    ),
    "day": (
        "fafaf6f2f6e7e6f2dbd8efd1c8ebcbb9e7c7a9e2c499dcc38ad6c27bd0c16dcac15fc3c151bcc045b5c0"
        "39adbf2fa5be269dbc1f95ba1c8db71b85b51d7cb12174ad246ca82863a32b5b9d2d52972f4a902f4289"
        "2f3b812e33782d2c702b2567291e5e"
    ),
    # differences, from less to more; the page has the same ones (web/src/colour.ts)
    "less-more-day": "08478f4f93c9b9d5e8f6f4f0f3c699dd8433944300",
    "less-more-night": "8cc8ff3f86c41f4468262a30653c15b96c22ffb866",
    # seaborn.diverging_palette(255, 0): its two ends and its middle.
    "seed": "4676caf2f1f1d53d69",
}
_STEPS_256 = {
    "night": (234, 237, 24, 25, 31, 37, 43, 114, 156, 227),
    "day": (255, 152, 80, 38, 31, 25, 19, 17),
    "less-more-day": (24, 67, 152, 255, 223, 172, 130),
    "less-more-night": (117, 68, 24, 235, 94, 172, 215),
}

_BLACK: RGB = (0, 0, 0)
_WHITE: RGB = (255, 255, 255)
_DARK_INK: RGB = (16, 18, 24)
_LIGHT_INK: RGB = (244, 246, 250)
LEGIBLE = 4.5
"""WCAG 2.2 contrast ratio of normal text (success criterion 1.4.3)."""


@dataclass(frozen=True, eq=False)
class Scale:
    """One statistic of a reading as something to paint.

    statistic   its record
    label       for people, with its unit
    values      (L, T) float64, nan where there is no value (never drawn as 0)
    unit        (L, T) float64, 0 … 1 with 1 the confident end; nan where there is no value, and in the
                row `embed`, which is not painted
    ticks       (text, place in 0 … 1) from left to right along the legend
    """

    statistic: Statistic
    label: str
    values: NDArray[np.float64]
    unit: NDArray[np.float64]
    ticks: tuple[tuple[str, float], ...]

    def format(self, value: float) -> str:
        """A value in as few characters as it takes; `–` for none."""
        return format_value(self.statistic.scale, value)


def scale(reading: Reading, color: str) -> Scale:
    """The statistic that `color` names, painted as its record in `logitlens.statistics` says.

    Raises FormatError for a name that is not a colour.
    """
    statistic = statistics.by_color(color)
    values = statistic.values(reading)
    counted_L = counted(reading)
    seen = values[counted_L]
    finite = seen[np.isfinite(seen)]
    if statistic.scale == "rank":
        unit, ticks = _rank_scale(values, finite)
    elif statistic.scale == "log":
        unit, ticks = _log_scale(values, finite)
    elif statistic.scale == "linear":
        unit, ticks = _linear_scale(values, finite)
    else:
        unit, ticks = values, _YES_NO if statistic.scale == "yes or no" else _PROB_TICKS
    if statistic.confident == "low":
        unit, ticks = 1 - unit, tuple((text, 1 - at) for text, at in reversed(ticks))
    unit_of = (
        f", {statistic.unit}" if statistic.unit and statistic.scale in ("linear", "log") else ""
    )
    unit = np.where(counted_L[:, None], np.clip(unit, 0, 1), np.nan)
    return Scale(statistic, statistic.label + unit_of, values, unit, ticks)


def counted(reading: Reading) -> NDArray[np.bool_]:
    """(L,) the rows that set a scale and are painted: all but `embed`.

    What the first block receives is mostly the input itself, told with great confidence: painted, it
    would be the brightest row of a picture, and the range of its KL would leave the others one colour.
    """
    rows = np.array([label != EMBED for label in reading.layers])
    return rows if rows.any() else ~rows


_PROB_TICKS = (("0", 0.0), ("0.25", 0.25), ("0.5", 0.5), ("0.75", 0.75), ("1", 1.0))
_YES_NO = (("no", 0.0), ("yes", 1.0))
_LEAST = 0.01  # where a logarithmic scale begins, nats
_BEYOND = 0.95  # the quantile of the cells at which a scale ends

Ticks = tuple[tuple[str, float], ...]


def _end(finite: NDArray[np.float64], least: float) -> float:
    """Where a scale ends, before it is rounded up."""
    return max(float(np.quantile(finite, _BEYOND)) if finite.size else least, least)


def _linear_scale(
    values: NDArray[np.float64], finite: NDArray[np.float64]
) -> tuple[NDArray[np.float64], Ticks]:
    """From 0 to the 95 % quantile of this reading, rounded up; `≥` where cells are beyond it."""
    top = _round_up(_end(finite, 0.0))
    ticks = [(f"{top * part:.3g}", part) for part in (0, 0.25, 0.5, 0.75, 1)]
    return values / top, _marked(ticks, finite, top)


def _log_scale(
    values: NDArray[np.float64], finite: NDArray[np.float64]
) -> tuple[NDArray[np.float64], Ticks]:
    """Logarithmic from 0.01 or less to the 95 % quantile of this reading, rounded up."""
    top = _round_up(_end(finite, 10 * _LEAST))
    span = math.log10(top / _LEAST)
    with np.errstate(divide="ignore"):
        unit = np.log10(np.maximum(values, _LEAST) / _LEAST) / span
    decades = [d for d in (0.1, 1.0, 10.0, 100.0) if d < top / 1.9]
    ticks = [(f"≤{_LEAST:g}", 0.0), *((f"{d:g}", math.log10(d / _LEAST) / span) for d in decades)]
    return unit, _marked([*ticks, (f"{top:.3g}", 1.0)], finite, top)


def _rank_scale(
    ranks: NDArray[np.float64], finite: NDArray[np.float64]
) -> tuple[NDArray[np.float64], Ticks]:
    """From 1 to the power of ten above the 95 % quantile of this reading."""
    decades = max(1, math.ceil(math.log10(_end(finite, 1.0))))
    ticks = [(format_value("rank", 10.0**d), d / decades) for d in range(decades + 1)]
    return np.log10(ranks) / decades, _marked(ticks, finite, 10.0**decades)


def _marked(ticks: list[tuple[str, float]], finite: NDArray[np.float64], top: float) -> Ticks:
    """The ticks, the last with `≥` where cells are beyond it."""
    beyond = finite.size and float(finite.max()) > top * (1 + 1e-9)
    name, at = ticks[-1]
    return (*ticks[:-1], ("≥" + name if beyond else name, at))


def _round_up(value: float) -> float:
    """The next of 1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10 × a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    steps = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)
    return next(s * power for s in steps if s * power >= value * (1 - 1e-9))


def format_value(scale: str, value: float) -> str:
    """A value on a scale of `logitlens.statistics` in at most five characters; `–` for none."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "∞"
    if scale == "probability":
        return _percent(value)
    if scale == "rank":
        return _short_count(round(value))
    if scale == "yes or no":
        return "yes" if value else "no"
    return f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def _percent(p: float) -> str:
    """`62%`, `0.3%`, `10⁻⁶`, `>99%`; 100% from 99.95 % on."""
    if 0.995 <= p < 0.9995:
        return ">99%"
    if p >= 0.0995:
        return f"{100 * p:.0f}%"
    if p >= 0.0005:
        return f"{100 * p:.1f}%"
    return "10" + str(round(math.log10(p))).translate(_RAISED) if p > 0 else "0"


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _short_count(n: int) -> str:
    if n < 10_000:
        return str(n)
    return f"{n / 1000:.0f}k" if n < 999_500 else f"{n / 1e6:.1f}M"


# -- maps ------------------------------------------------------------------------------------------


def colors(t: NDArray[np.float64], name: str = "night") -> NDArray[np.uint8]:
    """Values 0 … 1 of any shape → (…, 3) sRGB 0 … 255; nan is treated as 0 and is the caller's to mark."""
    lut = table(name)
    index = np.rint(np.clip(np.nan_to_num(t), 0, 1) * (len(lut) - 1)).astype(int)
    return lut[index]


def rgb(t: float, name: str = "night") -> RGB:
    """One value 0 … 1 as an sRGB triple 0 … 255."""
    r, g, b = (int(c) for c in colors(np.array(t), name))
    return r, g, b


@lru_cache(maxsize=16)
def table(name: str = "night", n: int = 256) -> NDArray[np.uint8]:
    """A map as (n, 3) sRGB 0 … 255, read-only. Raises FormatError for a name not in MAPS."""
    if name not in _STOPS:
        raise FormatError(f"no colour map {name!r}: expected one of {', '.join(MAPS)}")
    stops = np.frombuffer(bytes.fromhex(_STOPS[name]), np.uint8).reshape(-1, 3)
    t, places = np.linspace(0, 1, n), np.linspace(0, 1, len(stops))
    even = np.stack([np.interp(t, places, channel) for channel in stops.T], axis=1)
    out = np.rint(even).astype(np.uint8)
    out.flags.writeable = False
    return out


def _linear(srgb: NDArray) -> NDArray:
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


# -- ink -------------------------------------------------------------------------------------------


def contrast(a: RGB, b: RGB) -> float:
    """WCAG contrast ratio of two sRGB colours, 1 … 21."""
    light, dark = sorted((_luminance(a), _luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def ink(background: RGB) -> RGB:
    """A text colour whose contrast on `background` is at least LEGIBLE.

    Near-black or near-white where that suffices, else black or white: the better of those two has
    at least √21 ≈ 4.58 on every colour.
    """
    soft = max((_DARK_INK, _LIGHT_INK), key=lambda c: contrast(c, background))
    if contrast(soft, background) >= LEGIBLE:
        return soft
    return max((_BLACK, _WHITE), key=lambda c: contrast(c, background))


def _luminance(rgb: RGB) -> float:
    r, g, b = _linear(np.array(rgb, np.float64) / 255)
    return float(0.2126 * r + 0.7152 * g + 0.0722 * b)


def step_256(t: float, name: str = "night") -> tuple[int, RGB]:
    """A value 0 … 1 among xterm's 256 colours: the colour's number, and what it looks like.

    The nearest colour for each value would hop between hues and even back in lightness; these are
    the colours along the map that rise or fall in lightness at every step.
    """
    steps = _STEPS_256[name]
    number = steps[round(min(max(t, 0.0), 1.0) * (len(steps) - 1))]
    return number, xterm_rgb(number)


def xterm_rgb(number: int) -> RGB:
    """Colour 16 … 255 of xterm's palette (0 … 15 are the user's own and left alone)."""
    if number >= 232:
        grey = 8 + 10 * (number - 232)
        return grey, grey, grey
    levels = (0, 95, 135, 175, 215, 255)
    red, rest = divmod(number - 16, 36)
    return levels[red], levels[rest // 6], levels[rest % 6]


def ink_256(background: RGB) -> int:
    """The xterm colour of a legible ink on `background`: near-black, near-white, black or white."""

    def legibility(number: int) -> float:
        return contrast(xterm_rgb(number), background)

    soft = max((233, 255), key=legibility)
    return soft if legibility(soft) >= LEGIBLE else max((16, 231), key=legibility)
