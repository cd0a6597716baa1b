"""A reading in a notebook: text, a static table, and the page in an isolated frame.

`text/html` is a small table, which is all that GitHub, nbviewer and untrusted notebooks show, and a
script that replaces it with the page, in a sandboxed frame that can reach neither the notebook nor
the network. Every cell carries the compressed script (see `SCRIPT_LIMIT`), so that a cell works
alone, after a restart, and whichever cells were cleared.
"""

from __future__ import annotations

import base64
import gzip
import html
import secrets
from collections.abc import Sequence
from functools import lru_cache
from typing import Unpack

import numpy as np

from logitlens.reading import Reading
from logitlens.view import page
from logitlens.view.options import PageOptions
from logitlens.view.page import words
from logitlens.view.text import piece_html

SCRIPT_LIMIT = 64 * 1024  # bytes of script that one cell may carry
HEIGHT = 215  # pixels of a notebook's grid: three readings share a screen
TABLE_ROWS, TABLE_COLUMNS = 14, 12

_CELL = "border:1px solid #8886;padding:1px 6px;text-align:left;white-space:nowrap"


def mimebundle(reading: Reading, **options: Unpack[PageOptions]) -> dict[str, str]:
    """`text/plain` and `text/html` of a reading, for `_repr_mimebundle_`; options as in page.html."""
    return {"text/plain": str(reading), "text/html": cell([reading], **options)}


def cell(readings: Sequence[Reading], **options: Unpack[PageOptions]) -> str:
    """HTML for a notebook cell: the static table, replaced by the page where scripts may run.

    `options` as in page.html; the frame is 80 pixels higher than the grid, for the controls, and higher
    for several readings; its lower edge can be dragged, and the charts are below.
    """
    place = "logitlens-" + secrets.token_hex(6)  # one name for each execution
    height = options.get("height") or HEIGHT
    frame = _frame(readings, {**options, "height": height})
    around = 80 if len(readings) == 1 else 80 + 22 * (1 + len(readings))  # their names and checks
    return (
        f'<div id="{place}">{static_table(readings[0])}</div>\n<script>'
        f"{_HOST % {'place': place, 'height': height + around, 'frame': page.script_json(frame)}}</script>"
    )


# The host's part: find whether the notebook is dark, pass that to the frame as its name and, when it
# changes, as a message.
_HOST = (
    "{const e=document.getElementById('%(place)s'),b=document.body,"
    "t=(d=b.dataset,j=d.jpThemeLight)=>j?j=='true'?'light':'dark':"
    "/vscode-(dark|light)/.exec(b.className)?.[1]??d.theme??'auto',"
    "f=document.createElement('iframe');f.sandbox='allow-scripts allow-downloads allow-modals';"
    "f.allow='clipboard-write';f.title='logitlens';"
    "f.style.cssText='width:100%%;height:100%%;border:0';"
    "e.style.cssText='height:%(height)dpx;resize:vertical;overflow:hidden';"
    "f.name=t();f.srcdoc=%(frame)s;e.replaceChildren(f);"
    "new MutationObserver(_=>f.contentWindow?.postMessage(f.name=t(),'*')).observe(b,{attributes:!0})}"
)

# The frame's part: base64 to bytes, inflate the script, run it on the data.
_UNPACK = (
    "let d=document,u=q=>Uint8Array.from(atob(d.querySelector(`[data-ll='${q}']`).textContent),"
    "c=>c.charCodeAt()).buffer;"
    "new Response(new Blob([u('js')]).stream().pipeThrough(new DecompressionStream('gzip')))"
    ".text().then(t=>{let s=d.createElement('script');s.textContent=t+"
    "';logitlens.mount(page,{manifest:m,read:u},{theme:name})';d.head.append(s)})"
)


def _frame(readings: Sequence[Reading], options: PageOptions) -> str:
    head, blocks = page.manifest(readings, **options)
    data = "".join(
        f'<script type="text/plain" data-ll="{name}">{base64.b64encode(block).decode()}</script>'
        for name, block in {**blocks, "js": packed_script()}.items()
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none';script-src 'unsafe-inline';style-src 'unsafe-inline';"
        'img-src data: blob:"><style>body{margin:0}'
        f'{page.style()}</style><main id="page"></main>'
        f"{data}<script>let m={page.script_json(head)};{_UNPACK}</script>"
    )


@lru_cache(maxsize=1)
def packed_script() -> bytes:
    """The page's script, gzip'd."""
    return gzip.compress(page.script().encode(), mtime=0)


def script_bytes() -> int:
    """Bytes of script in a cell: the packed page, its unpacker and the host's part."""
    return len(base64.b64encode(packed_script())) + len(_UNPACK) + len(_HOST)


def static_table(reading: Reading) -> str:
    """A small table of the top tokens: at most 14 layers, evenly spaced, of the last 12 positions."""
    L, T, _ = reading.shape
    rows = np.unique(np.linspace(0, L - 1, min(L, TABLE_ROWS)).round().astype(int))
    columns = range(max(0, T - TABLE_COLUMNS), T)
    head = "".join(f'<th style="{_CELL}">{piece_html(reading.pieces[t])}</th>' for t in columns)
    body = "".join(
        f'<tr><th style="{_CELL}">{html.escape(reading.layers[row])}</th>'
        + "".join(_cell(reading, int(row), t) for t in columns)
        + "</tr>"
        for row in rows
    )
    about = words.about(reading)
    shown = f"{len(rows)} of {L} layers, " if len(rows) < L else ""
    shown += f"last {len(columns)} of {T} positions" if len(columns) < T else ""
    note = " · ".join(
        filter(None, (about["model"], about["lens"], about["check"], shown.strip(", ")))
    )
    return (
        f'<table style="border-collapse:collapse;font-size:12px"><caption style="text-align:left">'
        f"{html.escape(note)}</caption>"
        f'<tr><th style="{_CELL}">layer</th>{head}</tr>{body}</table>'
    )


def _cell(reading: Reading, row: int, t: int) -> str:
    token = int(reading.top_ids[row, t, 0])
    if token < 0:
        return f'<td style="{_CELL}">–</td>'
    p = float(np.exp(reading.top_logprobs[row, t, 0]))
    # 100 % is said only of what rounds to it
    percent = f"{100 * p:.0f}%" if p < 0.995 or p >= 0.9995 else f"{min(p, 0.999):.1%}"
    return f'<td style="{_CELL}">{piece_html(reading.piece(token))} <small>{percent}</small></td>'
