"""Surveys of an edited model: the same numbers as edited readings, kept in the plan, shown in the report."""

from __future__ import annotations

import html
import re
import shlex
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

import logitlens
from logitlens import InputError, PromptError, Reading, SurveyError, edit
from logitlens.cli import main
from logitlens.cli import survey as cli_survey
from logitlens.model.edits import prepare
from logitlens.survey import plan as plans
from logitlens.survey import worker
from logitlens.survey.engines import local
from logitlens.survey.plan import Settings
from logitlens.survey.report import report
from logitlens.survey.run import run
from tests.models import tiny_gpt2, tiny_tokenizer
from tests.survey.conftest import records, write_lines

EDITS = [
    edit.add(" Paris", layer=0, positions=-1, scale=3.0),
    edit.ablate(1, "mlp", "mean"),
    edit.patch("In the city", layer=0, positions=0, from_positions=2),
]


def frame(folder):
    return pq.read_table(folder / "survey.parquet").to_pandas()


def test_the_table_holds_what_score_and_read_give_of_the_edited_model(survey, model):
    found = survey.run(edits=EDITS)
    assert found.merged
    table, items = frame(survey.folder / "a"), records()
    plain = model.read(items[1]["prompt"])
    for i in (1, 4, 7):
        item, mine = items[i], table[table.prompt_index == i]
        scores = model.score(item["prompt"], [*np.atleast_1d(item["answer"])], edits=EDITS)
        reading = model.read(item["prompt"], edits=EDITS)
        logprob = np.log(np.exp(scores.logprobs).sum(-1))
        np.testing.assert_allclose(mine.logprob, logprob, atol=1e-4)
        np.testing.assert_allclose(mine.kl, reading.kl[:, -1], atol=1e-4)
        np.testing.assert_allclose(mine.entropy, reading.entropy[:, -1], atol=1e-4)
    assert abs(table[table.prompt_index == 1].kl.iloc[0] - plain.kl[0, -1]) > 1e-3


def test_a_survey_goes_on_with_the_same_edits_only_and_its_plan_gives_them_back(survey, model):
    survey.run(edits=EDITS, share=(0, 2))
    with pytest.raises(SurveyError, match="edits: added 3 × ' Paris' after layer 0 .*, now none"):
        survey.run()
    with pytest.raises(SurveyError, match=r"now added 4 × ' Paris' after layer 0 at position -1"):
        survey.run(edits=[edit.add(" Paris", layer=0, positions=-1, scale=4.0)])
    assert survey.run(edits=EDITS, share=(1, 2)).merged
    back = edit.load(survey.folder / "a" / "plan.json")
    assert [str(e) for e in back] == [str(e) for e in EDITS]
    prompt = records()[0]["prompt"]
    read = [model.read(prompt, edits=edits).top_logprobs for edits in (EDITS, back)]
    np.testing.assert_array_equal(*read)
    with pytest.raises(PromptError, match="saved with the model tiny, and this is demo"):
        logitlens.load(None).read(prompt, edits=back)
    survey.run(folder="none")
    assert edit.load(survey.folder / "none" / "plan.json") == []


def test_the_source_of_a_patch_runs_with_the_threads_of_the_plan(survey, monkeypatch):
    """Else a worker with more processors would put other last digits in."""
    seen = []

    def watched(model, edits):
        seen.append(torch.get_num_threads())
        return prepare(model, edits)

    monkeypatch.setattr(worker, "prepare", watched)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        survey.run(records(2), edits=EDITS)
    finally:
        torch.set_num_threads(before)
    assert seen == [1]


def test_another_vector_is_another_edit(survey, model):
    one, other = np.eye(model.width, dtype=np.float32)[:2]
    survey.run(edits=[edit.add(one, layer=0)], share=(0, 2))
    with pytest.raises(SurveyError, match="a vector after layer 0, with other vectors"):
        survey.run(edits=[edit.add(other, layer=0)])


