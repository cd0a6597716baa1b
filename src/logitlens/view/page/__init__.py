"""The page: one HTML file that needs no network, for one reading or several side by side.

    page.save([reading], "eiffel.html")
    page.html([before, after], title="…")       # the file as a string
    page.load("eiffel.html")                    # the readings again (float16)

The script (built from web/, see web/README.md) and the data are in the file; a Content-Security-
Policy in its head forbids everything else, so opening it sends nothing anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import html as html_escape
import os
import re
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from logitlens import statistics
from logitlens.errors import FormatError
from logitlens.files import write_text
from logitlens.reading import Reading
from logitlens.schema import parse_json
from logitlens.view.options import PageOptions, Theme
from logitlens.view.page import align, data, words
from logitlens.view.page.data import FORMAT, VERSION, decode, encode

__all__ = ["decode", "encode", "html", "load", "manifest", "readings", "save", "script", "style"]

_GROUND = (
    "html{background:#fff}body{margin:0 auto;max-width:1800px}"
    "@media (prefers-color-scheme:dark){html{background:#14171b}}"
)
_START = 'logitlens.file(document.getElementById("page"))'


def html(readings: Sequence[Reading], **options: Unpack[PageOptions]) -> str:
    """One HTML document that shows `readings` without a network.

    color    what the cells are coloured by: prob, entropy, kl, rank, next, final, agree
    title    default: the prompts
    theme    "light", "dark", or "auto", which follows the system
    height   pixels of the grid; default: what the window has
    state    what follows `#` in the address of a page, such as "cell=[3,7]&view=diff"

    Raises FormatError for no readings and for an unknown colour.
    """
    head, blocks = manifest(readings, **options)
    code = f"{script()}\n{_START}"
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    data = "\n".join(
        f'<script type="text/plain" data-ll="{name}">{base64.b64encode(block).decode()}</script>'
        for name, block in blocks.items()
    )
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; img-src data: blob:; "
        "style-src 'unsafe-inline'"
    )
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="logitlens">
<title>{html_escape.escape(_utf8(head["title"]))} · logitlens</title>
<style>{style()}
{_GROUND}</style>
<main id="page"><noscript>This page needs JavaScript to draw its {len(readings)} reading(s).</noscript></main>
<script type="application/json" data-ll="manifest">{script_json(head)}</script>
{data}
<script>{code}</script>
</html>
"""


def manifest(
    readings: Sequence[Reading],
    *,
    color: str | None = None,
    title: str | None = None,
    theme: Theme = "auto",
    height: int | None = None,
    state: str = "",
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The page's data: (manifest of the whole page, {name: gzip'd block}); see `html` and `data`."""
    readings = list(readings)
    if not readings:
        raise FormatError("a page needs at least one reading, got none")
    if color is not None:
        state = f"color={statistics.by_color(color).color}" + (f"&{state}" if state else "")
    parts = [encode(reading, f"{i}.") for i, reading in enumerate(readings)]
    groups = align.vocabularies(readings)
    for (part, _), name, group in zip(parts, labels(readings), groups):
        part["label"], part["vocabulary"] = name, group
    if title is None:
        title = " · ".join(dict.fromkeys(words.label(r) for r in readings))
    head = {
        "format": FORMAT,
        "version": VERSION,
        "title": title,
        "options": {"theme": theme, "height": height, "state": state},
        "statistics": data.records(),
        "frame": align.frame(readings),
        "readings": [part for part, _ in parts],
    }
    return head, {name: block for _, blocks in parts for name, block in blocks.items()}


def labels(readings: Sequence[Reading]) -> list[str]:
    """Names that tell the readings apart: by prompt, else by lens, model, edits, or number."""
    ways = (
        [words.label(r) for r in readings],
        [words.lens_words(r)[0] for r in readings],
        [str(r.meta.get("model", "model")) for r in readings],
        [words.edited(r) or "not edited" for r in readings],
    )
    if len(readings) == 1:
        return ways[0]
    varying = [way for way in ways if len(set(way)) > 1]
    names = [" · ".join(parts) for parts in zip(*varying)] if varying else ways[0]
    if len(set(names)) < len(names):
        names = [f"{name} ({i + 1})" for i, name in enumerate(names)]
    return names


def save(
    readings: Sequence[Reading], path: str | os.PathLike[str], **options: Unpack[PageOptions]
) -> Path:
    """Write the page, whole or not at all; `options` as in `html`."""
    target = Path(path)
    write_text(target, html(readings, **options))
    return target


def load(path: str | os.PathLike[str]) -> list[Reading]:
    """The readings of a page that `save` wrote (float fields rounded to float16).

    Raises FormatError for any other file, OSError for none.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not a page of logitlens (it is not UTF-8)") from error
    return readings(text, str(path))


