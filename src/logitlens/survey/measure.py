"""Labelled prompts → the rows of a survey: one for each prompt × lens × layer.

logprob                of whole right answers (teacher-forced, added up over several)
first_logprob, rank    of their first tokens: added up, and the best rank
wrong_logprob, wrong_first_logprob, wrong_rank, margin          the same of the wrong ones, and logprob −
                       wrong_logprob
correct                margin > 0 where there are wrong answers, else rank 1
entropy, kl, top, top_id, agree            at the last position of the prompt
set_NAME, set_NAME_rank                    log of a set's summed probability, its best rank
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from logitlens.errors import InputError, PromptError, SurveyError, out_of_memory
from logitlens.lenses import Lens
from logitlens.model.batches import batches_of
from logitlens.model.lens_model import LensModel
from logitlens.model.score import (
    Asked,
    Question,
    Rows,
    answer_ids,
    question,
    read_rows,
    token_values,
)
from logitlens.model.track import log_sum
from logitlens.select import layer_number
from logitlens.survey import conditions as naming
from logitlens.survey import prompts as labelled
from logitlens.survey.plan import Plan
from logitlens.survey.prompts import Item

if TYPE_CHECKING:
    import pyarrow as pa

    from logitlens.model.edits import Prepared

TEXTS = ("id", "lens", "layer", "prompt", "answer", "top")
FLOATS = (
    "logprob", "first_logprob", "wrong_logprob", "wrong_first_logprob", "margin", "entropy", "kl",
)  # fmt: skip
INTS = ("prompt_index", "block", "rank", "wrong_rank", "top_id")
BOOLS = ("correct", "agree")
COLUMNS = (
    "prompt_index", "id", "lens", "layer", "block", "logprob", "first_logprob", "rank", "wrong_logprob",
    "wrong_first_logprob", "wrong_rank", "margin", "correct", "entropy", "kl", "agree", "top_id", "top",
    "prompt", "answer",
)  # fmt: skip


@dataclass
class Part:
    """The table of a shard, and what is to be said about it."""

    table: pa.Table
    prompts: int
    tokens: int
    skipped: list[str] = field(default_factory=list)
    nonfinite: int = 0
    remarks: list[str] = field(default_factory=list)
    cells: pa.Table | None = None


@dataclass(frozen=True)
class _Prepared:
    item: Item
    question: Question
    right: list[list[tuple[int, int, int]]]
    wrong: list[list[tuple[int, int, int]]]
    sets: dict[str, list[tuple[int, int, int]]]
    first: int  # its first sequence among all
    tokens: int


def prompts_of(plan: Plan) -> labelled.Prompts:
    """The labelled prompts of a survey, from its input. Raises SurveyError where that has changed, and
    what reading it raises."""
    given, skip_bad = plan.facts["input"], plan.settings.bad == "skip"
    prompts = labelled.read(given["path"], skip_bad=skip_bad, reserved=COLUMNS)
    if prompts.sha256 != given["sha256"]:
        raise SurveyError(f"{given['path']} has changed since the survey was planned")
    return prompts


def measure(
    model: LensModel,
    items: Sequence[Item],
    lenses: dict[str, Lens],
    *,
    depths: list[int] | None,
    token_budget: int,
    conditions: dict[str, str],
    sets: Sequence[str],
    skip_bad: bool,
    edits: Prepared | None = None,
    among: int = 0,
) -> Part:
    """Read the prompts by every lens. Raises InputError for one that cannot be read, unless skip_bad;
    UnsupportedModel where a last row is not the model's own."""
    model._look_again()
    prepared: list[_Prepared] = []
    skipped: list[str] = []
    asked = []
    for item in items:
        try:
            ready = _prepare(model, item, len(asked), edits)
        except PromptError as error:
            if not skip_bad:
                raise _unreadable(item, error) from error
            skipped.append(f"{Path(item.where).name}: {error}")
            continue
        prepared.append(ready)
        asked += ready.question.asked
    remarks: list[str] = []
    read = dict(
        read_all(
            model,
            asked,
            list(lenses.values()),
            depths,
            token_budget,
            remarks,
            edits=edits,
            among=among,
        )
    )
    columns: dict[str, list[Any]] = {
        name: []
        for name in (*COLUMNS, *conditions, *(f"set_{s}{e}" for s in sets for e in ("", "_rank")))
    }
    nonfinite = 0
    for ready in prepared:
        mine = [read[ready.first + s] for s in range(len(ready.question.asked))]
        nonfinite += not all(rows.arrays["finite"].all() for each in mine for rows in each)
        for name, rows in zip(lenses, zip(*mine)):
            _add(columns, model, ready, name, rows, conditions, sets)
    tokens = sum(len(a.ids) for a in asked)
    return Part(
        _table(columns, conditions, sets), len(prepared), tokens, skipped, nonfinite, remarks
    )


