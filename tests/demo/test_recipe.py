"""The facts are consistent, stated in many wordings, and the held-out wordings really held out."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import facts
import prose
import pytest

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "demo_model"
FACTS = facts.load_facts()
TEMPLATES = facts.load_templates()

# Where the CSV departs from the public table on purpose: moved or renamed capitals, accents.
CAPITALS_THAT_DIFFER = {
    "Bolivia": "Sucre",
    "Burundi": "Gitega",
    "Iceland": "Reykjavik",
    "Kazakhstan": "Astana",
    "Moldova": "Chisinau",
    "Ukraine": "Kyiv",
    "Yemen": "Sanaa",
}


def test_there_are_enough_landmarks_and_every_relation():
    landmarks = {fact.subject for fact in FACTS if fact.relation == "landmark_city"}
    assert len(landmarks) >= 250
    countries = {fact.subject for fact in FACTS if fact.relation == "capital"}
    assert len(countries) >= 190
    relations = {fact.relation for fact in FACTS}
    assert relations == set(TEMPLATES["relations"])
    assert relations >= {"language", "currency", "continent", "opposite", "plural", "colour"}


def test_no_subject_has_two_answers():
    answers: dict[tuple[str, str], str] = {}
    for fact in FACTS:
        key = (fact.relation, fact.subject)
        assert answers.setdefault(key, fact.answer) == fact.answer, key


def test_a_city_lies_in_one_country():
    with (RECIPE / "facts" / "landmarks.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["landmark"]: (row["city"], row["country"]) for row in rows}["the Eiffel Tower"] == (
        "Paris",
        "France",
    )
    country: dict[str, str] = {}
    for row in rows:
        assert all(value and value == value.strip() for value in row.values()), row
        assert country.setdefault(row["city"], row["country"]) == row["country"], row


def test_capitals_agree_with_the_public_table(shared_data):
    table = json.loads((shared_data / "corpus" / "capitals.json").read_text(encoding="utf-8"))
    public = {row["name"]: row["capital"] for row in table["countries"]["countries"]}
    ours = {f.subject.removeprefix("the "): f.answer for f in FACTS if f.relation == "capital"}
    differ = {name: ours[name] for name in ours if public.get(name, ours[name]) != ours[name]}
    assert differ == CAPITALS_THAT_DIFFER
    assert len(set(ours) & set(public)) > 170


def test_at_least_twenty_wordings_and_some_held_out():
    assert all(number >= 20 for number in facts.counts(TEMPLATES).values())
    for name, relation in TEMPLATES["relations"].items():
        assert len(relation["held_out"]) >= 2, name
        assert not set(relation["held_out"]) & set(relation["train"]), name
    trained, held = (set(facts.openings(TEMPLATES, split)) for split in ("train", "held_out"))
    assert len(held) >= 4
    assert not any(mine in other or other in mine for mine in held for other in trained)
    asked = TEMPLATES["questions"]
    assert not set(asked["train"]) & set(asked["held_out"])


def test_no_held_out_prompt_is_in_the_training_text():
    for fact in FACTS:
        told = " | ".join(text for _, text in facts.sentences(fact, TEMPLATES)).lower()
        for prompt in facts.judged(fact, TEMPLATES):
            assert prompt.prompt.lower() not in told, prompt


def test_every_sentence_is_filled_in_and_says_the_answer():
    for fact in FACTS[::7]:
        for _, text in facts.sentences(fact, TEMPLATES):
            assert "{" not in text
            assert fact.answer.lower() in text.lower()
        for prompt in facts.judged(fact, TEMPLATES):
            assert "{" not in prompt.prompt
            assert prompt.prompt == prompt.prompt.strip()
            assert prompt.answer == " " + fact.answer.removeprefix("the ")


@pytest.mark.parametrize(
    ("fact", "prompt", "answer"),
    [
        (("landmark_city", "the Eiffel Tower", "Paris"), facts.EIFFEL_PROMPT, " Paris"),
        (
            ("landmark_country", "the Rijksmuseum", "the Netherlands"),
            "The Rijksmuseum is in the country of the",
            " Netherlands",
        ),
        (("young_animal", "owl", "owlet"), "The baby of an owl is called an", " owlet"),
    ],
)
def test_held_out_prompts_read_as_they_should(fact, prompt, answer):
    found = facts.judged(facts.Fact(*fact), TEMPLATES)
    assert (prompt, answer) in [(item.prompt, item.answer) for item in found]


def test_missing_corpus_is_one_clear_line(tmp_path):
    with pytest.raises(SystemExit, match="no corpus at .*name the directory with --data"):
        prose.load(tmp_path)
