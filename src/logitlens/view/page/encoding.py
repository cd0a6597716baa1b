"""Bytes as text, in two ways: for a file of UTF-8, and for a script inside a notebook's JSON.

`sevens`, for files: seven bits to a byte, where base64 has six. Every seven bits are one ASCII character.
Those in `UNSAFE` would not survive an HTML parser, a change of line ends or a careless editor; one of
them and the seven bits after it are one character of two bytes, U+0080 + 128 × its place in `UNSAFE` +
the seven bits. So nothing is lost to escapes, and the text holds no tag. Unsafe bits at the very
end, with none after them, are U+0780 + the bits. The reader is in web/src/format.ts.

`pairs`, for notebooks: JSON writes a control character as six, so only printable ASCII is used, thirteen
bits to two characters of 91. The reader is in notebook.py.
"""

from __future__ import annotations

import numpy as np

UNSAFE = (0, 10, 13, 26, 38, 60)  # NUL, line feed, carriage return, end of a DOS file, & and <
_ALONE = 0x780
# From # to }, but ! for < and ~ for the backslash, which have a meaning in HTML and in JSON.
_PAIRS = bytes(range(35, 126)).replace(b"<", b"!").replace(b"\\", b"~")


def sevens(data: bytes) -> str:
    """`data` as text without any of the unsafe characters."""
    codes = _groups(data, 7)
    taken = np.zeros(len(codes), bool)  # by the unsafe seven bits before them
    last = len(codes) - 1
    for i in np.flatnonzero(np.isin(codes, UNSAFE)).tolist():
        if taken[i]:
            continue
        if i == last:
            codes[i] |= _ALONE
        else:
            codes[i] = (UNSAFE.index(codes[i]) + 1) * 128 + codes[i + 1]
            taken[i + 1] = True
    return codes[~taken].tobytes().decode("utf-32-le")


def from_sevens(text: str) -> bytes:
    """The bytes that `sevens` was given. Raises ValueError for a text it did not make."""
    codes = np.frombuffer(text.encode("utf-32-le"), "<u4")
    if (codes > 0x7FF).any():
        raise ValueError("expected characters below U+0800")
    place = (codes >> 7).astype(int)
    known = np.zeros(16, np.uint8)
    known[1 : len(UNSAFE) + 1] = UNSAFE
    both = np.stack([known[place], (codes & 127).astype(np.uint8)], axis=1)
    keep = np.stack([(place > 0) & (place <= len(UNSAFE)), np.ones(len(codes), bool)], axis=1)
    bits = np.unpackbits(both[keep][:, None], axis=1)[:, 1:].reshape(-1)
    return np.packbits(bits[: len(bits) // 8 * 8]).tobytes()


def pairs(data: bytes) -> str:
    """`data` as printable ASCII without `"`, `<` and the backslash.

    Of an odd number of characters the last says that the last whole byte is none of the data's.
    """
    alphabet = np.frombuffer(_PAIRS, np.uint8)
    groups = _groups(data, 13)
    text = alphabet[np.stack([groups // 91, groups % 91], axis=1)].tobytes().decode()
    return text + "#" * (len(groups) * 13 // 8 - len(data))


def _groups(data: bytes, width: int) -> np.ndarray:
    """The bits of `data` as numbers of `width` bits, filled up with zeros at the end."""
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    bits = np.append(bits, np.zeros(-len(bits) % width, np.uint8)).reshape(-1, width)
    return (bits @ (1 << np.arange(width)[::-1])).astype("<u4")
