"""What attention and the MLP add to the residual stream, found by watching the additions.

What a block's additions (see `additions`) add to its stream is a sublayer's contribution, after any
norm and multiplier of its own, whatever the module is called. Contributions of a block therefore
sum to what the block did:

    depth d + attn + mlp = depth d + 1

Attention and MLP are told apart by a probe, not by name. Two sequences of the same tokens run
together, and at the entry of every block and after every addition the stream is replaced by random
rows that differ between the two sequences everywhere except at one position. At that position a
sublayer's two contributions are equal if it works row by row (an MLP, experts) and differ if it
mixes positions (attention, a convolution, a recurrence). Each addition has a position of its own,
which also shows which state of the stream a sublayer read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn

from logitlens.anatomy.additions import Change, Path, See, Sum, Value, recording
from logitlens.anatomy.blocks import Anatomy
from logitlens.anatomy.forward import as_found, forward, refusing
from logitlens.errors import UnsupportedModel

STREAMS = ("resid", "mid", "attn", "mlp", "head")
Key = int | tuple[int, int]  # of what a pass keeps: a depth, or a depth and a head
POSITIONS = 11
STATES = 8  # how many states of a block's stream the probe can distinguish
FIRST = 2  # the position at which the rows of state 0 are equal; for state s it is FIRST + s
MIXES, ROWWISE, CONSTANT = "mixes positions", "row by row", "constant"
TOLERANCE = {torch.bfloat16: 3e-2, torch.float16: 4e-3}  # else 1e-4, relative to the largest value


@dataclass(frozen=True)
class Part:
    """One contribution: its kind, the state it reads (None: unknown), or the parts it is a sum of.

    A constant (a bias added on its own) counts as part of what mixes positions.
    """

    kind: str
    reads: int | None = None
    parts: tuple[Part, Part] | None = None

    def kinds(self) -> Iterator[Part]:
        if self.parts is None:
            yield self
        else:
            for part in self.parts:
                yield from part.kinds()


@dataclass(frozen=True)
class Sublayers:
    """What each block adds, in order: `blocks[i]` are the contributions of block i."""

    blocks: tuple[tuple[Part, ...], ...]

    def has(self, stream: str, block: int) -> bool:
        """Whether this block has the stream "attn", "mlp" or "mid"."""
        if stream == "mid":
            return self.middle(block) is not None
        kind = MIXES if stream == "attn" else ROWWISE
        return any(leaf.kind == kind for part in self.blocks[block] for leaf in part.kinds())

    def middle(self, block: int) -> int | None:
        """The number of additions before the MLP; None where no MLP reads what attention wrote."""
        parts = self.blocks[block]
        kinds = [part.kind for part in parts]
        first = next((i for i, kind in enumerate(kinds) if kind == ROWWISE), 0)
        apart = first > 0 and all(k == MIXES for k in kinds[:first])
        if not apart or any(k != ROWWISE for k in kinds[first:]) or parts[first].reads != first:
            return None
        return first

    def require(self, stream: str, name: str) -> list[int]:
        """The blocks that have a stream; raises UnsupportedModel where none does."""
        found = [i for i in range(len(self.blocks)) if self.has(stream, i)]
        if found:
            return found
        both = self.has("attn", 0) and self.has("mlp", 0)
        if stream == "mid" and both:
            reason = (
                "attention and MLP read the same stream side by side (parallel blocks), or take "
                "turns more than once in a block"
            )
        else:
            reason = "no block has a sublayer that " + {
                "attn": "mixes positions",
                "mlp": "works row by row",
                "mid": "works row by row on what another one wrote",
            }.get(stream, "")
        raise UnsupportedModel(f"{name} has no stream {stream!r}: {reason}")


def find_sublayers(model: nn.Module, anatomy: Anatomy, ids_T: Tensor) -> Sublayers:
    """The sublayers of every block, from one probe of tokens `ids_T`.

    Raises UnsupportedModel where a block does more to its stream than add to it (a norm after the
    addition, a factor, several streams) or is not a single module.
    """
    if len(anatomy.row_shape) > 1:
        raise UnsupportedModel(
            f"{type(model).__name__} carries {anatomy.row_shape[0]} streams and mixes them in every "
            "block: its sublayers have no contributions that sum to the stream"
        )
    if any(first is not last for first, last in zip(anatomy.entries, anatomy.blocks)):
        raise UnsupportedModel(
            f"a block of {type(model).__name__} is spread over several modules "
            f"({anatomy.blocks_path}): what each of them adds cannot be distinguished"
        )
    ids_2T = ids_T.flatten()[:POSITIONS].expand(2, -1)
    if ids_2T.shape[1] < POSITIONS:
        raise ValueError(f"the probe needs {POSITIONS} tokens, got {ids_2T.shape[1]}")
    found: list[tuple[Part, ...]] = []

    def took(block: int, path: Path | None, entering: Tensor, leaving: Tensor) -> None:
        found.append(_parts(anatomy, block, path, leaving.shape))

    def random_rows(stream: Tensor) -> list[Tensor]:
        return _probe_rows(stream, anatomy)

    with (
        refusing(model, "while its sublayers are watched"),
        as_found(model),
        recording(anatomy, took, random_rows),
    ):
        forward(model, ids_2T)
    if len(found) != len(anatomy.blocks):
        raise UnsupportedModel(f"{len(found)} of {len(anatomy.blocks)} blocks ran once each")
    return Sublayers(tuple(found))


def _parts(anatomy: Anatomy, block: int, path: Path | None, shape: torch.Size) -> tuple[Part, ...]:
    if not path:
        raise UnsupportedModel(
            f"block {block} of {anatomy.blocks_path} does more than add to its stream: a norm or a "
            "factor acts on it too, so its sublayers' contributions do not sum to what it does"
        )
    if len(path) >= STATES:
        raise UnsupportedModel(
            f"block {block} of {anatomy.blocks_path} adds {len(path)} times to its stream; at most "
            f"{STATES - 1} additions can be distinguished"
        )
    parts = []
    for state, value in path:
        part = _part(value, state.number, anatomy, shape)
        if part.kind == CONSTANT:  # weights that are zero: assumed to read the state before
            part = Part(ROWWISE, state.number - 1)
        parts.append(part)
    return tuple(parts)


def _part(value: Value, states: int, anatomy: Anatomy, shape: torch.Size) -> Part:
    """The kind of a contribution, from the positions at which the two sequences agree."""
    added_2TD = anatomy.rows(value.tensor.view(shape), 2).float()
    allowed = TOLERANCE.get(value.tensor.dtype, 1e-4) * float(added_2TD.abs().max())
    if float((added_2TD - added_2TD[:1, :1]).abs().max()) <= allowed:
        return Part(CONSTANT)
    differ_T = (added_2TD[0] - added_2TD[1]).abs().amax(-1)
    for state in range(states):
        if float(differ_T[FIRST + state]) <= allowed:
            return Part(ROWWISE, state)
    if isinstance(value.origin, Sum):
        left = _part(value.origin.left, states, anatomy, shape)
        right = _part(value.origin.right, states, anatomy, shape)
        kinds = {part.kind for whole in (left, right) for part in whole.kinds()}
        if {MIXES, ROWWISE} <= kinds:  # a constant alone is the bias of one of them
            return Part(MIXES, None, (left, right))
    return Part(MIXES)


def _probe_rows(stream: Tensor, anatomy: Anatomy) -> list[Tensor]:
    """For each state, two sequences of random rows of the stream's size, equal at one position."""
    generator = torch.Generator().manual_seed(11)
    scale = float(stream.float().std()) or 1.0
    out = []
    for state in range(STATES):
        shape = (2, POSITIONS, anatomy.width)
        rows_2TD = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
        rows_2TD *= scale
        rows_2TD[1, FIRST + state] = rows_2TD[0, FIRST + state]
        out.append(anatomy.stream(rows_2TD).to(stream.device, stream.dtype))
    return out


