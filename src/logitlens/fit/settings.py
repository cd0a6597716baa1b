"""What the settings of every fit share: numbers that can be meant, and their plain form in files."""

from __future__ import annotations

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
