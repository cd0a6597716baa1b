"""The sentences under a picture, the same in every view: source, check, and what was left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.style import Style
from rich.text import Text

from logitlens.reading import Reading
from logitlens.view import text as safe

_DIM = Style(dim=True)
_NO_TOKEN = "∅"


def word(reading: Reading, row: int, column: int) -> str:
    """The top token of a cell, visible; `∅` where the logits were not numbers."""
    token = int(reading.top_ids[row, column, 0])
    return _NO_TOKEN if token < 0 else safe.visible(reading.piece(token))


def lens_text(reading: Reading) -> str:
    """`logit lens: no fitted map`, of which stream; or which fitted lens was used."""
    name = reading.lens_name
    if name == "logit":
        stream = str(reading.meta.get("stream") or "resid")
        of = "" if stream == "resid" else f" of {safe.visible(stream)}"
        return f"logit lens{of}: no fitted map"
    lens = reading.meta.get("lens")
    if not isinstance(lens, Mapping):
        return f"{name} lens: fitted"
    source = str(lens.get("source") or lens.get("file") or "")
    source = "" if source.startswith("logitlens-lens/") else source  # our own file format
    tag = f"#{str(lens['hash'])[:8]}" if lens.get("hash") else ""
    tried = lens.get("interpretation")
    doubt = isinstance(tried, Mapping) and tried.get("as_read") is False
    warning = "NOT the map that it is read as" if doubt else ""
    return f"{name} lens: fitted" + "".join(
        f", {safe.visible(part)}" for part in (source, tag, warning) if part
    )


def source_text(reading: Reading) -> str:
    """Model, lens, how it was run, and what of the prompt did not fit the context."""
    meta = reading.meta
    parts = [safe.visible(str(meta.get("model") or "model unknown")), lens_text(reading)]
    if meta.get("dtype"):
        device = meta.get("device")
        parts.append(
            safe.visible(str(meta["dtype"]))
            + (f" on {safe.visible(str(device))}" if device else "")
        )
    if dropped := meta.get("truncated"):
        parts.append(f"cut: the first {dropped} tokens were not read")
    for edit in meta.get("edits") or ():
        text = edit.get("text") if isinstance(edit, Mapping) else None
        parts.append(f"edited: {safe.visible(str(text or 'in a way unknown'))}")
    return " · ".join(parts)


def source_line(reading: Reading) -> Text:
    model, _, rest = source_text(reading).partition(" · ")
    return Text.assemble((model, Style(bold=True)), (" · " + rest, _DIM))


def check_line(reading: Reading) -> Text:
    ok, sentence = reading.check_text()
    mark, style = {True: ("✓", "green"), False: ("✗", "bold red"), None: ("–", "yellow")}[ok]
    return Text.assemble((f"{mark} ", style), sentence)


def cut_line(all_rows: int, rows: Sequence[int], all_columns: int, columns: int) -> str:
    """What of the grid is not shown, and how to ask for it; empty where nothing is."""
    parts = []
    if columns < all_columns:
        parts.append(f"the last {columns} of {all_columns} positions (--positions)")
    if len(rows) < all_rows:
        every = _ordinal(rows[-1] - rows[-2])
        parts.append(f"{len(rows)} of {all_rows} layers, every {every} (--layers)")
    return f"shown: {'; '.join(parts)}" if parts else ""


def _ordinal(n: int) -> str:
    ending = {2: "nd", 3: "rd"}.get(n % 10 if n % 100 not in (12, 13) else 0, "th")
    return f"{n}{ending}"
