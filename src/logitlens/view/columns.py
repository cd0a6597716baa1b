"""How many columns of a grid fit a width, and which rows fit a height."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Columns:
    """How many of the last columns fit, and the width of each."""

    first: int
    widths: list[int]


# A word cut shorter than this is beyond recognition; then fewer columns are better.
_LEAST, _WINDOW, _MOST = 6, 8, 14


def fit_columns(natural: Sequence[int], room: int, extra: int = 0) -> Columns:
    """Widths for columns that would like `natural`, each with one blank before it, within `room`.

    All columns if no word must be cut below 6; else the last ones that fit when words are cut to 8.
    What is left over goes to the columns that were cut. `extra` columns of each are not words.
    """
    most = _MOST + extra
    for cap in range(most, _LEAST + extra - 1, -1):
        widths = [min(n, cap) for n in natural]
        if sum(widths) + len(widths) <= room:
            return Columns(0, _widen(widths, natural, room, most))
    first, used, cap = len(natural), 0, _WINDOW + extra
    while first > 0 and used + min(natural[first - 1], cap) + 1 <= room:
        first -= 1
        used += min(natural[first], cap) + 1
    if first == len(natural):  # not even one: give it what there is
        return Columns(first - 1, [max(1, room - 1)])
    kept = natural[first:]
    return Columns(first, _widen([min(n, cap) for n in kept], kept, room, most))


def bands_of(
    natural: Sequence[int], room: int, extra: int = 0, most: int | None = None
) -> list[Columns]:
    """All columns, in as few bands as they need, of about as many columns each.

    Where that is more than `most` bands: the last columns, as many as these hold.
    """
    bands: list[Columns] = []
    stop = len(natural)
    while stop and len(bands) != most:
        bands.insert(0, fit_columns(natural[:stop], room, extra))
        stop = bands[0].first
    if stop:  # even bands would be narrower than the room, and show less
        return bands
    each = -(-len(natural) // len(bands))
    even = [
        (start, fit_columns(natural[start : start + each], room, extra))
        for start in range(0, len(natural), each)
    ]
    if any(band.first for _, band in even):
        return bands
    return [Columns(start, band.widths) for start, band in even]


def whole_bands(natural: Sequence[int], room: int) -> list[Columns]:
    """All columns in bands in which no word is cut, but those wider than the room."""
    bands: list[Columns] = []
    used = room
    for number, wide in enumerate(min(n, max(1, room - 1)) for n in natural):
        if used + wide + 1 > room:
            bands.append(Columns(number, []))
            used = 0
        bands[-1].widths.append(wide)
        used += wide + 1
    return bands


def _widen(widths: list[int], natural: Sequence[int], room: int, most: int) -> list[int]:
    widths = list(widths)
    spare = room - sum(widths) - len(widths)
    while spare > 0:
        cut = [i for i, n in enumerate(natural) if widths[i] < min(n, most)]
        if not cut:
            break
        for i in cut[:spare]:
            widths[i] += 1
        spare -= len(cut[:spare])
    return widths


def stride_rows(rows: int, room: int) -> list[int]:
    """At most `room` of `rows` indices at an even stride, counted back from the last."""
    stride = -(-rows // max(1, room))
    return list(range(rows - 1, -1, -stride))[::-1]
