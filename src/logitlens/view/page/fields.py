"""Encode a tile's arrays so that gzip compresses them well, and decode them.

An array runs over (slot, layer, position): neighbours are then of one kind, one layer after another.
Bytes are shuffled: first the low byte of every value, then the next. What a type adds to that:

    u8        nothing
    f16, f32  nothing; IEEE half and single precision, nan = missing
    f16-k     each value less that of the slot before: log-probabilities of one cell fall
    f16-l     each value less that of the layer before
    u32       nothing; 0xFFFFFFFF = missing
    rank      u32; in each row of positions the differences between neighbours in the order of the field
              before (log-probabilities: with them, ranks rise), zigzag: 0, -1, 1, -2 … as 0, 1, 2, 3 …
    recent    ids; each position keeps a list of the ids it has shown, those of the latest layer
              first. First one byte for each value: 0 = the next literal, j = the j-th of the list, which
              leaves it. A cell's ids go to the list's front when the cell is complete; the writer
              looks at the first `RECENT` only, or as many as there are slots. Then the literals as
              u32, by position, layer and slot

Differences of f16 are those of their bits as 16-bit integers, which wrap: nothing is rounded.
"""

from __future__ import annotations

from typing import Any

import numpy as np

RECENT = 64
DTYPES = {
    "u8": "u1",
    "u32": "<u4",
    "rank": "<u4",
    "f32": "<f4",
    "f16": "<f2",
    "f16-k": "<f2",
    "f16-l": "<f2",
}
# of an id of `recent`: its place, and itself where it is a literal
MOST_BYTES = {kind: int(dtype[-1]) for kind, dtype in DTYPES.items()} | {"recent": 5}


def pack(array: np.ndarray, kind: str, before: np.ndarray | None) -> list[bytes]:
    """An array (slot, layer, position) as parts, each of one kind of bytes.

    `before` is the array of the field before, which `rank` goes by.
    """
    if kind == "recent":
        ops, literals = _recent(array)
        return [ops.tobytes(), *_planes(literals)]
    if kind == "rank":
        array = np.take_along_axis(array, _order(before), -1)
        steps = np.diff(array, axis=-1, prepend=np.uint32(0)).view(np.int32)
        return _planes(((steps << 1) ^ (steps >> 31)).view(np.uint32))
    stride = _stride(kind, array.shape)
    if stride:
        bits = array.view(np.uint16).reshape(-1)
        array = bits.copy()
        array[stride:] -= bits[:-stride]
    return _planes(array)


def unpack(
    data: bytes, at: int, kind: str, shape: tuple[int, int, int], before: np.ndarray | None
) -> tuple[np.ndarray, int]:
    """The array that `pack` was given, from `at` on, and how many bytes it took."""
    size = shape[0] * shape[1] * shape[2]
    if kind == "recent":
        ops = np.frombuffer(data, np.uint8, size, at).reshape(shape)
        count = int((ops == 0).sum())
        literals = _unshuffle(data, at + size, count, "<u4")
        return _replay(ops, literals), size + 4 * count
    array: np.ndarray[Any, Any] = _unshuffle(data, at, size, DTYPES[kind])
    used = array.nbytes
    stride = _stride(kind, shape)
    if stride:
        bits = array.view(np.uint16)
        rows = np.zeros(-(-size // stride) * stride, np.uint16)
        rows[:size] = bits
        array = rows.reshape(-1, stride).cumsum(0, dtype=np.uint16).reshape(-1)[:size]
        array = array.view(np.float16)
    array = array.reshape(shape)
    if kind == "rank":
        steps = (array >> 1) ^ -(array & 1)
        array = np.empty_like(array)
        np.put_along_axis(array, _order(before), steps.cumsum(-1, dtype=np.uint32), -1)
    return array, used


def _stride(kind: str, shape: tuple[int, ...]) -> int:
    """How far back the value is from which the difference is taken; 0: there is none."""
    return {"f16-k": shape[1] * shape[2], "f16-l": shape[2]}.get(kind, 0)


def _order(before: np.ndarray | None) -> np.ndarray:
    assert before is not None
    return np.argsort(before.view(np.uint16), axis=-1, kind="stable")


def _recent(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(bytes of the shape of `ids`, literals); see `recent` above."""
    ops: list[list[int]] = []
    literals: list[int] = []
    slots, layers, positions = ids.shape
    for column in np.ascontiguousarray(ids.T).tolist():
        recent: list[int] = []
        for cell in column:
            row = []
            for token in cell:
                if token in recent:
                    place = recent.index(token)
                    del recent[place]
                    row.append(place + 1)
                else:
                    literals.append(token)
                    row.append(0)
            ops.append(row)
            recent = (cell + recent)[: max(RECENT, slots)]
    by_position = np.array(ops, np.uint8).reshape(positions, layers, slots)
    return np.ascontiguousarray(by_position.T), np.array(literals, np.uint32)


def _replay(ops: np.ndarray, literals: np.ndarray) -> np.ndarray:
    """The ids that `_recent` was given."""
    cells: list[list[int]] = []
    rest = iter(literals.tolist())
    for column in np.ascontiguousarray(ops.T).tolist():
        recent: list[int] = []
        for row in column:
            cell = [recent.pop(op - 1) if op else next(rest) for op in row]
            cells.append(cell)
            recent = cell + recent
    return np.array(cells, np.uint32).reshape(ops.T.shape).T


def _planes(array: np.ndarray) -> list[bytes]:
    flat = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).reshape(-1)
    planes = flat.view(np.uint8).reshape(-1, array.dtype.itemsize).T
    return [plane.tobytes() for plane in planes]


def _unshuffle(data: bytes, at: int, count: int, dtype: str) -> np.ndarray[Any, Any]:
    size = np.dtype(dtype).itemsize
    planes = np.frombuffer(data, np.uint8, count * size, at)
    return np.ascontiguousarray(planes.reshape(size, -1).T).view(dtype).reshape(-1)
