"""Surveys of labelled prompts: what the table holds, resuming, and what is refused."""

from __future__ import annotations

import csv
import fcntl
import gzip
import io
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

import logitlens
from logitlens import FormatError, InputError, PromptError, SurveyError
from logitlens.cli import main
from logitlens.cli import survey as cli_survey
from logitlens.lenses import save
from logitlens.survey import plan as plans
from logitlens.survey import planning, worker
from logitlens.survey import prompts as labelled
from logitlens.survey.commit import Folder
from logitlens.survey.find import find, read_again
from logitlens.survey.merge import merge
from logitlens.survey.plan import Plan, Settings
from logitlens.survey.run import run, status
from logitlens.survey.worker import Worker
from logitlens.view import page
from tests.lenses.test_store import tuned
from tests.models import tiny_gpt2, tiny_tokenizer
from tests.survey.conftest import records, write_lines


def files(folder) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


LINES = b"".join(b'{"prompt": "a %d"}\n' % (n * n) for n in range(3000))


def test_the_table_holds_what_score_and_read_give_for_each_prompt(survey, model):
    found = survey.run()
    assert found.done
    assert found.merged
    frame = pq.read_table(survey.folder / "a" / "survey.parquet").to_pandas()
    layers = model.n_blocks + 1
    items = records()
    assert len(frame) == layers * len(items)
    for i in (1, 4, 7):
        item, mine = items[i], frame[frame.prompt_index == i]
        right = item["answer"] if isinstance(item["answer"], list) else [item["answer"]]
        scores = model.score(item["prompt"], [*right, item["wrong"]])
        reading = model.read(item["prompt"], track=[{"end": [".", " Paris"]}])
        assert mine.layer.tolist() == scores.layers == reading.layers
        logprob = np.log(np.exp(scores.logprobs[:, : len(right)]).sum(-1))
        np.testing.assert_allclose(mine.logprob, logprob, atol=1e-4)
        np.testing.assert_allclose(mine.margin, logprob - scores.logprobs[:, -1], atol=1e-4)
        starts = {model.score(item["prompt"], [a]).pieces[0][0] for a in right}
        first = [model.read(item["prompt"], track=[s]).track_logprobs[:, -1, 0] for s in starts]
        first = np.log(np.exp(first).sum(0))
        np.testing.assert_allclose(mine.first_logprob, first, atol=1e-4)
        assert (mine.correct == (mine.margin > 0)).all()
        assert mine["rank"].tolist() == scores.ranks[:, : len(right)].min(-1).tolist()
        np.testing.assert_allclose(mine.kl, reading.kl[:, -1], atol=1e-4)
        np.testing.assert_allclose(mine.entropy, reading.entropy[:, -1], atol=1e-4)
        np.testing.assert_allclose(mine.set_end, reading.track_logprobs[:, -1, 0], atol=1e-4)
        assert mine.top_id.tolist() == reading.top_ids[:, -1, 0].tolist()
        assert mine.agree.iloc[-1]
        assert mine.order.iloc[0] == item["order"]
    assert frame.set_end[frame.prompt_index == 0].isna().all()


def saved_lens(survey, model) -> str:
    return f"tuned:{save(tuned(model), survey.folder / 'lens.safetensors')}"


def test_every_lens_has_rows_of_its_own(survey, model):
    lenses = ("logit", saved_lens(survey, model))
    survey.run(records(5), lenses=lenses)
    frame = pq.read_table(survey.folder / "a" / "survey.parquet").to_pandas()
    names = frame.lens.unique()
    assert len(names) == 2
    for name, lens in zip(names, lenses):
        for i, item in enumerate(records(5)):
            mine = frame[(frame.lens == name) & (frame.prompt_index == i)]
            reading = model.read(item["prompt"], lens=lens)
            assert mine.layer.tolist() == reading.layers
            np.testing.assert_allclose(mine.kl, reading.kl[:, -1], atol=1e-4)
    schema = pq.read_schema(survey.folder / "a" / "survey.parquet")
    said = json.loads(schema.metadata[b"logitlens.survey"])
    assert said["version"] == plans.VERSION
    assert list(said["lenses"]) == names.tolist()
    assert said["lenses"][names[0]] is None
    assert re.fullmatch("[0-9a-f]{16}", said["lenses"][names[1]])
    assert said["model"]["weights"] == plans.weights_hash(model)
    assert str(survey.folder) not in json.dumps(said)


def test_shards_of_any_size_merge_into_the_same_numbers(survey):
    one = survey.run(size=100, folder="one")
    many = survey.run(size=3, folder="many")
    assert (len(one.plan.shards), len(many.plan.shards)) == (1, 8)
    a, b = (
        pq.read_table(survey.folder / f / "survey.parquet").to_pandas() for f in ("one", "many")
    )
    for name in a.columns:
        if a[name].dtype.kind == "f":
            np.testing.assert_allclose(a[name], b[name], atol=1e-4)
        elif name not in ("top", "top_id", "rank", "wrong_rank", "set_end_rank"):  # ties may round
            assert a[name].equals(b[name]), name


