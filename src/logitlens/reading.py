"""`Reading`: one prompt's statistics, a labelled numpy table with provenance.

Everything left of a Reading is torch; a Reading and every view of it need numpy only, so a run made
on a cluster opens on a laptop.

    reading = Reading.load("eiffel.parquet")
    reading.words[-1]              # what the model itself says after each token
    reading.first(" Paris")        # per position, the first layer whose top token it is
    reading.save("eiffel.html")    # by suffix: .json .parquet .html .png .svg .pdf .txt
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from logitlens import statistics
from logitlens.errors import FormatError, PromptError
from logitlens.schema import matches
from logitlens.select import Selection, layer_number, select_layers, select_positions
from logitlens.statistics import Statistic

if TYPE_CHECKING:  # views are found at call time, so that the border holds at import
    import pandas
    import pyarrow
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from logitlens.view.options import FigureOptions, FileOptions

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]

_DATA_SUFFIXES = (".json", ".parquet")
_FIGURE_SUFFIXES = (".png", ".svg", ".pdf")
SUFFIXES = (".html", *_FIGURE_SUFFIXES, ".txt", *_DATA_SUFFIXES)


class Reading:
    """What a model would say at L layers × T positions of one prompt.

    ids, pieces         (T,) int32, list[str]           tokens at the positions read
    role                (T,) str                        of a chat: whose words; "" in the template
    section             (T,) str                        "template", "content", "thinking", "answer"
    generated           (T,) bool                       written by the model itself
    layers              L labels: `embed`, `0`, … `N-1`; layer i is the output of block i, and the
                        last row is always the model's own
    top_ids             (L, T, K) int32                 the top tokens, likeliest first
    top_logprobs        (L, T, K) float32               natural log
    entropy             (L, T) float32                  nats
    kl                  (L, T) float32                  KL(final ‖ layer), nats: lost by stopping here
    next_ids            (T,) int32                      the token that really follows; −1: none
    next_logprobs       (L, T) float32                  nan: none follows
    next_ranks          (L, T) int32                    1 = likeliest; 0: none follows
    candidate_ids       (T, C) int32                    the C top tokens of the model's own last row,
    candidate_logprobs  (L, T, C) float32               followed through every layer; C = 0 where
    candidate_ranks     (L, T, C) int32                 they were not recorded
    track_ids           (M,) int32                      tokens asked for; −2, −3, …: sets of them, whose
                                                        members are in meta["track_sets"]
    track_logprobs      (L, T, M) float32
    track_ranks         (L, T, M) int32
    vocab               id → display piece, for every id that occurs
    meta                model, lens, versions, check … (JSON-able)

    The arrays are those of `logitlens.statistics.TABLE`, read-only. Raises FormatError where one is
    missing or unknown, or shapes do not fit together.
    """

    ids: Ints
    pieces: list[str]
    role: NDArray[np.str_]
    section: NDArray[np.str_]
    generated: NDArray[np.bool_]
    layers: list[str]
    top_ids: Ints
    top_logprobs: Floats
    entropy: Floats
    kl: Floats
    next_ids: Ints
    next_logprobs: Floats
    next_ranks: Ints
    candidate_ids: Ints
    candidate_logprobs: Floats
    candidate_ranks: Ints
    track_ids: Ints
    track_logprobs: Floats
    track_ranks: Ints
    vocab: dict[int, str]
    meta: dict[str, Any]

    def __init__(
        self,
        *,
        pieces: list[str],
        layers: list[str],
        vocab: dict[int, str],
        meta: dict[str, Any] | None = None,
        **arrays: ArrayLike,
    ):
        known = {statistic.name: statistic for statistic in statistics.stored()}
        if unknown := set(arrays) - set(known):
            raise FormatError(f"a Reading has no array called {sorted(unknown)[0]}")
        if missing := [n for n, s in known.items() if not s.optional and n not in arrays]:
            raise FormatError(f"a Reading needs {', '.join(missing)}")
        meta = dict(meta or {})
        matches(pieces, [str], "pieces")
        matches(layers, [str], "layers")
        matches(meta, META, "meta")
        if any(not 0 <= p < 1 << 31 for p in meta.get("positions") or ()):
            raise FormatError("meta['positions'] are not places in a prompt")
        if not isinstance(vocab, Mapping) or not all(
            isinstance(i, int) and isinstance(piece, str) for i, piece in vocab.items()
        ):
            raise FormatError("vocab is not a mapping of ids to text")
        if not pieces or not layers:
            raise FormatError("a Reading needs at least one layer and one position")
        fields: dict[str, Any] = {
            "pieces": pieces,
            "layers": layers,
            "vocab": vocab,
            "meta": meta,
        }
        sizes = {"T": len(pieces), "L": len(layers)}
        for name, statistic in known.items():
            if name not in arrays:  # an optional one: nothing was recorded
                fields[name] = np.zeros(
                    [sizes.get(axis, 0) for axis in statistic.axes], statistic.dtype
                )
                fields[name].flags.writeable = False
            else:
                fields[name] = _array(name, arrays[name], statistic, sizes)
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a Reading does not change: use replace({name}=…) for another one")

    def __getattr__(self, name: str) -> Any:
        if name == "depths":
            raise AttributeError("depths is now layers: layer 5 is the output of block 5")
        raise AttributeError(f"a Reading has no {name!r}")

    def __reduce__(self) -> tuple[Any, ...]:
        # Unpickled arrays would be writeable: pickled and copied readings are built again.
        return _rebuilt, (self.fields(),)

    def fields(self) -> dict[str, Any]:
        """Everything it is made of, by name: `Reading(**reading.fields())` is the same again."""
        names = ["pieces", "layers", "vocab", "meta", *(s.name for s in statistics.stored())]
        return {name: getattr(self, name) for name in names}

    def replace(self, **changes: Any) -> Reading:
        """Another Reading that differs in the fields given. Raises FormatError."""
        return Reading(**{**self.fields(), **changes})

    # -- derived, not stored ------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, int, int]:
        """(L, T, K): layers, positions, top tokens kept."""
        L, T, K = self.top_ids.shape
        return L, T, K

    @property
    def probs(self) -> Floats:
        """(L, T, K) probabilities of the top tokens."""
        return np.exp(self.top_logprobs)

    @property
    def words(self) -> list[list[str]]:
        """L lists of T pieces: the top token at each layer and position."""
        return [[self.piece(int(token)) for token in row] for row in self.top_ids[:, :, 0]]

    @property
    def prompt(self) -> str:
        """The text that was read, as far as it is known."""
        text = self.meta.get("prompt")
        return text if isinstance(text, str) else "".join(self.pieces)

    def piece(self, token: int) -> str:
        """The display piece of a token id; `⟨id⟩` for one without text."""
        return self.vocab.get(token, f"⟨{token}⟩")

    @property
    def track(self) -> list[str]:
        """(M,) the piece of every tracked token, and the name of every set of them."""
        return [self.piece(int(token)) for token in self.track_ids]

    @property
    def positions(self) -> list[int]:
        """(T,) the place of each column in the prompt, from 0."""
        numbers = self.meta.get("positions")
        if isinstance(numbers, list) and len(numbers) == len(self.pieces):
            return numbers
        return list(range(len(self.pieces)))

    def row(self, layer: int | str) -> int:
        """Where a layer is along the arrays' first axis: `reading.entropy[reading.row(5)]`.

        5 and "5" name the output of block 5, -1 that of the last block, and "embed" what the first
        block receives. Raises PromptError for a layer that the reading does not hold.
        """
        rows = self.rows(layer)
        if len(rows) != 1:
            raise PromptError(f"expected one layer, got {layer!r}: use rows() for several")
        return rows[0]

    def rows(self, layers: Selection) -> list[int]:
        """The same for several: "0:12:2", slice(-4, None), [0, "embed"]; see `logitlens.select`."""
        blocks = self.meta.get("n_blocks")
        return select_layers(layers, self.layers, blocks if isinstance(blocks, int) else None)

    def columns(self, positions: Selection) -> list[int]:
        """Where positions of the prompt are along the arrays' second axis: "-8:", 3, [0, 4]."""
        length = self.meta.get("prompt_tokens")
        return select_positions(
            positions, self.positions, length if isinstance(length, int) else None
        )

    def settled(self) -> NDArray[np.object_]:
        """(T,) the first layer from which the final top token stays the top token.

        A layer is its number, as everywhere, or "embed".
        """
        return self._names(self._settled_rows())

    def exits(self, threshold: float = 0.0) -> Floats:
        """(L,) the share of positions at which a layer already has the final top token, with at
        least this probability: the upper bound on leaving there, and on drafting with those layers.

        Raises FormatError for a threshold that is no probability.
        """
        if not 0 <= threshold <= 1:
            raise FormatError(f"threshold={threshold}: expected a probability, from 0 to 1")
        agrees = self.top_ids[:, :, 0] == self.top_ids[-1, :, 0]
        sure = self.top_logprobs[:, :, 0] >= np.log(np.maximum(threshold, 1e-45))
        return (agrees & sure).mean(axis=1, dtype=np.float64).astype(np.float32)

    def reads_ahead(self, n: int) -> NDArray[np.bool_]:
        """(L, T) whether the top token is one that really occurs within the next n positions.

        Positions that were not read count as far as their tokens are known: each column knows its
        own and the one that follows. Raises FormatError for an n below 1.
        """
        if not n >= 1:
            raise FormatError(f"n={n}: expected how many positions ahead, 1 or more")
        ahead = self._ahead()
        return (ahead > 0) & (ahead <= n)

    def _ahead(self) -> Ints:
        """(L, T) how many positions on the top token occurs; 0: nowhere that is known."""
        known = {p + 1: int(i) for p, i in zip(self.positions, self.next_ids) if i >= 0}
        known |= {p: int(i) for p, i in zip(self.positions, self.ids)}
        out = np.zeros(self.top_ids.shape[:2], np.int32)
        later, place = sorted(known, reverse=True), 0
        soonest: dict[int, int] = {}  # of each token, the next position that has it
        for column, position in sorted(enumerate(self.positions), key=lambda each: -each[1]):
            while place < len(later) and later[place] > position:
                soonest[known[later[place]]] = later[place]
                place += 1
            tops = self.top_ids[:, column, 0].tolist()
            out[:, column] = [soonest.get(top, position) - position for top in tops]
        return out

    def _settled_rows(self) -> NDArray[np.intp]:
        """(T,) the same as rows of the arrays: of a sublayer's stream, two may have one number."""
        agrees = self.top_ids[:, :, 0] == self.top_ids[-1, :, 0]
        # Counting from the end: how many rows in a run agree with the last one.
        run = np.cumprod(agrees[::-1], axis=0).sum(axis=0)
        return len(self.layers) - run

    def first(self, token: int | str) -> NDArray[np.object_]:
        """(T,) the first layer whose top token is `token`: its number, "embed", or None for never.

        `token` is an id, or text that is the piece of an id in `vocab`. Raises PromptError for text
        that no id of this reading has.
        """
        is_top = np.isin(self.top_ids[:, :, 0], self._ids_of(token))
        return self._names(np.where(is_top.any(axis=0), is_top.argmax(axis=0), -1))

    def _names(self, rows_T: NDArray[np.intp]) -> NDArray[np.object_]:
        """Rows of the arrays → what their layers are called; −1 → None."""
        names: list[int | str | None] = [
            label if (number := layer_number(label)) is None else number for label in self.layers
        ]
        return np.array([*names, None], dtype=object)[rows_T]

    def _ids_of(self, token: int | str) -> list[int]:
        if not isinstance(token, str):
            return [int(token)]
        wanted = [i for i, piece in self.vocab.items() if piece == token]
        if not wanted:
            spaced = f" {token}"
            hint = (
                f"did you mean {spaced!r}?"
                if spaced in self.vocab.values()
                else ("give an id, or read with track=[…] to name it")
            )
            raise PromptError(f"no token of this reading has the text {token!r}: {hint}")
        return wanted

    def prob(self, token: int | str) -> Floats:
        """(L, T) probability of a token; nan in cells where it was not recorded.

        Exact in every cell for tracked tokens; for others wherever the token is among the top K, is
        a candidate, or really follows. Raises PromptError for text that no id of this reading has.
        """
        return np.exp(self._recorded(token, "logprobs", np.nan))

    def rank(self, token: int | str) -> Ints:
        """(L, T) rank of a token, 1 = likeliest; 0 in cells where it was not recorded; see `prob`."""
        return self._recorded(token, "ranks", 0)

    def _recorded(self, token: int | str, what: str, missing: float) -> NDArray[Any]:
        ids = self._ids_of(token)
        if len(ids) > 1:
            raise PromptError(f"{token!r} is the text of several tokens: give one of the ids {ids}")
        out = np.full(self.top_ids.shape[:2], missing, "float32" if what == "logprobs" else "int32")
        top = self.top_logprobs if what == "logprobs" else tied_ranks(self.top_logprobs)
        sources = [
            (self.top_ids, top),
            (self.next_ids[None, :, None], getattr(self, f"next_{what}")[..., None]),
            (self.candidate_ids[None], getattr(self, f"candidate_{what}")),
            (self.track_ids[None, None], getattr(self, f"track_{what}")),
        ]
        for where, values in sources:  # the exact ones last
            same = np.broadcast_to(where == ids[0], values.shape)
            if same.shape[-1]:
                slot = same.argmax(-1)[..., None]
                out = np.where(same.any(-1), np.take_along_axis(values, slot, -1)[..., 0], out)
        return out

    def diff(self, other: Reading) -> dict[str, NDArray[Any]]:
        """Another reading minus this one, cell by cell: the statistics that both hold.

        Returns (L, T) arrays: `entropy`, `kl`, `next_logprobs`, `next_ranks`, `top_changed` (bool),
        and (L, T, M) `track_logprobs`, `track_ranks` where both track the same tokens. Raises
        FormatError where layers or the number of positions differ.
        """
        if self.layers != other.layers or len(self.ids) != len(other.ids):
            raise FormatError(
                f"cannot subtract readings of {len(self.layers)} layers × {len(self.ids)} positions "
                f"and {len(other.layers)} × {len(other.ids)}: read both with the same layers and length"
            )
        out: dict[str, NDArray[Any]] = {
            name: getattr(other, name) - getattr(self, name)
            for name in ("entropy", "kl", "next_logprobs", "next_ranks")
        }
        out["top_changed"] = self.top_ids[:, :, 0] != other.top_ids[:, :, 0]
        if len(self.track_ids) and np.array_equal(self.track_ids, other.track_ids):
            out["track_logprobs"] = other.track_logprobs - self.track_logprobs
            out["track_ranks"] = other.track_ranks - self.track_ranks
        return out

    def equals(self, other: Reading) -> bool:
        """Whether every field is the same, bit for bit (nan equals nan)."""
        theirs = other.fields()
        return all(
            np.array_equal(mine, theirs[name], equal_nan=mine.dtype.kind == "f")
            if isinstance(mine, np.ndarray)
            else mine == theirs[name]
            for name, mine in self.fields().items()
        )

    # -- saving and loading -------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str], **options: Unpack[FileOptions]) -> Path:
        """Write atomically, by suffix: .html .png .svg .pdf .txt .json .parquet. Returns the path.

            reading.save("eiffel.html")
            reading.save("eiffel.pdf", color="kl", layers="0:", figsize=(7, 4))

        Raises FormatError for an unknown suffix, colour or option, OSError where the file cannot be
        written, MissingExtra for .parquet without pyarrow and for .png .svg .pdf without matplotlib.
        """
        suffix = known_suffix(path)
        target = Path(path)
        if suffix in _DATA_SUFFIXES:
            from logitlens import reading_io

            if options:
                raise FormatError(f"a {suffix} file has no option {next(iter(options))!r}")
            reading_io.save(self, target)
            return target
        with _options_of(f"a {suffix} file"):
            if suffix in _FIGURE_SUFFIXES:
                _view("figure").save(self, target, **options)
            elif suffix == ".html":
                _view("page").save([self], target, **options)
            else:
                _view("terminal").save(self, target, **options)
        return target

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Reading:
        """Read a .json or .parquet file, or a page of ours that holds one reading.

        Numbers of a page are rounded to float16. Raises FormatError (truncated, foreign, newer,
        several readings), OSError.
        """
        from logitlens import reading_io

        if Path(path).suffix.lower() not in (".html", ".htm"):
            return reading_io.load(Path(path))
        readings = _view("page").load(path)
        if len(readings) != 1:
            raise FormatError(
                f"{os.fspath(path)} holds {len(readings)} readings: "
                "logitlens.view.page.load(path) returns all of them"
            )
        return readings[0]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary, the content of a .json file."""
        from logitlens import reading_io

        return reading_io.to_dict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Reading:
        """The inverse of `to_dict`. Raises FormatError."""
        from logitlens import reading_io

        return reading_io.from_dict(data)

    def to_arrow(self) -> pyarrow.Table:
        """A pyarrow Table with one row for each layer × position, the content of a .parquet file.

        Raises MissingExtra.
        """
        from logitlens import reading_io

        return reading_io.to_arrow(self)

    def to_pandas(self) -> pandas.DataFrame:
        """A pandas DataFrame with one row for each layer × position. Raises MissingExtra."""
        from logitlens import reading_io

        return reading_io.frame_of(reading_io.to_arrow(self))

    # -- seeing -------------------------------------------------------------------------------

    @overload
    def figure(self, *, ax: None = None, **options: Unpack[FigureOptions]) -> Figure: ...
    @overload
    def figure(self, *, ax: Axes, **options: Unpack[FigureOptions]) -> Axes: ...
    def figure(self, *, ax: Axes | None = None, **options: Unpack[FigureOptions]) -> Figure | Axes:
        """The classic heatmap as a matplotlib Figure, or in `ax`; see `logitlens.view.figure.figure`.

        reading.figure(color="entropy", layers="0:", positions="-8:")
        reading.figure(figsize=(3.3, 2.5), words=False)        # a column of a paper
        reading.figure(ax=axes[0], title="logit lens")
        """
        with _options_of("a figure"):
            return _view("figure").figure(self, ax=ax, **options)

    def trajectories(
        self,
        tokens: Sequence[int | str] | int | str | None = None,
        *,
        position: int = -1,
        by: Literal["prob", "rank"] | None = None,
        figsize: tuple[float, float] | None = None,
        ax: Axes | None = None,
    ) -> Figure | Axes:
        """Probability and rank of tokens at one position, layer by layer, as a matplotlib Figure.

            reading.trajectories()                          # the answer and its rivals
            reading.trajectories([" Paris"], by="rank", ax=ax)

        tokens     texts or ids, or one of them; default: tracked tokens and candidates
        by         "prob", "rank"; default: both in one Figure, "prob" with `ax`

        Returns the Figure, or `ax`. Raises PromptError, FormatError, MissingExtra.
        """
        return _view("plots").trajectories(
            self, tokens, position=position, by=by, figsize=figsize, ax=ax
        )

    def __str__(self) -> str:
        return _view("terminal").text(self)

    def __repr__(self) -> str:
        L, T, K = self.shape
        prompt = self.prompt if len(self.prompt) <= 60 else self.prompt[:57] + "…"
        return (
            f"Reading({prompt!r} · {self.meta.get('model', 'model unknown')} · {self.lens_name} lens · "
            f"{L} layers × {T} positions × top {K} · {self.check_text()[1]})"
        )

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return _view("page.notebook").mimebundle(self)

    def _repr_html_(self) -> str:
        return self._repr_mimebundle_()["text/html"]

    def check_text(self) -> tuple[bool | None, str]:
        """Whether the last row is the model's own (None: not checked), and a sentence that says so."""
        return check_sentence(self.meta.get("check"))

    @property
    def lens_name(self) -> str:
        """`logit`, `tuned` or `jacobian`."""
        lens = self.meta.get("lens")
        return str(lens.get("name", "logit")) if isinstance(lens, Mapping) else str(lens or "logit")


