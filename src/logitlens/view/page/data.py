"""The page's data format, version 3: a Reading as a manifest and gzip'd blocks, and back.

    manifest, blocks = encode(reading)          # JSON-able dict, {name: bytes}
    decode(manifest, blocks)                    # the Reading again, numbers in nats rounded to f16

`blocks["head"]` is gzip'd JSON: the arrays that have no layers (ids of the prompt, of the next and of
the tracked tokens), the pieces of the prompt, and the fragment of the vocabulary that occurs (ids as
steps from one to the next, pieces, bytes of those that are not text). A piece of the prompt is null
where it is its id's in the vocabulary. The other blocks are tiles of positions; inside one, the
fields named in `manifest["fields"]` follow each other as `fields` writes them.

A reading below `TILE_ABOVE` bytes is one tile; above, tiles of `TILE` positions are inflated when
they come into view. Half precision keeps 11 bits: a log-probability is within 0.05 % of its value.
The reader is web/src/format.ts; tests compare the two cell by cell.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from logitlens.errors import FormatError
from logitlens.reading import ARRAYS, Reading
from logitlens.reading_io import _plain as plain
from logitlens.view.page import fields, words

FORMAT = "logitlens-page"
VERSION = 3
TILE = 256
TILE_ABOVE = 10_000_000

_SURROGATE = re.compile("[\ud800-\udfff]")
# Facts that the head carries in a denser form than the provenance.
_IN_HEAD = ("positions", "vocab_bytes", "special_ids")
_LISTS = {"ids": "ids", "next_ids": "next", "track_ids": "track"}  # as version 2 called them


@dataclass(frozen=True)
class Statistic:
    """What the page can show in a cell.

    name       of the array in a Reading; of another one, `derive` computes it or, for those that
               are derived from the top tokens, the page does
    color      the name by which people choose it as a colour
    label      what a legend says, without the unit
    scale      how a colour runs: "probability" 0 … 1 (of a log-probability), "linear", "rank"
               logarithmic from 1, "yes or no"
    confident  which end means that the layer is sure of its answer; it is the bright one
    """

    name: str
    color: str
    label: str
    unit: str = ""
    scale: Literal["probability", "linear", "rank", "yes or no"] = "linear"
    confident: Literal["low", "high"] = "high"
    derive: Callable[[Reading], np.ndarray] | None = None


STATISTICS = [
    Statistic("top_logprobs", "prob", "probability of the top token", "nats", "probability"),
    Statistic("entropy", "entropy", "entropy", "nats", confident="low"),
    Statistic("kl", "kl", "KL to the final layer", "nats", confident="low"),
    Statistic("next_ranks", "rank", "rank of the token that follows", "rank", "rank", "low"),
    Statistic(
        "next_logprobs", "next", "probability of the token that follows", "nats", "probability"
    ),
    Statistic("final", "final", "rank of the final top token", "rank", "rank", "low"),
    Statistic("agree", "agree", "same top token as the final layer", "", "yes or no"),
]
# What the script finds in the top tokens by itself.
_IN_SCRIPT = ("final", "agree")


def statistics() -> list[dict[str, str]]:
    """What the page can show, for the manifest; it names no other statistic than these.

    `per` is "token" for the numbers of one token (those beside ids of the same prefix, and what is
    said of the top tokens), which a card has places for, and "cell" for all others.
    """
    return [
        {
            "name": s.color,
            "field": s.name,
            "label": s.label,
            "unit": s.unit,
            "scale": s.scale,
            "bright": s.confident,
            "per": "token"
            if _prefix(s.name) + "_ids" in ARRAYS or s.name in _IN_SCRIPT
            else "cell",
        }
        for s in STATISTICS
    ]


def encode(reading: Reading, prefix: str = "") -> tuple[dict[str, Any], dict[str, bytes]]:
    """A reading as page data: (manifest, blocks), every block's name beginning with `prefix`.

    The same reading gives the same bytes. Numbers in nats are rounded to float16; ids, ranks and
    other numbers are exact. Ranks of the top k are stored only where exact ties make them differ
    from their places.
    """
    L, T, K = reading.shape
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
        "shape": {"L": L, "T": T, "K": K, "M": len(reading.track_ids)},
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
    arrays: dict[str, Any] = {name: np.array(value, np.int32) for name, value in lists.items()}
    for name, parts in columns.items():
        if name in ARRAYS:
            whole = np.concatenate(parts, -1)
            dtype, axes = ARRAYS[name]
            arrays[name] = _cast(np.moveaxis(whole, 0, -1) if len(axes) == 3 else whole[0], dtype)
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


def _cast(array: np.ndarray, dtype: type[np.generic]) -> np.ndarray:
    return array.view(np.int32) if array.dtype == np.uint32 else array.astype(dtype)


def _prefix(name: str) -> str:
    return name.partition("_")[0]


def _fields(reading: Reading) -> dict[str, tuple[np.ndarray, str, str | int]]:
    """Every array of cells as (slot, layer, position), its type and what its slots are.

    Log-probabilities come before the ranks of the same tokens, which are stored in their order.
    """
    K = reading.shape[2]
    arrays = {name: axes for name, (_, axes) in ARRAYS.items() if axes.startswith("LT")}
    families = list(dict.fromkeys(map(_prefix, arrays)))
    out: dict[str, tuple[np.ndarray, str, str | int]] = {}
    for name in sorted(arrays, key=lambda name: (families.index(_prefix(name)), name)):
        array, per = getattr(reading, name), arrays[name][2:] or 1
        if name.endswith("_ids"):
            out[name] = _by_slot(array, np.uint32), "recent" if K <= 254 else "u32", per
        elif name.endswith("_ranks"):
            out[name] = _by_slot(array, np.uint32), "rank", per
        elif name.endswith("_logprobs"):
            out[name] = _by_slot(array, np.float16), "f16-k" if per == "K" else "f16-l", per
        else:
            out[name] = _number(array, next((s.unit for s in STATISTICS if s.name == name), ""))
    for s in STATISTICS:
        if s.derive is not None:
            out[s.name] = _number(s.derive(reading), s.unit)
    ranks_LTK = tied_ranks(reading.top_logprobs)
    if K <= 255 and (ranks_LTK != np.arange(1, K + 1)).any():
        out["top_ranks"] = _by_slot(ranks_LTK, np.uint8), "u8", "K"
    return out


def _number(array: np.ndarray, unit: str) -> tuple[np.ndarray, str, int]:
    """One number for each cell: half precision for nats, which span a few decades; else single."""
    return (
        (_by_slot(array, np.float16), "f16", 1)
        if unit == "nats"
        else (_by_slot(array, np.float32), "f32", 1)
    )


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
            name: getattr(reading, name).tolist()
            for name, (_, axes) in ARRAYS.items()
            if not axes.startswith("L")
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
    for s in STATISTICS:
        if s.scale == "yes or no" or s.name in _IN_SCRIPT:
            continue
        values = s.derive(reading) if s.derive else getattr(reading, s.name)
        values = values[..., 0] if values.ndim == 3 else values
        values = values[np.isfinite(values) & ((s.scale != "rank") | (values > 0))]
        if values.size:
            low, high = np.quantile(values.astype(np.float64), [0.05, 0.95], method="nearest")
            out[s.name] = [float(f"{low:.4g}"), float(f"{high:.4g}")]
    return out
