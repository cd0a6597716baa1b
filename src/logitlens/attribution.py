"""`Attribution`: what every component added to one logit, summing to the model's own.

    found = model.attribute("The Eiffel Tower is in the city of", " Paris", versus=" Rome")
    print(found)                      # a waterfall: bars that sum to a line
    found.part("3.mlp")               # what the MLP of block 3 added to it
    found.save("eiffel.parquet")      # by suffix: .html .json .parquet .png .svg .pdf .txt

Needs numpy only, as a `Reading` does.
"""

from __future__ import annotations

import importlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from logitlens.errors import FormatError, PromptError
from logitlens.files import write_result
from logitlens.schema import INFLATION, matches, parse_json
from logitlens.select import layer_number

if TYPE_CHECKING:
    import pandas
    import pyarrow
    from matplotlib.figure import Figure

    from logitlens.reading import Reading

FORMAT, VERSION = "logitlens.attribution", 1
SUFFIXES = (".html", ".json", ".parquet", ".png", ".svg", ".pdf", ".txt")
BY = ("sublayer", "layer", "head", "token", "expert")
META = {
    "logits": [float], "finished": [float], "bound": float, "scale?": float,
    "softcap?": (float, None), "slopes?": [float], "router?": {str: float}, "by?": str, "model?": (str, None),
    "prompt?": (str, None), "ids?": [int], "position?": int, "piece?": str,
}  # fmt: skip
"""What `Attribution.meta` holds; other entries may be anything."""

Doubles = NDArray[np.float64]


