"""All committed parts as one table, in the order of shards: the same bytes whoever read them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import logitlens.files
from logitlens.errors import SurveyError
from logitlens.survey import bands
from logitlens.survey import plan as plans
from logitlens.survey.commit import TABLE, Folder
from logitlens.survey.plan import Plan


def merge(folder: str | os.PathLike[str], out: Path | None = None) -> str:
    """Write DIR/survey.parquet (or `out`): the rows of all prompts, or a corpus's sums over all shards.

    Returns where it is. Raises SurveyError where a shard is missing or damaged.
    """
    import pyarrow.parquet as pq

    plan, files = plans.load(folder), Folder(folder)
    shards = range(len(plan.shards))
    missing = [shard for shard in shards if files.committed(shard) is None]
    if missing:
        raise SurveyError(
            f"{len(missing)} of {len(shards)} shards are not committed (the first: {missing[0]}): "
            "run the survey again, then merge"
        )
    with logitlens.files.replacing(out) if out else files.place.writing(TABLE) as temporary:
        writer = None
        try:
            read = (files.read(shard) for shard in shards)
            for table in [bands.merged(read)] if plan.is_corpus else read:
                if writer is None:
                    schema = table.schema.with_metadata({plans.FORMAT: _origin(plan)})
                    writer = pq.ParquetWriter(temporary, schema, compression="zstd")
                writer.write_table(table)
        finally:
            if writer is not None:
                writer.close()
    return str(out or f"{files.place.address}/{TABLE}")


def _origin(plan: Plan) -> str:
    """What a table says of itself when it is away from its folder, as JSON."""
    model, name = plan.facts["model"], plan.facts["model"]["name"]
    name = Path(name).name if os.path.isabs(name) else name
    known = {"name": name, "revision": model["revision"], "weights": model["weights"]}
    lenses = {each: entry.get("hash") for each, entry in zip(plan.lenses, plan.facts["lenses"])}
    edits = [str(edit) for edit in plan.edits]
    return json.dumps({"version": plans.VERSION, "model": known, "lenses": lenses, "edits": edits})
