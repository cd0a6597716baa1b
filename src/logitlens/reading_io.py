"""Readings as JSON and Parquet: nothing lost, and one clear line for a file that is not one.

JSON holds the fields under their own names; missing numbers are null, infinities the strings "inf"
and "-inf". Parquet holds one row for each layer × position, so that any tool can query it, with the
rest (ids, pieces, vocabulary, meta) as JSON in the schema's metadata.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from logitlens import statistics
from logitlens.errors import FormatError, MissingExtra
from logitlens.files import replacing, write_text
from logitlens.reading import Reading
from logitlens.schema import INFLATION, matches, parse_json
from logitlens.statistics import Statistic

if TYPE_CHECKING:
    import pandas
    import pyarrow

FORMAT = "logitlens.reading"
_FOREIGN = "this Parquet file was not written by logitlens (no reading in its header)"
VERSION = 2  # 1 called the layers depths

_LABELS = ("pieces", "layers", "vocab", "meta")
_HEADER = {
    "layers": [str], "pieces": [str], "vocab": {str: str}, "meta": {str: object},
    **{f"{s.name}?": [str] for s in statistics.stored() if s.dtype == "str"},
}  # fmt: skip


def save(reading: Reading, path: Path) -> None:
    """Write .json or .parquet, whole or not at all."""
    if path.suffix.lower() == ".json":
        write_text(path, json.dumps(to_dict(reading), ensure_ascii=False, allow_nan=False) + "\n")
        return
    table = to_arrow(reading)
    import pyarrow.parquet as pq

    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def load(path: Path) -> Reading:
    """Read .json or .parquet. Raises FormatError or OSError, each in one line."""
    suffix = path.suffix.lower()
    if suffix not in (".json", ".parquet"):
        raise FormatError(
            f"cannot load {str(path)!r}: expected a .json, .parquet or .html file of a reading"
        )
    if not path.is_file():
        raise FileNotFoundError(f"no reading at {path}")
    try:
        return _load_json(path) if suffix == ".json" else _load_parquet(path)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error


def to_dict(reading: Reading) -> dict[str, Any]:
    """The JSON-able content of a reading."""
    out: dict[str, Any] = {"format": FORMAT, "version": VERSION}
    out["meta"] = _plain(reading.meta)
    out["layers"] = list(reading.layers)
    out["pieces"] = list(reading.pieces)
    for statistic in statistics.stored():
        if statistic.absent(reading):
            continue
        array = getattr(reading, statistic.name)
        out[statistic.name] = _floats_out(array) if statistic.is_float else array.tolist()
    out["vocab"] = {str(i): piece for i, piece in sorted(reading.vocab.items())}
    return out


def from_dict(data: Mapping[str, Any]) -> Reading:
    """The inverse of `to_dict`. Raises FormatError."""
    matches(data, {"format": object, "version": object}, "the reading")
    _require_ours(data["format"], data["version"])
    data = _renamed(data)
    required = [s.name for s in statistics.stored() if not s.optional]
    missing = [name for name in (*required, *_LABELS) if name not in data]
    if missing:
        raise FormatError(f"the reading lacks {', '.join(missing)}: the file is damaged")
    matches(data, _HEADER, "the reading")
    try:
        sizes = {"L": len(data["layers"]), "T": len(data["pieces"])}
        arrays = {
            statistic.name: _array_in(data[statistic.name], statistic, sizes)
            for statistic in statistics.stored()
            if statistic.name in data
        }
        return Reading(
            **arrays,
            pieces=data["pieces"],
            layers=data["layers"],
            vocab=_vocab(data["vocab"]),
            meta=data["meta"],
        )
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"the reading's fields do not fit together ({error})") from error


def to_arrow(reading: Reading) -> pyarrow.Table:
    """One row for each layer × position; the rest in the schema's metadata."""
    pa = _pyarrow()
    L, T, _ = reading.shape
    columns: dict[str, Any] = {
        "layer": pa.array([label for label in reading.layers for _ in range(T)]),
        "row": pa.array(np.repeat(np.arange(L, dtype=np.int32), T)),
        "position": pa.array(np.tile(np.array(reading.positions, np.int32), L)),
        "piece": pa.array(list(reading.pieces) * L),
        "word": pa.array([word for row in reading.words for word in row]),
    }
    for statistic in statistics.stored():
        array = getattr(reading, statistic.name)
        if not statistic.per_cell:
            if not statistic.axes.startswith("T") or statistic.absent(reading):
                continue  # in the header
            array = np.broadcast_to(array, (L, *array.shape))
        if array.ndim == 2:
            columns[_column(statistic)] = pa.array(array.reshape(-1))
        elif array.shape[-1]:
            flat = pa.array(np.ascontiguousarray(array).reshape(-1))
            columns[_column(statistic)] = pa.FixedSizeListArray.from_arrays(flat, array.shape[-1])
    header = {
        "format": FORMAT,
        "version": VERSION,
        "layers": list(reading.layers),
        "pieces": list(reading.pieces),
        **{
            statistic.name: getattr(reading, statistic.name).tolist()
            for statistic in statistics.stored()
            if statistic.axes[0] not in "LT"
        },
        "vocab": {str(i): piece for i, piece in sorted(reading.vocab.items())},
        "meta": _plain(reading.meta),
    }
    table = pa.table(columns)
    return table.replace_schema_metadata({FORMAT: json.dumps(header, ensure_ascii=False)})