def test_the_same_survey_twice_is_the_same_bytes_and_leaves_nothing_else(survey):
    survey.run(folder="a")
    survey.run(folder="b")
    a, b = survey.folder / "a", survey.folder / "b"
    assert (a / "survey.parquet").read_bytes() == (b / "survey.parquet").read_bytes()
    shards = [
        f"{kind}/{n:05}.{end}"
        for kind, end in (("parts", "parquet"), ("commits", "json"), ("logs", "txt"))
        for n in range(6)
    ]
    assert files(a) == {"plan.json", "survey.parquet", *shards}


def test_a_survey_that_was_left_reads_only_what_is_missing(survey):
    survey.run()
    folder = survey.folder / "a"
    whole = (folder / "survey.parquet").read_bytes()
    (folder / "survey.parquet").unlink()
    (folder / "commits" / "00002.json").unlink()  # renamed, never committed
    (folder / "parts" / "00004.parquet").write_bytes(b"cut short")  # lost its end
    read = []
    survey.run(watch=lambda plan, shards: lambda record: read.append(record["shard"]))
    assert read == [2, 4]
    assert (folder / "survey.parquet").read_bytes() == whole


def test_a_survey_leaves_torch_its_number_of_threads(survey, model, monkeypatch):
    before, during = torch.get_num_threads(), []
    with monkeypatch.context() as patched:
        patched.setattr(
            model.hf,
            "forward",
            _noting(model.hf.forward, lambda: during.append(torch.get_num_threads())),
        )
        torch.set_num_threads(3)
        try:
            survey.run(size=100)
            assert torch.get_num_threads() == 3
        finally:
            torch.set_num_threads(before)
    assert set(during) == {1}


def _noting(function, note):
    def noted(*args, **options):
        note()
        return function(*args, **options)

    return noted


def test_shares_of_a_survey_together_are_the_whole(survey):
    for i in range(3):
        found = survey.run(folder="shares", share=(i, 3))
        assert len(found.records) == 2 * (i + 1)
    survey.run(folder="alone")
    a, b = (survey.folder / name / "survey.parquet" for name in ("shares", "alone"))
    assert a.read_bytes() == b.read_bytes()


