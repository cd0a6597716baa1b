"""Edits: changes made to the residual stream while a model runs, as plain data.

    from logitlens import edit

    paris = model.direction(" Paris", versus=" Rome", layer=5)
    model.read(prompt, edits=[edit.add(paris, layer=5, positions=-1, scale=4.0)])
    model.read(prompt, edits=[edit.project_out(" Paris", layer=5)])         # a token's direction
    model.read(prompt, edits=[edit.swap(" Paris", " Rome", layer=5)])       # exchange two
    model.read(prompt, edits=[edit.ablate(3, "mlp")])                       # what a block adds: zero
    model.read(prompt, edits=[edit.patch("Rome is in", layer=5, positions=-1, from_positions=-1)])

`layer` and `positions` are chosen as everywhere (`logitlens.select`); positions=None is every position
of the prompt. A vector is an array (D,), or the text or id of a token, which stands for its direction
at that layer (`LensModel.direction`). Every edited reading is checked against the edited model's own
logits, and keeps its edits: `edit.load("reading.json")` gives them back.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from logitlens.errors import FormatError, PromptError
from logitlens.files import write_text
from logitlens.reading import Reading
from logitlens.schema import matches, parse_json
from logitlens.select import Selection

FORMAT, VERSION = "logitlens.edits", 1
KINDS = ("add", "project_out", "swap", "ablate", "patch")
STREAMS = ("resid", "attn", "mlp")
HOW = ("zero", "mean")

Floats = NDArray[np.float32]
Vector = Any  # an array (D,), or a token by its text or id


class HasRows(Protocol):
    """What `LensModel.capture` returns, as far as a patch needs it."""

    @property
    def h(self) -> Sequence[Any]: ...
    @property
    def layers(self) -> Sequence[str]: ...
    @property
    def stream(self) -> str: ...


@dataclass(frozen=True, eq=False)
class Edit:
    """One change, made by `add`, `project_out`, `swap`, `ablate` or `patch`.

    kind       which of them          layer      the layer whose output is changed; of a sublayer, the
    positions  of the prompt; None: all          block it belongs to
    generated  also at every position that the model writes itself
    scale      how much of the change is made: 0 is none
    vectors    directions (D,), or rows to patch in (N, D); a token's text or id stands for its own
    stream     "resid", or what a block's "attn" or "mlp" adds
    how        of an ablation: "zero" or "mean"
    source     of a patch: the prompt that rows are taken from, at `from_positions`
    model      the model it was saved with; None: not saved yet
    text       what it does, in words; None: found from the rest
    """

    kind: str
    layer: int | str
    positions: Any = None
    generated: bool = False
    scale: float = 1.0
    vectors: tuple[Any, ...] = ()
    stream: str = "resid"
    how: str = "zero"
    source: str | list[int] | None = None
    from_positions: Any = None
    model: str | None = None
    text: str | None = None

    def __repr__(self) -> str:
        return f"Edit({self})"

    def __str__(self) -> str:
        if self.text is not None:
            return self.text
        at = "" if self.positions is None else f" at {_shown(self.positions)}"
        at += " and generated" if self.generated else ""
        where = f"layer {self.layer}" if self.stream == "resid" else f"{self.layer}.{self.stream}"
        names = " and ".join(
            repr(v) if isinstance(v, (str, int)) else "a vector" for v in self.vectors
        )
        what = {
            "add": f"added {self.scale:g} × {names} after {where}",
            "project_out": f"projected {names} out of {where}",
            "swap": f"swapped {names} in {where}",
            "ablate": f"{where} set to {'zero' if self.how == 'zero' else 'its mean'}",
            "patch": f"{where} patched"
            + (f" from {str(self.source)[:40]!r}" if self.source is not None else ""),
        }[self.kind]
        share = f", {self.scale:g} of it" if self.scale != 1 and self.kind != "add" else ""
        return what + at + share


def add(
    vector: Vector,
    layer: int | str,
    positions: Selection = None,
    scale: float = 1.0,
    *,
    generated: bool = False,
) -> Edit:
    """Add `scale` times a vector to the stream after a layer. Raises PromptError."""
    return _checked(
        Edit("add", layer, _plain(positions), generated, float(scale), _vectors(vector))
    )


def project_out(
    direction: Vector,
    layer: int | str,
    positions: Selection = None,
    scale: float = 1.0,
    *,
    generated: bool = False,
) -> Edit:
    """Take out of the stream after a layer what it holds of a direction. Raises PromptError."""
    given = _vectors(direction)
    return _checked(Edit("project_out", layer, _plain(positions), generated, float(scale), given))


def swap(
    a: Vector,
    b: Vector,
    layer: int | str,
    positions: Selection = None,
    scale: float = 1.0,
    *,
    generated: bool = False,
) -> Edit:
    """Exchange the stream's coordinates along two directions, each taken at length 1.

    Raises PromptError.
    """
    return _checked(Edit("swap", layer, _plain(positions), generated, float(scale), _vectors(a, b)))


def ablate(
    block: int,
    stream: str,
    how: str = "zero",
    positions: Selection = None,
    *,
    generated: bool = False,
) -> Edit:
    """Replace what a block's "attn" or "mlp" adds to the stream by zero, or by its mean over the
    prompt's positions. Raises PromptError."""
    return _checked(Edit("ablate", block, _plain(positions), generated, stream=stream, how=how))