def from_arrow(table: pyarrow.Table) -> Reading:
    """The inverse of `to_arrow`. Raises FormatError."""
    raw = (table.schema.metadata or {}).get(FORMAT.encode())
    if raw is None:
        raise FormatError(_FOREIGN)
    header = _header(raw)
    L, T = len(header["layers"]), len(header["pieces"])
    if table.num_rows != L * T:
        raise FormatError(
            f"expected {L} layers × {T} positions = {L * T} rows, found {table.num_rows}"
        )

    # Tools that query Parquet may hand rows back in another order.
    row = "row" if "row" in table.column_names else "depth_row"  # its name in version 1
    place = [(name, "ascending") for name in (row, "position")]
    if set(table.column_names) >= {name for name, _ in place}:
        table = table.sort_by(place)

    def column(name: str) -> np.ndarray:
        chunk = table.column(name).combine_chunks()
        if hasattr(chunk, "flatten") and str(chunk.type).startswith("fixed_size_list"):
            return chunk.flatten().to_numpy(zero_copy_only=False).reshape(L, T, -1)
        return chunk.to_numpy(zero_copy_only=False).reshape(L, T)

    try:
        arrays: dict[str, Any] = {}
        for statistic in statistics.stored():
            name = _column(statistic)
            if name in table.column_names:
                cells = column(name)
                arrays[statistic.name] = cells if statistic.per_cell else cells[0]
            elif statistic.axes[0] not in "LT":
                arrays[statistic.name] = np.array(header[statistic.name], statistic.dtype)
            elif statistic.axes[-1] in "CM":  # of no tokens, which Parquet has no column for
                shape = [{"L": L, "T": T}.get(axis, 0) for axis in statistic.axes]
                arrays[statistic.name] = np.zeros(shape, statistic.dtype)
        return Reading(
            **arrays,
            pieces=header["pieces"],
            layers=header["layers"],
            vocab=_vocab(header["vocab"]),
            meta=header["meta"],
        )
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"the reading's columns do not fit together ({error})") from error


def _header(raw: bytes) -> Mapping[str, Any]:
    """A Parquet file's own part: everything but the cells. Raises FormatError."""
    header = parse_json(raw, "the reading's header")
    matches(header, {"format": object, "version": object}, "the header")
    _require_ours(header["format"], header["version"])
    header = _renamed(header)
    lists = {s.name: [int] for s in statistics.stored() if s.axes[0] not in "LT"}
    matches(header, {**_HEADER, **lists}, "the header")
    return header


