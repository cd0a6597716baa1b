"""An attribution or a grid of patches as one offline page: its figure, and below it the text."""

from __future__ import annotations

import io
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DOCUMENT = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{title}</title>
<style>body{{font:15px/1.5 system-ui,sans-serif;margin:24px auto;padding:0 16px;max-width:1100px}}
svg{{max-width:100%;height:auto}}h1{{font-size:17px}}pre{{overflow:auto;font-size:13px}}</style>
<h1>{title}</h1>
<div role="img" aria-label="The numbers below as a picture">
{picture}</div>
<details><summary>As text</summary><pre>{text}</pre></details>
</html>
"""


def html(figure: Figure, text: str) -> str:
    """One offline page, the same bytes every time: a figure as SVG, and the same as text."""
    title = escape(text.partition("\n")[0].strip())
    return _DOCUMENT.format(title=title, picture=svg(figure), text=escape(text))


def svg(figure: Figure) -> str:
    """The <svg> of a figure inside a page, the same every time."""
    import matplotlib

    drawn = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "logitlens"}):
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    picture = drawn.getvalue()
    return picture[picture.index("<svg") :]
