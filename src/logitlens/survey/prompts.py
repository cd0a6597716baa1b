"""Labelled prompts: a file of prompts with answers, and the conditions that they differ by.

    {"prompt": "The capital of France is", "answer": " Paris", "wrong": [" Rome", " Nice"],
     "sets": {"English": [" the", " a"]}, "id": "france", "language": "en"}

One object on each line of a .jsonl file, or the columns of a .csv or .parquet file, any of them
gzipped but the last. `prompt` is text or token ids (`messages`, in its place, a chat); `answer` and
`wrong` are one text or several, of any number of tokens (in CSV, several as a JSON list); all other
columns are conditions.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from logitlens import storage
from logitlens.errors import FormatError, InputError, MissingExtra, PromptError, SettingError
from logitlens.schema import parse_json
from logitlens.survey import conditions as naming

FIELDS = ("prompt", "messages", "answer", "wrong", "sets", "id")
LINE = 1 << 22  # bytes of one line
NEWLINE = b"\n"
WITHOUT = " without id"


@dataclass(frozen=True)
class Item:
    """One labelled prompt. where: its file and line, for messages."""

    index: int
    id: str
    prompt: Any
    answers: list[str]
    wrong: list[str]
    sets: dict[str, list[Any]]
    conditions: dict[str, Any]
    where: str

    @property
    def joined(self) -> bool:
        """Whether an answer goes on in the prompt's last word, or follows a space of the prompt's own: where it
        is meant to be a word by itself, its first token is another than the model would write."""
        given = self.prompt
        if not isinstance(given, str) or not given:
            return False
        after = {a[0] for a in (*self.answers, *self.wrong) if isinstance(a, str) and a}
        if given[-1] == " ":
            return any(not first.isspace() for first in after)
        return _in_words(given[-1]) and any(map(_in_words, after))

    @property
    def text(self) -> str:
        """The prompt as the table has it: token ids and messages as JSON."""
        given = self.prompt
        return given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)

    @property
    def size(self) -> int:
        """Bytes of all that is read, some four to a token."""
        texts = [self.text, *self.answers, *self.wrong]
        return sum(len(text.encode("utf-8", "replace")) for text in texts)


def _in_words(letter: str) -> bool:
    """Whether it is a digit or of a script with capitals, all of which put spaces between words."""
    return letter.isdigit() or letter.lower() != letter.upper()


@dataclass(frozen=True)
class Prompts:
    """A file of labelled prompts.

    types     the conditions and the type of each: "int", "float", "bool" or "string"
    skipped   what was left out, each with the file's name, its line and the reason
    """

    path: str | os.PathLike[str]
    size: int
    sha256: str
    items: list[Item]
    types: dict[str, str]
    skipped: list[str] = field(default_factory=list)


def read(
    path: str | os.PathLike[str], *, skip_bad: bool = False, reserved: Iterable[str] = ()
) -> Prompts:
    """A .jsonl, .csv or .parquet file of labelled prompts.

    skip_bad   leave out lines that cannot be read, and count them; else the first is an error
    reserved   names that a condition may not have

    Raises FormatError (not what its suffix says, with the line), SettingError (an unknown suffix), InputError
    (no such file; a prompt or an answer that is empty, with the line), PromptError (no name), MissingExtra.
    """
    if not str(path):
        raise PromptError(
            "the file of prompts has an empty name: expected .jsonl, .csv or .parquet"
        )
    place = storage.at(os.path.expanduser(path))
    file = str(path if place.local is None else place.local)
    if place.is_folder() or place.size("") is None:
        raise InputError(f"no prompts at {path}: expected a .jsonl, .csv or .parquet file")
    data = place.read("")
    items: list[Item] = []
    skipped: list[str] = []
    for where, record in _records(file, data):
        try:
            items.append(_item(record, where, len(items), frozenset(reserved)))
        except (FormatError, InputError) as error:
            if not skip_bad:
                raise type(error)(f"{error} (--bad skip leaves such lines out)") from None
            skipped.append(str(error).replace(file, Path(file).name, 1))
    if not items:
        why = f"; the first of {len(skipped)}: {skipped[0]}" if skipped else ""
        raise InputError(f"{file} holds no prompts that can be read{why}")
    named = {item.id for item in items}
    items = [item if item.id else replace(item, id=_own_id(item.index, named)) for item in items]
    types = _types(items)
    sets = dict.fromkeys(name for item in items for name in item.sets)
    taken: set[str] = set()
    for name in (*types, *(f"set_{s}{end}" for s in sets for end in ("", "_rank"))):
        if name.lower() in taken:
            raise FormatError(
                f"{file}: two columns of the table would be called {name!r}, capitals aside; rename one"
            )
        taken.add(name.lower())
    digest = hashlib.sha256(data).hexdigest()
    return Prompts(path, len(data), digest, items, types, skipped)


def _own_id(index: int, named: set[str]) -> str:
    """Of a prompt without an id: its number, unless another is called so."""
    return str(index) if str(index) not in named else f"{index}{WITHOUT}"


def _records(file: str, data: bytes) -> Iterator[tuple[str, Any]]:
    """(file and line, what is there: a mapping, or an error to be raised for that line)."""
    name, zipped = Path(file), file.endswith(".gz")
    suffix = Path(name.stem).suffix if zipped else name.suffix
    if suffix == ".parquet":
        for number, row in enumerate(_parquet(file, data), 1):
            yield f"{file} row {number}", {k: v for k, v in row.items() if v is not None}
        return
    why = ""
    if zipped:
        data, why = _unzipped(data)
    if suffix in (".jsonl", ".ndjson"):
        yield from _json_lines(file, data)
    elif suffix == ".csv":
        yield from _csv_rows(file, data)
    else:
        raise SettingError(
            f"{file}: expected .jsonl, .csv (or .gz of them) or .parquet, got {suffix!r}; running text is "
            "read with --corpus"
        )
    if why:
        where = f"{file} line {data.count(NEWLINE) + 1}"
        lost = f"{where} cannot be read, nor what follows: it is not a whole gzip file ({why})"
        yield where, FormatError(lost)


def _unzipped(data: bytes) -> tuple[bytes, str]:
    """The lines that a gzip file holds, and why these are not all of them, or nothing."""
    lines = []
    try:
        with gzip.open(io.BytesIO(data)) as file:
            lines.extend(file)
    except (OSError, EOFError, zlib.error) as error:
        return b"".join(lines), str(error)
    return b"".join(lines), ""


def _json_lines(file: str, data: bytes) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(data.split(b"\n"), 1):
        where = f"{file} line {number}"
        if not line.strip():
            continue
        try:
            if len(line) > LINE:
                raise FormatError(f"a line of more than {LINE:,} bytes")
            yield where, parse_json(line.decode("utf-8-sig"), "it")
        except (FormatError, UnicodeDecodeError) as error:
            yield where, FormatError(f"{where} cannot be read: {error}")


def _csv_rows(file: str, data: bytes) -> Iterator[tuple[str, Any]]:
    text = data.decode("utf-8-sig", "surrogateescape")  # what is not UTF-8 is found in its line
    # Else 128 kB, beyond which all that follows is lost. It is the process's: never less than it was.
    csv.field_size_limit(max(LINE, csv.field_size_limit()))
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        names = rows.fieldnames or []
        if _foreign(names):
            raise FormatError(f"{file} line 1 is not UTF-8")
        if twice := [name for name in names if names.count(name) > 1]:
            raise FormatError(f"{file} has two columns called {twice[0]!r}: expected one")
        for row in rows:
            where = f"{file} line {rows.line_num}"
            if None in row or None in row.values():
                yield (
                    where,
                    FormatError(f"{where} has a different number of fields from the first line"),
                )
                continue
            if _foreign(row.values()):
                yield where, FormatError(f"{where} is not UTF-8")
                continue
            keep = "" if "messages" in row else "prompt"  # an empty one is an error
            record: dict[str, Any] = {k: v for k, v in row.items() if v != "" or k == keep}
            for name in ("answer", "wrong", "sets", "messages"):
                if record.get(name, "")[:1] in ("[", "{") and record[name][-1:] in ("]", "}"):
                    try:
                        record[name] = json.loads(record[name])
                    except ValueError:
                        pass  # text that begins and ends with brackets
            yield where, record
    except csv.Error as error:
        where = f"{file} line {rows.line_num + 1}"
        lost = f"{where} cannot be read, nor what follows: it is not CSV ({error})"
        yield where, FormatError(lost)


def _foreign(texts: Iterable[str]) -> bool:
    """Whether bytes that are no UTF-8 were among those of some texts."""
    return any("\udc80" <= letter <= "\udcff" for text in texts for letter in text)


def _parquet(file: str, data: bytes) -> list[dict[str, Any]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtra("pyarrow", "survey", f"reading {file}") from None
    try:
        return pq.read_table(io.BytesIO(data)).to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        first_line = str(error).partition("\n")[0][:200]
        raise FormatError(f"{file} is not a whole Parquet file: {first_line}") from None


def _item(record: Any, where: str, index: int, reserved: frozenset[str]) -> Item:
    if isinstance(record, FormatError):
        raise record
    if isinstance(record, Mapping):  # null, or the nan of a table: not given
        record = {k: v for k, v in record.items() if k not in FIELDS or (v is not None and v == v)}
    if not isinstance(record, Mapping) or ("prompt" in record) == ("messages" in record):
        is_text = isinstance(record, Mapping) and "text" in record and "prompt" not in record
        hint = "; running text is read with --corpus" if is_text else ""
        raise FormatError(
            f"{where}: expected an object with a prompt, or with messages; got {str(record)[:60]!r}{hint}"
        )
    prompt = record["messages"] if "messages" in record else record["prompt"]
    if not isinstance(prompt, (str, list)):
        raise FormatError(
            f"{where}: the prompt is {type(prompt).__name__}; expected text, ids or messages"
        )
    if not prompt:
        raise InputError(f"{where}: the prompt is empty")
    if "messages" in record and not all(isinstance(each, Mapping) for each in prompt):
        raise FormatError(f"{where}: expected messages as objects with a role and a content")
    given = {k: v for k, v in record.items() if k not in FIELDS}
    conditions = {k: v if isinstance(v, int) else naming.plain(v) for k, v in given.items()}
    for name, value in conditions.items():
        _check_name(name, reserved, where)
        if not (naming.is_text(name) and naming.is_text(value)):
            raise FormatError(f"{where}: the condition {name!r} is text that cannot be written")
        if not isinstance(value, (str, int, float, bool, type(None))):
            raise FormatError(
                f"{where}: the condition {name!r} is {type(value).__name__}; expected one value"
            )
        if not naming.is_whole(value):
            raise FormatError(
                f"{where}: the condition {name!r} is a whole number of more than 64 bits; write it as text"
            )
    named = record.get("sets") or {}
    pairs = named.items() if isinstance(named, Mapping) else [("", named)]
    sets = {k: v for k, v in pairs if v is not None}  # Parquet names every set in every row
    if not (isinstance(named, Mapping) and all(isinstance(v, list) and v for v in sets.values())):
        raise FormatError(f"{where}: expected sets as lists of tokens by name")
    if not all(str(each).strip() for each in sets):
        raise FormatError(f"{where}: a set has no name; give it one")
    name = str(record.get("id", ""))
    if not all(map(naming.is_text, (name, *sets))):
        raise FormatError(f"{where}: its id, or the name of a set, is text that cannot be written")
    return Item(
        index=index,
        id=name,
        prompt=prompt,
        answers=_texts(record.get("answer"), f"{where}: the answer"),
        wrong=_texts(record.get("wrong"), f"{where}: the wrong answer"),
        sets=sets,
        conditions=conditions,
        where=where,
    )


def _check_name(name: str, reserved: frozenset[str], where: str) -> None:
    """Raise FormatError for a condition's name that is, or could be taken for, one of the survey's own;
    DuckDB, which finds prompts, knows no capitals."""
    plain = name.strip().lower()
    if not plain:
        raise FormatError(f"{where}: a column has no name; give it one, or leave it out")
    if plain in FIELDS:
        raise FormatError(f"{where}: {name!r} is not a field; {plain!r} is: use that name")
    if naming.is_own(plain, reserved) or plain.startswith("set_"):
        raise FormatError(f"{where}: {name!r} is a column of the survey; rename the condition")


def _texts(value: Any, what: str) -> list[str]:
    if value is None:
        return []
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise FormatError(f"{what} is {repr(value)[:60]}; expected a text or several")
    if not texts or not all(texts):
        raise InputError(f"{what} is empty")
    return list(dict.fromkeys(texts))


def _types(items: list[Item]) -> dict[str, str]:
    """The type of every condition."""
    found: dict[str, set[type]] = {}
    for item in items:
        for name, value in item.conditions.items():
            found.setdefault(name, set()).update([] if value is None else [type(value)])
    return naming.types(found)
