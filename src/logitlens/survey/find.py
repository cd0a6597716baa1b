"""Find prompts by what happened at their layers: DuckDB over the committed parts.

    find(folder, "kl_6 > 5 and settled >= 5 and relation = 'capital'", limit=20)

A row is a prompt by one lens. Its columns are the survey's own of a prompt (prompt_index, id, prompt,
answer, lens and the conditions), NAME_LAYER of every number (kl_6, rank_0, logprob_embed), and settled,
first_1, first_5 and first_10: the layer from which the final top token stays, and the first at which the
answer's first token has rank 1, ≤ 5, ≤ 10 (−1: embed; null: never). Of a corpus whose cells are kept, a
row is a position of a document, and the answer is the token that follows.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from logitlens.errors import InputError, MissingExtra, SettingError
from logitlens.lenses import resolve
from logitlens.model.edits import prepare
from logitlens.reading import Reading
from logitlens.survey import documents
from logitlens.survey import plan as plans
from logitlens.survey.commit import Folder
from logitlens.survey.conditions import NUMBERS, OF_CELLS
from logitlens.survey.corpus_summary import CONTEXT
from logitlens.survey.measure import is_json, prompts_of
from logitlens.survey.plan import Plan
from logitlens.survey.worker import model_of

PLACE = ("document", "position")


def find(
    folder: str | os.PathLike[str],
    where: str = "true",
    *,
    limit: int = 20,
    order: str = "",
    lens: str | None = None,
) -> list[dict[str, Any]]:
    """Prompts, or positions of a corpus, for which an SQL condition holds: each with its conditions, what
    tells it from others, and the columns that the condition and the order name.

    lens   only this one, by its name in the survey

    Raises SettingError with DuckDB's reason, or where a corpus keeps no cells; SurveyError where a part is
    not what was committed; InputError where none is; MissingExtra.
    """
    try:
        import duckdb
    except ImportError:
        raise MissingExtra("duckdb", "survey", "logitlens survey find") from None
    where = where.strip() or "true"
    asked = f"--where {where!r}" + (f" --order {order!r}" if order else "")
    plan, files = plans.load(folder), Folder(folder)
    if plan.is_corpus and not plan.settings.cells:
        raise SettingError(
            f"{folder} is a survey of a corpus that keeps no positions to find: run it with --keep cells"
        )
    shards = [s for s in range(len(plan.shards)) if files.committed(s)]
    if not shards:
        raise InputError(f"nothing is committed in {folder} yet: run the survey first")
    with duckdb.connect(config={"threads": 1}) as database:
        if files.place.local is not None:
            name = files.cells if plan.is_corpus else files.part
            for shard in shards:
                files.checked(shard, cells=plan.is_corpus)
            parts = [str(files.place.local / name(s)) for s in shards]
            database.read_parquet(parts).create_view("rows")
        else:
            import pyarrow as pa

            tables = (files.read(s, cells=plan.is_corpus) for s in shards)
            database.register("rows", pa.concat_tables(tables))
        try:
            database.execute(_wide(database, plan))
            # Each by itself: what is wrong with it is said in its own words, not in those of the query around.
            database.execute(f"explain select 1 from prompts where {where}")
            if order:
                database.execute(f"explain select 1 from prompts order by {order}")
            every = [row[0] for row in database.execute("describe prompts").fetchall()]
            named = _named(f"{where}\n{order}", every)
            where = f"({where}\n)" + (f" and lens = {_text(lens)}" if lens is not None else "")
            query = _positions if plan.is_corpus else _prompts
            cursor = database.execute(query(plan, named, where, order, limit))
            columns = [column[0] for column in cursor.description or ()]
            return [dict(zip(columns, row)) for row in cursor.fetchall()]
        except duckdb.Error as error:
            raise SettingError(f"{asked}: {_reason(error)}; {_known(plan)}") from None


def read_again(
    folder: str | os.PathLike[str],
    found: Sequence[dict[str, Any]],
    *,
    most: int | None = None,
    last: int | None = None,
) -> list[Reading]:
    """Readings of rows that `find` gave, in their order, by the survey's model, lenses and edits: of a
    prompt as the survey's input has it, or of the window of a position. What several rows share is read once.

    most   so many readings at most, of the first rows, each once
    last   so many positions at most, up to the one that was found

    Raises what loading and reading raise, and SurveyError where the model, or an input that is needed,
    has changed.
    """
    plan = plans.load(folder)
    asked = _asked(folder, plan, found, last)
    if most is not None:
        asked = list({repr(each): each for each in asked}.values())[:most]
    model = model_of(plan)
    lenses = {name: resolve(said, model) for name, said in plan.lenses.items()}
    readings: dict[str, Reading] = {}
    with plans.threads(plan.settings.threads):
        edits = prepare(model, plan.edits)
        for each in asked:
            if (key := repr(each)) not in readings:
                prompt, lens, positions = each
                readings[key] = model.read(
                    prompt, lens=lenses[lens], positions=positions, edits=edits
                )
    return [readings[repr(each)] for each in asked]


def _asked(
    folder: str | os.PathLike[str], plan: Plan, found: Sequence[dict[str, Any]], last: int | None
) -> list[tuple[Any, str, slice | None]]:
    """Of each row what was read, the name of its lens, and which positions are wanted."""
    if plan.is_corpus:
        place, settings = Folder(folder).place, plan.settings
        windows = documents.windows(place, settings.length, settings.overlap)
        out = []
        for row in found:
            window = windows.at(*(row[name] for name in PLACE))
            stop = row["position"] + 1 - window.offset
            some = slice(max(0, stop - last), stop) if last else None
            ids = documents.ids(place, window.start, window.stop).tolist()
            out.append((ids, row["lens"], some))
        return out
    items = prompts_of(plan).items if any(is_json(row["prompt"]) for row in found) else []
    given = {(item.id, item.text): item.prompt for item in items}
    some = slice(-last, None) if last else None
    return [
        (given.get((row["id"], row["prompt"]), row["prompt"]), row["lens"], some) for row in found
    ]


def _prompts(plan: Plan, named: Sequence[str], where: str, order: str, limit: int) -> str:
    columns = [
        "lens",
        "settled",
        *plan.facts["conditions"],
        *named,
        "prompt_index",
        "id",
        "prompt",
        "answer",
    ]
    picked = ", ".join(map(_quoted, dict.fromkeys(columns)))
    return (
        f"select {picked} from prompts where {where}\n"
        f"order by {_first(order)}prompt_index, lens limit {int(limit)}"
    )


def _positions(plan: Plan, named: Sequence[str], where: str, order: str, limit: int) -> str:
    """Each with the text up to it, and the token that follows."""
    ordered = f"{_first(order)}document, position, lens"
    names = ("lens", "settled", *plan.facts["conditions"], documents.ORIGIN, *PLACE, *named)
    own = [_quoted(name) for name in dict.fromkeys(names)]
    columns = ", ".join(f"found.{name}" for name in own)
    return f"""
        with found as (
            select {", ".join(own)}, row_number() over (order by {ordered}) as row_n
            from prompts where {where}
            order by row_n limit {int(limit)}
        )
        select {columns},
            string_agg(rows.text, '' order by rows.position) filter (rows.position <= found.position) as prompt,
            any_value(rows.text) filter (rows.position > found.position) as answer
        from found join rows on rows.document = found.document and rows.lens = found.lens
            and rows.position between found.position - {CONTEXT - 1} and found.position + 1
            and rows.block = (select max(block) from rows)
        group by row_n, {columns} order by row_n"""


def _named(sql: str, columns: Sequence[str]) -> list[str]:
    """The columns that an SQL text names, in its order; DuckDB knows no capitals."""
    known = {column.lower(): column for column in columns}
    words = re.findall(r"""'(?:[^']|'')*'|--.*|"(?:[^"]|"")*"|\w+""", sql)
    plain = (w[1:-1].replace('""', '"') if w[0] == '"' else w for w in words if w[0] not in "'-")
    return list(dict.fromkeys(known[w.lower()] for w in plain if w.lower() in known))


