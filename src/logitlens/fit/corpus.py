"""Text to fit on: files, folders and hub data sets → documents of token ids, with a hash.

    corpus = read("book.txt", model)          # one document per paragraph (blank line between)
    corpus = read("pile.jsonl", model)        # one object a line, field "text" (or "ids")
    corpus = read("shard.parquet", model)     # column "text"; needs the extra `data`
    corpus = read("hf://datasets/owner/name", model)

Any of them may be gzipped (.gz); a folder is read file by file, in order of names.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from logitlens import hub, storage
from logitlens.errors import (
    FormatError,
    InputError,
    MissingExtra,
    ModelNotAvailable,
    PromptError,
    SettingError,
)
from logitlens.model.lens_model import LensModel
from logitlens.schema import parse_json
from logitlens.storage import Storage

LINE = 1 << 24  # characters of a line of text; one that is longer is no document
SUFFIXES = (".txt", ".md", ".jsonl", ".ndjson", ".parquet")


@dataclass(frozen=True)
class Record:
    """A document as its source has it: text or token ids, and what else its line or row says.

    where   its file and line, for messages
    """

    content: str | list[int]
    where: str
    others: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Corpus:
    """Documents of token ids, each (T,) int32, in the order of the source."""

    name: str
    documents: list[np.ndarray]

    @property
    def tokens(self) -> int:
        return sum(len(document) for document in self.documents)

    @property
    def hash(self) -> str:
        """First 16 hex digits of the SHA-256 of the ids and where documents end."""
        digest = hashlib.sha256()
        for document in self.documents:
            digest.update(len(document).to_bytes(8, "little"))
            digest.update(np.ascontiguousarray(document, np.int32).tobytes())
        return digest.hexdigest()[:16]

    def describe(self) -> dict[str, Any]:
        """For a lens's header."""
        return {
            "name": self.name,
            "hash": self.hash,
            "documents": len(self.documents),
            "tokens": self.tokens,
        }

    def shard(self, index: int, count: int) -> Corpus:
        """Every `count`-th document from the `index`-th on (0-based)."""
        if not 0 <= index < count:
            raise PromptError(f"shard {index}/{count}: expected 0/{count} to {count - 1}/{count}")
        return Corpus(f"{self.name} [{index}/{count}]", self.documents[index::count])

    def chunks(self, length: int, separator: int | None = None) -> Tensor:
        """All documents in a row, cut into (chunks, length) int64; the rest is left out.

        `separator` (an end-of-text id) stands between documents where it is given.
        """
        parts: list[np.ndarray] = []
        for document in self.documents:
            if parts and separator is not None:
                parts.append(np.array([separator], np.int32))
            parts.append(document)
        ids = np.concatenate(parts) if parts else np.zeros(0, np.int32)
        whole = len(ids) // length
        return torch.from_numpy(ids[: whole * length].astype(np.int64)).view(whole, length)


def from_ids(documents: Iterable[Sequence[int]], name: str = "ids") -> Corpus:
    """A corpus from token ids at hand."""
    return Corpus(name, [np.asarray(document, np.int32) for document in documents])


def read(
    source: str | os.PathLike[str],
    model: LensModel,
    *,
    field: str = "text",
    max_tokens: int | None = None,
    on_tokens: Callable[[int], None] | None = None,
) -> Corpus:
    """A file, folder or `hf://datasets/owner/name` → Corpus, tokenised with the model's tokenizer.

    field        the JSONL field or Parquet column that holds the text
    max_tokens   stop once so many tokens have been read

    Raises ModelNotAvailable (no such data set), FormatError (not readable as what its suffix says),
    InputError (no such file, no tokenizer, no text, an id outside the vocabulary), PromptError (no name),
    MissingExtra.
    """
    documents: list[np.ndarray] = []
    total = 0
    for record in records(source, field):
        document = ids_of(record, model)
        if not len(document):
            continue
        documents.append(document)
        total += len(document)
        if on_tokens is not None:
            on_tokens(total)
        if max_tokens is not None and total >= max_tokens:
            break
    if not documents:
        raise InputError(f"{source} holds no text: expected at least one document")
    name = str(source) if str(source).startswith("hf://") else Path(source).name
    return Corpus(name, documents)