def test_what_another_worker_is_about_to_commit_is_left_to_it(survey):
    """Its temporary file, which it holds; and its part, whose record is still to come."""
    survey.run()
    folder = survey.folder / "a"
    table = (folder / "survey.parquet").read_bytes()
    for name in (
        "survey.parquet",
        "commits/00001.json",
        "commits/00003.json",
        "parts/00003.parquet",
    ):
        (folder / name).unlink()
    part = (folder / "parts" / "00001.parquet").stat().st_ino
    held = folder / "parts" / ".00003.parquet.0123abcd.tmp.parquet"
    left = [folder / "parts" / ".00002.parquet.0123abcd.tmp.parquet", folder / ".x.0123abcd.tmp"]
    for path in (held, *left):
        path.write_bytes(b"PAR1")
    (folder / "commits" / "00000.json").unlink()
    (folder / "parts" / "00000.parquet").write_bytes(b"PAR1")  # spoilt, and of no record
    with open(held, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        found = survey.run()
    assert found.done
    assert held.exists()
    assert not any(path.exists() for path in left)
    assert (folder / "parts" / "00001.parquet").stat().st_ino == part
    assert (folder / "survey.parquet").read_bytes() == table
    survey.run()
    assert not held.exists()


def test_another_tokenizer_is_refused(survey, model, saved):
    survey.run(share=(0, 2))
    other = tiny_tokenizer()
    other.chat_template = "{{ messages }}"
    with pytest.raises(SurveyError, match="another: model tokenizer: "):
        survey.run(model=logitlens.load(model.hf, tokenizer=other))
    facts = json.loads((survey.folder / "a" / "plan.json").read_text())
    facts["model"]["tokenizer"] = "0" * 16
    (survey.folder / "a" / "plan.json").write_text(json.dumps(facts))
    with pytest.raises(SurveyError, match="another tokenizer than when the survey was planned"):
        Worker(survey.folder / "a", model)


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_moved_input_is_the_same_also_where_a_line_of_it_was_skipped(survey, jobs):
    survey.run([*records(5), {"prompt": ""}], bad="skip", share=(0, 2))
    (survey.folder / "prompts.jsonl").rename(survey.folder / "moved.jsonl")
    assert survey.run(bad="skip", name="moved", jobs=jobs).done
    assert plans.load(survey.folder / "a").facts["input"]["path"].endswith("moved.jsonl")


def test_tasks_that_see_the_input_at_several_paths_each_read_their_own(survey, model):
    survey.run(share=(0, 2))
    plan = plans.load(survey.folder / "a")
    (survey.folder / "prompts.jsonl").rename(survey.folder / "moved.jsonl")
    here = {**plan.facts["input"], "path": str(survey.folder / "moved.jsonl")}
    worker = Worker(survey.folder / "a", model, Plan({**plan.facts, "input": here}))
    assert worker.read(1)["prompts"] == 4


def test_a_shard_that_another_run_has_committed_did_not_fail(survey):
    survey.run(share=(0, 2))
    Folder(survey.folder / "a").fail(0, "OSError: no room")
    assert not status(survey.folder / "a").failed


def test_merging_refuses_a_survey_with_a_missing_or_changed_part(survey):
    survey.run()
    folder = survey.folder / "a"
    part = folder / "parts" / "00001.parquet"
    data = bytearray(part.read_bytes())
    data[40] ^= 1
    part.write_bytes(data)
    with pytest.raises(SurveyError, match=r"00001\.parquet is not what was committed"):
        merge(folder)
    part.unlink()
    with pytest.raises(SurveyError, match="1 of 6 shards"):
        merge(folder)


def test_a_survey_that_a_prompt_stops_goes_on_without_it(survey, unlooked):
    """What is committed stays as it is, and gives the same bytes as a survey that skipped from the start."""
    items = [*records(10), {"prompt": "Paris " * 300}, *records(3)]
    found = survey.run(items)
    assert list(found.failed) == [2]
    assert "--bad skip leaves such prompts out" in found.failed[2]
    there = Folder(survey.folder / "a").committed(0)
    found = survey.run(bad="skip")
    assert found.done
    assert (found.bad, found.failed) == (1, {})
    assert Folder(survey.folder / "a").committed(0) == there
    survey.run(folder="b", bad="skip")
    tables = [(survey.folder / name / "survey.parquet").read_bytes() for name in "ab"]
    assert tables[0] == tables[1]
    with pytest.raises(SurveyError, match='settings bad: "skip", now "stop"'):
        survey.run()


def test_model_and_lens_by_relative_paths_are_found_from_anywhere(survey, saved, monkeypatch):
    place = Path(saved_lens(survey, logitlens.load(str(saved))).partition(":")[2])
    monkeypatch.chdir(saved.parent)

    def go(source, lens, share):
        model = logitlens.load(source)
        return run(
            survey.folder / "prompts.jsonl", survey.folder / "a", model, source=source, loading={},
            lenses=["logit", lens], settings=Settings(shard_size=4), share=share,
        )  # fmt: skip

    write_lines(survey.folder / "prompts.jsonl", records(8))
    lens = f"tuned:{os.path.relpath(place)}"
    go(saved.name, lens, (0, 2))
    monkeypatch.chdir(survey.folder)
    rows = find(survey.folder / "a", "lens = 'tuned'", limit=1)
    assert read_again(survey.folder / "a", rows)[0].meta["lens"]["name"] == "tuned"
    moved = saved.parent / "moved"
    shutil.copytree(saved, moved)
    found = go(os.path.relpath(moved), f"tuned:{place.name}", (1, 2))
    assert found.done
    assert found.plan.facts["model"]["source"] == str(moved)
    assert found.plan.lenses == {"logit": "logit", "tuned": f"tuned:{place}"}
    assert found.plan.facts["lenses"][1]["said"] == lens


def test_the_bundled_model_stays_itself_beside_a_folder_of_its_name(survey, model, monkeypatch):
    monkeypatch.chdir(survey.folder)
    (survey.folder / "demo").mkdir()
    prompts = labelled.read(write_lines(survey.folder / "p.jsonl", records(2)))
    given = planning.of_prompts(prompts, Settings())
    for source, said in (("demo", "demo"), ("./demo", str(survey.folder / "demo"))):
        made = planning.make(
            model, given, source=source, loading={}, lenses=["logit"], settings=Settings()
        )
        assert made.facts["model"]["source"] == said


def test_a_shard_beyond_the_first_hundred_thousand_is_not_taken_for_another(tmp_path):
    folder = Folder(tmp_path)
    folder.fail(100_001, "why")
    folder.fail(3, "because")
    assert folder.failures() == {3: "because", 100_001: "why"}


def test_another_model_input_lens_or_setting_is_refused_with_what_changed(survey, model, saved):
    survey.run(share=(0, 2))
    with pytest.raises(SurveyError, match="settings shard_size: 4, now 5"):
        survey.run(size=5)
    tuned = saved_lens(survey, model)
    with pytest.raises(SurveyError, match=r"is another: lenses: logit, now tuned:[^;]*$"):
        survey.run(lenses=[tuned])
    with pytest.raises(SurveyError, match=r"is another: lenses: logit, now logit, tuned:[^;{]*$"):
        survey.run(lenses=["logit", tuned])
    with pytest.raises(SurveyError, match="input sha256"):
        survey.run(records(22))
    survey.run(records(), share=(1, 2))  # the same again is welcome
    other = logitlens.load(tiny_gpt2(seed=1), tokenizer=tiny_tokenizer())
    with pytest.raises(SurveyError, match="model weights") as refused:
        survey.run(model=other)
    assert "\n" not in str(refused.value)
    (survey.folder / "full").mkdir()
    (survey.folder / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(SurveyError, match="not empty"):
        survey.run(folder="full")


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".csv", ".parquet"])
def test_prompts_read_the_same_from_every_kind_of_file(tmp_path, suffix):
    items = records()
    plain = labelled.read(write_lines(tmp_path / "a.jsonl", items))
    path = tmp_path / f"b{suffix}"
    if suffix == ".jsonl.gz":
        path.write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    else:
        import pandas

        frame = pandas.DataFrame(items)
        if suffix == ".csv":
            for name in ("answer", "sets"):
                frame[name] = [v if isinstance(v, str) else json.dumps(v) for v in frame[name]]
            frame.to_csv(path, index=False)
        else:
            frame["answer"] = [v if isinstance(v, list) else [v] for v in frame["answer"]]
            frame.to_parquet(path)
    again = labelled.read(path)
    for a, b in zip(plain.items, again.items, strict=True):
        assert (a.prompt, a.answers, a.wrong, a.sets, a.id) == (
            b.prompt,
            b.answers,
            b.wrong,
            b.sets,
            b.id,
        )
        assert a.conditions["order"] == b.conditions["order"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{not json", "line 2 cannot be read"),
        (b'{"prompt": "\xff"}', "line 2 cannot be read"),
        (b'{"text": "a"}', "line 2: expected an object with a prompt"),
        (b'{"prompt": ""}', "line 2: the prompt is empty"),
        (b'{"prompt": "a", "answer": ""}', "line 2: the answer is empty"),
        (b'{"prompt": "a", "answer": []}', "line 2: the answer is empty"),
        (b'{"prompt": "a", "wrong": 3}', "line 2: the wrong answer is 3"),
        (b'{"prompt": "a", "language": ["x"]}', "line 2: the condition 'language' is list"),
        (b'{"prompt": "a", "kl": 3}', "line 2: 'kl' is a column of the survey"),
        (b'{"prompt": "a", "KL": 3}', "line 2: 'KL' is a column of the survey"),
        (b'{"prompt": "a", "settled": 3}', "line 2: 'settled' is a column of the survey"),
        (b'{"prompt": "a", "rank_embed": 3}', "line 2: 'rank_embed' is a column of the survey"),
        (b'{"prompt": "a", " answer": "b"}', "line 2: ' answer' is not a field; 'answer' is"),
        (b'{"prompt": "a", "": "b"}', "line 2: a column has no name"),
        (b'{"prompt": "a", "sets": {" ": ["b"]}}', "line 2: a set has no name"),
        (b'{"messages": "hello"}', "line 2: expected messages as objects with a role"),
        (b'{"text": "hello"}', "line 2: expected .* running text is read with --corpus"),
        (b'{"prompt": "a", "sets": ["b"]}', "line 2: expected sets as lists of tokens by name"),
        (b'{"prompt": "a", "number": 9223372036854775808}', "line 2: .* of more than 64 bits"),
    ],
    ids=range(19),
)  # fmt: skip
def test_a_line_that_cannot_be_read_is_named_or_skipped_and_counted(tmp_path, line, said):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n' + line + b'\n{"prompt": "b"}\n')
    with pytest.raises((FormatError, PromptError), match=said) as refused:
        labelled.read(path, reserved=["kl"])
    assert "\n" not in str(refused.value)
    found = labelled.read(path, reserved=["kl"], skip_bad=True)
    assert [item.prompt for item in found.items] == ["a", "b"]
    assert len(found.skipped) == 1


