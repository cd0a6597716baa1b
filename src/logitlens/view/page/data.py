"""The page's data format, version 3: a Reading as a manifest and gzip'd blocks, and back.

    manifest, blocks = encode(reading)          # JSON-able dict, {name: bytes}
    decode(manifest, blocks)                    # the Reading again, numbers in nats rounded to f16

`blocks["head"]` is gzip'd JSON: the arrays that have no layers (ids of the prompt, of the next, the
candidate and the tracked tokens), the pieces of the prompt, and the fragment of the vocabulary that
occurs (ids as steps from one to the next, pieces, bytes of those that are not text). A piece of the
prompt is null where it is its id's in the vocabulary. The other blocks are tiles of positions; inside
one, the fields named in `manifest["fields"]` follow each other as `fields` writes them.

A reading below `TILE_ABOVE` bytes is one tile; above, tiles of `TILE` positions are inflated when
they come into view. Half precision keeps 11 bits: a log-probability is within 0.05 % of its value.
The reader is web/src/format.ts; tests compare the two cell by cell.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from logitlens import statistics
from logitlens.errors import FormatError
from logitlens.reading import Reading, tied_ranks
from logitlens.reading_io import _plain as plain
from logitlens.schema import inflate, parse_json
from logitlens.statistics import Statistic
from logitlens.view.color import counted
from logitlens.view.page import fields, words

FORMAT = "logitlens-page"
VERSION = 3
TILE = 256
TILE_ABOVE = 10_000_000
# Arrays and heads that are larger than this and than so many times their compressed size are refused.
_ROOM, _RATIO = 64 << 20, 200

# What the parts of Python and numpy raise that meet damaged data.
DAMAGED = (
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    EOFError,
    OSError,
    zlib.error,
)
_SURROGATE = re.compile("[\ud800-\udfff]")
# Facts of `meta` that the head carries, in a denser form.
_IN_HEAD = ("positions", "vocab_bytes", "special_ids")
_LISTS = {"ids": "ids", "next_ids": "next", "track_ids": "track"}  # as version 2 called them


# Derived statistics that the script finds in the top tokens by itself.
_IN_SCRIPT = ("final", "agree")


def records() -> list[dict[str, str]]:
    """What the page can show, for the manifest; it names no other statistic than these.

    `per` is "token" for the numbers of one token (those beside ids of the same prefix, and what is
    said of the top tokens), which a card has places for, and "cell" for all others.
    """
    names = {s.name for s in statistics.TABLE}
    return [
        {
            "name": s.color,
            "field": s.name,
            "label": s.label,
            "unit": s.unit,
            "scale": s.scale,
            "bright": s.confident,
            "per": "token" if _prefix(s.name) + "_ids" in names or s.name in _IN_SCRIPT else "cell",
        }
        for s in statistics.TABLE
        if s.color
    ]


def encode(reading: Reading, prefix: str = "") -> tuple[dict[str, Any], dict[str, bytes]]:
    """A reading as page data: (manifest, blocks), every block's name beginning with `prefix`.

    The same reading gives the same bytes. Numbers in nats are rounded to float16; ids, ranks and
    other numbers are exact. Ranks of the top k are stored only where exact ties make them differ
    from their places.
    """
    L, T, K = reading.shape
    sizes = {"K": K, "C": reading.candidate_ids.shape[1], "M": len(reading.track_ids)}
    columns = _fields(reading)
    size = sum(array.nbytes for array, _, _ in columns.values())
    # (a tile of many layers or tracked tokens has fewer positions)
    tile = T if size <= TILE_ABOVE else max(1, min(TILE, TILE_ABOVE * T // size))
    blocks = {prefix + "head": packed(json_text(_head(reading)).encode())}
    tiles: list[str] = []
    for start in range(0, T, tile):
        name = f"{prefix}{start}"
        parts, before = [], None
        for array, kind, _ in columns.values():
            here = np.ascontiguousarray(array[..., start : start + tile])
            parts += fields.pack(here, kind, before)
            before = here
        blocks[name] = packed(b"".join(parts))
        tiles.append(name)
    manifest = {
        "label": words.label(reading),
        "vocabulary": 0,
        "layers": list(reading.layers),
        "shape": {"L": L, "T": T, **sizes},
        "head": prefix + "head",
        "tile": tile,
        "tiles": tiles,
        "fields": [[name, kind, per] for name, (_, kind, per) in columns.items()],
        "range": _ranges(reading),
        "about": words.about(reading),
        "meta": {k: v for k, v in plain(reading.meta).items() if k not in _IN_HEAD},
    }
    return manifest, blocks


def decode(manifest: Mapping[str, Any], blocks: Mapping[str, bytes]) -> Reading:
    """The reading that `encode` was given, with numbers in nats rounded to float16.

    Raises FormatError where blocks are absent, damaged, or do not fit the manifest.
    """
    try:
        return _decode(manifest, blocks)
    except FormatError:
        raise
    except DAMAGED as error:
        raise FormatError(f"the page's data are damaged ({error})") from error


def _decode(manifest: Mapping[str, Any], blocks: Mapping[str, bytes]) -> Reading:
    packed_head = blocks[manifest["head"]]
    head = parse_json(inflate(packed_head, 1 << 28, "the page's head"), "the page's head")
    layers = _texts(manifest.get("layers") or manifest["depths"])  # as version 2 called them
    ids = np.cumsum(_integers(head["vocab"]["ids"])).tolist()
    vocab = dict(zip(ids, _texts(head["vocab"]["pieces"]), strict=True))
    lists = head.get("arrays") or {new: head[old] for new, old in _LISTS.items()}
    pieces = [
        vocab[i] if piece is None else piece
        for i, piece in zip(lists["ids"], head["pieces"], strict=True)
    ]
    columns = _columns(manifest, blocks, len(layers), len(_texts(pieces)))
    arrays: dict[str, Any] = {}
    for s in statistics.stored():
        if s.name in lists:
            values = lists[s.name]
            values = _texts(values) if s.dtype == "str" else values
            arrays[s.name] = _integers(values) if s.dtype == "int32" else np.array(values, s.dtype)
        elif s.name in columns:
            cells = columns[s.name]
            cells = np.moveaxis(cells, 0, -1) if len(s.axes) == 3 else cells[0]
            # ids and ranks: 0xFFFFFFFF is -1
            arrays[s.name] = cells.view(np.int32) if cells.dtype == np.uint32 else cells
    meta = dict(manifest["meta"])
    meta.update({k: head[k] for k in _IN_HEAD if head.get(k) is not None})
    if meta.get("positions") is True:
        meta["positions"] = list(range(len(pieces)))
    for key in ("positions", "special_ids"):
        _integers(meta.get(key) or [])
    for key, text in (meta.get("vocab_bytes") or {}).items():
        _integers([int(key), *bytes.fromhex(text)])
    return Reading(pieces=pieces, layers=layers, **arrays, vocab=vocab, meta=meta)


def _columns(
    manifest: Mapping[str, Any], blocks: Mapping[str, bytes], L: int, T: int
) -> dict[str, np.ndarray]:
    """Every field as (slot, layer, position), from all tiles.

    The sizes are compared with the bytes at hand before anything is inflated.
    """
    layout = [
        (name, kind, 1 if per == 1 else int(manifest["shape"][per]))
        for name, kind, per in manifest["fields"]
    ]
    tile, names = int(manifest["tile"]), list(manifest["tiles"])
    if tile < 1 or len(names) != -(-T // tile) or any(slots < 0 for _, _, slots in layout):
        raise FormatError("the page's data are damaged (its sizes do not fit together)")
    per_position = L * sum(slots * fields.MOST_BYTES[kind] for _, kind, slots in layout)
    if per_position * T > _ROOM + _RATIO * sum(len(blocks[name]) for name in names):
        raise FormatError(
            f"the page's data are damaged ({L} layers × {T} positions, too few bytes for them)"
        )
    parts: dict[str, list[np.ndarray]] = {name: [] for name, _, _ in layout}
    for index, tile_name in enumerate(names):
        rows = min(tile, T - index * tile)
        data, at, array = (
            inflate(blocks[tile_name], rows * per_position, f"tile {tile_name}"),
            0,
            None,
        )
        for name, kind, slots in layout:
            array, used = fields.unpack(data, at, kind, (slots, L, rows), array)
            parts[name].append(array)
            at += used
        if at != len(data):
            raise FormatError(f"tile {tile_name} holds {len(data)} bytes, its fields need {at}")
    return {name: np.concatenate(arrays, -1) for name, arrays in parts.items()}


def _integers(values: Any) -> np.ndarray:
    array = np.array(values)
    if array.size and (array.dtype.kind != "i" or np.abs(array).max() >= 1 << 31):
        raise FormatError("the page's data are damaged (an id or a position is not a number)")
    return array.astype(np.int32)


def _texts(values: Any) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise FormatError("the page's data are damaged (a token or a layer is not text)")
    return values


def _prefix(name: str) -> str:
    return name.partition("_")[0]


def _fields(reading: Reading) -> dict[str, tuple[np.ndarray, str, str | int]]:
    """Every array of cells as (slot, layer, position), its type and what its slots are.

    Log-probabilities come before the ranks of the same tokens, which are stored in their order.
    """
    K = reading.shape[2]
    cells = [s for s in statistics.TABLE if s.per_cell and s.name not in _IN_SCRIPT]
    prefixes = list(dict.fromkeys(_prefix(s.name) for s in cells))
    out: dict[str, tuple[np.ndarray, str, str | int]] = {}
    for s in sorted(cells, key=lambda s: (prefixes.index(_prefix(s.name)), s.name)):
        dtype, kind = _stored_as(s, K)
        array = s.derive(reading) if s.derive else getattr(reading, s.name)
        out[s.name] = _by_slot(array, dtype), kind, s.axes[2:] or 1
    ranks_LTK = tied_ranks(reading.top_logprobs)
    if K <= 255 and (ranks_LTK != np.arange(1, K + 1)).any():
        out["top_ranks"] = _by_slot(ranks_LTK, np.uint8), "u8", "K"
    return out


def _stored_as(s: Statistic, K: int) -> tuple[type[np.generic], str]:
    """The numpy type and the type in `fields` of an array of cells."""
    if s.name.endswith("_ids"):
        return np.uint32, "recent" if K <= 254 else "u32"
    if s.name.endswith("_ranks"):
        return np.uint32, "rank"
    if s.name.endswith("_logprobs"):
        return np.float16, "f16-k" if s.axes == "LTK" else "f16-l"
    # nats span a few decades; of other units nothing is known
    return (np.float16, "f16") if s.unit == "nats" else (np.float32, "f32")


def _by_slot(array: np.ndarray, dtype: type) -> np.ndarray:
    """(L, T[, slot]) as (slot, L, T)."""
    array = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
    with np.errstate(over="ignore"):  # below -65504 nats float16 says -inf, which is as unlikely
        return array.astype(dtype)


def json_text(value: Any) -> str:
    """Compact JSON in UTF-8; a lone surrogate, which UTF-8 does not have, stays an escape."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return _SURROGATE.sub(lambda m: f"\\u{ord(m[0]):04x}", text)


