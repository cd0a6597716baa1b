"""What the settings of every fit share: numbers that can be meant, and their plain form in files."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict
from typing import Any

from logitlens.errors import PromptError
from logitlens.lenses import store


def check_counts(settings: Any, *names: str) -> None:
    """Raise PromptError where a setting that counts something, and is not None, is below 1."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise PromptError(f"{name}={value}: expected at least 1")


def check_numbers(
    settings: Any, *, above: Collection[str] = (), least: Collection[str] = ()
) -> None:
    """Raise PromptError where a number that is not None is not finite, or not `above` 0, or below 0."""
    for name in (*above, *least):
        value = getattr(settings, name)
        if value is not None and not (
            math.isfinite(value) and (value > 0 or (value == 0 and name in least))
        ):
            expected = "above 0" if name in above else "0 or more"
            raise PromptError(f"{name}={value}: expected a finite number, {expected}")


def check_dtype(settings: Any) -> None:
    """Raise PromptError where lenses cannot be stored in `settings.dtype`."""
    if settings.dtype not in store.DTYPES:
        raise PromptError(f"dtype={settings.dtype!r}: expected one of {', '.join(store.DTYPES)}")


def plain(settings: Any, *, without: Collection[str] = ()) -> dict[str, Any]:
    """Name → value, as JSON has it: tuples become lists."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in asdict(settings).items()
        if name not in without
    }