META = {
    "check?": ({"ok": bool, "max_abs_diff?": (float, str), "tolerance?": (float, str),
                "positions?": int, "line?": str}, None),
    "lens?": ({"name?": str, "source?": (str, None), "file?": (str, None), "hash?": (str, None)}, str, None),
    "positions?": ([int], None), "prompt?": (str, None), "prompt_tokens?": int, "truncated?": int,
    "model?": (str, None), "revision?": (str, None), "n_blocks?": int, "stream?": (str, None),
    "dtype?": (str, None), "device?": (str, None), "special_ids?": [int], "vocab_bytes?": {str: str},
    "edits?": [{"text?": str}],
    "track_sets?": {str: [int]}, "messages?": [{"role": str}],
}  # fmt: skip
"""What views rely on in `Reading.meta`; other entries may be anything."""


def check_sentence(check: Any) -> tuple[bool | None, str]:
    """`meta["check"]` in words, the same in every view: (ok, sentence); None: there was no check."""
    if not isinstance(check, Mapping) or "ok" not in check:
        return None, "last row not checked against the model's own logits"
    ok, diff, bound, count = (
        check.get(k) for k in ("ok", "max_abs_diff", "tolerance", "positions")
    )
    where = f" at {count} positions" if isinstance(count, int) and count != 1 else ""
    by = f"{diff:.1e} nats" if isinstance(diff, (int, float)) else "an unknown difference"
    if ok:
        return True, f"last row checked against the model's own logits: within {by}{where}"
    limit = f" (bound {bound:.1e})" if isinstance(bound, (int, float)) else ""
    if isinstance(worst := check.get("worst"), (int, float)):
        limit = f", a logit by {worst:.2g} times what rounding may cost"
    return False, (
        f"last row DIFFERS from the model's own logits by {by}{where}{limit}; do not trust this reading"
    )


