"""Which depths or positions are meant: `0:12:2`, `-8:`, `3`, `0,4,-1`, a slice, or integers."""

from __future__ import annotations

from collections.abc import Iterable

from logitlens.errors import PromptError

Selection = str | slice | int | Iterable[int] | None


def select(selection: Selection, size: int, what: str) -> list[int]:
    """Indices in 0 … size−1, in order, without repeats; None selects all.

    Slices and negative numbers count as in Python. Raises PromptError where nothing is selected, a
    number is out of range, or text is not a selection; `what` ("depths", "positions") is named.
    """
    if selection is None:
        return list(range(size))
    if isinstance(selection, str):
        selection = _parse(selection, what)
    if isinstance(selection, slice):
        picked = list(range(size))[selection]
    else:
        numbers = [selection] if isinstance(selection, int) else list(selection)
        strange = [i for i in numbers if not hasattr(i, "__index__")]
        if strange:
            raise PromptError(
                f"cannot understand {what} {strange[0]!r}: expected whole numbers, or text like 0:12:2"
            )
        numbers = [int(i) for i in numbers]
        outside = [i for i in numbers if not -size <= i < size]
        if outside:
            raise PromptError(
                f"{what} {outside[0]} is out of range: expected {-size} to {size - 1} (there are {size})"
            )
        picked = [i % size for i in numbers]
    if not picked:
        raise PromptError(f"no {what} selected: there are {size}, numbered 0 to {size - 1}")
    return sorted(set(picked))


def _parse(text: str, what: str) -> slice | list[int]:
    try:
        if ":" in text:
            parts = [int(part) if part.strip() else None for part in text.split(":")]
            if len(parts) > 3 or (len(parts) == 3 and parts[2] == 0):
                raise ValueError
            return slice(*parts)
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise PromptError(
            f"cannot understand {what} {text!r}: expected START:STOP:STEP like 0:12:2 or -8:, "
            "or numbers like 0,4,-1"
        ) from None