def require_readable(
    model: LensModel, items: Sequence[Item], edits: Prepared | None, *, skip_bad: bool
) -> None:
    """Raise InputError for the first prompt that would fail its shard: by this model's tokens, its context and
    the positions that are edited. Where such are skipped, only if there are no others."""
    for item in items:
        try:
            _prepare(model, item, 0, edits)
        except PromptError as error:
            if not skip_bad:
                raise _unreadable(item, error) from error
        else:
            if skip_bad:
                return
    if skip_bad:
        raise InputError(f"none of {len(items)} prompts can be read: see them without --bad skip")


def _unreadable(item: Item, error: PromptError) -> InputError:
    return InputError(f"{item.where}: {error} (--bad skip leaves such prompts out)")


def read_all(
    model: LensModel,
    asked: Sequence[Asked],
    lenses: list[Lens],
    depths: list[int] | None,
    token_budget: int,
    remarks: list[str],
    top: int = 1,
    edits: Prepared | None = None,
    among: int = 0,
) -> Iterator[tuple[int, list[Rows]]]:
    """`read_rows`; a batch for which memory runs out is tried once more, then in halves, which `remarks` says.

    What took the memory may be gone by then: a batch that is read whole has the digits of a survey that nothing
    disturbed.
    """
    waiting = batches_of(model, [len(each.ids) for each in asked], token_budget)
    again, halved, behind = True, 0, True
    while waiting:
        done = 0
        try:
            for i, rows in read_rows(
                model, asked, lenses, waiting, depths=depths, top=top, edits=edits, among=among,
                behind=behind,
            ):  # fmt: skip
                done += 1
                yield i, rows
            break
        except Exception as error:
            if not out_of_memory(error):
                raise
            while waiting and done >= len(waiting[0]):
                again, done = True, done - len(waiting.pop(0))
            if not waiting or (not again and len(waiting[0]) == 1):
                raise
            first, behind = waiting[0], False  # two batches may be one too many
        gc.collect()  # what the error held
        if not again:
            waiting[:1] = [first[: len(first) // 2], first[len(first) // 2 :]]
            halved += 1
            some = f"{halved} batches were" if halved > 1 else "a batch was"
            remarks[:] = [f"out of memory: {some} read in halves"]
        again = False


def _prepare(model: LensModel, item: Item, first: int, edits: Prepared | None) -> _Prepared:
    ids, dropped = model._ids(item.prompt, True)
    if dropped:
        raise PromptError(
            f"the prompt has {len(ids) + dropped} tokens; the context holds {model.context}"
        )
    if edits is not None:
        edits.require(len(ids))
    right = [answer_ids(model, item.prompt, ids, a) for a in item.answers]
    wrong = [answer_ids(model, item.prompt, ids, a) for a in item.wrong]
    longest = len(ids) + max((len(a) for a in (*right, *wrong)), default=1) - 1
    if model.context is not None and longest > model.context:
        raise PromptError(f"{longest} tokens with its answer; the context holds {model.context}")
    for (a, a_ids), (b, b_ids) in product(zip(item.answers, right), zip(item.wrong, wrong)):
        if a_ids == b_ids[: len(a_ids)] or b_ids == a_ids[: len(b_ids)]:
            also = ", and one begins with the other" if a != b else ""
            raise PromptError(f"{a!r} is a right answer and {b!r} a wrong one{also}")
    right, wrong = _shortest(right), _shortest(wrong)
    members = {name: _members(model, name, tokens) for name, tokens in item.sets.items()}
    flat = list(dict.fromkeys(i for tokens in members.values() for i in tokens))
    asking = question(ids, [*right, *wrong, *([i] for i in flat)])
    places = asking.where
    after = dict(zip(flat, places[len(right) + len(wrong) :]))
    return _Prepared(
        item,
        asking,
        places[: len(right)],
        places[len(right) : len(right) + len(wrong)],
        {name: [after[i][0] for i in tokens] for name, tokens in members.items()},
        first,
        len(ids),
    )


def _members(model: LensModel, name: str, tokens: Sequence[Any]) -> list[int]:
    try:
        return list(dict.fromkeys(model.tokens.single(t, model.vocab_size) for t in tokens))
    except PromptError as error:
        raise PromptError(f"the set {name!r}: {error}") from None


def _shortest(answers: list[list[int]]) -> list[list[int]]:
    """Without those that continue another: their probability is part of its."""
    out: list[list[int]] = []
    for answer in sorted(answers, key=len):
        if not any(answer[: len(other)] == other for other in out):
            out.append(answer)
    return out


def _add(
    columns: dict[str, list[Any]],
    model: LensModel,
    ready: _Prepared,
    lens: str,
    rows: Sequence[Rows],
    conditions: dict[str, str],
    sets: Sequence[str],
) -> None:
    """The L rows of one prompt by one lens."""
    s, p = _end(ready.question)
    here = rows[s].arrays
    layers = rows[s].layers
    L = len(layers)
    item, top_L = ready.item, here["top_ids"][:, p, 0]
    logprob_L, first_L, rank_L = _answers(rows, ready.right, L)
    wrong_L, wrong_first_L, wrong_rank_L = _answers(rows, ready.wrong, L)
    margin_L = logprob_L - wrong_L
    if ready.right:
        correct = (margin_L > 0 if ready.wrong else rank_L == 1).astype(object)
        correct[np.isnan(margin_L if ready.wrong else logprob_L)] = None
    else:
        correct = np.full(L, None)
    agree = (top_L == top_L[-1]).astype(object)
    agree[(top_L < 0) | (top_L[-1] < 0)] = None
    values: dict[str, Any] = {
        "prompt_index": np.full(L, item.index),
        "id": [item.id] * L,
        "lens": [lens] * L,
        "layer": layers,
        "block": [-1 if (b := layer_number(label)) is None else b for label in layers],
        "logprob": logprob_L,
        "first_logprob": first_L,
        "rank": rank_L,
        "wrong_logprob": wrong_L,
        "wrong_first_logprob": wrong_first_L,
        "wrong_rank": wrong_rank_L,
        "margin": margin_L,
        "correct": correct,
        "entropy": here["entropy"][:, p],
        "kl": here["kl"][:, p],
        "agree": agree,
        "top_id": top_L,
        "top": [model.tokens.piece(int(i)) if i >= 0 else None for i in top_L],
        "prompt": [item.text] * L,
        "answer": [" | ".join(item.answers) if item.answers else None] * L,
        **{name: [item.conditions.get(name)] * L for name in conditions},
    }
    for name in sets:
        places = ready.sets.get(name, [])
        logprobs = [rows[a].arrays["target_logprobs"][:, b, c] for a, b, c in places]
        ranks = [rows[a].arrays["target_ranks"][:, b, c] for a, b, c in places]
        values[f"set_{name}"] = log_sum(np.stack(logprobs, -1)) if places else np.full(L, np.nan)
        values[f"set_{name}_rank"] = np.stack(ranks, -1).min(-1) if places else np.zeros(L, int)
    for name, column in values.items():
        columns[name].extend(column)


def is_json(prompt: str) -> bool:
    """Whether a prompt of the table may be token ids or messages."""
    try:
        return prompt.startswith("[") and isinstance(json.loads(prompt), list)
    except ValueError:
        return False


def _end(asking: Question) -> tuple[int, int]:
    """Sequence and place of the prompt's last position: the first that is looked at."""
    start = min(each.positions[0] for each in asking.asked)
    s = next(s for s, each in enumerate(asking.asked) if each.positions[0] == start)
    return s, 0


def _answers(
    rows: Sequence[Rows], places: list[list[tuple[int, int, int]]], L: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(L,) log of the summed probability of whole answers, the same of their first tokens, and the best
    rank of these."""
    if not places:
        return np.full(L, np.nan), np.full(L, np.nan), np.zeros(L, np.int64)

    def logprob(where: list[tuple[int, int, int]]) -> np.ndarray:
        return token_values(rows, where, "target_logprobs").astype(np.float64)

    firsts = list(dict.fromkeys(w[0] for w in places))  # several answers may begin alike
    wholes_LA = np.stack([logprob(w).sum(-1) for w in places], -1)
    ranks_LA = token_values(rows, firsts, "target_ranks")
    return log_sum(wholes_LA), log_sum(logprob(firsts)), ranks_LA.min(-1)


def _table(
    columns: dict[str, list[Any]], conditions: dict[str, str], sets: Sequence[str]
) -> pa.Table:
    """Typed columns; nan and a rank of 0 are null."""
    import pyarrow as pa

    types = {
        **dict.fromkeys(TEXTS, pa.string()),
        **dict.fromkeys(FLOATS, pa.float32()),
        **dict.fromkeys(INTS, pa.int32()),
        **dict.fromkeys(BOOLS, pa.bool_()),
        **{f"set_{name}": pa.float32() for name in sets},
        **{f"set_{name}_rank": pa.int32() for name in sets},
    }
    arrays = {}
    for name, values in columns.items():
        if name in conditions:
            arrays[name] = naming.column(values, conditions[name])
            continue
        kind = types[name]
        if pa.types.is_floating(kind):
            array = pa.array(np.array([np.nan if v is None else v for v in values], np.float64),
                             from_pandas=True).cast(kind)  # fmt: skip
        elif name in ("rank", "wrong_rank") or name.endswith("_rank") or name == "top_id":
            missing = -1 if name == "top_id" else 0
            array = pa.array([None if v == missing else int(v) for v in values], kind)
        else:
            array = pa.array([v.item() if isinstance(v, np.generic) else v for v in values], kind)
        arrays[name] = array
    return pa.table(arrays)
