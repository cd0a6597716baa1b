"""Which layers or positions are meant. One rule, wherever a layer or a position is named.

A layer's number is its label: 5 and "5" are the output of block 5, −1 is the last block's, and
"0:12:2" is a slice of these numbers. `embed`, what the first block receives, has only its name.
A position's number is its place in the prompt, from 0; −1 is the last. A selection is

    None                        everything
    5, -1, "embed"              one
    "0:12:2", slice(-4, None)   a slice, as in Python
    "embed,4:8,-1", [0, 4, -1]  several; as text, separated by commas
    a mask                      one bool for each row
"""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, cast

from logitlens.errors import PromptError

EMBED = "embed"
Selection = str | slice | int | Iterable[int | str] | None

_NUMBER = re.compile(r"[+-]?[0-9]{1,18}", re.ASCII)
_F = TypeVar("_F", bound=Callable[..., Any])


def layer_label(depth: int) -> str:
    """The label of a state of the stream: depth 0 → "embed", depth d → str(d − 1)."""
    return EMBED if depth == 0 else str(depth - 1)


def select_layers(
    selection: Selection, labels: Sequence[str], blocks: int | None = None
) -> list[int]:
    """Indices into `labels` ("embed", "0", …; of sublayers "0.attn", …), in order, without repeats.

    blocks   how many the model has: what negative numbers and open slices count to; None: as many
             as the last label says

    Raises PromptError where nothing is selected, or something that `labels` does not hold.
    """
    numbers = [layer_number(label) for label in labels]
    if blocks is None:
        blocks = 1 + max((n for n in numbers if n is not None), default=-1)
    return _select(selection, "layer", numbers, blocks, labels)


def select_layer(selection: Selection, labels: Sequence[str], blocks: int | None = None) -> int:
    """The index of the one layer that a selection names. Raises PromptError where it names several."""
    found = select_layers(selection, labels, blocks)
    if len(found) != 1:
        raise PromptError(f"layer={selection!r}: expected one layer, got {len(found)}")
    return found[0]


def select_positions(
    selection: Selection, numbers: Sequence[int] | int, length: int | None = None
) -> list[int]:
    """Indices into `numbers`, the positions at hand (an int n: 0 … n − 1), in order, without repeats.

    length   of the prompt: what negative numbers and open slices count to; None: up to the last

    Raises PromptError where nothing is selected, or a position that is not at hand.
    """
    at_hand = list(range(numbers)) if isinstance(numbers, int) else list(numbers)
    if length is None:
        length = 1 + max(at_hand, default=-1)
    return _select(selection, "position", at_hand, length, ())


def select_position(selection: Selection, length: int) -> int:
    """The one position that a selection names. Raises PromptError where it names several."""
    found = select_positions(selection, length)
    if len(found) != 1:
        raise PromptError(f"position={selection!r}: expected one position, got {len(found)}")
    return found[0]


def layer_number(label: str) -> int | None:
    """The block whose output a label names; None for `embed`."""
    number = label.partition(".")[0]
    return int(number) if _NUMBER.fullmatch(number) else None


def _select(
    selection: Selection,
    noun: str,
    numbers: Sequence[int | None],
    count: int,
    labels: Sequence[str],
) -> list[int]:
    items = _items(selection, noun)
    if items is None:
        return list(range(len(numbers)))
    if items and all(isinstance(item, bool) for item in items):
        if len(items) != len(numbers):
            raise PromptError(
                f"a mask of {noun}s needs {len(numbers)} entries, one for each; got {len(items)}"
            )
        picked = {i for i, keep in enumerate(items) if keep}
    else:
        picked = {i for item in items for i in _rows(item, noun, numbers, count, labels)}
    if not picked:
        raise PromptError(f"no {noun} selected: {_at_hand(noun, numbers, labels)}")
    return sorted(picked)


def _items(selection: Any, noun: str) -> list[Any] | None:
    """A selection as a list of numbers, slices, labels or bools; None: everything."""
    if hasattr(selection, "tolist"):  # numpy and torch
        selection = selection.tolist()
    if selection is None:
        return None
    if isinstance(selection, str):
        return [_parsed(part.strip(), noun, selection) for part in selection.split(",")]
    if isinstance(selection, slice) or not isinstance(selection, Iterable):
        return [selection]
    items = [item.tolist() if hasattr(item, "tolist") else item for item in selection]
    return [_parsed(i.strip(), noun, i) if isinstance(i, str) else i for i in items]


def _parsed(part: str, noun: str, text: str) -> int | slice | str:
    if _NUMBER.fullmatch(part):
        return int(part)
    if ":" not in part:
        return part
    ends = part.split(":")
    if len(ends) > 3 or not all(_NUMBER.fullmatch(e.strip()) or not e.strip() for e in ends):
        raise PromptError(f"cannot read {noun}s from {text!r}: expected {_EXPECTED[noun]}")
    start, stop, step = (int(e) if e.strip() else None for e in (*ends, "")[:3])
    if step == 0:
        raise PromptError(f"cannot read {noun}s from {text!r}: the step of a slice cannot be 0")
    return slice(start, stop, step)


_EXPECTED = {
    "layer": "numbers like 0,4,-1, a slice like 0:12:2, or embed",
    "position": "numbers like 0,4,-1, or a slice like -8:",
}


def _rows(
    item: Any, noun: str, numbers: Sequence[int | None], count: int, labels: Sequence[str]
) -> list[int]:
    if isinstance(item, str):
        if item in labels:
            return [list(labels).index(item)]
        expected = _at_hand(noun, numbers, labels) if item == EMBED and labels else _EXPECTED[noun]
        raise PromptError(f"no {noun} {item!r}: expected {expected}")
    if isinstance(item, slice):
        try:
            inside = set(range(count)[item])
        except (TypeError, ValueError) as error:
            raise PromptError(f"cannot read {noun}s from {item}: {error}") from None
        return [i for i, n in enumerate(numbers) if n in inside]
    try:
        number = operator.index(item)
    except TypeError:
        number = None
    if number is None or isinstance(item, bool):
        raise PromptError(f"no {noun} {item!r}: expected {_EXPECTED[noun]}")
    wanted = number + count if number < 0 else number
    found = [i for i, n in enumerate(numbers) if n == wanted]
    if not found:
        raise PromptError(f"no {noun} {number}: expected {_at_hand(noun, numbers, labels)}")
    return found


def _at_hand(noun: str, numbers: Sequence[int | None], labels: Sequence[str]) -> str:
    """What there is to select, for a message: `0 to 11 or embed`, `one of 2, 4, 9`."""
    known = [n for n in numbers if n is not None]
    if known == list(range(len(known))) and known:
        return f"0 to {known[-1]}" + (f" or {EMBED}" if EMBED in labels else "")
    names = list(labels) or [str(n) for n in known]
    shown = names if len(names) <= 12 else [*names[:5], "…", *names[-5:]]
    return f"one of {', '.join(shown)}"


def renamed(**words: str) -> Callable[[_F], _F]:
    """A decorator: an argument by its former name raises PromptError that gives the new one."""

    def decorate(function: _F) -> _F:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            for old, new in words.items():
                if old in kwargs:
                    raise PromptError(
                        f"{function.__name__}({old}=…) is now {new}=: the number 5 is the output of "
                        f"block 5, -1 the last, and {EMBED} has its name"
                    )
            return function(*args, **kwargs)

        return cast(_F, call)

    return decorate