def test_a_prompt_without_an_id_is_no_pair_of_one_that_is_called_by_its_number(tmp_path):
    items = [
        {"prompt": "a"},
        {"prompt": "b", "id": "0"},
        {"prompt": "c"},
        {"prompt": "d", "id": ""},
    ]
    found = labelled.read(write_lines(tmp_path / "p.jsonl", items))
    assert [item.id for item in found.items] == ["0 without id", "0", "2", "3"]


def test_null_is_not_given(tmp_path):
    items = [
        {"prompt": "a", "messages": None, "id": None, "answer": None, "sets": None, "kind": None}
    ]
    found = labelled.read(write_lines(tmp_path / "p.jsonl", [*items, {"prompt": "b", "kind": "x"}]))
    first = found.items[0]
    assert (first.id, first.prompt, first.answers, first.sets) == ("0", "a", [], {})
    assert found.types == {"kind": "string"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prompt,answer,answer\na,b,c\n", "two columns called 'answer'"),
        ("prompt,Answer\na,b\n", "line 2: 'Answer' is not a field; 'answer' is"),
        (",prompt\n0,a\n", "line 2: a column has no name"),
        ("prompt,Kind,kind\na,b,c\n", "two columns of the table would be called 'kind', capitals"),
        (
            'prompt,sets\na,"{""x"": [""a""], ""x_rank"": [""b""]}"\n',
            "would be called 'set_x_rank'",
        ),
    ],
    ids=range(5),
)
def test_a_csv_file_whose_columns_could_be_mistaken_is_refused(tmp_path, text, said):
    path = tmp_path / "p.csv"
    path.write_text(text, encoding="utf-8-sig")
    with pytest.raises(FormatError, match=said):
        labelled.read(path)


def test_a_csv_field_may_be_as_long_as_a_line_of_json(tmp_path):
    long = "word " * 40_000
    path = tmp_path / "long.csv"
    path.write_text(f'prompt,answer\n"{long}", a\nshort, b\n', encoding="utf-8")
    assert [len(item.text) for item in labelled.read(path).items] == [200_000, 5]
    before = csv.field_size_limit(1 << 30)  # whoever reads larger ones beside still can
    try:
        labelled.read(path)
        assert csv.field_size_limit() == 1 << 30
    finally:
        csv.field_size_limit(before)


def test_where_no_line_can_be_read_the_first_says_why(tmp_path):
    path = write_lines(tmp_path / "p.jsonl", [{"text": "a"}, {"text": "b"}])
    with pytest.raises(PromptError, match=r"can be read; the first of 2: .*with a prompt"):
        labelled.read(path, skip_bad=True)


def test_the_docs_name_the_version_of_the_format():
    text = (Path(__file__).parents[2] / "docs" / "surveys.md").read_text(encoding="utf-8")
    assert f"the version of this format\n({plans.VERSION}; `plan.json` has it too" in text