class Attribution:
    """What C components added to the logit of one token, or of one token minus another.

    components    C labels in the order in which they act: `embed`, `0.attn`, `0.mlp`, … and the
                  biases after the last block; by layer: `embed`, `0`, `1`, …
    token_parts   (C,) float64: added to the token's logit, before a softcap
    versus_parts  (C,) the same for the other token; zeros where there is none
    token, versus ids; versus is None where there is none
    vocab         id → display piece of both
    meta          `logits`: the model's own, of token and versus; `finished`: what softcap and final
                  bias make of the two sums; `bound`: how far rounding may move them apart; `scale`,
                  `softcap`, `slopes` (of the softcap at the two logits); `router`: the router's weight
                  of each expert; model, prompt, position, …

    With the final norm's statistics held at the row's own values, everything after the last block is
    linear up to the softcap: the parts are exact, and their sum is the model's logit. Raises
    FormatError where the fields do not fit together.
    """

    def __init__(
        self,
        *,
        components: Sequence[str],
        token_parts: ArrayLike,
        versus_parts: ArrayLike | None,
        token: int,
        versus: int | None,
        vocab: Mapping[int, str],
        meta: Mapping[str, Any],
    ):
        matches(components, [str], "components")
        matches(meta, META, "meta")
        self.components = list(components)
        self.token, self.versus, self.vocab = token, versus, dict(vocab)
        self.meta: dict[str, Any] = dict(meta)
        C = len(self.components)
        self.token_parts = _frozen(token_parts, C, "token_parts")
        none = np.zeros(C) if versus_parts is None else versus_parts
        self.versus_parts = _frozen(none, C, "versus_parts")
        count = 1 if versus is None else 2
        for name in ("logits", "finished"):
            if len(self.meta[name]) != count:
                raise FormatError(f"meta[{name!r}] needs {count} numbers, one for each token")
        if not C or len(set(self.components)) < C:
            raise FormatError("an Attribution needs components, each with a name of its own")

    # -- derived, not stored ------------------------------------------------------------------

    @property
    def parts(self) -> Doubles:
        """(C,) what each component added to the logit, or to the difference of the two."""
        return self.token_parts - self.versus_parts

    @property
    def sum(self) -> float:
        """The sum of the parts: the logit before a softcap, or the difference of two."""
        return float(self.parts.sum())

    @property
    def logit(self) -> float:
        """The model's own logit of the token, or of the token minus the other."""
        return _minus(self.meta["logits"])

    @property
    def finished(self) -> float:
        """What a softcap makes of the sum; the sum itself where there is none."""
        return _minus(self.meta["finished"])

    @property
    def difference(self) -> float:
        """The model's own logit minus what the parts make: float error, within `meta["bound"]`."""
        return self.logit - self.finished

    def part(self, component: str) -> float:
        """What one component added. Raises PromptError for a component that there is not."""
        if component not in self.components:
            raise PromptError(
                f"no component {component!r}: expected one of {', '.join(self.components[:6])}, …"
            )
        return float(self.parts[self.components.index(component)])

    def largest(self, n: int = 10) -> list[tuple[str, float]]:
        """The n components with the largest parts, up or down."""
        order = np.argsort(-np.abs(self.parts), kind="stable")[:n]
        return [(self.components[i], float(self.parts[i])) for i in order]

    def added_to(self, reading: Reading) -> Reading:
        """The reading with its largest components in `meta["attributions"]`.

        The page's card, of a file without a model too, then says who wrote this token after this
        position. Every format of a reading keeps them. Raises PromptError for a reading of another
        prompt, model or edits, or without the position.
        """
        ids, position = self.meta.get("ids", []), self.meta.get("position", -1)
        if position not in reading.positions:
            raise PromptError(f"the reading does not have position {position}, which is attributed")
        pairs = zip(reading.positions, reading.ids.tolist())
        if any(p < len(ids) and ids[p] != i for p, i in pairs if p <= position):
            raise PromptError("the attribution is of another prompt than the reading")
        for name, other in (("model", "another model"), ("edits", "other edits")):
            if self.meta.get(name) != reading.meta.get(name):
                raise PromptError(f"the attribution is of {other} than the reading")
        new = {"position": position, "id": self.token, **self.summary()}
        before = [
            old for old in reading.meta.get("attributions", [])
            if (old["position"], old["id"]) != (position, self.token)
        ]  # fmt: skip
        return reading.replace(meta={**reading.meta, "attributions": [*before, new]})

    def summary(self, n: int = 12) -> dict[str, Any]:
        """What the page shows: the n largest components, and what they all sum to."""
        largest = self.largest(n)
        return {
            "token": self.piece(self.token),
            "versus": None if self.versus is None else self.piece(self.versus),
            "parts": [[name, value] for name, value in largest],
            "rest": self.sum - sum(value for _, value in largest),
            "others": len(self.components) - len(largest),
            "sum": self.sum,
            "logit": self.logit,
            "difference": self.difference,
        }

    def piece(self, token: int) -> str:
        """The display piece of a token id; `⟨id⟩` for one without text."""
        return self.vocab.get(token, f"⟨{token}⟩")

    def equals(self, other: Attribution) -> bool:
        """Whether every field is the same, bit for bit."""
        return self.to_dict() == other.to_dict()

    # -- saving and loading -------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str], *, top: int = 24) -> Path:
        """Write atomically, by suffix: .html .json .parquet .png .svg .pdf .txt. Returns the path.

        top   in pictures and text, components beyond the `top` largest are one bar; .json and .parquet
              hold all

        Raises FormatError for another suffix, OSError, and MissingExtra for .parquet without pyarrow
        and for pictures without matplotlib.
        """
        return write_result(
            self, path, SUFFIXES, text=lambda: _waterfall().text(self, top=top),
            figure=lambda: self.figure(top=top),
        )  # fmt: skip

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Attribution:
        """Read a .json or .parquet file. Raises FormatError (truncated, foreign, newer), OSError."""
        source = Path(path)
        suffix = source.suffix.lower()
        if suffix not in (".json", ".parquet"):
            raise FormatError(f"cannot load {str(path)!r}: expected a .json or .parquet file")
        try:
            if suffix == ".json":
                return Attribution.from_dict(parse_json(source.read_bytes(), "the file"))
            return Attribution.from_dict(_parquet(source))
        except FormatError as error:
            raise FormatError(f"{path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary, the content of a .json file."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "meta": self.meta,
            "token": self.token,
            "versus": self.versus,
            "vocab": {str(i): piece for i, piece in sorted(self.vocab.items())},
            "components": self.components,
            "token_parts": self.token_parts.tolist(),
            "versus_parts": None if self.versus is None else self.versus_parts.tolist(),
        }

    @staticmethod
    def from_dict(data: Any) -> Attribution:
        """The inverse of `to_dict`. Raises FormatError."""
        matches(data, {"format": str, "version": int}, "the file")
        if data["format"] != FORMAT:
            raise FormatError(f"expected a file of {FORMAT}, found {data['format'][:60]!r}")
        if data["version"] != VERSION:
            raise FormatError(
                f"written in format version {data['version']}, this logitlens reads {VERSION}: "
                "pip install --upgrade logitlens"
            )
        matches(data, _FIELDS, "the file")
        if not all(i.isascii() and i.isdigit() for i in data["vocab"]):
            raise FormatError("the vocabulary has an id that is no whole number")
        fields = {name: data[name] for name in _FIELDS if name != "vocab"}
        return Attribution(**fields, vocab={int(i): p for i, p in data["vocab"].items()})

    def to_arrow(self) -> pyarrow.Table:
        """A pyarrow Table with one row for each component; the rest in the schema's metadata.

        Raises MissingExtra.
        """
        from logitlens.reading_io import _pyarrow

        pa = _pyarrow()
        names = self.components
        columns = {
            "component": names,
            "layer": pa.array([layer_number(name) for name in names], pa.int32()),
            "part": self.parts,
            "token_part": self.token_parts,
            "versus_part": self.versus_parts,
        }
        header = {k: v for k, v in self.to_dict().items() if not k.endswith("parts")}
        return pa.table(columns).replace_schema_metadata({FORMAT: json.dumps(header)})

    def to_pandas(self) -> pandas.DataFrame:
        """A pandas DataFrame with one row for each component. Raises MissingExtra."""
        from logitlens.reading_io import frame_of

        return frame_of(self.to_arrow())

    # -- seeing -------------------------------------------------------------------------------

    def figure(self, *, top: int = 24) -> Figure:
        """The waterfall as a matplotlib Figure; components beyond the `top` largest are one bar.

        Raises MissingExtra.
        """
        return _waterfall().figure(self, top=top)

    def __str__(self) -> str:
        return _waterfall().text(self)

    def __repr__(self) -> str:
        versus = "" if self.versus is None else f" − {self.piece(self.versus)!r}"
        return (
            f"Attribution({self.piece(self.token)!r}{versus} · {len(self.components)} components "
            f"sum to {self.sum:.4f} · the model's own logit: {self.logit:.4f})"
        )


