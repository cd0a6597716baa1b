"""The page's data format, version 1: a Reading as a manifest and gzip'd blocks, and back.

    manifest, blocks = encode(reading)          # JSON-able dict, {name: bytes}
    decode(manifest, blocks)                    # the Reading again, log-probabilities rounded to f16

`blocks["head"]` is gzip'd JSON: input ids and pieces, tracked ids, and the fragment of the vocabulary
that occurs (ids as steps from one to the next, pieces, bytes of those that are not text). The other
blocks are tiles of positions; inside one, the fields named in `manifest["fields"]` follow each other,
little-endian, each an array over (position, depth[, slot]):

    f16   IEEE half precision, byte-shuffled (first all low bytes, then all high bytes); nan = missing
    u32   byte-shuffled in the same way; 0xFFFFFFFF = missing
    u8    plain
    ref   ids: one byte for each value, 0 = the next literal, j = the same id as slot j - 1 of the
          depth before; then the literals as u32

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

from logitlens.errors import FormatError
from logitlens.reading import Reading
from logitlens.reading_io import _plain as plain
from logitlens.view import page_words

FORMAT = "logitlens-page"
VERSION = 1
TILE = 256
TILE_ABOVE = 10_000_000
MISSING = 0xFFFFFFFF

_SURROGATE = re.compile("[\ud800-\udfff]")
# Facts that the head carries in a denser form than the provenance.
_IN_HEAD = ("positions", "vocab_bytes", "special_ids")


def encode(reading: Reading, prefix: str = "") -> tuple[dict[str, Any], dict[str, bytes]]:
    """A reading as page data: (manifest, blocks), every block's name beginning with `prefix`.

    The same reading gives the same bytes. Log-probabilities, entropy and KL are rounded to float16;
    ids and ranks are exact. Ranks of the top k are stored only where exact ties make them differ
    from their places.
    """
    L, T, K = reading.shape
    M = len(reading.track_ids)
    fields = _fields(reading)
    size = sum(array.nbytes for array, _, _ in fields.values())
    tile = T if size <= TILE_ABOVE else TILE
    blocks = {prefix + "head": _gzip(json_text(_head(reading)).encode())}
    tiles: list[str] = []
    for start in range(0, T, tile):
        name = f"{prefix}{start}"
        parts = [_pack(a[start : start + tile], kind) for a, kind, _ in fields.values()]
        blocks[name] = _gzip(b"".join(parts))
        tiles.append(name)
    manifest = {
        "label": page_words.label(reading),
        "vocabulary": 0,
        "depths": list(reading.depths),
        "shape": {"L": L, "T": T, "K": K, "M": M},
        "head": prefix + "head",
        "tile": tile,
        "tiles": tiles,
        "fields": [[name, kind, per] for name, (_, kind, per) in fields.items()],
        "range": _ranges(reading),
        "about": page_words.about(reading),
        "meta": {k: v for k, v in plain(reading.meta).items() if k not in _IN_HEAD},
    }
    return manifest, blocks


def decode(manifest: Mapping[str, Any], blocks: Mapping[str, bytes]) -> Reading:
    """The reading that `encode` was given, with float fields rounded to float16.

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
    L, T, K, M = (int(shape[k]) for k in "LTKM")
    head = json.loads(gzip.decompress(blocks[manifest["head"]]))
    columns: dict[str, list[np.ndarray]] = {name: [] for name, _, _ in manifest["fields"]}
    for index, name in enumerate(manifest["tiles"]):
        rows = min(int(manifest["tile"]), T - index * int(manifest["tile"]))
        data, at = gzip.decompress(blocks[name]), 0
        for field, kind, per in manifest["fields"]:
            slots = {"K": K, "M": M}.get(per, 1)
            array, used = _unpack(data, at, kind, (rows, L, slots))
            columns[field].append(array)
            at += used
        if at != len(data):
            raise FormatError(f"tile {name} holds {len(data)} bytes, its fields need {at}")
    whole = {name: np.concatenate(parts).swapaxes(0, 1) for name, parts in columns.items()}
    meta = dict(manifest["meta"])
    meta.update({k: head[k] for k in _IN_HEAD if head.get(k) is not None})
    if meta.get("positions") is True:
        meta["positions"] = list(range(T))
    ids = np.cumsum(head["vocab"]["ids"]).tolist()
    return Reading(
        ids=np.array(head["ids"], np.int32),
        pieces=head["pieces"],
        depths=list(manifest["depths"]),
        top_ids=_signed(whole["top_ids"]),
        top_logprobs=whole["top_logprobs"].astype(np.float32),
        entropy=whole["entropy"][..., 0].astype(np.float32),
        kl=whole["kl"][..., 0].astype(np.float32),
        next_ids=np.array(head["next"], np.int32),
        next_logprobs=whole["next_logprobs"][..., 0].astype(np.float32),
        next_ranks=_signed(whole["next_ranks"][..., 0]),
        track_ids=np.array(head["track"], np.int32),
        track_logprobs=whole["track_logprobs"].astype(np.float32),
        track_ranks=_signed(whole["track_ranks"]),
        vocab=dict(zip(ids, head["vocab"]["pieces"])),
        meta=meta,
    )


