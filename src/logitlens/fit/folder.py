"""The folder of a fit: its checkpoint while it runs, its lens when it is done; or no folder at all."""

from __future__ import annotations

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from logitlens.anatomy.readable import Readable
from logitlens.errors import FitError
from logitlens.fit import checkpoint, data_parallel
from logitlens.fit.corpus import Corpus
from logitlens.lenses import fingerprint, store
from logitlens.lenses.fitted import FittedLens


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

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Inside, no other fit writes here. Raises FitError where one does, OSError."""
        if self.path is None or fcntl is None or not self._writes():
            yield
            return
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / f".lock-{self.process}").open("ab") as file:
            try:
                fcntl.flock(
                    file, fcntl.LOCK_EX | fcntl.LOCK_NB
                )  # the system lets go of it at the end
            except OSError:
                raise FitError(
                    f"another fit is writing to {self.path}: wait for it, or choose another folder"
                ) from None
            try:
                yield
            finally:
                Path(file.name).unlink(missing_ok=True)

    @property
    def checkpoint(self) -> Path | None:
        """The checkpoint's file, where there is one."""
        path = checkpoint.path_in(self.path, self.process) if self.path is not None else None
        return path if path is not None and path.is_file() else None

    def load(self) -> dict[str, Any] | None:
        """The state of this fit that was saved here. Raises FitError for one of another fit."""
        return checkpoint.load(self.path, self.identity) if self.path is not None else None

    def save(self, state: dict[str, Any]) -> None:
        """Keep the state, whole or not at all. Raises OSError."""
        if self.path is None:
            return
        if self._writes():
            self.path.mkdir(parents=True, exist_ok=True)
            checkpoint.save(self.path, self.identity, state)
        if not self.apart:
            data_parallel.barrier()

    def finish(self, lens: FittedLens, name: str, dtype: str) -> None:
        """Write the lens as `name`, then forget the checkpoint. Raises OSError, FormatError."""
        if self.path is not None and self._writes():
            self.path.mkdir(parents=True, exist_ok=True)
            if data_parallel.rank() == 0:
                store.save(lens, self.path / name, dtype=dtype)
            checkpoint.remove(self.path, self.process)
        data_parallel.barrier()

    def _writes(self) -> bool:
        return self.apart or data_parallel.rank() == 0


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
