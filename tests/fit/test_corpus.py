"""Every form a corpus may have, and what is wrong with the others, in one line."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

import logitlens
from logitlens.errors import FormatError, ModelNotAvailable, PromptError
from logitlens.fit import corpus
from tests.fit import words
from tests.lenses import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return logitlens.load(words.directory(tmp_path_factory.mktemp("model")))


TEXTS = ["The Eiffel Tower\nis in the city", "of Paris", "Grüße, 東京"]


def write(path, suffix):
    if suffix == ".txt":
        path.write_text("\n\n\n".join(TEXTS) + "\n", encoding="utf-8")
    elif suffix == ".txt.gz":
        path.write_bytes(gzip.compress("\n \n".join(TEXTS).encode()))
    elif suffix == ".jsonl":
        lines = [json.dumps({"text": t, "n": 1}) for t in TEXTS]
        path.write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    elif suffix == ".jsonl.gz":
        path.write_bytes(gzip.compress("\n".join(json.dumps(t) for t in TEXTS).encode()))
    elif suffix == ".parquet":
        pa = pytest.importorskip("pyarrow")
        pq = pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.table({"id": [1, 2, 3, 4], "text": [*TEXTS, None]}), path)
    return path


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".parquet"])
def test_every_form_gives_the_same_documents(tmp_path, model, suffix):
    found = corpus.read(write(tmp_path / f"corpus{suffix}", suffix), model)
    assert [d.tolist() for d in found.documents] == [model.tokens.encode(t) for t in TEXTS]
    assert found.tokens == sum(len(d) for d in found.documents)
    again = corpus.from_ids([d.tolist() for d in found.documents])
    assert again.hash == found.hash


def test_a_folder_is_read_in_order_of_names_without_hidden_files(tmp_path, model):
    names = ["b.txt", "a.txt", "c.bin", ".a.txt.0123abcd.tmp.txt"]
    for name, part in zip(names, ["of Paris", "The city", "x", "half"]):
        (tmp_path / name).write_text(part)
    found = corpus.read(tmp_path, model)
    assert [d.tolist() for d in found.documents] == [
        model.tokens.encode(t) for t in ("The city", "of Paris")
    ]


def test_the_hash_knows_documents_apart():
    one = corpus.from_ids([[1, 2], [3]])
    assert one.hash == corpus.from_ids([[1, 2], [3]], "other name").hash
    for other in ([[1], [2, 3]], [[1, 2, 3]], [[1, 2], [4]]):
        assert corpus.from_ids(other).hash != one.hash


def test_chunks_and_shards():
    text = corpus.from_ids([[1, 2, 3], [4, 5], [6]])
    assert text.chunks(2).tolist() == [[1, 2], [3, 4], [5, 6]]
    assert text.chunks(4, separator=0).tolist() == [[1, 2, 3, 0], [4, 5, 0, 6]]
    assert text.chunks(9).shape == (0, 9)
    shards = [text.shard(i, 2) for i in range(2)]
    assert [[d.tolist() for d in s.documents] for s in shards] == [[[1, 2, 3], [6]], [[4, 5]]]
    with pytest.raises(PromptError, match="shard 2/2"):
        text.shard(2, 2)


def test_ids_need_no_tokenizer(tmp_path):
    path = tmp_path / "ids.jsonl"
    path.write_text('{"ids": [1, 2, 3]}\n')
    assert corpus.read(path, tiny.gpt2()).documents[0].tolist() == [1, 2, 3]
    path.write_text('{"ids": [1, 97]}\n')
    with pytest.raises(PromptError, match="token id 97 is outside"):
        corpus.read(path, tiny.gpt2())


def test_max_tokens_stops_reading(tmp_path, model):
    path = tmp_path / "endless.jsonl"
    path.write_text('{"text": "of Paris"}\n' * 5 + "not JSON\n")
    found = corpus.read(path, model, max_tokens=2 * len(model.tokens.encode("of Paris")))
    assert len(found.documents) == 2


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("missing.txt", None, PromptError, "no corpus at"),
        ("a.txt", b"\n\n \n", PromptError, "holds no text"),
        ("a.txt", b"\xff\xfe\x00", FormatError, "UTF-8"),
        ("a.txt.gz", b"plain", FormatError, "cannot be read"),
        ("a.jsonl", b'{"text": "a"}\n{"tex', FormatError, "line 2 is not JSON"),
        ("a.jsonl", b'{"body": "a"}', FormatError, r"got \['body'\]"),
        ("a.jsonl", b"[1]", FormatError, "got list"),
        ("a.parquet", b"PAR1", FormatError, "not a whole Parquet file"),
        ("a.pdf", b"%PDF", FormatError, "got '.pdf'"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, model, name, content, error, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=message) as raised:
        corpus.read(path, model)
    assert "\n" not in str(raised.value)


def test_a_column_that_is_not_there(tmp_path, model):
    path = write(tmp_path / "a.parquet", ".parquet")
    with pytest.raises(FormatError, match="it has id, text"):
        corpus.read(path, model, field="body")


def test_hub_data_sets_offline(model):
    with pytest.raises(ModelNotAvailable, match="HF_HUB_OFFLINE"):
        corpus.read("hf://datasets/owner/name", model)
    with pytest.raises(PromptError, match="expected hf://datasets"):
        corpus.read("hf://models/owner/name", model)


def test_documents_are_int32(tmp_path, model):
    path = tmp_path / "a.txt"
    path.write_text("of Paris")
    assert corpus.read(path, model).documents[0].dtype == np.int32
