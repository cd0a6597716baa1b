"""Find prompts by what happened at their layers: DuckDB over the committed parts.

    find(folder, "kl_6 > 5 and settled >= 5 and relation = 'capital'", limit=20)

A row is a prompt by one lens. Its columns are the survey's own of a prompt (id, prompt, answer, lens and
the conditions), NAME_LAYER of every number (kl_6, rank_0, logprob_embed), and settled, first_1, first_5
and first_10: the layer from which the final top token stays, and the first at which the answer's first
token has rank 1, ≤ 5, ≤ 10 (−1: embed; null: never).
"""

from __future__ import annotations

import os
import re
from typing import Any

from logitlens.errors import FormatError, MissingExtra, PromptError
from logitlens.survey import plan as planning
from logitlens.survey.commit import Folder

NUMBERS = ("logprob", "rank", "wrong_logprob", "margin", "correct", "entropy", "kl", "agree", "top")


def find(
    folder: str | os.PathLike[str], where: str = "true", *, limit: int = 20, order: str = ""
) -> list[dict[str, Any]]:
    """Prompts for which an SQL condition holds. Raises FormatError with DuckDB's reason, MissingExtra."""
    try:
        import duckdb
    except ImportError:
        raise MissingExtra("duckdb", "survey", "logitlens survey find") from None
    plan, files = planning.load(folder), Folder(folder)
    if plan.is_corpus:
        raise FormatError(
            f"{folder} is a survey of a corpus, which keeps no prompts to find: with --keep cells, query "
            f"{str(folder).rstrip('/')}/cells/*.parquet"
        )
    shards = [s for s in range(len(plan.shards)) if files.committed(s)]
    if not shards:
        raise PromptError(f"nothing is committed in {folder} yet: run the survey first")
    with duckdb.connect(config={"threads": 1}) as database:
        if files.place.local is not None:
            parts = [str(files.place.local / files.part(s)) for s in shards]
            database.read_parquet(parts).create_view("rows")
        else:
            import pyarrow as pa

            database.register("rows", pa.concat_tables(files.read(s) for s in shards))
        try:
            database.execute(_wide(database, plan))
            columns = ["lens", "settled", *plan.facts["conditions"], "id", "prompt", "answer"]
            picked = ", ".join(_quoted(c) for c in columns)
            ordered = (
                f" order by {order}, prompt_index, lens"
                if order
                else " order by prompt_index, lens"
            )
            cursor = database.execute(
                f"select {picked} from prompts where {where}{ordered} limit {int(limit)}"
            )
            return [dict(zip(columns, row)) for row in cursor.fetchall()]
        except duckdb.Error as error:
            asked = f"--where {where!r}" + (f" --order {order!r}" if order else "")
            raise FormatError(f"{asked}: {_reason(error)}; {_known(plan)}") from None


def _reason(error: Exception) -> str:
    """DuckDB's first sentence: what follows quotes the whole query and guesses at its columns."""
    line = re.split(r"\n|!|Candidate|Did you mean|LINE \d", str(error))[0]
    return " ".join(line.split())[:200]


def _known(plan: planning.Plan) -> str:
    """The columns there are."""
    names = [
        *plan.facts["conditions"],
        "id",
        "prompt",
        "answer",
        "lens",
        "settled",
        "first_1, first_5, first_10",
    ]
    numbers = [*NUMBERS, *(f"set_{name}" for name in plan.facts["sets"])]
    layers = "layers are numbers, and embed"
    return f"the columns are {', '.join(names)} and {'_N, '.join(numbers)}_N ({layers})"


def _wide(database: Any, plan: planning.Plan) -> str:
    """A view with one row for each prompt and lens."""
    blocks = [
        b for (b,) in database.execute("select distinct block from rows order by 1").fetchall()
    ]
    keys = ["prompt_index", "lens", "id", "prompt", "answer", *plan.facts["conditions"]]
    numbers = [*NUMBERS, *(f"set_{name}" for name in plan.facts["sets"])]
    wide = [
        f"any_value({_quoted(number)}) filter (block = {block}) as "
        + _quoted(f"{number}_{'embed' if block < 0 else block}")
        for number in numbers
        for block in blocks
    ]
    firsts = [f"min(block) filter (rank <= {k}) as first_{k}" for k in (1, 5, 10)]
    off = "max(block) filter (not coalesce(agree, false)) over (partition by prompt_index, lens)"
    settled = "min(block) filter (block > last_off) as settled"
    group = ", ".join(_quoted(key) for key in keys)
    return (
        f"create view prompts as with off as (select *, coalesce({off}, -2) as last_off from rows) "
        f"select {group}, {settled}, {', '.join(firsts)}, {', '.join(wide)} from off group by {group}"
    )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