def _waterfall() -> Any:
    """The view, imported when somebody looks."""
    return importlib.import_module("logitlens.view.waterfall")


_FIELDS: dict[str, Any] = {
    "meta": META, "token": int, "versus": (int, None), "vocab": {str: str},
    "components": [str], "token_parts": [float], "versus_parts": ([float], None),
}  # fmt: skip


def _frozen(values: ArrayLike, C: int, name: str) -> Doubles:
    array = np.array(values, dtype=np.float64)
    if array.shape != (C,) or not np.isfinite(array).all():
        raise FormatError(f"{name} needs {C} finite numbers, one for each component")
    array.flags.writeable = False
    return array


def _minus(pair: Sequence[float]) -> float:
    return float(pair[0]) if len(pair) == 1 else float(pair[0]) - float(pair[1])


def _parquet(path: Path) -> dict[str, Any]:
    """A Parquet file as the dictionary it was made from. Raises FormatError, OSError."""
    from logitlens.reading_io import _pyarrow

    pa = _pyarrow()
    import pyarrow.parquet as pq

    if not path.is_file():
        raise FileNotFoundError(f"no attribution at {path}")
    try:
        with pq.ParquetFile(path) as file:
            raw = (file.metadata.metadata or {}).get(FORMAT.encode())
            if raw is None:
                raise FormatError("this Parquet file is no attribution (none in its header)")
            data = parse_json(raw, "the header")
            groups = range(file.metadata.num_row_groups)
            size = sum(file.metadata.row_group(i).total_byte_size for i in groups)
            if size > INFLATION * path.stat().st_size + (1 << 20):
                raise FormatError(f"its columns inflate to {size:,} bytes")
            table = file.read(["component", "token_part", "versus_part"])
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        if isinstance(error, FormatError):
            raise
        text = " ".join(str(error).split())[:120]
        raise FormatError(f"not Parquet, or cut short ({text})") from error
    matches(data, {"versus?": (int, None)}, "the header")
    names, token, versus = (table.column(i).to_pylist() for i in range(3))
    if any(value is None or not math.isfinite(value) for value in (*token, *versus)):
        raise FormatError("its parts are not all finite numbers")
    versus = None if data.get("versus") is None else versus
    return {**data, "components": names, "token_parts": token, "versus_parts": versus}
