"""numba's threads: as many as torch's, and for one caller at a time where its pool serves no more.

Without OpenMP and TBB numba has a pool of its own ("workqueue"), which ends the process when a second
thread enters it.
"""

# pyright: reportMissingImports=false, reportPrivateImportUsage=false
from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numba
from numba.core import config

_turn = threading.Lock()


@contextmanager
def pool(threads: int) -> Iterator[None]:
    """Run a function that numba compiled for several threads."""
    numba.set_num_threads(min(threads, config.NUMBA_NUM_THREADS))  # pyright: ignore[reportAttributeAccessIssue]
    if _serves_many():
        yield
    else:
        with _turn:
            yield


def _serves_many() -> bool:
    try:
        return numba.threading_layer() != "workqueue"
    except ValueError:  # not chosen before the first such function runs
        return False
