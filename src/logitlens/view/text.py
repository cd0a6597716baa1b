"""Token pieces as text that is safe and unambiguous to show.

    visible(" Paris\\n")     '␣Paris⏎'
    visible("\\x1b[31m")     '␛[31m'        no control character of a token reaches a terminal
    visible("\\u202eabc")    '\\\\u202eabc'   nor does one that reorders what stands beside it
    isolate(visible("שלום"))                between FSI and PDI, so that neighbours keep their order

Rules, in order: a space at either end, or beside another, is `␣`; newline, return and tab are `⏎ ␍ ⇥`;
other control characters are their Unicode pictures; formatting, private, unassigned and surrogate
characters, exotic spaces, letters of flags and skin tones (terminals disagree on their width) are
`\\uXXXX`; a combining mark without a base stands on `◌`; a token of nothing is `⟨⟩`. Ids, not these
texts, are the keys everywhere: two tokens may look the same.
"""

from __future__ import annotations

import html
import re
import unicodedata

from rich.cells import cell_len, get_character_cell_size

ELLIPSIS = "…"
SPACE = "␣"
_NAMED = {"\n": "⏎", "\r": "␍", "\t": "⇥", "\u00a0": "⍽", "\x7f": "␡"}
_FSI, _PDI = "\u2068", "\u2069"
_RIGHT_TO_LEFT = {"R", "AL", "AN"}
_UNCERTAIN = {chr(i) for i in (*range(0x1F1E6, 0x1F200), *range(0x1F3FB, 0x1F400))}
_MARKS_PER_BASE = 3
# A space is kept only between two characters that are neither spaces nor line ends.
_EDGE_SPACE = re.compile(r"^ +| +$|(?<= ) +| +(?= )|(?<=[\n\r\t]) +| +(?=[\n\r\t])")


def visible(piece: str) -> str:
    """`piece` with everything that is blank, invisible or active turned into something to see."""
    if not piece:
        return "⟨⟩"
    # These ask for a text or emoji form; terminals disagree on its width.
    piece = piece[0] + re.sub("[\ufe00-\ufe0f]+", "", piece[1:])
    spaced = _EDGE_SPACE.sub(lambda run: SPACE * len(run[0]), piece)
    out: list[str] = []
    marks = 0
    for char in spaced:
        if unicodedata.category(char) in ("Mn", "Me", "Mc"):
            marks += 1
            if marks > _MARKS_PER_BASE:
                continue  # a tower of marks would run over the rows above
            out.append(char if out else "◌" + char)
        else:
            marks = 0
            out.append(_shown(char))
    return "".join(out)


def flowing(text: str) -> str:
    """`text` to print as text: spaces and line ends stay, everything else that is active is shown."""
    return "".join(char if char in " \n" else _shown(char) for char in text)


def _shown(char: str) -> str:
    if char in _NAMED:
        return _NAMED[char]
    if char < " ":
        return chr(0x2400 + ord(char))
    category = unicodedata.category(char)
    if (category[0] in "CZ" and char != " ") or char in _UNCERTAIN:
        return f"\\u{ord(char):04x}" if ord(char) <= 0xFFFF else f"\\U{ord(char):06x}"
    return char


def without_lead(shown: str) -> str:
    """Visible text without its one leading `␣`; a token of spaces only keeps them."""
    rest = shown.removeprefix(SPACE)
    return shown if not rest or rest.startswith(SPACE) else rest


def is_right_to_left(text: str) -> bool:
    """Whether any character of `text` is of a right-to-left script."""
    return any(unicodedata.bidirectional(char) in _RIGHT_TO_LEFT for char in text)


def isolate(text: str) -> str:
    """`text`, set apart by zero-width isolates if it holds right-to-left characters (UAX #9)."""
    return f"{_FSI}{text}{_PDI}" if is_right_to_left(text) else text


def width(text: str) -> int:
    """Columns `text` takes in a terminal (2 for wide characters, 0 for marks)."""
    return cell_len(text)


def clip(text: str, columns: int) -> str:
    """`text` cut to at most `columns` wide, `…` standing for what was cut; what it isolated stays so."""
    if columns <= 0:
        return ""
    if width(text) <= columns:
        return text
    kept, used = [], 0
    for char in text:
        size = get_character_cell_size(char)
        if used + size > columns - 1:
            break
        kept.append(char)
        used += size
    return "".join(kept) + ELLIPSIS + _PDI * (kept.count(_FSI) - kept.count(_PDI))


def fit(text: str, columns: int, align: str = "left") -> str:
    """`text` cut or padded with spaces to exactly `columns`; right-to-left parts isolated."""
    shown = clip(text, columns)
    pad = max(0, columns - width(shown))
    left = {"left": 0, "right": pad, "center": pad // 2}[align]
    return " " * left + isolate(shown) + " " * (pad - left)


def piece_html(piece: str, columns: int = 16) -> str:
    """A piece for a table in HTML: visible, clipped, isolated, escaped."""
    text = isolate(clip(visible(piece), columns))
    return html.escape(text.encode("utf-8", "replace").decode())


def quote(piece: str) -> str:
    """A piece in a sentence: visible, isolated, in quotation marks."""
    return f"“{isolate(visible(piece))}”"