def _first(order: str) -> str:
    return f"{order}\n, " if order else ""


def _reason(error: Exception) -> str:
    """DuckDB's first sentence: what follows quotes the whole query and guesses at its columns."""
    line = re.split(r"\n|!|Candidate|Did you mean|LINE \d", str(error))[0]
    return " ".join(line.split())[:200]


def _keys(plan: Plan) -> list[str]:
    """The columns of a row whatever the layer."""
    if plan.is_corpus:
        own = [documents.ORIGIN, *PLACE, "seen", "token", "text", "next", "lens"]
        return [*plan.facts["conditions"], *own]
    return [*plan.facts["conditions"], "prompt_index", "id", "prompt", "answer", "lens"]


def _numbers(plan: Plan) -> list[str]:
    """The columns of every layer."""
    sets = plan.facts["sets"]
    of_sets = (name for s in sets for name in (f"set_{s}", f"set_{s}_rank"))
    return [*OF_CELLS] if plan.is_corpus else [*NUMBERS, *of_sets]


def _known(plan: Plan) -> str:
    """The columns there are."""
    names = [*_keys(plan), "settled", "first_1, first_5, first_10"]
    numbers = _numbers(plan)
    layers = "layers are numbers, and embed"
    return f"the columns are {', '.join(names)} and {'_N, '.join(numbers)}_N ({layers})"


def _wide(database: Any, plan: Plan) -> str:
    """A view with one row for each prompt, or position, and lens."""
    blocks = [
        b for (b,) in database.execute("select distinct block from rows order by 1").fetchall()
    ]
    keys, one = _keys(plan), "document, position" if plan.is_corpus else "prompt_index"
    wide = [
        f"any_value({_quoted(number)}) filter (block = {block}) as "
        + _quoted(f"{number}_{'embed' if block < 0 else block}")
        for number in _numbers(plan)
        for block in blocks
    ]
    firsts = [f"min(block) filter (rank <= {k}) as first_{k}" for k in (1, 5, 10)]
    off = f"max(block) filter (not coalesce(agree, false)) over (partition by {one}, lens)"
    settled = "min(block) filter (block > last_off) as settled"
    group = ", ".join(_quoted(key) for key in keys)
    return (
        f"create view prompts as with off as (select *, coalesce({off}, -2) as last_off from rows) "
        f"select {group}, {settled}, {', '.join(firsts)}, {', '.join(wide)} from off group by {group}"
    )


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