def ids_of(record: Record, model: LensModel) -> np.ndarray:
    """Raises InputError that names the file and the line."""
    content = record.content
    if isinstance(content, str):
        try:
            return np.asarray(model.tokens.encode(content) if content.strip() else [], np.int32)
        except PromptError as error:
            raise InputError(f"{record.where}: {error}") from error
    V = model.vocab_size
    if content and not (min(content) >= 0 and max(content) < V):
        outside = next(i for i in content if not 0 <= i < V)
        raise InputError(
            f"{record.where}: token id {outside} is outside the vocabulary: expected 0 to {V - 1}"
        )
    return np.asarray(content, np.int32)


def records(
    source: str | os.PathLike[str],
    field: str = "text",
    *,
    bad: Callable[[FormatError], None] | None = None,
    others: bool = False,
) -> Iterator[Record]:
    """The documents of a source.

    bad      called with what is wrong with a line (file and line are named), which is then left out, and
             with it the rest of a file that is cut short; None: the first such error is raised
    others   read the other columns of Parquet files too; lists, structures and bytes are empty lists
    """
    bad = bad or _refuse
    for path, said in files(source):
        yield from _of_file(path, said, field, bad, others)


def _of_file(
    path: Path, said: str, field: str, bad: Callable[[FormatError], None], others: bool
) -> Iterator[Record]:
    suffix = _suffix(path)
    if suffix == ".parquet":
        try:
            yield from _parquet(path, said, field, others)
        except FormatError as error:
            bad(error)
    elif suffix in (".jsonl", ".ndjson"):
        yield from _jsonl(path, said, field, bad)
    else:
        yield from _paragraphs(path, said, bad)


def _refuse(error: FormatError) -> None:
    raise error


def _names(place: Storage, folder: str = "") -> list[str]:
    """The corpus files of a folder and of those in it, but hidden ones and links to folders, in order."""
    out: list[str] = []
    for name in place.names(folder):
        path = f"{folder}/{name}" if folder else name
        if name.startswith("."):
            continue
        if _suffix(Path(name)) in SUFFIXES:
            out.append(path)
        elif place.local is not None and (place.local / path).is_symlink():
            continue
        elif storage.at(f"{place.address}/{path}").is_folder():
            out += _names(place, path)
    return out


def files(source: str | os.PathLike[str]) -> Iterator[tuple[Path, str]]:
    """The files of a source in order, and what messages call each; remote ones are there one at a time.

    Raises ModelNotAvailable, SettingError (a suffix that is not among SUFFIXES), InputError, PromptError.
    """
    address = str(source)
    if address.startswith("hf://"):
        yield from ((file, str(file)) for file in _hub_files(address))
        return
    if not address:
        raise PromptError("the corpus has an empty name: give a file, a folder, or hf://datasets/…")
    place = storage.at(os.path.expanduser(source))
    names = [""]
    if place.is_folder():
        names = _names(place)
        if not names:
            raise InputError(f"{address} holds no corpus files: expected {', '.join(SUFFIXES)}")
    elif place.size("") is None:
        raise InputError(
            f"no corpus at {source}: expected a file ({', '.join(SUFFIXES)}, or gzipped), a folder of "
            "them, or hf://datasets/owner/name"
        )
    for name in names:
        said = f"{place.address}/{name}" if name else place.address
        if _suffix(Path(said)) not in SUFFIXES:
            raise SettingError(
                f"{said}: expected {', '.join(SUFFIXES)} (or .gz of them), got {_suffix(Path(said))!r}"
            )
        with place.fetched(name) as path:
            yield path, said


