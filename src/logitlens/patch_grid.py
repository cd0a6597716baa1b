"""`PatchGrid`: how much of one prompt's answer each patched cell brings back in another.

    grid = model.patch_grid("The Eiffel Tower is in the city of", "The Colosseum is in the city of",
                            " Paris", versus=" Rome")
    print(grid)                      # layer × position
    grid.restored[grid.row(5), -1]   # 0: as corrupted, 1: as clean
    grid.save("grid.json")           # by suffix: .html .json .png .svg .pdf .txt

Needs numpy only, as a `Reading` does.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from logitlens.errors import FormatError, PromptError
from logitlens.files import write_result
from logitlens.schema import matches, parse_json
from logitlens.select import select_layers

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

FORMAT, VERSION = "logitlens.patch_grid", 1
SUFFIXES = (".html", ".json", ".png", ".svg", ".pdf", ".txt")
Doubles = NDArray[np.float64]
_FIELDS: dict[str, Any] = {
    "layers": [str], "positions": [int], "pieces": [str], "clean_pieces": [str],
    "logits": [[float]], "logprobs": [[float]], "clean": {"logit": float, "logprob": float},
    "corrupted": {"logit": float, "logprob": float}, "vocab": {str: str}, "token": int,
    "versus": (int, None), "meta": {str: object},
}  # fmt: skip


class PatchGrid:
    """What a corrupted prompt says when one cell of its stream is taken from a clean one.

    layers                L labels of the rows: the layer patched, or `0.attn`, … of a sublayer
    positions, pieces     (T,) the columns: places in the prompts, and the corrupted prompt's tokens
    clean_pieces          (T,) the clean prompt's tokens there
    logits                (L, T) float64: the logit of `token`, minus that of `versus`, with that cell
                          patched
    logprobs              (L, T) float64: log-probability of `token`, nats
    clean, corrupted      `logit` and `logprob` of the two prompts as they are
    token, versus         ids; versus is None where there is none
    meta                  model, prompts, stream, check, …

    Raises FormatError where the fields do not fit together.
    """

    def __init__(
        self,
        *,
        layers: Sequence[str],
        positions: Sequence[int],
        pieces: Sequence[str],
        clean_pieces: Sequence[str],
        logits: ArrayLike,
        logprobs: ArrayLike,
        clean: Mapping[str, float],
        corrupted: Mapping[str, float],
        token: int,
        versus: int | None,
        vocab: Mapping[int, str],
        meta: Mapping[str, Any],
    ):
        self.layers, self.positions = list(layers), list(positions)
        self.pieces, self.clean_pieces = list(pieces), list(clean_pieces)
        shape = len(self.layers), len(self.positions)
        if not all(shape) or {len(self.pieces), len(self.clean_pieces)} != {shape[1]}:
            raise FormatError("a PatchGrid needs layers, and positions with their pieces")
        self.logits = _frozen(logits, shape, "logits")
        self.logprobs = _frozen(logprobs, shape, "logprobs")
        self.clean, self.corrupted = dict(clean), dict(corrupted)
        self.token, self.versus, self.vocab = token, versus, dict(vocab)
        self.meta: dict[str, Any] = dict(meta)

    @property
    def restored(self) -> Doubles:
        """(L, T) how much of the clean logit a patch brings back: 0 as corrupted, 1 as clean."""
        return _share(self.logits, self.clean["logit"], self.corrupted["logit"])

    @property
    def restored_prob(self) -> Doubles:
        """(L, T) the same of the token's probability."""
        ends = np.exp(self.clean["logprob"]), np.exp(self.corrupted["logprob"])
        return _share(np.exp(self.logprobs), float(ends[0]), float(ends[1]))

    @property
    def differ(self) -> bool:
        """Whether the two prompts give different logits; else `restored` is nan everywhere."""
        return self.clean["logit"] != self.corrupted["logit"]

    def row(self, layer: int | str) -> int:
        """Where a layer is along the arrays' first axis. Raises PromptError."""
        rows = select_layers(layer, self.layers)
        if len(rows) != 1:
            raise PromptError(f"expected one layer, got {layer!r}")
        return rows[0]

    def piece(self, token: int) -> str:
        """The display piece of a token id; `⟨id⟩` for one without text."""
        return self.vocab.get(token, f"⟨{token}⟩")

    # -- saving, loading, seeing ----------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write atomically, by suffix: .html .json .png .svg .pdf .txt. Returns the path.

        Raises FormatError for another suffix, OSError, and MissingExtra without matplotlib.
        """
        return write_result(self, path, SUFFIXES)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> PatchGrid:
        """Read a .json file. Raises FormatError (truncated, foreign, newer), OSError."""
        try:
            return PatchGrid.from_dict(parse_json(Path(path).read_bytes(), "the file"))
        except FormatError as error:
            raise FormatError(f"{path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary, the content of a .json file."""
        fields = {name: getattr(self, name) for name in _FIELDS}
        fields |= {name: getattr(self, name).tolist() for name in ("logits", "logprobs")}
        fields["vocab"] = {str(i): piece for i, piece in sorted(self.vocab.items())}
        return {"format": FORMAT, "version": VERSION, **fields}

    @staticmethod
    def from_dict(data: Any) -> PatchGrid:
        """The inverse of `to_dict`. Raises FormatError."""
        matches(data, {"format": str, "version": int}, "the file")
        if data["format"] != FORMAT or data["version"] != VERSION:
            raise FormatError(
                f"expected a file of {FORMAT}, version {VERSION}; found {data['format'][:60]!r}, "
                f"version {data['version']}"
            )
        matches(data, _FIELDS, "the file")
        if not all(i.isascii() and i.isdigit() for i in data["vocab"]):
            raise FormatError("the vocabulary has an id that is no whole number")
        fields = {name: data[name] for name in _FIELDS if name != "vocab"}
        return PatchGrid(**fields, vocab={int(i): p for i, p in data["vocab"].items()})

    def to_pandas(self) -> pandas.DataFrame:
        """A pandas DataFrame with one row for each cell. Raises MissingExtra."""
        try:
            import pandas
        except ImportError as error:
            from logitlens.errors import MissingExtra

            raise MissingExtra("pandas", "data", "to_pandas()") from error
        L, T = self.logits.shape
        return pandas.DataFrame(
            {
                "layer": np.repeat(self.layers, T),
                "position": np.tile(self.positions, L),
                "piece": self.pieces * L,
                "logit": self.logits.reshape(-1),
                "logprob": self.logprobs.reshape(-1),
                "restored": self.restored.reshape(-1),
            }
        )

    def figure(self) -> Figure:
        """The grid as a matplotlib heatmap: layers down, positions across. Raises MissingExtra."""
        return importlib.import_module("logitlens.view.patches").figure(self)

    def __str__(self) -> str:
        return importlib.import_module("logitlens.view.patches").text(self)

    def __repr__(self) -> str:
        L, T = self.logits.shape
        return f"PatchGrid({self.piece(self.token)!r} · {L} layers × {T} positions)"


def _share(values: Doubles, clean: float, corrupted: float) -> Doubles:
    """nan where the two prompts do not differ."""
    span = clean - corrupted
    return (values - corrupted) / span if span else np.full_like(values, np.nan)


def _frozen(values: ArrayLike, shape: tuple[int, int], name: str) -> Doubles:
    try:
        array = np.array(values, dtype=np.float64)
    except ValueError as error:
        raise FormatError(f"{name} has rows of several lengths") from error
    if array.shape != shape or np.isnan(array).any():
        raise FormatError(f"{name} has shape {array.shape}: expected {shape}, of numbers")
    array.flags.writeable = False
    return array
