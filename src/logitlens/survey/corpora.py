"""Windows of a corpus → the table of a shard: packed by length, every lens, a row for each band."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from logitlens.lenses import Lens
from logitlens.model.lens_model import LensModel
from logitlens.model.score import Asked, Rows
from logitlens.storage import Storage
from logitlens.survey import documents
from logitlens.survey.bands import Bands, schema
from logitlens.survey.cells import CELLS, cell_columns
from logitlens.survey.conditions import column
from logitlens.survey.measure import Part, read_all

if TYPE_CHECKING:
    import pyarrow as pa

    from logitlens.model.edits import Prepared


TOGETHER = 16  # windows added up in one step


def measure(
    model: LensModel,
    place: Storage,
    windows: documents.Windows,
    shard: tuple[int, int],
    lenses: dict[str, Lens],
    *,
    depths: list[int] | None,
    token_budget: int,
    cells: bool,
    top: int,
    conditions: dict[str, str],
    edits: Prepared | None = None,
    among: int = 0,
) -> Part:
    """Read the windows of a shard. Raises UnsupportedModel where a last row is not the model's own."""
    model._look_again()
    mine = [windows.window(n) for n in range(*shard)]
    start, stop = mine[0].start, mine[-1].stop
    # One token more, where the document goes on: the one that follows the last position.
    ids = documents.ids(place, start, stop + (mine[-1].stop < mine[-1].end))
    asked = [_asked(window, ids[window.start - start :]) for window in mine]
    inside = sorted({window.document for window in mine})
    sums: dict[str, Bands] = {}
    kept: dict[str, dict[int, Rows]] = {name: {} for name in lenses}
    remarks: list[str] = []
    nonfinite = 0
    read = read_all(
        model, asked, list(lenses.values()), depths, token_budget, remarks, top if cells else 1,
        edits, among,
    )  # fmt: skip
    while some := list(islice(read, TOGETHER)):
        for name, each in zip(lenses, zip(*(rows for _, rows in some))):
            if name not in sums:
                sums[name] = Bands(each[0].layers, windows.length, inside)
            sums[name].add([(mine[n], rows.arrays) for (n, _), rows in zip(some, each)])
            if cells:
                kept[name] |= {n: rows for (n, _), rows in zip(some, each)}
        nonfinite += sum(not all(each.arrays["finite"].all() for each in rows) for _, rows in some)
    columns: dict[str, list[Any]] = {}
    for name, found in sums.items():
        for key, values in found.columns(name).items():
            columns.setdefault(key, []).extend(values)
    import pyarrow as pa

    rows = None
    if cells:
        said = documents.conditions(place, inside[0], inside[-1])
        rows = _with_conditions(_cells(model, mine, ids, start, kept), inside[0], said, conditions)
    return Part(
        pa.table(columns, schema=schema(list(columns))), len(mine), sum(len(a.ids) for a in asked),
        nonfinite=nonfinite, remarks=remarks, cells=rows,
    )  # fmt: skip


def _asked(window: documents.Window, ids: np.ndarray) -> Asked:
    """Every counted position of a window, and the token that follows it."""
    T = window.stop - window.start
    after_T = ids[1 : T + 1] if window.stop < window.end else np.append(ids[1:T], -1)
    targets_PM = after_T[window.context :, None].astype(np.int64)
    return Asked(ids[:T].tolist(), list(range(window.context, T)), targets_PM)


def _cells(
    model: LensModel,
    windows: Sequence[documents.Window],
    ids: np.ndarray,
    start: int,
    kept: dict[str, dict[int, Rows]],
) -> pa.Table:
    """A row for each document × position × lens × layer, in this order of windows and lenses."""
    import pyarrow as pa

    types = {name: _type(kind) for name, kind in CELLS.items()}
    batches = []
    for n, window in enumerate(windows):
        mine = ids[window.start - start : window.stop - start + 1].tolist()
        for lens, rows in kept.items():
            columns = cell_columns(model, lens, window, rows[n], mine)
            arrays = [_array(columns[name], kind) for name, kind in types.items()]
            batches.append(pa.record_batch(arrays, names=list(types)))
    return pa.Table.from_batches(batches)


def _with_conditions(
    cells: pa.Table, first: int, said: list[dict[str, Any]], conditions: dict[str, str]
) -> pa.Table:
    """With a column for the origin and each condition of the documents, which are those from `first` on. A
    text is kept once, however many rows it has."""
    import pyarrow as pa

    document_R = pa.array(cells["document"].to_numpy() - first)
    for name, kind in {documents.ORIGIN: "string", **conditions}.items():
        each = column([facts.get(name) for facts in said], kind)
        each = each.dictionary_encode() if kind == "string" else each
        cells = cells.append_column(name, each.take(document_R))
    return cells


def _type(kind: str) -> pa.DataType:
    import pyarrow as pa

    plain = pa.type_for_alias(kind.removeprefix("list "))
    return pa.list_(plain) if kind.startswith("list ") else plain


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    import pyarrow as pa

    if pa.types.is_list(kind):
        rows, width = values.shape
        flat = pa.array(values.reshape(-1), kind.value_type)
        return pa.ListArray.from_arrays(np.arange(rows + 1, dtype=np.int32) * width, flat)
    if isinstance(values, np.ndarray):
        return pa.array(values, kind, from_pandas=True)
    return pa.array(values, kind)
