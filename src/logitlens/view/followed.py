"""The tokens that a reading follows, layer by layer, as one table for a terminal.

Tracked tokens come first, then the candidates: what the model itself answers. Of the answer and of
tracked tokens the rank is shown as well. Of several readings of one prompt, through several lenses,
there is a row for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.style import Style
from rich.text import Text

from logitlens.reading import Reading
from logitlens.select import layer_number
from logitlens.view import color as paint
from logitlens.view import text as safe
from logitlens.view.brush import DIM, Brush

_SIZE = 6  # columns of a layer
_NAME = 20  # columns of a token at most


@dataclass(frozen=True)
class Followed:
    """One token at one position: its probability and rank (L,) at every layer."""

    id: int
    name: str
    tracked: bool
    probs: NDArray[np.float64]
    ranks: NDArray[np.float64]


def followed(reading: Reading, column: int, candidates: int) -> list[Followed]:
    """Tracked tokens, then at most so many candidates of a position that are not tracked."""
    out = []
    for kind, ids in (("track", reading.track_ids), ("candidate", reading.candidate_ids[column])):
        logprobs, ranks = (
            getattr(reading, f"{kind}_{what}")[:, column].astype(np.float64)
            for what in ("logprobs", "ranks")
        )
        for slot, token in enumerate(map(int, ids[: candidates if kind == "candidate" else None])):
            if token == -1 or any(token == other.id for other in out):  # −2, −3, … are sets
                continue
            place = np.where(ranks[:, slot] > 0, ranks[:, slot], np.nan)
            name = safe.visible(reading.piece(token))
            out.append(Followed(token, name, kind == "track", np.exp(logprobs[:, slot]), place))
    return out


def table(
    readings: Sequence[Reading],
    column: int,
    *,
    width: int,
    brush: Brush,
    candidates: int = 5,
    rows: Sequence[int] | None = None,
) -> Iterator[Text]:
    """The table of one position; of several readings, the answer and the tracked tokens only.

    rows   the layers shown, of the first reading (default: all)
    """
    first = readings[0]
    tokens = followed(first, column, candidates)
    answer = int(first.candidate_ids[column, 0]) if first.candidate_ids.shape[1] else -1
    several = len(readings) > 1
    if several:
        tokens = [token for token in tokens if token.tracked or token.id == answer]
    if not tokens:
        return
    labels = [first.layers[i] for i in rows] if rows is not None else _layers(readings)
    names = [reading.lens_name for reading in readings]
    if len(set(names)) < len(names):  # an edited reading and its control
        names = [f"{name} {n}" for n, name in enumerate(names, 1)]
    lines: list[_Line] = []
    for token in tokens:
        exact = token.tracked or token.id == answer
        for scale in ("probability", "rank") if exact else ("probability",):
            for n, reading in enumerate(readings):
                name = token.name if scale == "probability" and n == 0 else ""
                measure = ("" if n else "rank" if scale == "rank" else "prob").rjust(5)
                of = next(
                    (t for t in followed(reading, column, candidates) if t.id == token.id), None
                )
                values = (of.ranks if scale == "rank" else of.probs).tolist() if of else []
                known = dict(zip(reading.layers, values))
                lens = f" {names[n]}" if several else ""
                lines.append(_Line(name, measure + lens, scale, known, token.id == answer))
    widest = min(_NAME, max(safe.width(line.name) for line in lines))
    what = f"after {safe.quote(safe.clip(first.pieces[column], 24))}"
    lead = max(widest + 1 + max(len(line.kind) for line in lines), safe.width(what))
    per_line = max(1, (width - lead) // _SIZE)
    for start in range(0, len(labels), per_line):
        part = labels[start : start + per_line]
        head = Text(safe.fit(what, lead))
        for label in part:
            head.append(safe.visible(label).rjust(_SIZE), style=DIM)
        yield _cropped(head)
        for line in lines:
            yield _cropped(line.text(widest, lead, part, brush))


@dataclass(frozen=True)
class _Line:
    """A token's probabilities or ranks; `kind` says which, and through which lens."""

    name: str
    kind: str
    scale: str
    known: dict[str, float]
    is_answer: bool

    def text(self, names: int, lead: int, labels: Sequence[str], brush: Brush) -> Text:
        line = Text(safe.fit(self.name, names), style=Style(bold=self.is_answer))
        line.append(f" {self.kind}".ljust(lead - names), style=Style(dim=True, bold=False))
        for label in labels:
            value = self.known.get(label, float("nan"))
            shown = paint.format_value(self.scale, value).rjust(_SIZE - 1)
            line.append(" ")
            line.append_text(brush.cell(shown, value if self.scale == "probability" else np.nan))
        return line


def _layers(readings: Sequence[Reading]) -> list[str]:
    """The labels of all, in order."""
    union = dict.fromkeys(label for reading in readings for label in reading.layers)
    return sorted(union, key=lambda x: -1 if (number := layer_number(x)) is None else number)


def _cropped(line: Text) -> Text:
    line.no_wrap, line.overflow = True, "crop"
    return line
