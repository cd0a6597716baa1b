"""Text as a model writes it: each token on a ground that shows at which layer it was settled."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.text import Text

from logitlens import statistics
from logitlens.reading import Reading
from logitlens.view import text as safe
from logitlens.view.brush import Brush


class Flow:
    """Turns the columns of a generation into text, one after the other.

    A character that is spread over several tokens appears with the last of them, and tokens that
    are no text (the end of a turn) do not appear. The ground is bright where a token was settled
    early, as in the grid's last line.
    """

    def __init__(self, brush: Brush):
        self.brush = brush
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def next(self, column: Reading) -> Text:
        """What the token adds that a column of one position led to."""
        token = int(column.next_ids[0])
        if token in (column.meta.get("special_ids") or ()):
            return Text()
        held = (column.meta.get("vocab_bytes") or {}).get(str(token))
        raw = (
            column.piece(token).encode("utf-8", "replace") if held is None else bytes.fromhex(held)
        )
        since = column.row(column.settled()[0])
        return self.brush.cell(
            safe.flowing(self.decoder.decode(raw)), 1 - since / max(1, len(column.layers) - 1)
        )

    def end(self) -> Text:
        """What is left of a character that was not finished."""
        return Text(self.decoder.decode(b"", final=True))


def joined(columns: Sequence[Reading]) -> Reading:
    """Columns of one generation, in order, as one Reading."""
    last = columns[-1]
    arrays: dict[str, Any] = {}
    for statistic in statistics.stored():
        parts = [getattr(column, statistic.name) for column in columns]
        along = statistic.axes.find("T")
        arrays[statistic.name] = parts[-1] if along < 0 else np.concatenate(parts, along)
    vocab = {i: piece for column in columns for i, piece in column.vocab.items()}
    special = {i for column in columns for i in column.meta.get("special_ids") or ()}
    positions = [p for column in columns for p in column.positions]
    return Reading(
        **arrays,
        pieces=[piece for column in columns for piece in column.pieces],
        layers=last.layers,
        vocab=vocab,
        meta=last.meta | {"positions": positions, "special_ids": sorted(special)},
    )
