"""The recipe of true and false demonstrations: its prompts, and its mechanics on the bundled model."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from pathlib import Path

import pytest

from logitlens.survey.run import status

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "demonstrations" / "make.py"


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("demonstrations", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_question_is_asked_twice_after_the_same_subjects_and_only_the_answers_told_differ(recipe):
    found = recipe.prompts(each=20, shots=4)
    assert len(found) == 2 * 20 * len(recipe.TASKS)
    for true, false in zip(found[::2], found[1::2]):
        assert (true["demonstrations"], false["demonstrations"]) == ("true", "false")
        known = recipe.facts(true["task"])
        words = recipe.TASKS[true["task"]].partition("{}")
        subject = true["id"].partition(": ")[2]
        for item, right in ((true, True), (false, False)):
            *told, asked = re.split(r"(?<!St)\. ", item["prompt"])
            assert len(told) == 4
            for line in told:
                about = next(s for s in known if line.startswith(f"{words[0]}{s}{words[2]} "))
                answer = line.removeprefix(f"{words[0]}{about}{words[2]} ")
                assert (answer == known[about]) is right
                assert about != subject
            assert asked == f"{words[0]}{subject}{words[2]}"
        keys = ("id", "answer", "wrong", "task")
        assert [true[k] for k in keys] == [false[k] for k in keys]
        assert true["answer"] != true["wrong"]


def test_prompts_of_another_run_are_not_overwritten(recipe, tmp_path):
    (tmp_path / "prompts.jsonl").write_text("of a survey that was begun")
    with pytest.raises(SystemExit, match="holds other prompts: choose another folder"):
        recipe.main(tmp_path, None, ["logit"], each=2, shots=2)
    assert (tmp_path / "prompts.jsonl").read_text() == "of a survey that was begun"


def test_a_survey_that_is_not_done_is_not_reported(recipe, tmp_path, monkeypatch):
    honest = recipe.run

    def failing(*args, **options):
        found = honest(*args, **options)
        return dataclasses.replace(found, records=[], failed={0: "the disk is full"})

    monkeypatch.setattr(recipe, "run", failing)
    with pytest.raises(SystemExit, match="not done, run the same again: shard 0: the disk is full"):
        recipe.main(tmp_path, None, ["logit"], each=1, shots=1)
    assert not list(tmp_path.glob("report.*"))


@pytest.mark.slow
def test_the_recipe_runs_on_the_bundled_model(recipe, tmp_path):
    """Which has not learnt to learn from demonstrations: false ones change its answers little."""
    recipe.main(tmp_path, None, ["logit"], each=6, shots=2, loading={"dtype": "float32"})
    assert status(tmp_path / "demonstrations").done
    text = (tmp_path / "report.md").read_text()
    assert "true − false" in text
    assert "<svg" in (tmp_path / "report.html").read_text()