def test_a_misspelt_field_is_said_to_be_a_condition(survey, saved):
    survey.run([{"prompt": "Paris is", "answr": " the"}, {"prompt": "The tower", "answer": " is"}])
    words = ["survey", "status", str(survey.folder / "a")]
    said = CliRunner().invoke(main, words, prog_name="logitlens").stdout
    assert "conditions: answr · 1 of 2 prompts have an answer" in said
    survey.run([{"prompt": "Paris is", "answer": " the"}], folder="b")
    said = CliRunner().invoke(main, [*words[:-1], str(survey.folder / "b")], prog_name="logitlens")
    assert "conditions" not in said.stdout
    assert "answer" not in said.stdout


@pytest.mark.parametrize(
    ("prompt", "answer", "joined"),
    [
        ("The capital of France is", "Paris", True),
        ("The capital of France is ", "Paris", True),
        ("The capital of France is", " Paris", False),
        ("The capital of France is:", "Paris", False),
        ("1 + 1 = ", "2", True),
        ("法国的首都是", "巴黎", False),
        ([1, 2, 3], "Paris", False),
    ],
)
def test_an_answer_that_lacks_its_space_is_said(prompt, answer, joined):
    item = labelled.Item(0, "a", prompt, [" x", answer], [], {}, {}, "p.jsonl line 1")
    assert item.joined is joined


def test_a_survey_says_how_many_answers_lack_their_space(survey):
    survey.run([{"prompt": "Paris is", "answer": "the"}, {"prompt": "The tower", "answer": " is"}])
    words = ["survey", "status", str(survey.folder / "a")]
    said = CliRunner().invoke(main, words, prog_name="logitlens").stdout
    assert 'prompts whose answer seems to lack its space, as in " Paris": 1' in said


def test_a_shard_of_long_prompts_holds_fewer():
    assert planning._shards([10] * 9, 4) == [[0, 4], [4, 8], [8, 9]]
    long = [150_000, 150_000, 150_000, 900_000, 10, 10]
    assert planning._shards(long, 256) == [[0, 2], [2, 3], [3, 4], [4, 6]]
    assert planning._shards([5], 1) == [[0, 1]]


def test_options_of_a_corpus_are_refused_without_one(tmp_path):
    path = write_lines(tmp_path / "p.jsonl", [{"prompt": "a"}])
    words = ["survey", "run", str(path), "-o", str(tmp_path / "out")]
    for option, value in (("--length", "64"), ("--keep", "cells"), ("--field", "text")):
        refused = CliRunner().invoke(main, [*words, option, value], prog_name="logitlens")
        assert refused.exit_code == 2
        assert f"{option} is of a corpus: add --corpus" in refused.stderr
    refused = CliRunner().invoke(main, [*words, "--corpus", "--top", "3"], prog_name="logitlens")
    assert "--top is of --keep cells" in refused.stderr


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU where there is none")
def test_workers_without_the_gpu_that_was_asked_for_end_as_one_process_does(tmp_path):
    path = write_lines(tmp_path / "p.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    words = ["survey", "run", str(path), "--device-map", "cuda", "--shard-size", "1"]
    said = []
    for jobs in ("1", "2"):
        out = ["-o", str(tmp_path / jobs), "-j", jobs]
        refused = CliRunner().invoke(main, [*words, *out], prog_name="logitlens")
        assert refused.exit_code == 4
        said.append(refused.stderr)
    assert said[0] == said[1]
    assert said[0].count("\n") == 1


def test_corrupt_gzip_and_foreign_files_are_refused_in_one_line(tmp_path):
    for name in ("a.jsonl.gz", "a.parquet", "a.xlsx"):
        (tmp_path / name).write_bytes(gzip.compress(b'{"prompt": "a"}')[:20])
        with pytest.raises(FormatError, match=name) as refused:
            labelled.read(tmp_path / name)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "data", "line", "read"),
    [
        # The last line of the first part is cut; 4,096 bytes of the file are unzipped at a time.
        ("a.jsonl.gz", gzip.compress(LINES)[:-12], 0, range(1, 3000)),
        ("b.jsonl.gz", gzip.compress(LINES[:90]) + gzip.compress(LINES[90:180])[:-4], 0, range(1, 13)),
        ("c.csv", b"prompt\nParis is\nCaf\xe9 is\nRome is\n", 3, [2]),
        ("e.csv", b'prompt\nParis is\nRome "is"\n"Nice" is\nthe tower\n', 4, [2, 3]),
        ("d.csv.gz", gzip.compress(b"prompt\nParis is\nCaf\xe9 is\nRome is\n"), 3, [2]),
    ],
    ids=["a.jsonl.gz", "b.jsonl.gz", "c.csv", "e.csv", "d.csv.gz"],  # gzip notes the time: no name of a test
)  # fmt: skip
def test_what_a_spoilt_file_still_holds_is_read_on_demand(tmp_path, name, data, line, read):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(FormatError, match=rf"{name} line .*\(--bad skip"):
        labelled.read(tmp_path / name)
    found = labelled.read(tmp_path / name, skip_bad=True)
    assert len(found.items) in read
    assert len(found.skipped) == 1
    assert f"{name} line {line or len(found.items) + 1}" in found.skipped[0]


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ({"prompt": "Paris " * 300, "answer": " Paris"}, "the prompt has .* context holds 64"),
        ({"prompt": "Paris", "answer": " Paris" * 300}, "tokens with its answer; .* holds 64"),
        ({"prompt": "Paris", "wrong": [" is", " Paris" * 300]}, "tokens with its answer"),
        ({"prompt": "Paris", "answer": " is", "wrong": [" the", " is"]}, "' is' is a right .* ' is' a wrong"),
        ({"prompt": "Paris", "answer": " is", "wrong": " is there"}, "' is there' a wrong one, and one begins"),
        ({"prompt": "Paris", "sets": {"x": [" is", " is there"]}}, "the set 'x': ' is there' is . tokens"),
        ({"prompt": "Paris", "sets": {"x": [9999]}}, "the set 'x': token id 9999 is outside"),
        ({"prompt": "Paris", "sets": {"x": [""]}}, "the set 'x': the token to track is empty"),
        ({"prompt": [1, 9999]}, "token id 9999 is outside the vocabulary"),
        ({"prompt": ["Paris"]}, "expected text or a one-dimensional list"),
        ({"prompt": "Paris \udcff"}, "half a character"),
        ({"messages": [{"role": "user", "content": "Paris"}]}, "the tokenizer has no chat template"),
    ],
    ids=range(12),
)  # fmt: skip
def test_a_prompt_that_this_model_cannot_read_is_refused_before_a_survey_begins_or_skipped(
    survey, item, said
):
    items = [*records(5), {"id": "bad", **item}]
    with pytest.raises(InputError, match=rf"line 6: .*{said}.* \(--bad skip") as refused:
        survey.run(items)
    assert "\n" not in str(refused.value)
    assert not (survey.folder / "a").exists()
    found = survey.run(items, folder="b", bad="skip")
    assert found.done
    assert found.total("prompts") == 5
    assert "line 6" in found.skipped[0]


