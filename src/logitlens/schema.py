"""What comes out of a file is checked against a schema before anything is made of it.

A schema is a value: `str`, `int`, `float` (whole numbers too), `bool`, `None`; `object` for anything;
`[schema]` a list; `{str: schema}` a mapping; `{"name": schema, "name?": schema}` a record, whose other
entries are left alone; `(schema, schema)` one of several.

    matches({"version": 1}, {"version": int, "meta?": {str: object}}, "the header")
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from typing import Any

from logitlens.errors import FormatError

NESTING = 40  # levels of lists and mappings
DIGITS = 40  # of a number
INFLATION = 200  # bytes out of one compressed byte; deflate itself allows 1,032

# What a number of too many digits would be a part of: hardly any text has one, and without functions of
# our own numbers are parsed several times as fast.
_LONG = re.compile(rf"[-+.0-9eE]{{{DIGITS + 1}}}")
_LONG_BYTES = re.compile(_LONG.pattern.encode())

_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def parse_json(text: str | bytes, what: str) -> Any:
    """JSON of bounded nesting and digits. Raises FormatError in one line for anything else."""
    long = _LONG.search(text) if isinstance(text, str) else _LONG_BYTES.search(text)
    try:
        value = json.loads(text, parse_int=_whole, parse_float=_real) if long else json.loads(text)
    except RecursionError:
        raise FormatError(f"{what} is nested deeper than {NESTING} levels") from None
    except ValueError as error:
        raise FormatError(f"{what} is not JSON, or is cut short ({_line(error)})") from None
    if _deeper(value, NESTING):
        raise FormatError(f"{what} is nested deeper than {NESTING} levels")
    return value


def _whole(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _real(digits: str) -> float:
    if len(digits) > DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return float(digits)


def _deeper(value: Any, limit: int) -> bool:
    """Whether containers nest deeper than `limit`; a level at a time, without recursion."""
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(limit):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return False
    return True


def matches(value: Any, schema: Any, where: str) -> None:
    """Raise FormatError unless `value` is what `schema` says; `where` names it in the message."""
    if schema is object:
        return
    if isinstance(schema, tuple):
        if not any(_is(value, each) for each in schema):
            raise FormatError(f"{where} is {_found(value)}: expected {_word(schema)}")
        return
    if not _is_outside(value, schema):
        raise FormatError(f"{where} is {_found(value)}: expected {_word(schema)}")
    if isinstance(schema, list):
        for i, item in enumerate(value):
            if not _is(item, schema[0]):
                matches(item, schema[0], f"{where}[{i}]")
    elif isinstance(schema, dict) and str in schema:
        for key, item in value.items():
            if not _is(item, schema[str]):
                matches(item, schema[str], f"{where}[{str(key)[:40]!r}]")
    elif isinstance(schema, dict):
        for key, inner in schema.items():
            name = key.removesuffix("?")
            if name in value:
                matches(value[name], inner, f"{where}[{name!r}]")
            elif name == key:
                raise FormatError(f"{where} lacks {name!r}")


def _is(value: Any, schema: Any) -> bool:
    try:
        matches(value, schema, "")
    except FormatError:
        return False
    return True


def _is_outside(value: Any, schema: Any) -> bool:
    """Whether the outermost type fits."""
    if schema is None:
        return value is None
    if isinstance(schema, list):
        return isinstance(value, (list, tuple))
    if isinstance(schema, dict):
        return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
    if isinstance(value, bool):
        return schema is bool
    return isinstance(value, (int, float) if schema is float else schema)


def _word(schema: Any) -> str:
    if isinstance(schema, tuple):
        return " or ".join(_word(each) for each in schema)
    if isinstance(schema, list):
        return f"a list of {_word(schema[0])}"
    return (
        "null"
        if schema is None
        else _WORDS.get(schema, "an object")
        if isinstance(schema, type)
        else "an object"
    )


def _found(value: Any) -> str:
    text = (
        repr(value)
        if isinstance(value, (str, int, float, bool, type(None)))
        else type(value).__name__
    )
    return text if len(text) <= 40 else text[:39] + "…"


def inflate(data: bytes, limit: int, what: str) -> bytes:
    """One gzip member, of at most `limit` bytes, and no more than real data inflate to.

    Raises FormatError where it is damaged, cut short or larger.
    """
    unpacker = zlib.decompressobj(31)
    most = min(limit, INFLATION * len(data) + (1 << 20))
    try:
        out = unpacker.decompress(data, most + 1)
    except zlib.error as error:
        raise FormatError(f"{what} is damaged ({error})") from None
    if len(out) > most:
        raise FormatError(f"{what} inflates to more than {most:,} bytes")
    if not unpacker.eof:
        raise FormatError(f"{what} is cut short")
    return out


def _line(error: BaseException) -> str:
    """An error's text on one line, of bounded length."""
    text = " ".join(str(error).split())
    return text if len(text) <= 120 else text[:119] + "…"
