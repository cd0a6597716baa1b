"""numba's threads: as many as torch's, and for one caller at a time where its pool serves no more.

Without OpenMP and TBB numba has a pool of its own ("workqueue"), which ends the process when a second
thread enters it.
"""

# pyright: reportMissingImports=false, reportPrivateImportUsage=false
from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numba
import torch
from numba.core import config

_turn = threading.Lock()


@contextmanager
def pool(threads: int) -> Iterator[None]:
    """Run a function that numba compiled for several threads.

    When numba starts its threads it sets OpenMP's number, which is torch's: that is put back, and numba's
    own, which other code of the process may use.
    """
    before, own = torch.get_num_threads(), numba.get_num_threads()
    numba.set_num_threads(min(threads, config.NUMBA_NUM_THREADS))  # pyright: ignore[reportAttributeAccessIssue]
    try:
        with nullcontext() if _serves_many() else _turn:
            yield
    finally:
        numba.set_num_threads(own)
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def _serves_many() -> bool:
    try:
        return numba.threading_layer() != "workqueue"
    except ValueError:  # not chosen before the first such function runs
        return False