def test_a_survey_none_of_whose_prompts_can_be_asked_is_not_begun_where_bad_ones_are_skipped(
    survey,
):
    bad = {"prompt": "Paris", "answer": " is", "wrong": " is"}
    with pytest.raises(InputError, match="none of 2 prompts can be read"):
        survey.run([bad, bad], bad="skip")
    assert not (survey.folder / "a").exists()
    assert survey.run([bad, *records(1)], bad="skip").total("prompts") == 1


def test_a_survey_that_was_begun_is_gone_on_with_without_another_look_at_all_prompts(
    survey, monkeypatch
):
    survey.run(share=(0, 2))
    monkeypatch.setattr("logitlens.survey.run.require_readable", None)
    assert survey.run().done


def test_a_prompt_that_fails_while_it_is_read_is_named_with_the_traceback(survey, unlooked):
    found = survey.run([*records(5), {"prompt": "Paris " * 300}])
    assert list(found.failed) == [1]
    assert "line 6: the prompt has" in found.failed[1]
    assert "Traceback" in (survey.folder / "a" / "failed" / "00001.txt").read_text()
    assert not found.merged


def test_what_was_skipped_is_named_alike_when_planned_and_when_read(survey):
    found = survey.run([*records(2), {"prompt": ""}, {"prompt": "is " * 99}], bad="skip")
    assert [line.partition(":")[0] for line in found.skipped] == [
        "prompts.jsonl line 3", "prompts.jsonl line 4",
    ]  # fmt: skip


def test_logits_that_are_not_finite_are_null_and_counted(survey):
    broken = logitlens.load(tiny_gpt2(), tokenizer=tiny_tokenizer())
    with torch.no_grad():
        broken.hf.transformer.wte.weight[9].fill_(float("nan"))
    items = [{"prompt": [1, 2, 3]}, {"prompt": [1, 9, 3]}]
    found = survey.run(items, model=broken, lenses=("logit", saved_lens(survey, broken)))
    assert found.total("nonfinite") == 1  # a prompt, by however many lenses
    frame = pq.read_table(survey.folder / "a" / "survey.parquet").to_pandas()
    frame = frame[frame.lens == "logit"]
    assert frame.entropy[frame.prompt_index == 0].notna().all()
    broken_rows = frame[frame.prompt_index == 1]
    assert broken_rows.kl.isna().all()
    assert broken_rows.entropy.iloc[1:].isna().all()  # the embedding of the last token is whole


def test_more_top_tokens_than_there_are_are_refused_before_anything_is_written(
    survey, model, saved
):
    write_lines(survey.folder / "p.jsonl", records(2))
    with pytest.raises(FormatError, match=f"top is at most the vocabulary's {model.vocab_size}"):
        run(
            survey.folder / "p.jsonl", survey.folder / "s", model, source=str(saved), loading={},
            settings=Settings(top=model.vocab_size + 1, cells=True, length=8),
        )  # fmt: skip
    assert not (survey.folder / "s").exists()


def test_what_was_damaged_is_said_and_made_again(survey):
    survey.run(size=8)
    folder = survey.folder / "a"
    whole = (folder / "survey.parquet").read_bytes()
    (folder / "survey.parquet").write_bytes(b"xx")
    assert not status(folder).merged
    survey.run(size=8)
    assert (folder / "survey.parquet").read_bytes() == whole
    (folder / "parts" / "00001.parquet").unlink()
    found = status(folder)
    assert found.failed == {1: "its part is missing, or not whole: run the survey again"}
    assert not found.underway
    assert survey.run(size=8).done
    assert not status(folder).failed


