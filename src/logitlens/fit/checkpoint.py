"""The folder of a fit: its checkpoint while it runs, its lens when it is done; or no folder at all."""

from __future__ import annotations

import shutil
import signal
import threading

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from logitlens.anatomy.readable import Readable
from logitlens.errors import FitError
from logitlens.files import replacing
from logitlens.fit import data_parallel
from logitlens.fit.corpus import Corpus
from logitlens.lenses import fingerprint, store
from logitlens.lenses.fitted import FittedLens
from logitlens.schema import matches

NAME = "checkpoint.pt"
PROCESSES = ".processes-"  # how folders begin that a group of processes meets in


class Folder:
    """Where one fit writes; with `path` None, every method does nothing.

    identity   what the fit is made of: a checkpoint made of anything else is refused
    apart      processes keep a checkpoint each; otherwise all of them are in the same state, and
               the first writes it
    """

    def __init__(self, path: Path | None, identity: dict[str, Any], *, apart: bool = False):
        self.path, self.apart = path, apart
        self.process = data_parallel.rank() if apart else 0
        if apart:
            identity = {**identity, "processes": data_parallel.size(), "process": self.process}
        self.identity = identity
        self._writes = apart or data_parallel.rank() == 0
        self._name = NAME if self.process == 0 else f"checkpoint-{self.process}.pt"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Inside, no other fit writes here. Raises FitError where one does, OSError."""
        if self.path is None or fcntl is None or not self._writes:
            yield
            return
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / f".lock-{self.process}").open("ab") as file:
            try:
                # The system lets go of it at the end.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise FitError(
                    f"another fit is writing to {self.path}: wait for it, or choose another folder"
                ) from None
            try:
                self._sweep()
                yield
            finally:
                self._sweep()
                Path(file.name).unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Remove where groups of processes met: none is at work while this fit has the lock."""
        assert self.path is not None
        if self.process == 0:
            for left in self.path.glob(f"{PROCESSES}*"):
                shutil.rmtree(left, ignore_errors=True)

    @property
    def checkpoint(self) -> Path | None:
        """The checkpoint's file, where there is one."""
        path = None if self.path is None else self.path / self._name
        return path if path is not None and path.is_file() else None

    def load(self, name: str) -> dict[str, Any] | None:
        """The state of this fit that was saved here, or None.

        Raises FitError where it belongs to another corpus, model or setting, or is broken, and where
        there is none but the finished lens `name`, which this fit would replace.
        """
        path = self.checkpoint
        if path is None:
            if self.path is not None and (self.path / name).exists():
                raise FitError(
                    f"{self.path / name} is a finished lens: choose another folder, or replace it "
                    "with --fresh"
                )
            return None
        try:
            data = torch.load(path, map_location="cpu", weights_only=True)
            matches(data, {"identity": {str: object}, "state": {str: object}}, "the checkpoint")
            theirs, state = data["identity"], data["state"]
        except (
            Exception
        ):  # a torn file fails in the unpickler's own ways: IndexError, ValueError, …
            raise FitError(
                f"{path} is not a checkpoint of a fit: remove it, or start over with --fresh"
            ) from None
        for key in sorted({*self.identity, *theirs}):
            if self.identity.get(key) != theirs.get(key):
                raise FitError(
                    f"{path} was made with {key} = {str(theirs.get(key))[:80]!r}, this fit has "
                    f"{str(self.identity.get(key))[:80]!r}: use the same {key}, another folder, or "
                    "--fresh to start over"
                )
        return state

    def save(self, state: dict[str, Any]) -> None:
        """Keep the state (tensors and plain containers), whole or not at all. Raises OSError."""
        if self.path is None:
            return
        if self._writes:
            self.path.mkdir(parents=True, exist_ok=True)
            with replacing(self.path / self._name) as temporary:
                torch.save({"identity": self.identity, "state": state}, temporary)
        if not self.apart:
            data_parallel.barrier()

    def finish(self, lens: FittedLens, name: str, dtype: str) -> None:
        """Write the lens as `name`, then forget the checkpoint. Raises OSError, FormatError."""
        if self.path is not None and self._writes:
            self.path.mkdir(parents=True, exist_ok=True)
            if data_parallel.rank() == 0:
                store.save(lens, self.path / name, dtype=dtype)
            (self.path / self._name).unlink(missing_ok=True)
        data_parallel.barrier()


def identity(
    kind: str, model: Readable, corpus: Corpus, settings: dict[str, Any]
) -> dict[str, Any]:
    """What tells two fits apart: their kind, model and corpus, and settings that change the lens."""
    return {
        "kind": kind,
        "model": model.name,
        "unembedding": fingerprint.of_model(model).hash,
        "corpus": corpus.hash,
        **settings,
    }


@contextmanager
def interruptible(begun: Callable[[], bool] = lambda: True) -> Iterator[threading.Event]:
    """Inside, Ctrl-C sets the event instead of breaking off in the middle of an update.

    A second Ctrl-C breaks off at once, and so does one before there is anything to keep (`begun`).
    Outside the main thread nothing changes.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.getsignal(signal.SIGINT)

    def handler(number: int, frame: Any) -> None:
        if asked.is_set() or not begun():
            raise KeyboardInterrupt
        asked.set()

    signal.signal(signal.SIGINT, handler)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
