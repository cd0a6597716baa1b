"""Which installed fonts have the characters of a reading, and what to write where none has."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

_FIRST = "DejaVu Sans"  # comes with matplotlib
# Where several fonts have a character, one of these is likelier to look right beside the first.
_PREFERRED = (
    "Noto Sans CJK",
    "Noto Sans",
    "PingFang",
    "Hiragino",
    "Microsoft",
    "Arial Unicode",
    "Segoe UI",
)
# These "have" every character, as an empty box, or only as pictures that cannot be drawn.
_USELESS = (
    "Last Resort",
    "LastResort",
    "Color Emoji",
    "Apple Color",
    "Unifont Upper",
    "Adobe Blank",
)


@dataclass(frozen=True)
class Fonts:
    """Families to try in order, and the characters that none of them has."""

    families: list[str]
    missing: frozenset[str]
    _widths: dict[tuple[str, float], float] = field(default_factory=dict, repr=False, compare=False)

    @staticmethod
    def covering(text: str) -> Fonts:
        """Fonts for every character of `text` that any installed font has."""
        families, missing = _cover(frozenset(text) | {"…", "␣"})
        return Fonts(list(families), missing)

    def shown(self, text: str) -> str:
        """`text` with the characters that cannot be drawn written as `\\uXXXX`."""
        if self.missing.isdisjoint(text):
            return text
        return "".join(_escape(char) if char in self.missing else char for char in text)

    def measure(self, text: str, size: float) -> float:
        """Largest width of `text` in points at `size` points."""
        key = (text, size)
        if key not in self._widths and text.isascii() and text.isalpha() and len(text) > 2:
            # what the second of two equal letters adds is its advance; words are many, letters few
            self._widths[key] = sum(self.measure(c + c, size) - self.measure(c, size) for c in text)
        elif key not in self._widths:
            from matplotlib.font_manager import FontProperties

            font = FontProperties(family=self.families, size=size)
            widths = [
                renderer.get_text_width_height_descent(self.shown(text), font, False)[0] * 72 / dpi
                for dpi, renderer in _renderers().items()
            ]
            self._widths[key] = float(max(widths))
        return self._widths[key]


def _escape(char: str) -> str:
    if unicodedata.category(char) in ("Mn", "Me", "Mc"):
        char = unicodedata.normalize("NFC", char)
    return "".join(f"\\u{ord(c):04x}" if ord(c) <= 0xFFFF else f"\\U{ord(c):06x}" for c in char)


@lru_cache(maxsize=1)
def _renderers() -> dict[int, Any]:
    """For the resolution of the screen and of files: hinting makes widths differ between them."""
    from matplotlib.backends.backend_agg import RendererAgg

    return {dpi: RendererAgg(1, 1, dpi) for dpi in (100, 200)}


@lru_cache(maxsize=64)
def _cover(chars: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Families, fewest first tried, and the characters left over."""
    families: list[str] = [_FIRST]
    left = {c for c in chars if not c.isspace()}
    left -= _having(_font_file(_FIRST), left)
    if left:
        for name, path in _installed():
            found = _having(path, left)
            if found:
                families.append(name)
                left -= found
            if not left:
                break
    return tuple(families), frozenset(left)


def _font_file(family: str) -> str:
    from matplotlib.font_manager import fontManager

    return str(fontManager.findfont(family))


def _having(path: str, chars: Iterable[str]) -> set[str]:
    """Those of `chars` that the font at `path` has an outline for."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(path)
        return {c for c in chars if font.get_char_index(ord(c))}
    except (OSError, RuntimeError, ValueError):
        return set()


@lru_cache(maxsize=1)
def _installed() -> tuple[tuple[str, str], ...]:
    """One upright, regular file for each installed family: (family, path), likely ones first."""
    from matplotlib.font_manager import fontManager

    regular: dict[str, str] = {}
    for entry in fontManager.ttflist:
        plain = (
            entry.style == "normal"
            and entry.variant == "normal"
            and entry.weight in (400, "normal", "regular")
        )
        if plain and not any(part in entry.name for part in _USELESS):
            regular.setdefault(entry.name, str(entry.fname))

    def order(name: str) -> tuple[int, str]:
        ranks = [i for i, start in enumerate(_PREFERRED) if name.startswith(start)]
        return (min(ranks, default=len(_PREFERRED)), name)

    return tuple((name, regular[name]) for name in sorted(regular, key=order))
