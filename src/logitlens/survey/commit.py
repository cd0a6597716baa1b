"""Parts of a survey: written whole, then committed. Readers see committed parts only.

DIR/parts/00007.parquet     the rows of shard 7; written under another name, synced, renamed
DIR/commits/00007.json      that they are there: rows, SHA-256, versions; written last
DIR/failed/00007.txt        why the shard failed the last time it was tried
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logitlens.errors import SurveyError
from logitlens.files import replacing, write_text
from logitlens.schema import matches, parse_json

if TYPE_CHECKING:
    import pyarrow as pa

_RECORD = {
    "shard": int, "rows": int, "prompts": int, "tokens": int, "size": int, "sha256": str,
    "skipped": [str], "nonfinite": int, "seconds": float, "versions": {str: str}, "remarks": [str],
}  # fmt: skip


@dataclass(frozen=True)
class Folder:
    """The files of a survey."""

    path: Path

    def part(self, shard: int) -> Path:
        return self.path / "parts" / f"{shard:05}.parquet"

    def record(self, shard: int) -> Path:
        return self.path / "commits" / f"{shard:05}.json"

    def failure(self, shard: int) -> Path:
        return self.path / "failed" / f"{shard:05}.txt"

    @property
    def merged(self) -> Path:
        return self.path / "survey.parquet"

    def commit(self, shard: int, table: pa.Table, facts: dict[str, Any]) -> dict[str, Any]:
        """Write a shard's rows and then its record. A shard that was committed meanwhile stays as it is.

        Raises OSError.
        """
        import pyarrow.parquet as pq

        for kind in ("parts", "commits", "failed"):
            (self.path / kind).mkdir(exist_ok=True)
        if (there := self.committed(shard)) is not None:
            return there
        with replacing(self.part(shard)) as temporary:
            pq.write_table(table, temporary, compression="zstd")
            facts = {**facts, "shard": shard, "rows": table.num_rows, **_identity(temporary)}
        _sync(self.part(shard).parent)
        write_text(self.record(shard), json.dumps(facts, ensure_ascii=False) + "\n")
        _sync(self.record(shard).parent)
        self.failure(shard).unlink(missing_ok=True)
        return facts

    def fail(self, shard: int, why: str) -> None:
        """Say why a shard was not committed."""
        (self.path / "failed").mkdir(exist_ok=True)
        write_text(self.failure(shard), why.rstrip() + "\n")

    def committed(self, shard: int) -> dict[str, Any] | None:
        """The record of a shard whose part is there in full size, or None."""
        try:
            facts = parse_json(self.record(shard).read_bytes(), str(self.record(shard)))
            matches(facts, _RECORD, str(self.record(shard)))
            return facts if self.part(shard).stat().st_size == facts["size"] else None
        except FileNotFoundError:
            return None

    def check(self, shard: int) -> Path:
        """The part of a committed shard, its bytes as they were committed. Raises SurveyError."""
        facts, path = self.committed(shard), self.part(shard)
        if facts is None:
            raise SurveyError(f"shard {shard} is not committed: run the survey again")
        if _identity(path)["sha256"] != facts["sha256"]:
            raise SurveyError(
                f"{path} is not what was committed: delete it and run the survey again"
            )
        return path

    def sweep(self) -> None:
        """Remove what killed workers left behind: temporary files, and parts without a record."""
        for kind in ("parts", "commits", "failed"):
            for file in (self.path / kind).glob(".*.tmp*"):
                with contextlib.suppress(OSError):
                    file.unlink()
        for file in (self.path / "parts").glob("*.parquet"):
            if self.committed(int(file.stem)) is None:
                file.unlink()


def _identity(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _sync(folder: Path) -> None:
    """Put a rename on the disk, where folders can be synced."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