def patch(
    source: str | Sequence[int] | HasRows,
    layer: int | str,
    positions: Selection = None,
    from_positions: Selection = None,
    *,
    stream: str = "resid",
) -> Edit:
    """Put the rows of another run in the place of this one's, at a layer.

    source           a prompt, which is run for it unedited; or what `LensModel.capture` returned
    from_positions   of the source, as many as `positions`; None: the same

    Raises PromptError.
    """
    if hasattr(source, "h") and hasattr(source, "layers"):
        rows, stream = _rows(source, layer, from_positions or positions), source.stream  # type: ignore
        return _checked(Edit("patch", layer, _plain(positions), vectors=(rows,), stream=stream))
    text = source if isinstance(source, str) else [int(i) for i in source]  # type: ignore
    return _checked(
        Edit(
            "patch", layer, _plain(positions), stream=stream, source=text,
            from_positions=_plain(from_positions),
        )
    )  # fmt: skip


def control(edit: Edit, seed: int = 0) -> Edit:
    """The same edit with random directions of equal length: what any direction would do."""
    if edit.kind not in ("add", "project_out", "swap") or not all(
        isinstance(v, np.ndarray) for v in edit.vectors
    ):
        raise PromptError(f"no control for {edit}: expected an edit along vectors")
    random = np.random.default_rng(seed)
    out = []
    for v in edit.vectors:
        noise = random.standard_normal(v.shape).astype(np.float32)
        out.append(noise * np.float32(np.linalg.norm(v) / np.linalg.norm(noise)))
    return replace(edit, vectors=tuple(out))


# -- as text and as files -------------------------------------------------------------------------

_KEYS = (
    "layer", "block", "stream", "token", "versus", "a", "b", "positions", "scale", "how", "from",
    "prompt", "vector", "generated",
)  # fmt: skip
_SPLIT = re.compile(rf",(?=(?:{'|'.join(_KEYS)})=)")


def parse(text: str) -> list[Edit]:
    """Edits from one line, `add:layer=5,token= Paris,scale=4`, or from a .json file.

    add, project_out   layer, token or vector (a .npy file), positions, scale, generated
    swap               layer, a, b (tokens), positions, scale, generated
    ablate             block, stream (attn, mlp), how (zero, mean), positions, generated
    patch              layer, prompt, positions, from, stream

    Raises PromptError for a line, FormatError and OSError for a file.
    """
    if text.endswith((".json", ".parquet")):
        return load(text)
    kind, colon, rest = text.partition(":")
    if kind not in KINDS or not colon:
        raise PromptError(
            f"no edit {text[:60]!r}: expected one like 'add:layer=5,token= Paris,scale=4', of "
            f"{', '.join(KINDS)}, or a .json file"
        )
    given: dict[str, str] = {}
    for item in _SPLIT.split(rest):
        key, equals, value = item.partition("=")
        if key not in _KEYS or not equals:
            raise PromptError(f"cannot read {item[:60]!r} in {text[:60]!r}: expected key=value")
        given[key] = value
    try:
        return [_built(kind, given)]
    except KeyError as missing:
        raise PromptError(f"{text[:60]!r} lacks {missing.args[0]}=") from None
    except ValueError as error:
        raise (
            error if isinstance(error, PromptError) else PromptError(f"{text[:60]!r}: {error}")
        ) from None


def _built(kind: str, given: dict[str, str]) -> Edit:
    taken = {"add": "layer token vector positions scale generated",
             "project_out": "layer token vector positions scale generated",
             "swap": "layer a b positions scale generated",
             "ablate": "block stream how positions generated",
             "patch": "layer prompt positions from stream"}[kind].split()  # fmt: skip
    if strange := [key for key in given if key not in taken]:
        raise PromptError(f"{kind} takes {', '.join(taken)}, not {strange[0]}")
    where = {"positions": given.get("positions")}
    shared = {**where, "generated": given.get("generated", "no") in ("yes", "true", "1")}
    scale = float(given.get("scale", 1.0))
    if kind == "ablate":
        return ablate(int(given["block"]), given["stream"], given.get("how", "zero"), **shared)
    layer = given["layer"]
    if kind == "patch":
        stream = given.get("stream", "resid")
        return patch(
            given["prompt"], layer, from_positions=given.get("from"), stream=stream, **where
        )
    if kind == "swap":
        return swap(given["a"], given["b"], layer, scale=scale, **shared)
    if "vector" in given:
        vector: Any = np.load(given["vector"], allow_pickle=False)
    else:
        vector = given["token"]
    return {"add": add, "project_out": project_out}[kind](vector, layer, scale=scale, **shared)


