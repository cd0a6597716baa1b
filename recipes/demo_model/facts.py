"""The facts that the bundled model is taught, and every wording they are stated in.

``facts/*.csv`` holds what is true, ``templates.toml`` how it is said. A wording under
``held_out`` never reaches the training text: the model is evaluated on it.
"""

from __future__ import annotations

import csv
import tomllib
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
FACTS_DIR = HERE / "facts"
TEMPLATES = HERE / "templates.toml"
FILLERS = ("still", "really", "of course", "simply", "surely", "indeed", "now", "always")
EIFFEL_PROMPT = "The Eiffel Tower is in the city of"


@dataclass(frozen=True)
class Fact:
    """One fact; ``answer`` keeps its article ("the Netherlands")."""

    relation: str
    subject: str
    answer: str


@dataclass(frozen=True)
class Judged:
    """A held-out prompt and the answer, with its leading space, that should follow it."""

    relation: str
    prompt: str
    answer: str
    wording: str  # "clause", or the held-out opening or question itself


def _rows(name: str) -> list[dict[str, str]]:
    with (FACTS_DIR / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def load_facts() -> list[Fact]:
    """All facts, in the order of the CSV files, without duplicates."""
    facts: list[Fact] = []
    landmarks = _rows("landmarks.csv")
    for row in landmarks:
        facts.append(Fact("landmark_city", row["landmark"], row["city"]))
        facts.append(Fact("landmark_country", row["landmark"], row["country"]))
    facts += [Fact("city_country", row["city"], row["country"]) for row in landmarks]
    for row in _rows("countries.csv"):
        facts.append(Fact("capital", row["country"], row["capital"]))
        facts.append(Fact("capital_of", row["capital"], row["country"]))
        for relation in ("continent", "language", "currency"):
            if row[relation]:
                facts.append(Fact(relation, row["country"], row[relation]))
    facts += [Fact("state_capital", row["state"], row["capital"]) for row in _rows("states.csv")]
    facts += [Fact(row["relation"], row["subject"], row["object"]) for row in _rows("pairs.csv")]
    return list(dict.fromkeys(facts))


def load_templates(path: Path = TEMPLATES) -> dict:
    """The parsed wordings: ``prefixes``, ``questions`` and one table per relation."""
    with path.open("rb") as file:
        return tomllib.load(file)


def _put(text: str, slot: str, value: str) -> str:
    """Fill a slot; "a {s}" becomes "an owl" where the value begins with a vowel sound."""
    if value[:1] in "aeiou" and not value.startswith(("uni", "eu", "one")):
        for before in (" a ", "'a ", "^a "):
            start = before.replace("^", "")
            if before[0] == "^" and text.startswith(start + slot):
                text = "an " + text[len(start) :]
            elif before[0] != "^":
                text = text.replace(start + slot, start.replace("a ", "an ") + slot)
    return text.replace(slot, value)


def capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def openings(templates: dict, split: str) -> list[str]:
    """What may come before a clause, without the clause ("we learned today that")."""
    listed = templates["prefixes"]
    found = [prefix.removesuffix(" {c}.") for prefix in listed[split]]
    if split == "train":
        found += [f"{who} {says}" for who in listed["who"] for says in listed["says"]]
    return found


def _clauses(relation: dict, split: str) -> list[str]:
    """The relation's clauses; in training each "… is {o}" also has a word before the answer."""
    clauses = list(relation[split])
    if split == "train":
        plain = [clause for clause in clauses if clause.endswith(" is {o}")]
        clauses += [
            clause.removesuffix("{o}") + FILLERS[i % len(FILLERS)] + " {o}"
            for i, clause in enumerate(plain)
        ]
    return clauses


def _questions(relation: dict, templates: dict, split: str) -> list[str]:
    noun = relation.get("np") or relation.get("ask")
    answer = relation.get("answer", "{o}")
    asked = templates["questions"][split] if noun else []
    return [frame.replace("{np}", noun).replace("{o}", answer) for frame in asked]


def _frames(relation: dict, templates: dict) -> list[tuple[str, str]]:
    """(wording, template) of every held-out wording of a relation."""
    first = relation["train"][0]
    asked = zip(
        templates["questions"]["held_out"],
        _questions(relation, templates, "held_out"),
        strict=False,  # a relation without a noun phrase is not asked for
    )
    return [
        *(("clause", clause + ".") for clause in relation["held_out"]),
        *((text + " …", f"{text} {first}.") for text in openings(templates, "held_out")),
        *(asked),
    ]


def _told(frame: str, fact: Fact) -> str:
    return _put(_put(frame, "{s}", fact.subject), "{o}", fact.answer)


def sentences(fact: Fact, templates: dict) -> list[tuple[str, str]]:
    """(kind, sentence) of every training wording of a fact, not yet capitalised.

    Kind "clause" may also follow any of `openings`; "question" and "also" have none.
    """
    relation = templates["relations"][fact.relation]
    frames = [("clause", clause + ".") for clause in _clauses(relation, "train")]
    frames += [("question", text) for text in _questions(relation, templates, "train")]
    frames += [("also", also) for also in relation.get("also", [])]
    return [(kind, _told(frame, fact)) for kind, frame in frames]


def judged(fact: Fact, templates: dict) -> list[Judged]:
    """Every held-out wording of a fact, cut before the answer.

    An article that belongs to the answer ("the Netherlands") goes into the prompt, so that the
    first token judged is the name itself.
    """
    relation = templates["relations"][fact.relation]
    article = "the " if fact.answer.startswith("the ") else ""
    name = fact.answer[len(article) :]
    found = []
    for wording, frame in _frames(relation, templates):
        text = _put(_put(frame, "{s}", fact.subject), "{o}", article + "{o}")
        text = _put(text, "{o}", name) if not article else text.replace("{o}", name)
        cut = text.rindex(name)
        found.append(Judged(fact.relation, capitalised(text[:cut].rstrip()), " " + name, wording))
    return found


def counts(templates: dict) -> dict[str, int]:
    """Number of training wordings per relation, bare or after one of the openings."""
    told = 1 + len(openings(templates, "train"))
    return {
        name: len(_clauses(relation, "train")) * told
        + len(_questions(relation, templates, "train"))
        + len(relation.get("also", []))
        for name, relation in templates["relations"].items()
    }
