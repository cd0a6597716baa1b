"""Vectors as lines of text: what each raises, and what its opposite raises."""

from __future__ import annotations

from typing import TYPE_CHECKING

from logitlens.view import text as safe

if TYPE_CHECKING:
    from logitlens.vector_table import VectorTable

ROWS, WORDS = 40, 6


def text(table: VectorTable, *, rows: int = ROWS, words: int = WORDS) -> str:
    """One line for each vector, the first `rows` of them."""
    lead = len(str(max(0, len(table) - 1)))
    lines = []
    for row in range(min(rows, len(table))):
        line = f"{row:>{lead}}  " + _side(table, row, words, low=False)
        if table.low_ids.shape[1]:
            line += "   −  " + _side(table, row, words, low=True)
        lines.append(line)
    if len(table) > rows:
        lines.append(f"{len(table) - rows:,} more vectors")
    return "\n".join(lines)


def _side(table: VectorTable, row: int, words: int, *, low: bool) -> str:
    logits = table.low_logits if low else table.top_logits
    pairs = zip(table.words(row, low=low)[:words], logits[row])
    return "  ".join(f"{safe.isolate(safe.visible(word))} {value:+.2f}" for word, value in pairs)