def _fields(reading: Reading) -> dict[str, tuple[np.ndarray, str, str | int]]:
    """Every field as (T, L[, slots]) array, its type and what its slots are."""
    K = reading.shape[2]
    out: dict[str, tuple[np.ndarray, str, str | int]] = {
        "top_ids": (_by_position(reading.top_ids, np.uint32), "ref" if K <= 254 else "u32", "K"),
        "top_logprobs": (_by_position(reading.top_logprobs, np.float16), "f16", "K"),
        "entropy": (_by_position(reading.entropy, np.float16), "f16", 1),
        "kl": (_by_position(reading.kl, np.float16), "f16", 1),
        "next_logprobs": (_by_position(reading.next_logprobs, np.float16), "f16", 1),
        "next_ranks": (_by_position(reading.next_ranks, np.uint32), "u32", 1),
        "track_logprobs": (_by_position(reading.track_logprobs, np.float16), "f16", "M"),
        "track_ranks": (_by_position(reading.track_ranks, np.uint32), "u32", "M"),
    }
    ranks_LTK = tied_ranks(reading.top_logprobs)
    if K <= 255 and (ranks_LTK != np.arange(1, K + 1)).any():
        out["top_ranks"] = (_by_position(ranks_LTK, np.uint8), "u8", "K")
    return out


def tied_ranks(top_logprobs: np.ndarray) -> np.ndarray:
    """(L, T, K) rank of each slot: 1 + number of strictly greater values before it."""
    K = top_logprobs.shape[-1]
    places = np.arange(1, K + 1, dtype=np.int32)
    tied = np.zeros(top_logprobs.shape, bool)
    tied[..., 1:] = top_logprobs[..., 1:] == top_logprobs[..., :-1]
    # A tied slot has the rank of the first of its run.
    return np.maximum.accumulate(np.where(tied, 0, places), axis=-1)


def _by_position(array: np.ndarray, dtype: type) -> np.ndarray:
    with np.errstate(over="ignore"):  # below -65504 nats float16 says -inf, which is as unlikely
        return np.ascontiguousarray(array.swapaxes(0, 1).astype(dtype))


def _signed(array: np.ndarray) -> np.ndarray:
    return array.astype(np.uint32).view(np.int32)


def _pack(array: np.ndarray, kind: str) -> bytes:
    if kind != "ref":
        return _shuffle(array)
    before = np.zeros_like(array)
    before[:, 1:] = array[:, :-1]
    same = array[..., :, None] == before[..., None, :]  # (t, L, K, K): slot k is slot j of before
    same[:, 0] = False
    ops = np.where(same.any(-1), same.argmax(-1) + 1, 0).astype(np.uint8)
    return ops.tobytes() + _shuffle(array[ops == 0])


def _unpack(data: bytes, at: int, kind: str, shape: tuple[int, int, int]) -> tuple[np.ndarray, int]:
    """One field from `at` on: (array of `shape`, bytes used)."""
    count = shape[0] * shape[1] * shape[2]
    if kind == "ref":
        ops = np.frombuffer(data, np.uint8, count, at).reshape(shape)
        literal_count = int((ops == 0).sum())
        literals = _unshuffle(data, at + count, literal_count, np.dtype("<u4"))
        out = np.zeros(shape, np.uint32)
        out[ops == 0] = literals
        for depth in range(1, shape[1]):
            refer = ops[:, depth]
            taken = np.take_along_axis(out[:, depth - 1], np.maximum(refer, 1) - 1, axis=-1)
            out[:, depth] = np.where(refer > 0, taken, out[:, depth])
        return out, count + 4 * literal_count
    dtype = {"f16": np.dtype("<f2"), "u32": np.dtype("<u4"), "u8": np.dtype("u1")}[kind]
    return _unshuffle(data, at, count, dtype).reshape(shape), count * dtype.itemsize


def _shuffle(array: np.ndarray) -> bytes:
    flat = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).reshape(-1)
    return flat.view(np.uint8).reshape(-1, array.dtype.itemsize).T.tobytes()


def _unshuffle(data: bytes, at: int, count: int, dtype: np.dtype[Any]) -> np.ndarray:
    planes = np.frombuffer(data, np.uint8, count * dtype.itemsize, at)
    return np.ascontiguousarray(planes.reshape(dtype.itemsize, -1).T).view(dtype).reshape(-1)


def json_text(value: Any) -> str:
    """Compact JSON in UTF-8; a lone surrogate, which UTF-8 does not have, stays an escape."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return _SURROGATE.sub(lambda m: f"\\u{ord(m[0]):04x}", text)


def _gzip(data: bytes) -> bytes:
    return gzip.compress(data, 9, mtime=0)


def _head(reading: Reading) -> dict[str, Any]:
    ids = sorted(int(i) for i in reading.vocab)
    fragments = reading.meta.get("vocab_bytes") or {}
    return {
        "ids": reading.ids.tolist(),
        "next": reading.next_ids.tolist(),
        "pieces": list(reading.pieces),
        "track": reading.track_ids.tolist(),
        "special": sorted(page_words.special_ids(reading)),
        "roles": page_words.roles(reading),
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
    for name in ("top_logprobs", "entropy", "kl", "next_logprobs", "next_ranks"):
        values = getattr(reading, name)
        values = values[..., 0] if values.ndim == 3 else values
        values = values[np.isfinite(values) & ((name != "next_ranks") | (values > 0))]
        if values.size:
            low, high = np.quantile(values.astype(np.float64), [0.05, 0.95], method="nearest")
            out[name] = [float(f"{low:.4g}"), float(f"{high:.4g}")]
    return out
