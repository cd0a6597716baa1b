"""Atomic checkpoints; resuming a different fit is an error."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from logitlens.errors import FitError
from logitlens.files import replacing
from logitlens.schema import matches

NAME = "checkpoint.pt"


def path_in(folder: Path, process: int = 0) -> Path:
    """Where a process keeps its checkpoint."""
    return folder / (NAME if process == 0 else f"checkpoint-{process}.pt")


def save(folder: Path, identity: dict[str, Any], state: dict[str, Any]) -> None:
    """Write `state` (tensors and plain containers) with what it belongs to; whole or not at all."""
    path = path_in(folder, identity.get("process", 0))
    with replacing(path) as temporary:
        torch.save({"identity": identity, "state": state}, temporary)


def load(folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The state saved in `folder`, or None where there is none.

    Raises FitError where it belongs to another corpus, model or setting, or is broken.
    """
    path = path_in(folder, identity.get("process", 0))
    if not path.is_file():
        return None
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
        matches(data, {"identity": {str: object}, "state": {str: object}}, "the checkpoint")
        theirs, state = data["identity"], data["state"]
    except Exception:  # a torn file fails in the unpickler's own ways: IndexError, ValueError, …
        raise FitError(
            f"{path} is not a checkpoint of a fit: remove it, or start over with --fresh"
        ) from None
    for key in sorted({*identity, *theirs}):
        if identity.get(key) != theirs.get(key):
            raise FitError(
                f"{path} was made with {key} = {str(theirs.get(key))[:80]!r}, this fit has "
                f"{str(identity.get(key))[:80]!r}: use the same {key}, another folder, or --fresh to start over"
            )
    return state


def remove(folder: Path, process: int = 0) -> None:
    """Forget the checkpoint: the fit is done."""
    path_in(folder, process).unlink(missing_ok=True)


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Inside, Ctrl-C sets the event instead of breaking off in the middle of an update.

    A second Ctrl-C breaks off at once. Outside the main thread nothing changes.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.getsignal(signal.SIGINT)

    def handler(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    signal.signal(signal.SIGINT, handler)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
