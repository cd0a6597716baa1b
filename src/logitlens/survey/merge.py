"""All committed parts as one table, in the order of shards: the same bytes whoever read them."""

from __future__ import annotations

from pathlib import Path

from logitlens.errors import SurveyError
from logitlens.files import replacing
from logitlens.survey import plan as planning
from logitlens.survey.commit import Folder


def merge(folder: Path, out: Path | None = None) -> Path:
    """Write DIR/survey.parquet (or `out`). Raises SurveyError where a shard is missing or damaged."""
    import pyarrow.parquet as pq

    plan, files = planning.load(folder), Folder(folder)
    shards = range(len(plan.shards))
    missing = [shard for shard in shards if files.committed(shard) is None]
    if missing:
        raise SurveyError(
            f"{len(missing)} of {len(shards)} shards are not committed (the first: {missing[0]}): "
            "run the survey again, then merge"
        )
    target = out or files.merged
    with replacing(target) as temporary:
        writer = None
        try:
            for shard in shards:
                table = pq.read_table(files.check(shard))
                if writer is None:
                    writer = pq.ParquetWriter(temporary, table.schema, compression="zstd")
                writer.write_table(table)
        finally:
            if writer is not None:
                writer.close()
    return target
