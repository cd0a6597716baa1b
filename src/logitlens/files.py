"""Atomic writes: a file appears whole or not at all."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

from logitlens.errors import FormatError, LogitLensError

try:
    import fcntl
except ImportError:  # Windows has no advisory locks: leftovers of killed writes stay there
    fcntl = None

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp(\..*)?", re.DOTALL)
_ROOM = 1 << 20  # bytes tried where a writer failed, to learn whether the disk is full


@contextmanager
def replacing(path: str | os.PathLike[str], *, over: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is renamed to `path`, else it is removed.

    over   whether it may replace a file; else FileExistsError is raised where there is one at the end

    A reader therefore sees the old file or the new one, never a part. A file that is overwritten keeps
    its mode, a symbolic link stays and its target is replaced, and leftovers of killed writes of the same
    file are removed. The bytes are on the disk before the rename.

    Raises OSError with one line where `path` cannot be written: no folder, no permission, a full disk,
    a directory, a pipe or a device.
    """
    with _temporary(path) as (target, temporary, file):
        try:
            yield temporary
            os.fsync(file.fileno())
            if (old := _mode(target)) is not None:
                os.chmod(temporary, stat.S_IMODE(old))
            if fcntl is None:
                file.close()  # Windows cannot rename an open file
            if over:
                os.replace(temporary, target)
            else:
                _link(temporary, target)
        except FileExistsError:
            raise
        except OSError as error:
            if error.errno is None or error.filename not in (None, str(temporary)):
                raise  # the caller's own words, or about another file
            raise _refused(path, os.strerror(error.errno)) from error
        except LogitLensError:
            raise
        except Exception as error:
            # Some writers report a full disk in errors of their own: ask the disk itself.
            try:
                file.seek(0, os.SEEK_END)
                for _ in range(2):  # the first may fit in part
                    file.write(bytes(_ROOM))
                os.fsync(file.fileno())
            except OSError as reason:
                raise _refused(path, os.strerror(reason.errno or 0)) from error
            raise


def _link(temporary: Path, target: Path) -> None:
    """Give a file its name, unless there is one of that name. Raises FileExistsError."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise
    except OSError:
        # A file system without links: two writers at the same moment are not told apart.
        if target.exists():
            raise FileExistsError(target) from None
        os.replace(temporary, target)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise the OSError that `replacing` would raise, before there is anything to write."""
    with _temporary(path):
        pass


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` to `path` as UTF-8, whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


@contextmanager
def _temporary(path: str | os.PathLike[str]) -> Iterator[tuple[Path, Path, FileIO]]:
    """What `path` names, and a new file beside it, by name and open; it is removed at the end."""
    try:
        old = _mode(path)
        if old is not None and not stat.S_ISREG(old):
            raise _refused(
                path, "it is a directory" if stat.S_ISDIR(old) else "it is not a regular file"
            )
        target = Path(os.path.realpath(path))
        if not target.parent.is_dir():
            raise _refused(path, f"there is no folder {Path(path).parent}; make it first")
        # Not readable by anyone who may not read the old file; the umask narrows a new one.
        mode = 0o666 if old is None else stat.S_IMODE(old) | 0o600
        sweep(target.parent, of=target)
        temporary, file = _create(target, mode)
    except OSError as error:
        if error.errno is None:
            raise
        raise _refused(path, os.strerror(error.errno)) from error
    try:
        yield target, temporary, file
    finally:
        try:
            file.close()
        finally:  # Ctrl-C may come in between
            temporary.unlink(missing_ok=True)


def _mode(path: str | os.PathLike[str]) -> int | None:
    """What `path` names, links followed; None where there is nothing yet."""
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        return None


def _create(target: Path, mode: int) -> tuple[Path, FileIO]:
    """A new file beside another, locked as long as it is open."""
    start, end = _ends(target)
    while True:
        path = target.parent / f"{start}{secrets.token_hex(4)}{end}"
        file = None
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
            file = FileIO(descriptor, "r+b")
            _lock(file, wait=True)
            if os.fstat(file.fileno()).st_nlink:
                return path, file
        except KeyboardInterrupt:
            if file:
                file.close()
            path.unlink(missing_ok=True)
            raise
        file.close()  # another process took it for a leftover before it was locked


def sweep(folder: str | os.PathLike[str], of: str | os.PathLike[str] | None = None) -> None:
    """Remove temporary files of a folder, or those of one file in it, that no process holds any more:
    their writers were killed."""
    start, end = ("", "") if of is None else _ends(Path(of))
    for name in os.listdir(folder):
        if not (_TEMPORARY.fullmatch(name) and name.startswith(start) and name.endswith(end)):
            continue
        with contextlib.suppress(OSError), open(Path(folder, name), "r+b", buffering=0) as file:
            if _lock(file, wait=False):
                os.unlink(Path(folder, name))


def _ends(target: Path) -> tuple[str, str]:
    """How the names of a file's temporary files begin and end."""
    return f".{target.name[:40]}.", f".tmp{target.suffix[:20]}"


def _lock(file: FileIO, wait: bool) -> bool:
    """Lock an open file; False if another process holds it or the file system has no locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def _refused(path: str | os.PathLike[str], why: str) -> OSError:
    return OSError(f"cannot write {path}: {why}")


def write_result(
    result: Any,
    path: str | os.PathLike[str],
    suffixes: Sequence[str],
    *,
    text: Callable[[], str] | None = None,
    figure: Callable[[], Any] | None = None,
) -> Path:
    """Write a result atomically, by suffix: what `to_dict`, `to_arrow`, `str` or `figure` make of it;
    as .html, the figure and the text.

    text, figure   in place of the result's own `str` and `figure`

    Raises FormatError for a suffix that is not among `suffixes`, OSError, and what those methods raise.
    """
    as_text, drawn = text or result.__str__, figure or result.figure
    target = Path(path)
    suffix = target.suffix.lower()
    if suffix not in suffixes:
        raise FormatError(f"cannot save {str(path)!r}: end it in {' '.join(suffixes)}")
    if suffix == ".json":
        write_text(target, json.dumps(result.to_dict(), ensure_ascii=False, allow_nan=False) + "\n")
    elif suffix == ".txt":
        write_text(target, f"{as_text()}\n")
    elif suffix == ".parquet":
        table = result.to_arrow()
        import pyarrow.parquet as pq

        with replacing(target) as temporary:
            pq.write_table(table, temporary, compression="zstd")
    elif suffix == ".html":
        view = importlib.import_module("logitlens.view.document")
        write_text(target, view.html(drawn(), as_text()))
    else:
        picture = drawn()
        with replacing(target) as temporary:
            picture.savefig(temporary, format=suffix[1:], dpi=200)
    return target
