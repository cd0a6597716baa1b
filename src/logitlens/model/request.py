"""What a reading is asked for: the options that `read`, `read_batch` and `generate` share, validated."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

from logitlens.edit import Edit
from logitlens.errors import LensMismatch, PromptError
from logitlens.lenses import Lens, resolve
from logitlens.model.edits import Prepared, prepare
from logitlens.model.tokens import whole
from logitlens.model.track import Track, Tracked, tracked_of
from logitlens.select import Selection, layer_label, select_layers, select_positions

if TYPE_CHECKING:
    from logitlens.model.lens_model import LensModel

Edits = Prepared | Edit | Iterable[Edit] | None


class ReadOptions(TypedDict, total=False):
    """Arguments shared by everything that makes a Reading; `LensModel.read` says what they mean."""

    top: int
    candidates: int
    lens: str | Lens
    layers: Selection
    positions: Selection
    stream: str
    edits: Edits


@dataclass(frozen=True)
class Request:
    """What a reading of one prompt shows in every cell, and how the model runs for it.

    top         K            track       tokens and sets of them
    candidates  C            lens        the map
    positions   which of the prompt's, in order
    depths, stream, edits    see `capture`
    """

    top: int
    candidates: int
    track: Tracked
    lens: Lens
    positions: list[int]
    depths: list[int] | None
    stream: str
    edits: Prepared | None


def request_of(
    model: LensModel,
    length: int,
    *,
    top: int = 10,
    candidates: int = 5,
    track: Track = (),
    lens: str | Lens = "logit",
    layers: Selection = None,
    positions: Selection = None,
    stream: str = "resid",
    edits: Edits = (),
) -> Request:
    """The request for a prompt of `length` tokens. Raises PromptError, LensMismatch, LensNotAvailable."""
    found = resolve(lens, model)
    if stream != "resid" and found.name != "logit":
        raise LensMismatch(
            f"the {found.name} lens is fitted to the residual stream after each block; read "
            f"stream={stream!r} with lens='logit'"
        )
    return Request(
        top=_tokens(model, "top", top, 1),
        candidates=_tokens(model, "candidates", candidates, 0),
        track=tracked_of(track, model.tokens, model.vocab_size),
        lens=found,
        positions=select_positions(positions, length),
        depths=depths_for(model, layers, stream),
        stream=stream,
        edits=prepare(model, edits),
    )


def depths_for(model: LensModel, layers: Selection, stream: str = "resid") -> list[int] | None:
    """Depths to keep; the last one always, because it is checked and the base of KL."""
    if layers is None:
        return None
    labels = [layer_label(depth) for depth in range(model.n_blocks + 1)]
    chosen = select_layers(layers, labels)
    return sorted({*chosen, model.n_blocks} if stream == "resid" else chosen)


def _tokens(model: LensModel, name: str, given: int, least: int) -> int:
    """A number of tokens of the vocabulary, `least` or more."""
    count = whole(given)
    if count is None or not least <= count <= model.vocab_size:
        raise PromptError(
            f"{name}={given!r}: expected {least} to {model.vocab_size}, the size of the vocabulary"
        )
    return count
