"""Surveys in object stores: fsspec's memory file system, and a real S3 server."""

from __future__ import annotations

import json
import uuid

import pyarrow.parquet as pq
import pytest

from logitlens import FormatError, SettingError, SurveyError, storage
from logitlens.fit import corpus
from logitlens.survey import prompts as labelled
from logitlens.survey.commit import Folder
from logitlens.survey.find import find
from logitlens.survey.plan import Settings
from logitlens.survey.report import report
from logitlens.survey.run import run
from tests.survey.conftest import records


@pytest.fixture
def place(request):
    """A new address of the kind that the test asks for."""
    name = uuid.uuid4().hex
    if request.param == "s3":
        return f"{request.getfixturevalue('s3')}/{name}"
    if request.param == "local":  # fsspec's own; file:// is the folder itself
        return f"local://{request.getfixturevalue('tmp_path')}/{name}"
    return f"memory://{name}"


everywhere = pytest.mark.parametrize(
    "place", ["memory", "local", pytest.param("s3", marks=pytest.mark.slow)], indirect=True
)
ignoring = pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")


@everywhere
@ignoring
def test_a_survey_in_a_store_is_the_same_bytes_as_in_a_folder(survey, model, saved, place):
    survey.run(folder="here")
    whole = (survey.folder / "here" / "survey.parquet").read_bytes()
    settings = Settings(shard_size=4, threads=1, token_budget=64)
    prompts = storage.at(place + "-input")
    prompts.write("prompts.jsonl", (survey.folder / "prompts.jsonl").read_bytes())

    def go(**options):
        return run(place + "-input/prompts.jsonl", place, model, source=str(saved), loading={},
                   settings=settings, **options)  # fmt: skip

    assert not go(share=(0, 2)).done
    assert go().done
    files = storage.at(place)
    assert files.read("survey.parquet") == whole
    assert files.names() == ["commits", "logs", "parts", "plan.json", "survey.parquet"]
    assert "committed" in files.read("logs/00000.txt").decode()
    files.remove("survey.parquet")
    files.write("parts/00001.parquet", b"not what was committed")
    read = []
    go(watch=lambda plan, shards: lambda record: read.append(record["shard"]))
    assert read == [1]
    assert files.read("survey.parquet") == whole
    assert len(find(place, limit=3)) == 3
    report([place], survey.folder / "report.md", by="order")


@everywhere
@ignoring
def test_a_corpus_in_a_store_is_read_by_ranges(survey, model, saved, place):
    prompts = storage.at(place + "-text")
    lines = ({"text": "The Eiffel Tower is in", "language": f"l{n}", "n": n} for n in range(3))
    prompts.write("a.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    prompts.write("b.txt", b"Paris is\n\nis there a tower")
    prompts.write("ignored.pdf", b"%PDF")
    prompts.write("below/further/c.txt", b"Paris in the city")
    prompts.write(".hidden/d.txt", b"not this")
    settings = Settings(length=4, overlap=1, shard_size=5, token_budget=64, cells=True)
    found = run(place + "-text", place, model, source=str(saved), loading={}, settings=settings)
    assert found.done
    assert len(found.plan.shards) > 2
    assert found.plan.facts["corpus"]["documents"] == 6
    rows = find(place, "language = 'l1' and n = 1", limit=100)
    assert {row["document"] for row in rows} == {1}
    assert len(rows) == len(model.tokens.encode("The Eiffel Tower is in"))
    assert {row["document"] for row in find(place, "language is null", limit=100)} == {3, 4, 5}


def test_links_to_folders_are_not_followed(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "a.txt").write_text("Paris")
    (tmp_path / "below" / "again").symlink_to(tmp_path)
    assert [path.name for path, _ in corpus.files(tmp_path)] == ["a.txt"]


@everywhere
@ignoring
def test_what_is_created_is_there_whole_or_not_at_all(place, monkeypatch):
    files = storage.at(place)
    assert files.create("a/b", b"first") == b"first"
    assert files.create("a/b", b"second") == b"first"
    assert files.names("a") == ["b"]
    if not place.startswith("s3"):
        monkeypatch.setattr(files.fs, "mv", None)  # it ends before the file has its name
        for write in (files.create, files.write):
            with pytest.raises(OSError, match="not callable"):
                write("a/c", b"data")
            assert files.names("a") == ["b"]


@everywhere
@ignoring
def test_the_first_of_two_workers_wins_in_a_store(survey, place):
    survey.run(records(8), folder="here")
    table = pq.read_table(survey.folder / "here" / "parts" / "00000.parquet")
    facts = json.loads((survey.folder / "here" / "commits" / "00000.json").read_text())
    facts = {k: v for k, v in facts.items() if k not in ("size", "sha256", "rows", "shard")}
    one, other = Folder(place), Folder(place)
    other._said = lambda shard: None  # it looked before the first had written
    first = one.commit(0, table, {**facts, "seconds": 1.0})
    assert other.commit(0, table.slice(0, 3), {**facts, "seconds": 2.0}) == first
    assert one.read(0).num_rows == table.num_rows
    other.place.write("parts/00000.parquet", b"x" * first["size"])
    with pytest.raises(SurveyError, match="not what was committed"):
        one.read(0)


@pytest.mark.slow
@ignoring
def test_a_bucket_that_is_not_there_is_named_and_not_made(s3):
    for write in (lambda at: at.write("a", b"x"), lambda at: at.create("a", b"x")):
        with pytest.raises(OSError, match="s3://misspelt/survey: .*not exist") as refused:
            write(storage.at("s3://misspelt/survey"))
        assert "\n" not in str(refused.value)


def test_a_line_of_a_file_in_a_store_is_named_by_its_address():
    pytest.importorskip("fsspec")
    address = "memory://lines/p.jsonl"
    storage.at("memory://lines").write("p.jsonl", b'{"prompt": "a"}\n{"prompt"\n')
    with pytest.raises(FormatError, match=f"^{address} line 2 cannot be read"):
        labelled.read(address)


def test_what_a_store_refuses_is_one_line():
    with pytest.raises(SettingError, match="nowhere") as refused:
        storage.at("nowhere://bucket/survey")
    assert "\n" not in str(refused.value)


def test_an_address_of_a_local_file_is_the_folder_itself(tmp_path):
    storage.at(f"file://{tmp_path}").write("parts/a", b"x")
    assert (tmp_path / "parts" / "a").read_bytes() == b"x"
