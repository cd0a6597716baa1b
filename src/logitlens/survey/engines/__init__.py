"""Engines: who works on which shard. An engine knows shard numbers and never touches a file.

engine(folder, shards, …) yields a record for each shard, or {"shard": …, "error": …}
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from typing import Any

from logitlens.errors import LogitLensError

Engine = Callable[[str, list[int]], Iterator[dict[str, Any]]]


def failure(shard: int, error: Exception) -> dict[str, Any]:
    """The record of a shard that could not be worked on, called where the error was caught."""
    known = isinstance(error, LogitLensError)
    line = " ".join((f"{error}" if known else f"{type(error).__name__}: {error}").split())
    return {"shard": shard, "error": line, "traceback": traceback.format_exc()}
