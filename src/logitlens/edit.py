"""Edits: changes made to the residual stream while a model runs, as plain data.

    from logitlens import edit

    paris = model.direction(" Paris", versus=" Rome", layer=5)
    model.read(prompt, edits=[edit.add(paris, layer=5, positions=-1, scale=4.0)])
    model.read(prompt, edits=[edit.project_out(" Paris", layer=5)])         # a token's direction
    model.read(prompt, edits=[edit.swap(" Paris", " Rome", layer=5)])       # exchange two
    model.read(prompt, edits=[edit.ablate(3, "mlp")])                       # what a block adds: zero
    model.read(prompt, edits=[edit.ablate(3, head=1)])                      # or one head's part of it
    model.read(prompt, edits=[edit.patch("Rome is in", layer=5, positions=-1, from_positions=-1)])

`layer` and `positions` are chosen as everywhere (`logitlens.select`); positions=None is every position
of the prompt. A vector is an array (D,), or the text or id of a token, which stands for its direction
at that layer (`LensModel.direction`). Every edited reading is checked against the edited model's own
logits, and keeps its edits: `edit.load("reading.json")` gives them back.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from logitlens.edit_data import ALONG, HOW, KINDS, STREAMS, Edit, checked
from logitlens.edit_io import FORMAT, VERSION, from_data, load, save, to_data
from logitlens.errors import InputError, PromptError
from logitlens.select import Selection, select_layer, select_positions

__all__ = [
    "ALONG", "FORMAT", "HOW", "KINDS", "STREAMS", "VERSION", "Edit", "Vector", "ablate", "add", "control",
    "from_data", "load", "parse",
    "patch", "project_out", "save", "swap", "to_data",
]  # fmt: skip

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


def add(
    vector: Vector,
    layer: int | str,
    positions: Selection = None,
    scale: float = 1.0,
    *,
    generated: bool = False,
) -> Edit:
    """Add `scale` times a vector to the stream after a layer.

    positions   of the prompt where it acts; None: all
    generated   whether it acts on tokens that the model writes, too

    Raises PromptError.
    """
    return checked(Edit("add", layer, _plain(positions), generated, scale, _vectors(vector)))


def project_out(
    direction: Vector,
    layer: int | str,
    positions: Selection = None,
    scale: float = 1.0,
    *,
    generated: bool = False,
) -> Edit:
    """Project a direction out of the stream after a layer (`scale` 1: all that it holds of it).

    positions, generated   as of `add`

    Raises PromptError.
    """
    given = _vectors(direction)
    return checked(Edit("project_out", layer, _plain(positions), generated, scale, given))


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

    scale                  1: exchange them; below: move each that share of the way
    positions, generated   as of `add`

    Raises PromptError.
    """
    return checked(Edit("swap", layer, _plain(positions), generated, scale, _vectors(a, b)))


def ablate(
    block: int,
    stream: str | None = None,
    how: str = "zero",
    positions: Selection = None,
    *,
    head: int | None = None,
    generated: bool = False,
) -> Edit:
    """Replace what a block's "attn" or "mlp" adds to the stream, or what one of its attention heads
    gives to the projection, by zero or by its mean over the prompt's positions. Raises PromptError."""
    stream = "head" if stream is None and head is not None else stream or "resid"
    return checked(
        Edit("ablate", block, _plain(positions), generated, stream=stream, how=how, head=head)
    )


def patch(
    source: str | Sequence[int] | HasRows,
    layer: int | str,
    positions: Selection = None,
    from_positions: Selection = None,
    *,
    stream: str = "resid",
    head: int | None = None,
) -> Edit:
    """Put the rows of another run in the place of this one's, at a layer.

    source           a prompt, which is run for it unedited; or what `LensModel.capture` returned
    from_positions   of the source, as many as `positions`; None: the same
    stream           the stream after a layer, or what its block's "attn" or "mlp" adds
    head             what one attention head of that block gives to the projection, of a prompt

    Raises PromptError.
    """
    stream = "head" if head is not None and stream == "resid" else stream
    if (head is not None and hasattr(source, "h")) or getattr(source, "stream", "") == "head":
        raise PromptError(
            "a head is patched from a prompt, not from residuals, which hold what heads add to the "
            "stream and not what they give to the projection: give its text or ids"
        )
    if hasattr(source, "h") and hasattr(source, "layers"):
        if stream not in ("resid", source.stream):  # type: ignore
            raise PromptError(f"stream={stream!r}: the residuals are those of {source.stream!r}")  # type: ignore
        chosen = positions if from_positions is None else from_positions
        rows, stream = _rows(source, layer, chosen), source.stream  # type: ignore
        return checked(Edit("patch", layer, _plain(positions), vectors=(rows,), stream=stream))
    try:
        text = source if isinstance(source, str) else [operator.index(i) for i in source]  # type: ignore
    except TypeError:
        raise PromptError(
            f"cannot patch from {type(source).__name__}: expected a prompt's text or token ids, or "
            "what capture returned"
        ) from None
    return checked(
        Edit(
            "patch", layer, _plain(positions), stream=stream, source=text,
            from_positions=_plain(from_positions), head=head,
        )
    )  # fmt: skip


