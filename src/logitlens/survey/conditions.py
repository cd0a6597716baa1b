"""Conditions: what the prompts or documents of a survey differ by. Their names, values and types.

A condition has one text, number or truth value for each prompt or document, or none; its type is that of
all its values, else text.
"""

from __future__ import annotations

import datetime
import decimal
import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

NUMBERS = (
    "logprob", "first_logprob", "rank", "wrong_logprob", "wrong_first_logprob", "wrong_rank", "margin",
    "correct", "entropy", "kl", "agree", "top_id", "top",
)  # fmt: skip
OF_CELLS = ("loss", "rank", "entropy", "kl", "agree", "top")
_FOUND = re.compile(  # columns of `find` and of its queries
    rf"settled|first_\d+|last_off|row_n|({'|'.join({*NUMBERS, *OF_CELLS})})_(embed|\d+)"
)
MOST = 100  # conditions of a corpus
LONGEST = 1000  # letters of one of its values
_WHOLE = 1 << 63  # whole numbers of a table's column are below
_NAMES = {int: "int", float: "float", bool: "bool"}


def is_own(name: str, own: Collection[str]) -> bool:
    """Whether a name is one of a survey's own columns, or could be taken for one by `find`, where DuckDB
    knows no capitals."""
    plain = name.strip().lower()
    return plain in own or _FOUND.fullmatch(plain) is not None


def is_whole(value: Any) -> bool:
    """Whether a value fits a column: it is no number of more than 64 bits."""
    return not isinstance(value, int) or -_WHOLE <= value < _WHOLE


def types(found: Mapping[str, set[type]]) -> dict[str, str]:
    """The types of a condition's values → "int", "float", "bool" or "string"."""
    out = {}
    for name, kinds in found.items():
        if kinds == {int, float}:
            out[name] = "float"
        else:
            out[name] = _NAMES.get(next(iter(kinds)), "string") if len(kinds) == 1 else "string"
    return out


def column(values: Sequence[Any], kind: str) -> pa.Array:
    """One value for each row, or None."""
    import pyarrow as pa

    make: dict[str, Any] = {"string": str, "int": int, "float": float, "bool": bool}
    arrow = {"string": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
    return pa.array([None if v is None or v != v else make[kind](v) for v in values], arrow[kind])


def is_text(value: Any) -> bool:
    """Whether a text can be written: JSON may hold half of a surrogate pair."""
    return not isinstance(value, str) or not any("\ud800" <= c <= "\udfff" for c in value)


class Noted:
    """What documents say of themselves, noted while they are read.

    left_out   by name, why values of it are no condition, of up to MOST: a whole corpus is not refused for
               a column
    """

    def __init__(self, own: Collection[str]):
        self._own, self._kinds = own, dict[str, set[type]]()
        self._plain = dict[str, str]()
        self.left_out = dict[str, str]()

    @property
    def types(self) -> dict[str, str]:
        return types(self._kinds)

    def keep(self, others: Mapping[str, Any]) -> dict[str, Any]:
        """Of a document's other fields, those that are conditions and have a value."""
        kept: dict[str, Any] = {}
        for name, given in others.items():
            value = plain(given)
            if value is None or value != value:
                continue
            if why := self._unfit(name, value):
                shown = name.encode("utf-8", "backslashreplace").decode()
                if len(self.left_out) < MOST:
                    self.left_out.setdefault(shown, why)
                continue
            self._kinds.setdefault(name, set()).add(type(value))
            kept[name] = value
        return kept

    def _unfit(self, name: str, value: Any) -> str:
        if not name.strip() or not is_text(name):
            return "it has no name"
        if is_own(name, self._own):
            return "it is a column of the survey"
        if not isinstance(value, (str, int, float)):
            return "it holds lists, objects or bytes"
        if not is_text(value) or (isinstance(value, str) and len(value) > LONGEST):
            return f"it holds texts of more than {LONGEST:,} letters, or that cannot be written"
        if name not in self._kinds and len(self._kinds) == MOST:
            return f"only the first {MOST} are kept"
        if self._plain.setdefault(name.lower(), name) != name:
            return f"it differs only in capitals from {self._plain[name.lower()]!r}"
        return ""


def plain(value: Any) -> Any:
    """Dates and what else a table has, as text; and whole numbers that are too long."""
    if isinstance(value, (datetime.date, datetime.time, datetime.timedelta, decimal.Decimal)):
        return str(value)
    return value if is_whole(value) else str(value)
