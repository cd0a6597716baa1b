"""A generation as an iterator: it runs in a thread of its own, and hands over columns as they come."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from queue import SimpleQueue

from logitlens.reading import Reading

Each = Callable[[Reading], object]


def columns(run: Callable[[Each], Reading]) -> Generator[Reading, None, Reading]:
    """What `run` hands to its `each`, one at a time, and at the end the whole Reading.

    It runs in a thread of its own, and does not wait: whoever takes the columns may read with the
    same model. It ends when no more columns are wanted.
    """
    handed: SimpleQueue[Reading | None] = SimpleQueue()
    left = threading.Event()
    ends: list[Reading | BaseException] = []

    def each(column: Reading) -> None:
        if left.is_set():
            raise StopIteration
        handed.put(column)

    def work() -> None:
        try:
            ends.append(run(each))
        except BaseException as error:
            ends.append(error)
        handed.put(None)

    thread = threading.Thread(target=work, name="logitlens-generate")
    thread.start()
    try:
        while (column := handed.get()) is not None:
            yield column
    finally:
        left.set()
        thread.join()
    (end,) = ends
    if isinstance(end, BaseException):
        raise end
    return end
