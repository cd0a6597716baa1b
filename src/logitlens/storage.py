"""Where a survey's files are: a folder of this machine, or any address that fsspec knows.

    place = at("my-survey")                  place = at("s3://bucket/my-survey")
    place.write("plan.json", b"…")           place.create("commits/00007.json", b"…")

A file appears whole or not at all: on object stores because they put objects whole, elsewhere by a rename.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from logitlens.errors import LogitLensError, MissingExtra, SettingError
from logitlens.files import replacing

OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "adl", "oss", "oci"}


class Storage(Protocol):
    """Files by name, like "parts/00007.parquet", below one address.

    local   the folder, where it is one of this machine
    """

    address: str
    local: Path | None

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """The bytes of a file, or those from `start` to `stop`. Raises FileNotFoundError, OSError."""
        ...

    def size(self, name: str) -> int | None:
        """Of a file in bytes; None where there is none."""
        ...

    def is_folder(self) -> bool:
        """Whether the address itself is a folder, not a file."""
        ...

    def names(self, folder: str = "") -> list[str]:
        """The names of the files and folders in a folder, sorted; none where there is no such folder."""
        ...

    def writing(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """A path to be written; at the end the file appears under its name. Raises OSError."""
        ...

    def fetched(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """A path at which a file can be read inside the context; remote ones are downloaded."""
        ...

    def create(self, name: str, data: bytes) -> bytes:
        """Write a file and return it; where it is there already, the first writer's bytes."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Write a file, over one that is there."""
        with self.writing(name) as path:
            path.write_bytes(data)


def is_remote(address: str | os.PathLike[str]) -> bool:
    """Whether an address is fsspec's: s3://…, gs://…, memory://…"""
    return "://" in str(address)


def at(address: str | os.PathLike[str]) -> Storage:
    """The files below a folder or an fsspec address. Raises MissingExtra, SettingError (no such protocol)."""
    if is_remote(address) and not str(address).startswith("file://"):
        return _Remote(str(address))
    return _Local(Path(str(address).removeprefix("file://")))


class _Local(Storage):
    def __init__(self, folder: Path):
        self.address, self.local, self.folder = str(folder), folder, folder

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        with open(self.folder / name, "rb") as file:
            file.seek(start or 0)
            return file.read() if stop is None else file.read(stop - (start or 0))

    def size(self, name: str) -> int | None:
        try:
            return (self.folder / name).stat().st_size
        except FileNotFoundError:
            return None

    def is_folder(self) -> bool:
        return self.folder.is_dir()

    def names(self, folder: str = "") -> list[str]:
        try:
            return sorted(os.listdir(self.folder / folder))
        except FileNotFoundError:
            return []

    def writing(self, name: str) -> contextlib.AbstractContextManager[Path]:
        return self._writing(name, over=True)

    @contextmanager
    def _writing(self, name: str, over: bool) -> Iterator[Path]:
        path = self.folder / name
        there = path.parent.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with replacing(path, over=over) as temporary:
                yield temporary
        except BaseException:
            if not there:
                with contextlib.suppress(OSError):  # others may have written into it
                    path.parent.rmdir()
            raise
        with contextlib.suppress(
            OSError
        ):  # put the rename on the disk, where folders can be synced
            descriptor = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    @contextmanager
    def fetched(self, name: str) -> Iterator[Path]:
        yield self.folder / name

    def create(self, name: str, data: bytes) -> bytes:
        try:
            with self._writing(name, over=False) as path:
                path.write_bytes(data)
        except FileExistsError:
            return self.read(name)
        return data

    def remove(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)


class _Remote(Storage):
    """An object store, or another file system of fsspec."""

    def __init__(self, address: str):
        try:
            import fsspec
        except ImportError:
            raise MissingExtra("fsspec", "survey", f"reading {address}") from None
        self.address, self.local = address.rstrip("/"), None
        try:
            self.fs, self.root = fsspec.url_to_fs(self.address, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            kind = SettingError if isinstance(error, ValueError) else LogitLensError
            raise kind(f"{address}: {_line(error)}") from None

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        with self._asked(name):
            return self.fs.cat_file(self._path(name), start=start, end=stop)

    def size(self, name: str) -> int | None:
        try:
            with self._asked(name):
                return int(self.fs.info(self._path(name))["size"])
        except FileNotFoundError:
            return None

    def is_folder(self) -> bool:
        with self._asked(""):
            return self.fs.isdir(self.root)

    def names(self, folder: str = "") -> list[str]:
        try:
            with self._asked(folder):
                found = self.fs.ls(self._path(folder), detail=False, refresh=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted({each.rstrip("/").rpartition("/")[2] for each in found} - {""})

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "file"
            yield path
            with self._putting(name), self._whole(name) as to:
                self.fs.put_file(str(path), to)

    @contextmanager
    def fetched(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / self._path(name).rpartition("/")[2]
            with self._asked(name):
                self.fs.get_file(self._path(name), str(path))
            yield path

    def create(self, name: str, data: bytes) -> bytes:
        with self._putting(name):
            if not self._puts_whole:
                if self.fs.exists(self._path(name)):
                    return self.read(name)
                with self._whole(name) as to:
                    self.fs.pipe_file(to, data)
                return data
            try:
                self.fs.pipe_file(self._path(name), data, mode="create")
            except FileExistsError:
                return self.read(name)
        return data

    @property
    def _puts_whole(self) -> bool:
        """Whether a file is there whole or not at all, as in object stores."""
        protocol = self.fs.protocol
        return bool(OBJECT_STORES & {*([protocol] if isinstance(protocol, str) else protocol)})

    @contextmanager
    def _whole(self, name: str) -> Iterator[str]:
        """Where to put a file: on what is no object store, another name first, so that a writer who is
        killed leaves no part of a file under this one."""
        if self._puts_whole:
            yield self._path(name)
            return
        folder, _, last = self._path(name).rpartition("/")
        temporary = f"{folder}/.{last}.{secrets.token_hex(4)}.tmp"
        try:
            yield temporary
            self.fs.mv(temporary, self._path(name))
        except BaseException:
            with contextlib.suppress(Exception):
                self.fs.rm_file(temporary)
            raise

    @contextmanager
    def _putting(self, name: str) -> Iterator[None]:
        """Inside, a file may be written: its folder is there. Raises OSError."""
        with self._asked(name):
            # Object stores have no folders, and would make a bucket whose name is misspelt.
            if not self._puts_whole:
                self.fs.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)
            try:
                yield
            except FileNotFoundError as error:
                raise OSError(f"{self.address}: {_line(error)}") from error

    def remove(self, name: str) -> None:
        with self._asked(name), contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self._path(name))

    @contextmanager
    def _asked(self, name: str) -> Iterator[None]:
        """Whatever a store's own library raises becomes an OSError of one line."""
        try:
            yield
        except (OSError, LogitLensError):
            raise
        except Exception as error:
            raise OSError(f"{self.address}/{name}: {_line(error)}") from error


def _line(error: Any) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