def _suffix(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def _lines(path: Path, said: str, bad: Callable[[FormatError], None]) -> Iterator[tuple[int, str]]:
    """(number, line) of those that can be read."""
    opener: Any = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rb") as file:
            while line := file.readline(LINE):
                number += 1
                if len(line) == LINE and not line.endswith(b"\n"):
                    bad(FormatError(f"{said} line {number} has more than {LINE:,} bytes"))
                    while (rest := file.readline(LINE)) and not rest.endswith(b"\n"):
                        pass
                    continue
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    bad(
                        FormatError(
                            f"{said} line {number} cannot be read as UTF-8 text: {error.reason}"
                        )
                    )
                    continue
                yield number, text.replace("\r\n", "\n")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        bad(FormatError(f"{said} line {number + 1} cannot be read, nor what follows: {error}"))


def _paragraphs(path: Path, said: str, bad: Callable[[FormatError], None]) -> Iterator[Record]:
    block: list[str] = []
    first = 0
    for number, line in _lines(path, said, bad):
        if line.strip():
            first = first if block else number
            block.append(line.rstrip("\n"))
        elif block:
            yield Record("\n".join(block), f"{said} line {first}")
            block = []
    if block:
        yield Record("\n".join(block), f"{said} line {first}")


def _jsonl(
    path: Path, said: str, field: str, bad: Callable[[FormatError], None]
) -> Iterator[Record]:
    for number, line in _lines(path, said, bad):
        if not line.strip():
            continue
        try:
            record = parse_json(line, f"{said} line {number}")
            value = record if isinstance(record, str) else None
            rest = {}
            if isinstance(record, dict):
                name = field if field in record else "ids"
                value, rest = record.get(name), {k: v for k, v in record.items() if k != name}
            if not isinstance(value, str) and not (
                isinstance(value, list) and set(map(type, value)) <= {int}
            ):
                got = (
                    str(sorted(record))[:200] if isinstance(record, dict) else type(record).__name__
                )
                raise FormatError(
                    f"{said} line {number}: expected a field {field!r} with text, or 'ids' with token "
                    f"ids; got {got}"
                )
        except FormatError as error:
            bad(error)
            continue
        yield Record(value, f"{said} line {number}", rest)


def _parquet(path: Path, said: str, field: str, others: bool) -> Iterator[Record]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtra("pyarrow", "data", f"reading {said}") from None
    try:
        file = pq.ParquetFile(path)
        if field not in file.schema_arrow.names:
            raise FormatError(
                f"{said}: no column {field!r}; it has {', '.join(file.schema_arrow.names)}"
            )
        kind = file.schema_arrow.field(field).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise FormatError(f"{said}: the column {field!r} holds {kind}, expected text")
        names = file.schema_arrow.names
        columns = [c for c in file.schema_arrow if c.name != field] if others else []
        unread: dict[str, Any] = {
            c.name: [] for c in columns if _is_large(c.type) or names.count(c.name) > 1
        }
        plain = [c.name for c in columns if c.name not in unread]
        number = 0
        for batch in file.iter_batches(columns=[field, *plain]):
            for row in batch.select([field, *plain]).to_pylist():
                number += 1
                if text := row.pop(field):
                    yield Record(text, f"{said} row {number}", row | unread)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        if isinstance(error, FormatError):
            raise
        first_line = str(error).partition("\n")[0][:200]
        raise FormatError(f"{said} is not a whole Parquet file: {first_line}") from None


def _is_large(kind: Any) -> bool:
    """Whether a column may hold lists, structures, pictures: what is no condition."""
    import pyarrow as pa

    large = (pa.types.is_nested, pa.types.is_binary, pa.types.is_large_binary)
    return any(each(kind) for each in large) or pa.types.is_fixed_size_binary(kind)


def _hub_files(address: str) -> Iterator[Path]:
    """The Parquet files of `hf://datasets/owner/name[/folder]`, downloaded one at a time."""
    parts = address.removeprefix("hf://").split("/")
    if len(parts) < 3 or parts[0] != "datasets":
        raise PromptError(f"{address}: expected hf://datasets/owner/name or …/name/folder")
    repository, folder = "/".join(parts[1:3]), "/".join(parts[3:])
    try:
        names = hub.ask(lambda asked: asked.files(repository, "dataset"))
        wanted = [n for n in names if n.endswith(".parquet") and n.startswith(folder)]
        if not wanted:
            raise InputError(f"{address} holds no Parquet files")
        for name in wanted:
            file = hub.cached_file(repository, name, "dataset") or hub.ask(
                lambda asked, name=name: asked.file(repository, name, "dataset")
            )
            if file is not None:
                yield file
    except ModelNotAvailable as error:
        raise ModelNotAvailable(f"cannot read {address}: {error}") from None