# Called after every block with its number, the stream it received, what was added to it, one
# contribution after another, and the stream it returned.
Took = Callable[[int, Tensor, list[tuple[Part, Value]], Tensor], None]


@contextmanager
def contributions(
    anatomy: Anatomy,
    sublayers: Sublayers,
    took: Sequence[Took],
    *,
    see: See | None = None,
    change: Change | None = None,
) -> Iterator[None]:
    """Inside, each of `took` is called after every block; `see` and `change` as in `recording`.

    Every pass checks that contributions sum to the change of the stream; UnsupportedModel is raised
    where they do not.
    """

    def after(block: int, path: Path | None, entering: Tensor, leaving: Tensor) -> None:
        parts = sublayers.blocks[block]
        if path is None or len(path) != len(parts):
            raise UnsupportedModel(
                f"block {block} of {anatomy.blocks_path} added {len(path or [])} times to its stream; "
                f"{len(parts)} times when it was probed"
            )
        added = [(part, value) for part, (_, value) in zip(parts, path)]
        tensors = [value.tensor.view(leaving.shape) for _, value in added]
        _check_law(anatomy, block, entering, tensors, leaving)
        for each in took:
            each(block, entering, added, leaving)

    with recording(anatomy, after, see=see, change=change):
        yield


def keeper(
    anatomy: Anatomy, sublayers: Sublayers, stream: str, blocks: Sequence[int], batch: int
) -> tuple[dict[Key, list[Tensor]], Took]:
    """A dictionary, and what adds to it, in each pass, copies (B, T, D) of a block's stream.

    Keys are depths: block i's contribution is under i + 1, the depth it leads to.
    """
    kept: dict[Key, list[Tensor]] = {}
    wanted = set(blocks)

    def took(
        block: int, entering: Tensor, added: list[tuple[Part, Value]], leaving: Tensor
    ) -> None:
        if block in wanted:
            middle = sublayers.middle(block) if stream == "mid" else None
            out = total(stream, entering, added, middle)
            rows = anatomy.rows(out.view(leaving.shape).detach(), batch)
            kept.setdefault(block + 1, []).append(rows.clone())

    return kept, took