def _vocab(pieces: Mapping[str, str]) -> dict[int, str]:
    strange = next((i for i in pieces if not re.fullmatch("-?[0-9]{1,11}", i)), None)
    if strange is not None:
        raise FormatError(f"the vocabulary has an id {strange[:40]!r}: expected a whole number")
    return {int(i): piece for i, piece in pieces.items()}


def frame_of(table: pyarrow.Table) -> pandas.DataFrame:
    """A table as a pandas DataFrame. Raises MissingExtra."""
    try:
        import pandas  # noqa: F401
    except ImportError as error:
        raise MissingExtra("pandas", "data", "to_pandas()") from error
    return table.to_pandas()


def _load_json(path: Path) -> Reading:
    data = parse_json(path.read_bytes(), "the file")
    if not isinstance(data, dict):
        raise FormatError(f"expected a reading, found a JSON {type(data).__name__}")
    return from_dict(data)


def _load_parquet(path: Path) -> Reading:
    pa = _pyarrow()
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            raw = (file.metadata.metadata or {}).get(FORMAT.encode())
            if raw is None:
                raise FormatError(_FOREIGN)
            header = _header(raw)
            rows = len(header["layers"]) * len(header["pieces"])
            if file.metadata.num_rows != rows:  # before anything of that size is made
                raise FormatError(f"expected {rows} rows, found {file.metadata.num_rows}")
            groups = range(file.metadata.num_row_groups)
            size = sum(file.metadata.row_group(i).total_byte_size for i in groups)
            if size > INFLATION * path.stat().st_size + (1 << 20):
                raise FormatError(f"its columns inflate to {size:,} bytes")
            return from_arrow(file.read())
    except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError) as error:
        if isinstance(error, FormatError):
            raise
        first_line = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise FormatError(f"not Parquet, or cut short ({first_line})") from error


def _require_ours(name: Any, version: Any) -> None:
    if name != FORMAT:
        raise FormatError(f"expected a file of format {FORMAT!r}, found {str(name)[:60]!r}")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise FormatError(f"expected format version 1 to {VERSION}, found {str(version)[:60]!r}")
    if version > VERSION:
        raise FormatError(
            f"written in format version {version}, this logitlens reads up to {VERSION}: "
            "pip install --upgrade logitlens"
        )


def _renamed(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Map names of version 1 to the current ones."""
    if data.get("version") == 1 and "depths" in data:
        return {"layers" if key == "depths" else key: value for key, value in data.items()}
    return data


def _column(statistic: Statistic) -> str:
    """Its column in Parquet; of what there is one of for each position, in the singular."""
    return statistic.name.removesuffix("s") if statistic.axes == "T" else statistic.name


def _array_in(raw: Any, statistic: Statistic, sizes: Mapping[str, int]) -> np.ndarray:
    array = _floats_in(raw) if statistic.is_float else np.array(raw, statistic.dtype)
    if array.size == 0:  # nested lists of nothing do not say how many axes they have
        return np.zeros([sizes.get(axis, 0) for axis in statistic.axes], statistic.dtype)
    return array


def _floats_out(array: np.ndarray) -> Any:
    """Nested lists of numbers that give the same float32 back; nan → None, ±inf → strings."""

    def out(value: float) -> Any:
        if math.isfinite(value):
            return float(f"{value:.9g}")  # nine digits name every float32
        return None if math.isnan(value) else ("inf" if value > 0 else "-inf")

    flat = [out(value) for value in array.reshape(-1).tolist()]
    for size in reversed(array.shape[1:]):
        flat = [flat[i : i + size] for i in range(0, len(flat), size)] if size else []
    return flat


def _floats_in(nested: Any) -> np.ndarray:
    return np.array(nested, dtype=object).astype(np.float64).astype(np.float32)


def _plain(value: Any) -> Any:
    """`meta` with numpy scalars and tuples turned into what JSON has."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise MissingExtra("pyarrow", "data", "reading and writing Parquet") from error
    return pyarrow