def test_a_part_of_which_a_byte_was_changed_is_found_when_it_is_asked_for(survey):
    survey.run(size=8)
    folder = survey.folder / "a"
    part = folder / "parts" / "00001.parquet"
    whole = part.read_bytes()
    part.write_bytes(whole[:40] + bytes([whole[40] ^ 1]) + whole[41:])

    def go(*more):
        words = ["survey", "status", str(folder), *more]
        return CliRunner().invoke(main, words, prog_name="logitlens")

    assert go().exit_code == 0
    done = go("--verify")
    assert done.exit_code == 3
    assert "2 of 3 shards committed" in done.stdout
    assert re.search("shard 1 failed: .*00001.parquet is not what was committed", done.stdout)
    assert list(json.loads(go("--verify", "--json").stdout)["failed"]) == ["1"]
    part.unlink()
    assert survey.run(size=8).done
    assert part.read_bytes() == whole
    assert go("--verify").exit_code == 0


@pytest.mark.parametrize("behind", [False, True])
def test_out_of_memory_for_a_moment_changes_no_byte(survey, monkeypatch, behind):
    from logitlens.model import score
    from logitlens.readout import transfer

    survey.run(size=100, folder="whole")
    honest, calls = score.capture, []

    def now_and_then(model, prompts, **options):
        calls.append(len(prompts))
        if len(calls) in (1, 3, 6):
            raise MemoryError
        return honest(model, prompts, **options)

    monkeypatch.setattr(transfer, "overlaps", lambda device: behind)
    monkeypatch.setattr(score, "capture", now_and_then)
    found = survey.run(size=100)
    assert len(calls) > 6
    assert found.done
    assert found.records[0].get("remarks", []) == []
    whole, again = ((survey.folder / f / "survey.parquet").read_bytes() for f in ("whole", "a"))
    assert again == whole


def test_where_two_batches_do_not_fit_together_they_are_read_one_by_one(survey, monkeypatch):
    """On a GPU one is begun before the one before it has ended."""
    from logitlens.model import score
    from logitlens.readout import transfer

    capture, begin, calls, under_way = score.capture, score.read.begin, [], []

    def crowded(model, prompts, **options):
        calls.append(len(prompts))
        if under_way:
            raise MemoryError
        return capture(model, prompts, **options)

    monkeypatch.setattr(score, "capture", crowded)
    survey.run(size=100, folder="whole")
    batches = len(calls)

    def begun(*args, **options):
        end = begin(*args, **options)
        under_way.append(1)
        return lambda: (under_way.clear(), end())[1]

    monkeypatch.setattr(transfer, "overlaps", lambda device: True)
    monkeypatch.setattr(score.read, "begin", begun)
    found = survey.run(size=100)
    assert found.done
    assert batches > 3
    assert len(calls) == 2 * batches + 1, "one was begun in vain"
    whole, again = ((survey.folder / f / "survey.parquet").read_bytes() for f in ("whole", "a"))
    assert again == whole


def test_out_of_memory_halves_the_batch_and_says_so(survey, model, monkeypatch):
    from logitlens.model import score

    survey.run(size=100, folder="whole")
    honest = score.capture

    def small(model, prompts, **options):
        if sum(map(len, prompts)) > 40:
            raise MemoryError
        return honest(model, prompts, **options)

    monkeypatch.setattr(score, "capture", small)
    found = survey.run(size=100)
    assert found.done
    assert re.match(
        r"out of memory: \d+ batches were read in halves", found.records[0]["remarks"][0]
    )
    tables = [
        pq.read_table(survey.folder / f / "survey.parquet").to_pandas() for f in ("whole", "a")
    ]
    whole, halved = tables
    for name in whole.columns:
        if whole[name].dtype.kind == "f":
            np.testing.assert_allclose(halved[name], whole[name], atol=1e-3, err_msg=name)
        elif name not in (
            "rank",
            "wrong_rank",
            "top_id",
            "top",
            "agree",
            "correct",
        ):  # of near ties
            assert halved[name].equals(whole[name]), name


