"""Engines: who works on which shard. An engine knows shard numbers and never touches a file.

engine(folder, shards, …) yields a record for each shard, or {"shard": …, "error": …}
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Generator
from typing import Any

from logitlens.errors import LogitLensError, ModelNotAvailable, SurveyError

Records = Generator[dict[str, Any], None, None]
Engine = Callable[[str, list[int]], Records]


def failure(shard: int, error: Exception) -> dict[str, Any]:
    """The record of a shard that could not be worked on, called where the error was caught."""
    return {"shard": shard, "error": _line(error), "traceback": traceback.format_exc()}


def refusal(error: Exception) -> dict[str, Any]:
    """What a worker answers that cannot begin; all others would fail as well."""
    return {"refused": _line(error), "missing": isinstance(error, ModelNotAvailable)}


def refused(answer: dict[str, Any]) -> LogitLensError:
    """The error of a `refusal`: of the kind that one process alone would end with."""
    return (ModelNotAvailable if answer["missing"] else SurveyError)(answer["refused"])


def _line(error: Exception) -> str:
    known = isinstance(error, LogitLensError)
    return " ".join((f"{error}" if known else f"{type(error).__name__}: {error}").split())