def save(edits: Sequence[Edit], path: str | os.PathLike[str]) -> Path:
    """Write edits to a .json file, atomically."""
    target = Path(path)
    if target.suffix.lower() != ".json":
        raise FormatError(f"cannot save edits as {str(path)!r}: end it in .json")
    data = {"format": FORMAT, "version": VERSION, **to_data(edits)}
    write_text(target, json.dumps(data, ensure_ascii=False, allow_nan=False) + "\n")
    return target


def load(source: str | os.PathLike[str] | Reading) -> list[Edit]:
    """The edits of a reading, of a file of one (.json, .parquet), or of a file that `save` wrote.

    Raises FormatError, OSError.
    """
    if isinstance(source, Reading):
        return from_data(source.meta, source.meta.get("model"))
    path = Path(source)
    if path.suffix.lower() == ".json":
        try:
            data = parse_json(path.read_bytes(), "the file")
            matches(data, {"format": str}, "the file")
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
}  # fmt: skip
_ARRAY = {"shape": [int], "float32": str}


def to_data(edits: Sequence[Edit]) -> dict[str, Any]:
    """Edits as JSON-able data: `edits`, which name vectors by hash, and `vectors`."""
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
        }
        for e in edits
    ]  # fmt: skip
    return {"edits": rows, "vectors": arrays}


def from_data(data: Mapping[str, Any], model: str | None = None) -> list[Edit]:
    """The inverse of `to_data`. Raises FormatError."""
    schema = {"edits?": [_EDIT], "vectors?": {str: _ARRAY}}
    matches(data, schema, "the edits")
    arrays: dict[str, Floats] = {}
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
            out.append(_checked(Edit(**given, vectors=tuple(vectors), model=model)))
        except PromptError as error:
            raise FormatError(str(error)) from None
    return out


_FIELDS = (
    "kind", "layer", "positions", "generated", "scale", "stream", "how", "source", "from_positions",
    "text",
)  # fmt: skip
_COUNTS = {"add": (1,), "project_out": (1,), "swap": (2,), "ablate": (0,), "patch": (0, 1)}


def _checked(e: Edit) -> Edit:
    """The edit, where its parts make sense without a model. Raises PromptError."""
    if not np.isfinite(e.scale):
        raise PromptError(f"scale={e.scale}: expected a number")
    if e.stream not in STREAMS or (e.kind == "ablate" and e.stream == "resid"):
        wanted = STREAMS[1:] if e.kind == "ablate" else STREAMS
        raise PromptError(f"stream={e.stream!r}: expected one of {', '.join(wanted)}")
    if e.how not in HOW:
        raise PromptError(f"how={e.how!r}: expected zero or mean")
    if e.kind == "ablate" and isinstance(e.layer, str) and not e.layer.lstrip("-").isdigit():
        raise PromptError(f"no block {e.layer!r} to ablate: expected a number")
    count = len(e.vectors)
    if count not in _COUNTS[e.kind] or (e.kind == "patch" and not count and e.source is None):
        raise PromptError(f"{e.kind} has {count} vectors: expected {max(_COUNTS[e.kind])}")
    for v in e.vectors:
        if isinstance(v, np.ndarray):
            if v.ndim != (2 if e.kind == "patch" else 1) or not v.size:
                raise PromptError(f"a vector has shape {v.shape}: expected one dimension (D,)")
            if not np.isfinite(v).all():
                raise PromptError("a vector holds nan or inf: expected finite numbers")
            if e.kind in ("project_out", "swap") and not v.any():
                raise PromptError("a direction of zeros has no direction")
    return e


def _vectors(*given: Vector) -> tuple[Any, ...]:
    out = []
    for each in given:
        value: Any = each
        if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
            out.append(value)
            continue
        detach: Any = getattr(value, "detach", None)
        if detach is not None:  # a tensor
            value = detach().float().cpu().numpy()
        try:
            out.append(np.array(value, dtype=np.float32))
        except (TypeError, ValueError):
            raise PromptError(
                f"cannot take {type(value).__name__} for a vector: expected numbers, or a token"
            ) from None
    return tuple(out)


def _rows(source: Any, layer: int | str, positions: Selection) -> Floats:
    from logitlens.select import select_layers, select_positions

    (i,) = select_layers(layer, list(source.layers))
    h_TD = source.h[i]
    where = select_positions(positions, len(h_TD))
    return h_TD[where].detach().float().cpu().numpy()


def _plain(selection: Any) -> Any:
    """A selection as what JSON has: None, text, or a list."""
    if hasattr(selection, "tolist"):
        selection = selection.tolist()
    if isinstance(selection, slice):
        ends = (selection.start, selection.stop, selection.step)
        return ":".join("" if end is None else str(end) for end in ends).removesuffix(":")
    if selection is None or isinstance(selection, str):
        return selection
    return [int(selection)] if isinstance(selection, int) else list(selection)


def _shown(positions: Any) -> str:
    if isinstance(positions, list) and len(positions) <= 8:
        return f"position {', '.join(map(str, positions))}"
    return (
        f"{len(positions)} positions" if isinstance(positions, list) else f"positions {positions}"
    )