def readings(text: str, name: str = "the page") -> list[Reading]:
    """The readings in the text of a page. Raises FormatError."""
    found = re.search(
        r'<script type="application/json" data-ll="manifest">(.*?)</script>', text, re.S
    )
    if not found:
        raise FormatError(f"{name}: not a page of logitlens (it holds no manifest)")
    try:
        return _readings(found[1], text)
    except FormatError as error:
        raise FormatError(f"{name}: {error}") from error
    except data.DAMAGED as error:
        raise FormatError(f"{name}: the page's data are damaged ({error})") from error


def _readings(manifest: str, text: str) -> list[Reading]:
    head = parse_json(manifest, "the page's manifest")
    known = head if isinstance(head, dict) else {}
    form, version = known.get("format"), known.get("version")
    if form != FORMAT or version not in (2, VERSION):
        raise FormatError(
            f"expected page data of version 2 or {VERSION}, found {repr(form)[:40]} {repr(version)[:40]}; "
            "open it in a browser, or write it again with this logitlens"
        )
    texts = re.findall(r'<script type="text/plain" data-ll="([^"]+)">([^<]*)</script>', text)
    if version == 2:
        blocks = _version_2_blocks(texts)
    else:
        blocks = {key: base64.b64decode(value, validate=True) for key, value in texts}
    return [decode(part, blocks) for part in head["readings"]]


def _version_2_blocks(texts: Sequence[tuple[str, str]]) -> dict[str, bytes]:
    """The blocks of a version 2 file, which are text of seven bits to a character.

    Of a character from U+0080 on, the bits above the seventh say which unsafe character (one that
    HTML or a change of line ends would damage) comes before those seven bits; U+0780 and above are
    an unsafe one alone, at the very end.
    """
    blocks = {}
    for name, text in texts:
        codes = np.frombuffer(text.encode("utf-32-le"), "<u4")
        if (codes > 0x7FF).any():
            raise ValueError("expected characters below U+0800")
        place = (codes >> 7).astype(int)
        unsafe = np.array([0, 0, 10, 13, 26, 38, 60, *[0] * 9], np.uint8)
        both = np.stack([unsafe[place], (codes & 127).astype(np.uint8)], axis=1)
        keep = np.stack([(place > 0) & (place < 7), np.ones(len(codes), bool)], axis=1)
        bits = np.unpackbits(both[keep][:, None], axis=1)[:, 1:].reshape(-1)
        blocks[name] = np.packbits(bits[: len(bits) // 8 * 8]).tobytes()
    return blocks


def script() -> str:
    """The page's script, as built from web/."""
    return _asset("page.js")


def style() -> str:
    """The page's style sheet, as built from web/."""
    return _asset("page.css")


@lru_cache
def _asset(name: str) -> str:
    return (
        resources.files("logitlens.view.page").joinpath("assets", name).read_text("utf-8").strip()
    )


def _utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def script_json(value: Any) -> str:
    """JSON that may stand inside <script>: no `<`, no U+2028 or U+2029."""
    text = data.json_text(value)
    for char in "<\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text