def packed(data: bytes) -> bytes:
    """`data` as gzip without a time stamp.

    Byte planes are 3 to 5 % smaller with few matches and small blocks (the 5: memory level) than by
    `gzip.compress`; level 9 would win 0.4 % more and take three times as long.
    """
    packer = zlib.compressobj(6, zlib.DEFLATED, 31, 5, zlib.Z_FILTERED)
    return packer.compress(data) + packer.flush()


def _head(reading: Reading) -> dict[str, Any]:
    ids = sorted(int(i) for i in reading.vocab)
    fragments = reading.meta.get("vocab_bytes") or {}
    return {
        "arrays": {
            s.name: getattr(reading, s.name).tolist()
            for s in statistics.stored()
            if not (s.per_cell or s.absent(reading))
        },
        "pieces": [
            None if reading.vocab.get(int(i)) == piece else piece
            for i, piece in zip(reading.ids, reading.pieces)
        ],
        "special": sorted(words.special_ids(reading)),
        "roles": words.roles(reading),
        "vocab": {
            "ids": np.diff(ids, prepend=0).tolist(),
            "pieces": [reading.vocab[i] for i in ids],
            "bytes": {str(i): str(b) for i, b in fragments.items()},
        },
        **{k: plain(reading.meta[k]) for k in _IN_HEAD if k in reading.meta},
        **_positions(reading),
    }


def _positions(reading: Reading) -> dict[str, Any]:
    """Numbers of the positions in the prompt; true where every one was read."""
    positions = reading.meta.get("positions")
    whole = positions == list(range(len(reading.ids)))
    return {"positions": True} if whole else {}


def _ranges(reading: Reading) -> dict[str, list[float]]:
    """[low, high] of each statistic: where the colour scale ends (5 % of cells may lie beyond)."""
    out: dict[str, list[float]] = {}
    for s in statistics.TABLE:
        if not s.color or s.scale == "yes or no" or s.name in _IN_SCRIPT:
            continue
        values = s.derive(reading) if s.derive else getattr(reading, s.name)
        values = values[..., 0] if values.ndim == 3 else values
        values = values[counted(reading)]
        values = values[np.isfinite(values) & ((s.scale != "rank") | (values > 0))]
        if values.size:
            low, high = np.quantile(values.astype(np.float64), [0.05, 0.95], method="nearest")
            out[s.name] = [float(f"{low:.4g}"), float(f"{high:.4g}")]
    return out
