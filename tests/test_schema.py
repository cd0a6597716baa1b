"""What comes out of a file is checked before anything is made of it."""

import gzip

import pytest

from logitlens import FormatError
from logitlens.schema import DIGITS, NESTING, inflate, matches, parse_json


@pytest.mark.parametrize(
    ("value", "schema"),
    [
        ("x", str), (3, int), (3, float), (2.5, float), (True, bool), (None, None), (None, (str, None)),
        ([], [int]), ([1, 2], [int]), ({"a": 1}, {str: int}), ({"a": 1, "z": 9}, {"a": int, "b?": str}),
        ({"a": [{"b": None}]}, {"a": [{"b": (int, None)}]}), (object(), object), ((1, 2), [int]),
    ],
)  # fmt: skip
def test_what_fits(value, schema):
    matches(value, schema, "it")


@pytest.mark.parametrize(
    ("value", "schema", "says"),
    [
        (3, str, "it is 3: expected text"),
        (True, int, "it is True: expected a whole number"),
        (2.5, int, "it is 2.5: expected a whole number"),
        (True, float, "it is True: expected a number"),
        ("x" * 99, int, "it is 'xxx.*…: expected a whole number"),
        ({}, [int], "it is dict: expected a list of a whole number"),
        ([1, "2"], [int], r"it\[1\] is '2': expected a whole number"),
        ({"a": 1}, {"b": int}, "it lacks 'b'"),
        (
            {"a": {"b": []}},
            {"a": {"b": {str: int}}},
            r"it\['a'\]\['b'\] is list: expected an object",
        ),
        ({1: 2}, {str: int}, "it is dict: expected an object"),
        (3, (str, None), "it is 3: expected text or null"),
    ],
)
def test_what_does_not_is_named_by_its_place(value, schema, says):
    with pytest.raises(FormatError, match=says) as caught:
        matches(value, schema, "it")
    assert "\n" not in str(caught.value)


def test_json_has_bounded_nesting_and_digits():
    assert parse_json("[" * NESTING + "]" * NESTING, "it") is not None
    assert parse_json("7", "it") == 7
    assert parse_json("9" * DIGITS, "it") == int("9" * DIGITS)
    for text in (
        "[" * (NESTING + 1) + "]" * (NESTING + 1),
        "[" * 100_000,
        "[" * 100_000 + "]" * 100_000,
    ):
        with pytest.raises(FormatError, match="nested deeper|cut short"):
            parse_json(text, "it")
    for text in ("9" * 5000, "-" + "9" * 41, "1." + "9" * 50, "{", "", b"\xff\xfe\x00"):
        with pytest.raises(FormatError, match="it is not JSON, or is cut short") as caught:
            parse_json(text, "it")
        assert "\n" not in str(caught.value)


def test_no_block_inflates_beyond_what_it_may():
    data = bytes(range(256)) * 40
    assert inflate(gzip.compress(data), len(data), "it") == data
    for limit in (len(data) - 1, 10):
        with pytest.raises(FormatError, match="inflates to more than"):
            inflate(gzip.compress(data), limit, "it")
    bomb = gzip.compress(bytes(64 << 20))
    with pytest.raises(FormatError, match="inflates to more than"):
        inflate(bomb, 1 << 40, "it")
    for damaged in (gzip.compress(data)[:-9], b"nothing of the kind", b""):
        with pytest.raises(FormatError, match="damaged|cut short"):
            inflate(damaged, len(data), "it")