def test_a_full_disk_fails_the_shard_and_leaves_nothing_temporary(survey, monkeypatch):
    honest, tried = Path.write_bytes, []

    def full(path, data):
        if path.parent.name not in ("parts", "failed"):
            return honest(path, data)
        honest(path, data[: len(data) // 2])
        tried.append(path)
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        found = survey.run()
    assert len(found.failed) == 6
    assert not found.underway
    assert "No space left" in found.failed[0]
    assert len(tried) == 12
    assert not [name for name in files(survey.folder / "a") if "tmp" in name]
    assert survey.run().done


def test_a_committed_shard_is_never_written_again(survey):
    survey.run()
    folder = Folder(survey.folder / "a")
    path = survey.folder / "a" / folder.part(0)
    before = path.stat().st_mtime_ns
    table = folder.read(1)
    assert folder.commit(0, table, {})["rows"] == folder.read(0).num_rows
    assert path.stat().st_mtime_ns == before


def test_the_command_line_says_how_far_it_is_and_gives_3_for_failed_shards(survey, saved, unlooked):
    path = write_lines(survey.folder / "p.jsonl", [*records(5), {"prompt": "Paris " * 300}])
    out = survey.folder / "cli"
    arguments = ["survey", "run", str(path), "-o", str(out), "-m", str(saved), "--threads", "1"]
    ended = CliRunner().invoke(main, [*arguments, "--shard-size", "3"], prog_name="logitlens")
    assert ended.exit_code == 3, ended.output
    assert "1 of 2 shards committed" in ended.stdout
    assert "shard 1 failed" in ended.stdout
    ended = CliRunner().invoke(main, ["survey", "status", str(out), "--json"])
    assert json.loads(ended.stdout)["committed"] == 1
    ended = CliRunner().invoke(main, ["survey", "merge", str(out)])
    assert ended.exit_code == 1
    assert "1 of 2 shards" in ended.stderr
    ended = CliRunner().invoke(main, ["survey", "status", str(survey.folder)])
    assert (ended.exit_code, "no survey in" in ended.stderr) == (1, True)
    ended = CliRunner().invoke(main, ["survey", "run", "nowhere.jsonl", "-o", str(out / "new")])
    assert (ended.exit_code, "no prompts at nowhere.jsonl" in ended.stderr) == (1, True)


def test_chats_are_read_as_the_model_reads_them(survey, monkeypatch):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }} is in {% endfor %}"
        "{% if add_generation_prompt %}the{% endif %}"
    )
    chatting = logitlens.load(tiny_gpt2(), tokenizer=tokenizer)
    messages = [{"role": "user", "content": "The tower"}]
    found = survey.run([{"messages": messages, "answer": " city"}], model=chatting)
    assert found.done
    frame = pq.read_table(survey.folder / "a" / "survey.parquet").to_pandas()
    reading = chatting.read(messages)
    assert frame.top_id.tolist() == reading.top_ids[:, -1, 0].tolist()
    assert json.loads(frame.prompt[0]) == messages
    monkeypatch.setattr(worker, "load", lambda *a, **o: chatting)
    opened = []
    monkeypatch.setattr(page, "save", lambda readings, out: opened.extend(readings))
    out = str(survey.folder / "found.html")
    done = CliRunner().invoke(main, ["survey", "find", str(survey.folder / "a"), "--open", out])
    assert done.exit_code == 0, done.output
    assert opened[0].ids.tolist() == reading.ids.tolist()
    with pytest.raises(FormatError, match="with a prompt, or with messages"):
        survey.run([{"messages": messages, "prompt": "Paris"}], name="both", folder="b")


def test_a_terminal_shows_how_far_a_survey_is_from_its_beginning_and_which_shards_failed(
    survey, monkeypatch, unlooked
):
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120, highlight=False)
    monkeypatch.setattr("logitlens.cli.survey.errors", lambda: console)
    long = {"prompt": "Paris " * 400, "answer": " is"}
    with cli_survey._watched() as watch:
        survey.run([*records(8), long], share=(0, 2), watch=watch)
    shown = out.getvalue()
    assert shown.index("reading the input") < shown.index("0 of 5 prompts")
    assert shown.index("0 of 5 prompts") < shown.index("5 of 5 prompts")
    assert "shard 2 failed" in shown
    assert "tokens/s · 1 failed" in shown


def array(first: int, last: int, step: int, here: int) -> dict[str, str]:
    """What SLURM tells a task of `--array=first-last:step`."""
    count = (last - first) // step + 1
    said = {"ID": here, "COUNT": count, "MIN": first, "MAX": last, "STEP": step}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in said.items()}


@pytest.mark.skipif(not shutil.which("bash"), reason="a shell script")
@pytest.mark.parametrize(
    ("given", "share", "device"),
    [
        (array(0, 7, 1, 3), "3/8", ""),
        (array(1, 8, 1, 8), "7/8", ""),
        (array(0, 14, 2, 6), "3/8", ""),
        ({"RANK": "5", "WORLD_SIZE": "6", "LOCAL_RANK": "1"}, "5/6", "1"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "CUDA_VISIBLE_DEVICES": "7"}, "0/2", "7"),
    ],
)  # fmt: skip
def test_the_example_script_gives_each_task_its_shards_and_each_process_a_gpu(
    given, share, device, tmp_path
):
    done = _task(tmp_path, given)
    assert done.returncode == 0
    assert done.stdout == f"survey run p.jsonl -o my survey --shard {share} on {device}\n"


@pytest.mark.skipif(not shutil.which("bash"), reason="a shell script")
def test_the_example_script_refuses_an_array_with_gaps(tmp_path):
    done = _task(tmp_path, {**array(3, 5, 1, 5), "SLURM_ARRAY_TASK_COUNT": "2"})
    assert done.returncode == 2
    assert "an array with gaps would leave shards out" in done.stderr


def _task(folder: Path, given: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """The script, with a command that only says what it is asked."""
    command = folder / "logitlens"
    command.write_text('#!/bin/bash\necho "$@" on "${CUDA_VISIBLE_DEVICES:-}"\n')
    command.chmod(0o755)
    script = Path(__file__).parents[2] / "examples/survey_shards.sh"
    return subprocess.run(
        ["bash", script, "p.jsonl", "-o", "my survey"], capture_output=True, text=True, check=False,
        env={"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", **given},
    )  # fmt: skip