def control(edit: Edit, seed: int = 0) -> Edit:
    """The same edit with random directions of equal length: what any direction would do.

    seed   of the directions. Raises PromptError for an edit that is along none.
    """
    along = isinstance(edit, Edit) and edit.kind in ALONG
    if not along or not all(isinstance(v, np.ndarray) for v in edit.vectors):
        raise PromptError(f"no control for {edit}: expected an edit along vectors")
    random = np.random.default_rng(seed)
    out = []
    for v in edit.vectors:
        noise = random.standard_normal(v.shape).astype(np.float32)
        out.append(noise * np.float32(np.linalg.norm(v) / np.linalg.norm(noise)))
    return replace(edit, vectors=tuple(out), text=f"{edit}, its direction replaced by a random one")


# -- as text -------------------------------------------------------------------------

_KEYS = (
    "layer", "block", "stream", "token", "versus", "a", "b", "positions", "scale", "how", "from",
    "prompt", "vector", "generated", "head",
)  # fmt: skip
_YES, _NO = ("yes", "true", "1"), ("no", "false", "0")
_SPLIT = re.compile(rf",(?=(?:{'|'.join(_KEYS)})=)")
_LIKE = "like 'add:layer=5,token= Paris,scale=4'"


def parse(text: str) -> list[Edit]:
    """Edits from one line, `add:layer=5,token= Paris,scale=4`, or from a .json file.

    add, project_out   layer, token or vector (a .npy file), positions, scale, generated
    swap               layer, a, b (tokens), positions, scale, generated
    ablate             block, stream (attn, mlp) or head, how (zero, mean), positions, generated
    patch              layer, prompt, positions, from, stream or head

    Raises PromptError for a line, InputError, FormatError and OSError for a file.
    """
    if not isinstance(text, str):
        raise PromptError(f"cannot read {type(text).__name__} as an edit: expected text, {_LIKE}")
    if text.endswith((".json", ".parquet")):
        return load(text)
    kind, colon, rest = text.partition(":")
    if kind not in KINDS or not colon:
        raise PromptError(
            f"no edit {text[:60]!r}: expected one {_LIKE}, of {', '.join(KINDS)}, or a .json file"
        )
    given: dict[str, str] = {}
    for item in _SPLIT.split(rest):
        key, equals, value = item.partition("=")
        if key not in _KEYS or not equals:
            raise PromptError(f"cannot read {item[:60]!r} in {text[:60]!r}: expected key=value")
        if key in given:
            raise PromptError(f"{key}= is given twice in {text[:60]!r}")
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
             "ablate": "block stream head how positions generated",
             "patch": "layer prompt positions from stream head"}[kind].split()  # fmt: skip
    if strange := [key for key in given if key not in taken]:
        raise PromptError(f"{kind} takes {', '.join(taken)}, not {strange[0]}")
    where = {"positions": given.get("positions")}
    generated = given.get("generated", "no")
    if generated not in (*_YES, *_NO):
        raise PromptError(f"generated={generated}: expected yes or no")
    shared = {**where, "generated": generated in _YES}
    scale = _number(given, "scale", float) if "scale" in given else 1.0
    head = _number(given, "head", int) if "head" in given else None
    if kind == "ablate":
        stream = given["stream"] if head is None else given.get("stream")
        how = given.get("how", "zero")
        return ablate(_number(given, "block", int), stream, how, head=head, **shared)
    layer = given["layer"]
    if kind == "patch":
        stream, start = given.get("stream", "resid"), given.get("from")
        return patch(
            given["prompt"], layer, from_positions=start, stream=stream, head=head, **where
        )
    if kind == "swap":
        return swap(given["a"], given["b"], layer, scale=scale, **shared)
    if "vector" in given and "token" in given:
        raise PromptError(f"{kind} takes token= or vector=, not both")
    if "vector" in given:
        vector: Any = _vector_in(given["vector"])
    else:
        vector = given["token"]
    return {"add": add, "project_out": project_out}[kind](vector, layer, scale=scale, **shared)


def _vector_in(path: str) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        why = " ".join(str(error).split())[:100]
        raise InputError(f"{path} is not a .npy file of numbers ({why})") from None


def _number(given: dict[str, str], key: str, kind: type) -> Any:
    try:
        return kind(given[key])
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise PromptError(f"{key}={given[key]}: expected {what}") from None


def _vectors(*given: Vector) -> tuple[Any, ...]:
    out = []
    for each in given:
        value: Any = each.item() if isinstance(each, np.generic) else each
        if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
            out.append(value)
            continue
        detach: Any = getattr(value, "detach", None)
        if detach is not None:  # a tensor
            try:
                value = detach().float().cpu().numpy()
            except (RuntimeError, TypeError):
                raise PromptError(
                    f"cannot take a tensor on {getattr(value, 'device', '?')} for a vector: "
                    "expected numbers"
                ) from None
        try:
            array = np.asarray(value)
        except ValueError:  # rows of several lengths
            array = np.empty(0, object)
        if array.dtype.kind not in "iuf":
            raise PromptError(
                f"cannot take {type(value).__name__} for a vector: expected numbers, or a token"
            )
        with np.errstate(over="ignore"):  # what is too large becomes inf, and is refused
            out.append(array.astype(np.float32))
    return tuple(out)


def _rows(source: Any, layer: int | str, positions: Selection) -> Floats:
    # Of a sublayer, the last row is the final residual, the base of comparisons.
    labels = list(source.layers) if source.stream == "resid" else list(source.layers[:-1])
    i = select_layer(layer, labels, int(source.layers[-1]) + 1)
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
    if not isinstance(selection, Iterable):
        return [selection]
    items = (item.tolist() if hasattr(item, "tolist") else item for item in selection)
    return [_plain(item) if isinstance(item, slice) else item for item in items]
