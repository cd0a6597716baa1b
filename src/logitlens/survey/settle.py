"""A plan beside the one in the folder: whether both are of one survey, and in words what changed.

A model, an input or a setting that differs is refused. What only moved is not: input, model and
lenses are compared by what they hold.
"""

from __future__ import annotations

import json
import os
from typing import Any

from logitlens.errors import SurveyError
from logitlens.survey import documents
from logitlens.survey import plan as plans
from logitlens.survey.commit import Folder
from logitlens.survey.plan import PLAN, Plan


def settle(folder: Folder, plan: Plan) -> Plan:
    """Write the plan of a new survey, or find it equal to the one that is there, which is told where input,
    model and lenses are now, and that prompts that cannot be read are skipped from now on (what is
    committed has none).

    Raises SurveyError that says what changed, FormatError, OSError.
    """
    there = plans.find(folder)
    if there is None:
        _only_a_survey(folder)
        kept = folder.place.create(PLAN, plans.text(plan))
        there = plans.parse(kept, f"{folder.place.address}/{PLAN}")
    now, asked = _moved(there.facts, json.loads(json.dumps(plan.facts)))
    if not there.is_corpus and plan.settings.bad == "skip":
        now["settings"] = {**now["settings"], "bad": "skip"}
    changed = list(_changes(now, asked))
    if there.is_corpus and not plan.is_corpus:
        changed = ["input: it was text, now labelled prompts"]
    if changed:
        raise SurveyError(_begun_with(folder, changed))
    if now != there.facts:
        there = Plan(now)
        folder.place.write(PLAN, plans.text(there))
    return there


def same_text(folder: Folder, made_of: dict[str, Any], size: int, sha256: str) -> None:
    """Refuse other text, or other tokens of it, before the ids that are there are overwritten.

    Raises SurveyError.
    """
    _only_a_survey(folder)
    if (there := plans.find(folder)) is None:
        return
    changed = []
    if not there.is_corpus:
        changed = ["input: it was labelled prompts, now text"]
    elif (was := there.facts["input"])["sha256"] != sha256:
        changed = [f"input: it was {was['size']:,} bytes of text, now {size:,} of other text"]
        if _hashes(there.facts["corpus"]["made_of"]) == _hashes(made_of):
            changed = [
                "input: its files are the same, but their names, and with them their order, differ"
            ]
    elif (was := there.facts["corpus"]["made_of"]) != made_of:
        changed = _changes(was, made_of, "corpus")
    if changed:
        raise SurveyError(_begun_with(folder, changed))


def _hashes(made_of: dict[str, Any]) -> list[str]:
    """Of a corpus's files, whatever their order."""
    return sorted(each["sha256"] for each in made_of["files"])


def _moved(facts: dict[str, Any], asked: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both with the paths that are asked for: what is there is compared by what it holds."""
    now = {**facts, "input": {**facts["input"], "path": asked["input"]["path"]}}
    if all(os.path.isabs(each["model"]["source"]) for each in (facts, asked)):
        now["model"] = facts["model"] | {k: asked["model"][k] for k in ("source", "name")}
    if len(facts["lenses"]) == len(asked["lenses"]):
        pairs = [_moved_lens(*pair) for pair in zip(facts["lenses"], asked["lenses"])]
        now["lenses"] = [old for old, _ in pairs]
        asked = {**asked, "lenses": [new for _, new in pairs]}
    return now, asked


def _moved_lens(old: dict[str, Any], new: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same, of a lens; what the table calls it stays."""
    if {**old, "said": "", "at": ""} != {**new, "said": "", "at": ""}:
        return old, new
    at = new.get("at", new["said"])
    moved = {k: v for k, v in old.items() if k != "at"} | ({"at": at} if at != old["said"] else {})
    return moved, moved


def _begun_with(folder: Folder, changed: list[str]) -> str:
    return (
        f"the survey in {folder.place.address} is another: {'; '.join(changed)}. "
        "Run it with the same settings, or choose another folder"
    )


def _only_a_survey(folder: Folder) -> None:
    own = (PLAN, *documents.FILES)
    names = folder.place.names()
    if PLAN not in names and any(
        name not in own and not name.startswith(tuple(f".{each}." for each in own))
        for name in names
    ):
        raise SurveyError(
            f"{folder.place.address} is not empty and holds no survey: choose another folder"
        )


def _changes(old: dict[str, Any], new: dict[str, Any], at: str = "") -> list[str]:
    """What differs, in words; where an input moved to is not a difference."""
    out = []
    for name in dict.fromkeys([*old, *new]):
        a, b = old.get(name), new.get(name)
        where = f"{at} {name}".strip()
        if a == b or where in ("shards", "prompts", "skipped", "joined"):
            continue
        if where == "edits":
            was, now = (_edited(each) for each in (a, b))
            out.append(
                f"edits: {was}, now {now}" if was != now else f"edits: {now}, with other vectors"
            )
            continue
        if where == "lenses":
            was, now = (", ".join(lens["said"] for lens in each) for each in (old[name], new[name]))
            if was != now:
                out.append(f"lenses: {was}, now {now}")
                continue
        if isinstance(a, dict) and isinstance(b, dict):
            out += _changes(a, b, where)
        elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b) and a:
            pairs = [(x, y) for x, y in zip(a, b) if x != y]
            if all(isinstance(x, dict) and isinstance(y, dict) for x, y in pairs):
                out += [change for x, y in pairs for change in _changes(x, y, where)]
            else:
                out.append(f"{where}: {_short(a)}, now {_short(b)}")
        else:
            out.append(f"{where}: {_short(a)}, now {_short(b)}")
    return out


def _edited(data: dict[str, Any] | None) -> str:
    return "; ".join(row["text"] for row in data["edits"]) if data else "none"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"
