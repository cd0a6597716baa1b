"""Edits as files, and in a reading's meta: vectors by hash, and beside them."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitlens.edit_data import KINDS, Edit, checked
from logitlens.errors import FormatError, PromptError
from logitlens.files import write_text
from logitlens.reading import Reading
from logitlens.schema import matches, parse_json

FORMAT, VERSION = "logitlens.edits", 1
PLAN = "logitlens.survey"  # the format of a survey's plan.json


def save(edits: Sequence[Edit], path: str | os.PathLike[str]) -> Path:
    """Write edits to a .json file, atomically. Raises FormatError for another suffix, OSError."""
    target = Path(path)
    if target.suffix.lower() != ".json":
        raise FormatError(f"cannot save edits as {str(path)!r}: end it in .json")
    data = {"format": FORMAT, "version": VERSION, **to_data(edits)}
    write_text(target, json.dumps(data, ensure_ascii=False, allow_nan=False) + "\n")
    return target


def load(source: str | os.PathLike[str] | Reading) -> list[Edit]:
    """The edits of a reading, of a file of one (.json, .parquet), of a file that `save` wrote, or of a
    survey's plan.json.

    Raises FormatError, OSError.
    """
    if isinstance(source, Reading):
        return from_data(source.meta, source.meta.get("model"))
    path = Path(source)
    if path.suffix.lower() == ".json":
        try:
            data = parse_json(path.read_bytes(), "the file")
            matches(data, {"format": str}, "the file")
            if data["format"] == PLAN:
                matches(data, {"edits?": {str: object}}, "the file")
                kept = data.get("edits", {})
                return from_data(kept, kept.get("model"))
            if data["format"] == FORMAT:
                if data.get("version") != VERSION:
                    raise FormatError(f"expected format version {VERSION}")
                return from_data(data, data.get("model"))
        except FormatError as error:
            raise FormatError(f"{path}: {error}") from error
    return load(Reading.load(path))


_EDIT = {
    "kind": str, "layer": (int, str), "positions?": (None, str, [object]), "generated?": bool,
    "scale?": float, "vectors?": [(str, int, {"hash": str})], "stream?": str, "how?": str,
    "source?": (None, str, [int]), "from_positions?": (None, str, [object]), "text?": str,
    "head?": (None, int),
}  # fmt: skip
_ARRAY = {"shape": [int], "float32": str}


def to_data(edits: Sequence[Edit]) -> dict[str, Any]:
    """Edits as JSON-able data: `edits`, which name vectors by hash, and `vectors`.

    Raises PromptError for what is no edit.
    """
    if strange := [e for e in edits if not isinstance(e, Edit)]:
        raise PromptError(f"cannot save {type(strange[0]).__name__}: expected edits")
    arrays: dict[str, Any] = {}

    def plain(vector: Any) -> Any:
        if not isinstance(vector, np.ndarray):
            return vector
        raw = np.ascontiguousarray(vector, "<f4").tobytes()
        name = hashlib.sha256(raw).hexdigest()[:16]
        arrays[name] = {
            "shape": list(vector.shape),
            "float32": base64.b64encode(raw).decode("ascii"),
        }
        return {"hash": name}

    rows = [
        {
            "kind": e.kind, "layer": e.layer, "positions": e.positions, "generated": e.generated,
            "scale": e.scale, "vectors": [plain(v) for v in e.vectors], "stream": e.stream,
            "how": e.how, "source": e.source, "from_positions": e.from_positions, "text": str(e),
            **({"head": e.head} if e.head is not None else {}),
        }
        for e in edits
    ]  # fmt: skip
    return {"edits": rows, "vectors": arrays}


def from_data(data: Mapping[str, Any], model: str | None = None) -> list[Edit]:
    """The inverse of `to_data`. Raises FormatError."""
    schema = {"edits?": [_EDIT], "vectors?": {str: _ARRAY}}
    matches(data, schema, "the edits")
    arrays: dict[str, NDArray[np.float32]] = {}
    for name, stored in data.get("vectors", {}).items():
        try:
            raw = base64.b64decode(stored["float32"], validate=True)
            arrays[name] = np.frombuffer(raw, "<f4").astype(np.float32).reshape(stored["shape"])
        except ValueError as error:
            raise FormatError(f"the vector {name[:40]} is damaged ({error})") from None
        if hashlib.sha256(raw).hexdigest()[:16] != name:
            raise FormatError(f"the vector {name[:40]} is damaged: its hash is another")
    out = []
    for row in data.get("edits", []):
        if row["kind"] not in KINDS:
            raise FormatError(f"no edit {row['kind'][:40]!r}: expected one of {', '.join(KINDS)}")
        given = {key: row[key] for key in _FIELDS if key in row}
        vectors = []
        for v in row.get("vectors", []):
            if isinstance(v, Mapping) and v["hash"] not in arrays:
                raise FormatError(f"the vector {v['hash'][:40]} of an edit is missing")
            vectors.append(arrays[v["hash"]] if isinstance(v, Mapping) else v)
        try:
            out.append(checked(Edit(**given, vectors=tuple(vectors), model=model)))
        except PromptError as error:
            raise FormatError(str(error)) from None
    return out


_FIELDS = (
    "kind", "layer", "positions", "generated", "scale", "stream", "how", "source", "from_positions",
    "text", "head",
)  # fmt: skip
