"""`VectorTable`: the tokens that directions of the stream raise and lower most.

    table = model.read_vectors(model.weights("mlp_out", block=5), layer=5, top=5)
    print(table)                 # one line for each vector
    table.to_pandas()

Needs numpy only, as a `Reading` does.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas
    import pyarrow


class VectorTable:
    """What N vectors say, each read as a row of the stream.

    top_ids, top_logits   (N, K) int32, float32: the tokens with the largest logits, largest first
    low_ids, low_logits   (N, K) the same of the vector's opposite; K = 0 where it was not read
    vocab                 id → display piece, for every id that occurs
    meta                  model, layer, lens, whether the norm was applied
    """

    def __init__(
        self,
        *,
        top_ids: NDArray[np.int32],
        top_logits: NDArray[np.float32],
        low_ids: NDArray[np.int32],
        low_logits: NDArray[np.float32],
        vocab: Mapping[int, str],
        meta: Mapping[str, Any],
    ):
        self.top_ids, self.top_logits = top_ids, top_logits
        self.low_ids, self.low_logits = low_ids, low_logits
        self.vocab, self.meta = dict(vocab), dict(meta)
        for array in (top_ids, top_logits, low_ids, low_logits):
            array.flags.writeable = False

    def __len__(self) -> int:
        return len(self.top_ids)

    def piece(self, token: int) -> str:
        """The display piece of a token id; `⟨id⟩` for one without text."""
        return self.vocab.get(token, f"⟨{token}⟩")

    def words(self, row: int, *, low: bool = False) -> list[str]:
        """The top tokens of one vector, or of its opposite."""
        return [self.piece(int(i)) for i in (self.low_ids if low else self.top_ids)[row]]

    def to_arrow(self) -> pyarrow.Table:
        """A pyarrow Table with one row for each vector. Raises MissingExtra without pyarrow."""
        from logitlens.reading_io import _pyarrow

        pa = _pyarrow()
        columns: dict[str, Any] = {"vector": np.arange(len(self), dtype=np.int64)}
        for name in ("top", "low"):
            ids = getattr(self, f"{name}_ids")
            if not ids.shape[1]:
                continue
            size = ids.shape[1]
            for what, array in (("ids", ids), ("logits", getattr(self, f"{name}_logits"))):
                flat = pa.array(np.ascontiguousarray(array).reshape(-1))
                columns[f"{name}_{what}"] = pa.FixedSizeListArray.from_arrays(flat, size)
            columns[f"{name}_words"] = [[self.piece(i) for i in row] for row in ids.tolist()]
        return pa.table(columns)

    def to_pandas(self) -> pandas.DataFrame:
        """A pandas DataFrame with one row for each vector. Raises MissingExtra."""
        from logitlens.reading_io import frame_of

        return frame_of(self.to_arrow())

    def __str__(self) -> str:
        return importlib.import_module("logitlens.view.vectors").text(self)

    def __repr__(self) -> str:
        N, K = self.top_ids.shape
        return f"VectorTable({N} vectors × top {K} · {self.meta.get('model', 'model unknown')})"
