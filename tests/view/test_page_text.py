"""Bytes as text: the same bytes again, whatever they are, in a text that nothing on its way can harm."""

from __future__ import annotations

import json

import numpy as np
import pytest

from logitlens.view.page import encoding


def samples():
    rng = np.random.default_rng(0)
    yield from (rng.integers(0, 256, n, np.uint8).tobytes() for n in range(130))
    yield from (bytes([v]) * n for v in (0, 1, 255) for n in (1, 6, 7, 8, 13, 26))
    for code in encoding.UNSAFE:  # runs of one unsafe character, of any length and at any end
        for n in range(1, 17):
            bits = f"{code:07b}" * n
            yield int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8))


def test_sevens_give_the_bytes_again():
    for data in samples():
        assert encoding.from_sevens(encoding.sevens(data)) == data


def test_sevens_hold_nothing_that_html_or_a_change_of_line_ends_touches():
    data = np.random.default_rng(1).integers(0, 256, 100_000, np.uint8).tobytes()
    text = encoding.sevens(data)
    assert not set(map(chr, encoding.UNSAFE)) & set(text)
    written = text.encode("utf-8")
    assert len(written) <= len(data) * 8 / 7 + 2, "no byte is lost to escapes"
    assert text == written.replace(b"\n", b"\r\n").decode("utf-8")


def test_a_text_that_is_no_sevens_is_refused():
    with pytest.raises(ValueError, match="below U\\+0800"):
        encoding.from_sevens("日本")


def test_pairs_give_the_bytes_again_and_need_no_escape_in_json_or_script():
    for data in samples():
        text = encoding.pairs(data)
        assert from_pairs(text) == data
        assert json.dumps(text) == f'"{text}"'
        assert "<" not in text
        assert len(text) <= len(data) * 16 / 13 + 3


def from_pairs(text: str) -> bytes:
    """As the script in notebook.py does it."""
    codes = [{33: 60, 126: 92}.get(ord(c), ord(c)) - 35 for c in text]
    bits = "".join(f"{a * 91 + b:013b}" for a, b in zip(codes[::2], codes[1::2]))
    whole = bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits) // 8 * 8, 8))
    return whole[:-1] if len(text) % 2 else whole