@pytest.mark.slow
def test_processes_that_edit_give_the_same_bytes(survey):
    for jobs, folder in ((1, "one"), (2, "two")):
        assert survey.run(records(9), folder, size=3, edits=EDITS, jobs=jobs).merged
    one, two = (survey.folder / name / "survey.parquet" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_a_prompt_without_an_edited_position_is_named_or_skipped(survey):
    there = [edit.add(" Paris", layer=0, positions=4)]
    with pytest.raises(
        InputError, match="line 1: added 1 × ' Paris' after layer 0 at position 4: "
    ):
        survey.run(edits=there)
    found = survey.run(edits=there, bad="skip", folder="b")
    assert found.merged
    assert 0 < len(found.skipped) < len(records())
    with pytest.raises(PromptError, match="no layer 9"):
        survey.run(edits=[edit.add(" Paris", layer=9)], folder="c")
    assert not (survey.folder / "c").exists()


def test_a_corpus_is_read_by_the_edited_model(model, saved, tmp_path):
    texts = ["The Eiffel Tower is in the city of Paris.", "Is there a tower in the city?"]
    (tmp_path / "text.txt").write_text("\n\n".join(texts))

    def go(folder, edits):
        run(tmp_path / "text.txt", tmp_path / folder, model, source=str(saved), loading={},
            settings=Settings(length=64, threads=1), edits=edits)  # fmt: skip
        table = frame(tmp_path / folder)
        return table[table.band == "all"].kl

    readings = [model.read(text, edits=EDITS) for text in texts]
    truth = np.concatenate([r.kl for r in readings], 1).mean(1)
    np.testing.assert_allclose(go("a", EDITS), truth, atol=1e-4)
    with pytest.raises(PromptError, match=r"at position 60: .* \(the shortest window\)"):
        go("b", [edit.add(" Paris", layer=0, positions=60)])


def test_where_others_read_the_process_that_plans_puts_no_model_on_their_devices(
    saved, model, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "p.jsonl", records(3))
    given = []

    def loads(source, **options):
        given.append({name: options[name] for name in ("device_map", "dtype")})
        return model

    monkeypatch.setattr(cli_survey, "load_model", loads)
    monkeypatch.setattr(local, "run", lambda *a: (record for record in ()))
    words = ["survey", "run", "p.jsonl", "-m", str(saved), "--device-map", "cuda"]
    for jobs, folder in (("1", "one"), ("2", "two")):
        assert CliRunner().invoke(main, [*words, "-j", jobs, "-o", folder]).exit_code == 0
    assert given == [{"device_map": "cuda", "dtype": None}, {"device_map": None, "dtype": "auto"}]
    models = [plans.load(folder).facts["model"] for folder in ("one", "two")]
    assert models[0] == models[1]
    assert models[1]["loading"] == {"device_map": "cuda"}


def test_float16_weights_that_are_only_planned_with_have_the_hash_of_those_that_are_read(tmp_path):
    hf = tiny_gpt2().half()
    hf.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    planned = logitlens.load(str(tmp_path), dtype="auto")
    assert plans.weights_hash(planned) == plans.weights_hash(SimpleNamespace(hf=hf))


def test_the_command_line_edits_and_the_report_leads_to_the_same_reading(
    saved, model, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "p.jsonl", [*records(3), {"prompt": "[the"}])
    words = [
        "survey",
        "run",
        "p.jsonl",
        "-m",
        str(saved),
        "--edit",
        "add:layer=0,token= Paris,scale=3",
    ]
    for folder, extra in (("edited", []), ("more", ["--edit", "ablate:block=1,stream=attn"])):
        done = CliRunner().invoke(main, [*words, *extra, "-o", folder])
        assert done.exit_code == 0, done.output
    report(["edited"], tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "The model is edited: added 3 × &#x27; Paris&#x27; after layer 0." in page
    commands = [html.unescape(each) for each in re.findall(r"<code>(.*?)</code>", page)]
    (command,) = {each for each in commands if each.endswith(" '[the'")}
    again = shlex.split(command)[1:]
    again[again.index("reading.html")] = "again.json"
    assert CliRunner().invoke(main, again).exit_code == 0
    reading = Reading.load("again.json")
    truth = model.read("[the", edits=[edit.add(" Paris", layer=0, scale=3.0)])
    np.testing.assert_allclose(reading.entropy, truth.entropy, atol=1e-5)
    report(["edited", "more"], tmp_path / "r.md")
    text = (tmp_path / "r.md").read_text(encoding="utf-8")
    assert "more is edited: added 3 × ' Paris' after layer 0; 1.attn set to zero." in text
