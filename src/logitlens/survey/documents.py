"""A corpus → token ids in one file, cut into windows, and these into shards.

DIR/tokens.bin         int32 ids of all documents, one after another
DIR/conditions.jsonl   what documents say of themselves, a line for each that says something
DIR/documents.bin      int64, for each document where it ends: among the ids, and in bytes of the line
DIR/tokens.json        what they were made of: files with sizes and hashes, what was left out

A document longer than a window is read in several that overlap; the overlap is context only, so every
token is counted once. Whoever works on a shard reads its range of ids and nothing else.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from array import array
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from logitlens import storage
from logitlens.errors import FormatError, InputError, PromptError
from logitlens.fit import corpus
from logitlens.model.lens_model import LensModel
from logitlens.schema import matches, parse_json
from logitlens.storage import Storage
from logitlens.survey.conditions import Noted

TOKENS, ENDS, FACTS = "tokens.bin", "documents.bin", "tokens.json"
CONDITIONS = "conditions.jsonl"
ORIGIN = "origin"  # of a document: its file and line, or row, as an error would name them
FILES = (TOKENS, CONDITIONS, ENDS, FACTS)
_FACTS = {
    "made_of": {str: object}, "documents": int, "tokens": int, "sha256": str, "bad": int,
    "skipped": [str], "conditions": {str: str}, "left_out": {str: str},
}  # fmt: skip
NAMED = 100  # lines left out that are named; all are counted


@dataclass(frozen=True)
class Windows:
    """Windows over documents, numbered in order.

    ends_N    where each document ends among all tokens      length, overlap   in tokens
    first_N   the number of each document's first window
    """

    ends_N: np.ndarray
    length: int
    overlap: int

    def __post_init__(self) -> None:
        starts_N = np.concatenate([[0], self.ends_N[:-1]])
        sizes_N = self.ends_N - starts_N
        stride = self.length - self.overlap
        counts_N = 1 + np.maximum(0, -(-(sizes_N - self.length) // stride))
        object.__setattr__(self, "starts_N", starts_N)
        object.__setattr__(self, "counts_N", counts_N)
        object.__setattr__(self, "first_N", np.cumsum(counts_N) - counts_N)

    starts_N: Any = None
    counts_N: Any = None
    first_N: Any = None

    def __len__(self) -> int:
        return int(self.counts_N.sum())

    @property
    def shortest(self) -> int:
        """Tokens of the shortest window: the last one of a document."""
        before_N = (self.counts_N - 1) * (self.length - self.overlap)
        return int((self.ends_N - self.starts_N - before_N).min())

    def window(self, number: int) -> Window:
        document = int(np.searchsorted(self.first_N, number, side="right")) - 1
        offset = (number - int(self.first_N[document])) * (self.length - self.overlap)
        start, end = int(self.starts_N[document]) + offset, int(self.ends_N[document])
        return Window(
            document,
            start,
            min(end, start + self.length),
            end,
            offset,
            self.overlap if offset else 0,
        )

    def at(self, document: int, position: int) -> Window:
        """The window in which a position of a document is counted."""
        before = -(-(position + 1 - self.length) // (self.length - self.overlap))
        return self.window(int(self.first_N[document]) + max(0, before))

    def shards(self, tokens: int) -> list[tuple[int, int]]:
        """Ranges of windows, each of about so many tokens; where they are cut depends on nothing else."""
        stride = self.length - self.overlap
        document_W = np.repeat(np.arange(len(self.ends_N)), self.counts_N)
        offset_W = (np.arange(len(document_W)) - self.first_N[document_W]) * stride
        end_W = np.minimum(
            self.ends_N[document_W], self.starts_N[document_W] + offset_W + self.length
        )
        wanted = np.arange(tokens, int(self.ends_N[-1]) + tokens, tokens)
        cuts = np.minimum(np.searchsorted(end_W, wanted) + 1, len(end_W))
        cuts = np.unique(np.concatenate([[0], cuts, [len(end_W)]]))
        return [(int(a), int(b)) for a, b in itertools.pairwise(cuts)]


@dataclass(frozen=True)
class Window:
    """Tokens `start` to `stop` among all, of a document that ends at `end`.

    offset    of its first token within the document
    context   how many of its first tokens were counted by the window before it
    """

    document: int
    start: int
    stop: int
    end: int
    offset: int
    context: int


def made_of(
    source: str, model: LensModel, field: str, skip_bad: bool
) -> tuple[dict[str, Any], int, str]:
    """What a corpus's ids depend on; the size of its files, and the hash of all of them."""
    files, total, whole, inside = [], 0, hashlib.sha256(), _inside(source)
    for path, said in corpus.files(source):
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
        size = path.stat().st_size
        files.append({"name": inside(said), "size": size, "sha256": digest.hexdigest()})
        whole.update(digest.digest())
        total += size
    facts = {
        "files": files,
        "field": field,
        "skip_bad": skip_bad,
        "tokenizer": tokenizer_hash(model),
        "version": 2,  # of the files below
    }
    return facts, total, whole.hexdigest()