def total(
    stream: str, entering: Tensor, added: list[tuple[Part, Value]], middle: int | None
) -> Tensor:
    """What a block's "attn" or "mlp" added to its stream, or its stream in the "mid"dle."""
    shape = entering.shape
    if stream == "mid":
        chosen = [entering, *(value.tensor for _, value in added[:middle])]
    else:
        kind = MIXES if stream == "attn" else ROWWISE
        chosen = [t for part, value in added for t in of_kind(part, value, kind)]
    return reduce(torch.add, (t.view(shape) for t in chosen))


def of_kind(part: Part, value: Value, kind: str) -> Iterator[Tensor]:
    """The terms of a contribution that are of a kind; what is constant counts as one that mixes."""
    if part.parts is None:
        if (part.kind == ROWWISE) == (kind == ROWWISE):
            yield value.tensor
        return
    if not isinstance(value.origin, Sum):
        raise UnsupportedModel(
            "a block sums its sublayers in another order than when it was probed"
        )
    yield from of_kind(part.parts[0], value.origin.left, kind)
    yield from of_kind(part.parts[1], value.origin.right, kind)


def _check_law(
    anatomy: Anatomy, block: int, entering: Tensor, added: list[Tensor], leaving: Tensor
) -> None:
    total = entering.double()
    for tensor in added:
        total = total + tensor.double()
    error = float((total - leaving.double()).abs().max())
    allowed = TOLERANCE.get(leaving.dtype, 1e-4) * max(1.0, float(leaving.abs().max()))
    if not error <= allowed:
        raise UnsupportedModel(
            f"block {block} of {anatomy.blocks_path}: its contributions do not sum to what it did to "
            f"the stream; they differ by {error:.2g} (tolerance {allowed:.1g})"
        )
