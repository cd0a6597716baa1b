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

import gzip
import json
import re
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from logitlens import statistics
from logitlens.errors import FormatError
from logitlens.reading import Reading
from logitlens.reading_io import _plain as plain
from logitlens.statistics import Statistic
from logitlens.view.page import fields, words

FORMAT = "logitlens-page"
VERSION = 3
TILE = 256
TILE_ABOVE = 10_000_000

_SURROGATE = re.compile("[\ud800-\udfff]")
# Facts that the head carries in a denser form than the provenance.
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
    tile = T if size <= TILE_ABOVE else TILE
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
    except (LookupError, ValueError, TypeError, EOFError, OSError, zlib.error) as error:
        raise FormatError(f"the page's data are damaged ({error})") from error


def _decode(manifest: Mapping[str, Any], blocks: Mapping[str, bytes]) -> Reading:
    shape = manifest["shape"]
    L, T = int(shape["L"]), int(shape["T"])
    head = json.loads(gzip.decompress(blocks[manifest["head"]]))
    columns: dict[str, list[np.ndarray]] = {name: [] for name, _, _ in manifest["fields"]}
    for index, name in enumerate(manifest["tiles"]):
        rows = min(int(manifest["tile"]), T - index * int(manifest["tile"]))
        data, at, array = gzip.decompress(blocks[name]), 0, None
        for field, kind, per in manifest["fields"]:
            array, used = fields.unpack(data, at, kind, (int(shape.get(per, 1)), L, rows), array)
            columns[field].append(array)
            at += used
        if at != len(data):
            raise FormatError(f"tile {name} holds {len(data)} bytes, its fields need {at}")
    lists = head.get("arrays") or {new: head[old] for new, old in _LISTS.items()}
    arrays: dict[str, Any] = {}
    for s in statistics.stored():
        if s.name in lists:
            arrays[s.name] = np.array(lists[s.name], s.dtype)
        elif s.name in columns:
            whole = np.concatenate(columns[s.name], -1)
            cells = np.moveaxis(whole, 0, -1) if len(s.axes) == 3 else whole[0]
            # ids and ranks: 0xFFFFFFFF is -1
            arrays[s.name] = cells.view(np.int32) if cells.dtype == np.uint32 else cells
    meta = dict(manifest["meta"])
    meta.update({k: head[k] for k in _IN_HEAD if head.get(k) is not None})
    if meta.get("positions") is True:
        meta["positions"] = list(range(T))
    vocab = dict(zip(np.cumsum(head["vocab"]["ids"]).tolist(), head["vocab"]["pieces"]))
    pieces = zip(arrays["ids"].tolist(), head["pieces"])
    return Reading(
        pieces=[vocab[i] if piece is None else piece for i, piece in pieces],
        layers=list(manifest.get("layers") or manifest["depths"]),
        **arrays,
        vocab=vocab,
        meta=meta,
    )


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


def tied_ranks(top_logprobs: np.ndarray) -> np.ndarray:
    """(L, T, K) rank of each slot: 1 + number of strictly greater values before it."""
    K = top_logprobs.shape[-1]
    places = np.arange(1, K + 1, dtype=np.int32)
    tied = np.zeros(top_logprobs.shape, bool)
    tied[..., 1:] = top_logprobs[..., 1:] == top_logprobs[..., :-1]
    # A tied slot has the rank of the first of its run.
    return np.maximum.accumulate(np.where(tied, 0, places), axis=-1)


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

    These settings (small blocks, few matches) make byte planes 3 to 5 % smaller than `gzip.compress`.
    """
    packer = zlib.compressobj(9, zlib.DEFLATED, 31, 5, zlib.Z_FILTERED)
    return packer.compress(data) + packer.flush()


def _head(reading: Reading) -> dict[str, Any]:
    ids = sorted(int(i) for i in reading.vocab)
    fragments = reading.meta.get("vocab_bytes") or {}
    return {
        "arrays": {
            s.name: getattr(reading, s.name).tolist() for s in statistics.stored() if not s.per_cell
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
        values = values[np.isfinite(values) & ((s.scale != "rank") | (values > 0))]
        if values.size:
            low, high = np.quantile(values.astype(np.float64), [0.05, 0.95], method="nearest")
            out[s.name] = [float(f"{low:.4g}"), float(f"{high:.4g}")]
    return out