def tokenizer_hash(model: LensModel) -> str:
    """16 hex digits of a tokenizer: its vocabulary, its rules where they can be written, its chat template."""
    if model.tokenizer is None:
        return "none"
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else {}
    for name in ("truncation", "padding"):  # of whoever used it last
        rules.pop(name, None)
    vocabulary = sorted(model.tokenizer.get_vocab().items())
    parts = [vocabulary, rules, str(getattr(model.tokenizer, "chat_template", None))]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def tokenise(
    place: Storage, source: str, model: LensModel, made: dict[str, Any], own: Collection[str],
    last: Callable[[], None],
) -> dict[str, Any]:  # fmt: skip
    """Write the ids and conditions of a corpus, unless they are there; returns DIR/tokens.json.

    own   names that no condition may have      last   called before the files are put there; may raise

    Raises FormatError for the first line that cannot be read unless such lines are skipped,
    InputError where there is no text.
    """
    if (there := _there(place)) is not None and there["made_of"] == made:
        return there
    skipped: list[str] = []
    bad = 0

    def skip(error: FormatError | PromptError) -> None:
        nonlocal bad
        if not made["skip_bad"]:
            raise type(error)(f"{error} (--bad skip leaves such lines out)") from error
        bad += 1
        if len(skipped) < NAMED:
            skipped.append(str(error))

    noted = Noted(own)
    read = corpus.records(source, made["field"], bad=skip, others=True)
    with place.writing(TOKENS) as path, place.writing(CONDITIONS) as beside:
        ends_N2, digest = _write(_inside(source), path, beside, read, model, noted, skip)
        if not len(ends_N2):
            raise InputError(f"{source} holds no text that can be read")
        last()
    place.write(ENDS, ends_N2.tobytes())
    facts = {
        "made_of": made, "documents": len(ends_N2), "tokens": int(ends_N2[-1, 0]), "sha256": digest,
        "bad": bad, "skipped": skipped, "conditions": noted.types, "left_out": noted.left_out,
    }  # fmt: skip
    place.write(FACTS, (json.dumps(facts, ensure_ascii=False) + "\n").encode())
    return facts


def _there(place: Storage) -> dict[str, Any] | None:
    """DIR/tokens.json, where it is of this version and of the ids beside it."""
    try:
        facts = parse_json(place.read(FACTS), FACTS)
        matches(facts, _FACTS, FACTS)
    except (FileNotFoundError, FormatError):
        return None
    return facts if are_those_of(place, facts) else None


def are_those_of(place: Storage, facts: dict[str, Any]) -> bool:
    """Whether the ids of a folder are those that were written: in number, and by their hash where they are
    on this machine."""
    if place.size(TOKENS) != 4 * facts["tokens"]:
        return False
    if place.local is None:
        return True
    with open(place.local / TOKENS, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == facts["sha256"]


def _write(
    inside: Callable[[str], str],
    path: Path,
    beside: Path,
    documents: Iterable[corpus.Record],
    model: LensModel,
    noted: Noted,
    bad: Callable[[PromptError], None],
) -> tuple[np.ndarray, str]:
    ends, total, digest = array("q"), 0, hashlib.sha256()
    file: IO[bytes]
    said: IO[bytes]
    with open(path, "wb") as file, open(beside, "wb") as said:
        for document in documents:
            try:
                ids = corpus.ids_of(document, model)
            except PromptError as error:
                if model.tokenizer is None and isinstance(document.content, str):
                    raise  # no document of text can be read
                bad(error)
                continue
            if not len(ids):
                continue
            total += len(ids)
            kept = {ORIGIN: inside(document.where), **noted.keep(document.others)}
            said.write(f"{json.dumps(kept)}\n".encode())
            ends.extend((total, said.tell()))
            data = ids.astype("<i4").tobytes()
            digest.update(data)
            file.write(data)
    return np.array(ends, "<i8").reshape(-1, 2), digest.hexdigest()


def _inside(source: str) -> Callable[[str], str]:
    """What a document's file and line are called inside the source, wherever that is and however it is
    spelt."""
    address = "hf://"
    if not source.startswith(address):
        address = storage.at(os.path.expanduser(source)).address.rstrip("/") + "/"

    def name(where: str) -> str:
        if where.startswith(address):
            return where.removeprefix(address)
        _, cached, rest = where.rpartition("/snapshots/")  # of the hub: what follows the revision
        return rest.partition("/")[2] if cached else where.rpartition("/")[2]

    return name


def windows(place: Storage, length: int, overlap: int) -> Windows:
    """The windows of a survey's documents."""
    ends_N2 = np.frombuffer(place.read(ENDS), "<i8").reshape(-1, 2)
    return Windows(ends_N2[:, 0], length, overlap)


def ids(place: Storage, start: int, stop: int) -> np.ndarray:
    """Tokens `start` to `stop` among all, int32."""
    return np.frombuffer(place.read(TOKENS, 4 * start, 4 * stop), "<i4")


def conditions(place: Storage, first: int, last: int) -> list[dict[str, Any]]:
    """What documents `first` to `last` say of themselves."""
    before = max(first - 1, 0)
    ends_N2 = np.frombuffer(place.read(ENDS, 16 * before, 16 * (last + 1)), "<i8").reshape(-1, 2)
    ends = [*([] if first else [0]), *ends_N2[:, 1].tolist()]
    data = place.read(CONDITIONS, ends[0], ends[-1]) if ends[-1] > ends[0] else b""
    return [
        json.loads(data[a - ends[0] : b - ends[0]]) if b > a else {}
        for a, b in itertools.pairwise(ends)
    ]