def tied_ranks(top_logprobs: NDArray[Any]) -> Ints:
    """(L, T, K) rank of each of the top K: 1 + number of strictly greater values before it."""
    places = np.arange(1, top_logprobs.shape[-1] + 1, dtype=np.int32)
    tied = np.zeros(top_logprobs.shape, bool)
    tied[..., 1:] = top_logprobs[..., 1:] == top_logprobs[..., :-1]
    # A tied slot has the rank of the first of its run.
    return np.maximum.accumulate(np.where(tied, 0, places), axis=-1)


def _array(
    name: str, value: ArrayLike, statistic: Statistic, sizes: dict[str, int]
) -> NDArray[Any]:
    """A read-only copy of the shape its axes ask for; the first of each size decides."""
    given = np.asarray(value)
    if np.issubdtype(statistic.dtype, np.integer) and given.dtype.kind == "f":
        broken = given[given != np.floor(given)]  # nan is one of them
        if broken.size:
            raise FormatError(f"{name} holds {broken[0]}: not whole numbers")
    array = np.array(given, dtype=statistic.dtype)
    array.flags.writeable = False
    axes = statistic.axes
    if array.ndim != len(axes):
        raise FormatError(f"{name} has shape {array.shape}; expected {len(axes)} axes {axes}")
    for axis, size in zip(axes, array.shape):
        if sizes.setdefault(axis, size) != size:
            expected = tuple(sizes.get(axis, "?") for axis in axes)
            raise FormatError(f"{name} has shape {array.shape}; expected {expected} for {axes}")
    return array


def _rebuilt(fields: dict[str, Any]) -> Reading:
    return Reading(**fields)


def known_suffix(path: str | os.PathLike[str]) -> str:
    """The lower-case suffix of an output path. Raises FormatError for one that no writer has."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise FormatError(
            f"cannot tell a format from {os.fspath(path)!r}: end it in {' '.join(SUFFIXES)}"
        )
    return suffix


def _view(name: str) -> Any:
    """A module of logitlens.view, imported when somebody looks."""
    return importlib.import_module(f"logitlens.view.{name}")


@contextmanager
def _options_of(what: str) -> Iterator[None]:
    """An option that a view does not have is one line."""
    try:
        yield
    except TypeError as error:
        if match := re.search(r"unexpected keyword argument '(\w+)'", str(error)):
            name = match[1]
            near = get_close_matches(
                name, {"color", "layers", "positions", "words", "title"} - {name}, 1
            )
            hint = f": did you mean {near[0]}=?" if near else ""
            raise FormatError(f"{what} has no option {name!r}{hint}") from error
        raise
