"""Parts of a survey: written whole, then committed. Readers see committed parts only.

DIR/parts/00007.parquet     the rows of shard 7, put there in one step
DIR/cells/00007.parquet     a corpus's cells, where they are kept
DIR/commits/00007.json      that they are there: rows, SHA-256, versions; written last
DIR/failed/00007.txt        why the shard failed the last time it was tried
DIR/logs/00007.txt          when the shard was begun, ended, failed or was dropped, by which process
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import platform
import time
from typing import TYPE_CHECKING, Any

from logitlens import files, storage
from logitlens.errors import SurveyError
from logitlens.schema import matches, parse_json

if TYPE_CHECKING:
    import pyarrow as pa

_RECORD = {
    "shard": int, "rows": int, "prompts": int, "tokens": int, "size": int, "sha256": str,
    "skipped": [str], "nonfinite": int, "seconds": float, "versions": {str: str}, "remarks": [str],
}  # fmt: skip
TABLE = "survey.parquet"
KINDS = ("parts", "cells", "commits", "failed", "logs")


class Folder:
    """The files of a survey, in a folder or at an fsspec address."""

    def __init__(self, address: str | os.PathLike[str]):
        self.place = storage.at(address)

    def part(self, shard: int) -> str:
        return f"parts/{shard:05}.parquet"

    def cells(self, shard: int) -> str:
        return f"cells/{shard:05}.parquet"

    def record(self, shard: int) -> str:
        return f"commits/{shard:05}.json"

    @property
    def merged(self) -> bool:
        """Whether the table is there; where it is on this machine, one that can be opened."""
        if self.place.local is None:
            return self.place.size(TABLE) is not None
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError:
            return self.place.size(TABLE) is not None
        try:
            pq.read_metadata(self.place.local / TABLE)
        except (pa.ArrowException, OSError):
            return False
        return True

    def commit(
        self, shard: int, table: pa.Table, facts: dict[str, Any], cells: pa.Table | None = None
    ) -> dict[str, Any]:
        """Write a shard's rows and then its record. A shard that was committed meanwhile stays as it is.

        Raises OSError.
        """
        if (there := self._said(shard)) is not None:
            if self._whole(shard, there):
                return there
            for name in (self.record(shard), self.part(shard), self.cells(shard)):
                self.place.remove(name)
        if cells is not None:
            data = self._first(shard, self.cells(shard), cells)
            facts = {**facts, "cells": {"rows": cells.num_rows, **_identity(data)}}
        data = self._first(shard, self.part(shard), table)
        facts = {**facts, "shard": shard, "rows": table.num_rows, **_identity(data)}
        line = json.dumps(facts, ensure_ascii=False) + "\n"
        facts = json.loads(self.place.create(self.record(shard), line.encode()))
        self.place.remove(f"failed/{shard:05}.txt")
        return facts

    def _first(self, shard: int, name: str, table: pa.Table) -> bytes:
        """Write a table, unless another worker has: the bytes that are there. What has no record and is no
        such table, of another version or spoilt, is replaced."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        mine = _parquet(table)
        data = self.place.create(name, mine)
        if data == mine:
            return data
        try:
            there = pq.read_table(io.BytesIO(data))
            if there.schema.equals(table.schema) and there.num_rows == table.num_rows:
                return data
        except (pa.ArrowException, OSError):
            pass
        if self.place.size(self.record(shard)) is not None:
            return data
        self.place.remove(name)
        return self.place.create(name, mine)

    def fail(self, shard: int, why: str) -> None:
        """Say why a shard was not committed."""
        self.place.write(f"failed/{shard:05}.txt", (why.rstrip() + "\n").encode())

    def failures(self) -> dict[int, str]:
        """Shard → the reason in one line, of those that failed when they were last tried."""
        found = {}
        for shard in self.numbers("failed"):
            with contextlib.suppress(FileNotFoundError):  # another worker has just committed it
                said = self.place.read(f"failed/{shard:05}.txt").decode()
                found[shard] = said.partition("\n")[0]
        return found

    def numbers(self, kind: str) -> list[int]:
        """The shards that have a file of one of KINDS."""
        stems = (name.partition(".")[0] for name in self.place.names(kind))
        return sorted(int(stem) for stem in stems if stem.isdecimal())

    def log(self, shard: int, line: str) -> None:
        """Add a line to a shard's log; a log that cannot be written stops nothing."""
        name = f"logs/{shard:05}.txt"
        said = f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {platform.node()}:{os.getpid()} {line}\n"
        with contextlib.suppress(OSError):
            if self.place.local is not None:
                path = self.place.local / name
                path.parent.mkdir(exist_ok=True)
                with open(path, "a", encoding="utf-8") as file:
                    file.write(said)
                return
            before = b"" if self.place.size(name) is None else self.place.read(name)
            self.place.write(name, before + said.encode())

    def last_line(self, shard: int) -> str | None:
        """Of a shard's log."""
        try:
            return self.place.read(f"logs/{shard:05}.txt").decode().splitlines()[-1]
        except (FileNotFoundError, IndexError):
            return None

    def committed(self, shard: int) -> dict[str, Any] | None:
        """The record of a shard whose part is there in full size, or None."""
        facts = self._said(shard)
        return facts if facts is not None and self._whole(shard, facts) else None

    def _said(self, shard: int) -> dict[str, Any] | None:
        """The record of a shard, whether or not its part is there."""
        name = self.record(shard)
        try:
            facts = parse_json(self.place.read(name), name)
        except FileNotFoundError:
            return None
        matches(facts, _RECORD, name)
        return facts

    def _whole(self, shard: int, facts: dict[str, Any]) -> bool:
        whole = self.place.size(self.part(shard)) == facts["size"]
        if "cells" in facts:
            whole = whole and self.place.size(self.cells(shard)) == facts["cells"]["size"]
        return whole

    def read(self, shard: int, cells: bool = False) -> pa.Table:
        """The rows, or cells, of a committed shard, their bytes as they were committed. Raises SurveyError."""
        import pyarrow.parquet as pq

        return pq.read_table(io.BytesIO(self.checked(shard, cells)))

    def checked(self, shard: int, cells: bool = False) -> bytes:
        """The part of a committed shard, or its cells, as it was committed. Raises SurveyError."""
        facts, name = self.committed(shard), self.part(shard)
        if facts is None:
            raise SurveyError(f"shard {shard} is not committed: run the survey again")
        if cells:
            facts, name = facts["cells"], self.cells(shard)
        data = self.place.read(name)
        if _identity(data)["sha256"] != facts["sha256"]:
            raise SurveyError(
                f"{self.place.address}/{name} is not what was committed: delete it and run the survey again"
            )
        return data

    def sweep(self) -> None:
        """Remove the temporary files of killed workers: those that nobody holds. A part without a record
        stays: who reads its shard again takes it."""
        if (folder := self.place.local) is not None:
            for kind in ("", *KINDS):
                with contextlib.suppress(FileNotFoundError):
                    files.sweep(folder / kind)


def _parquet(table: pa.Table) -> bytes:
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _identity(data: bytes) -> dict[str, Any]:
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
