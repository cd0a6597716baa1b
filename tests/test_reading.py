"""Reading: shapes, derived values, and files that lose nothing or say in one line what is wrong."""

from __future__ import annotations

import copy
import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest

import logitlens
from logitlens import FormatError, PromptError, Reading, statistics
from tests.readings import random_reading


@pytest.fixture
def reading() -> Reading:
    return random_reading(seed=1, L=4, T=6, K=5, M=2)


@pytest.mark.parametrize("suffix", [".json", ".parquet"])
@pytest.mark.parametrize("shape", [(4, 6, 5, 2), (1, 1, 1, 0), (3, 2, 1, 1)])
def test_files_lose_nothing(tmp_path, suffix, shape):
    L, T, K, M = shape
    before = random_reading(seed=L, L=L, T=T, K=K, M=M)
    path = tmp_path / f"reading{suffix}"
    before.save(path)
    assert Reading.load(path).equals(before)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # nothing temporary is left


@pytest.mark.parametrize("suffix", ["json", "parquet"])
def test_files_of_the_first_version_load(suffix):
    """It called the layers depths. The files were written by the last commit that did."""
    old = Reading.load(Path(__file__).parent / "data" / "version1" / f"reading.{suffix}")
    assert old.layers == ["embed", "0", "1"]
    assert old.equals(random_reading(seed=2, L=3, T=4, K=3, M=1))


def test_positions_are_those_of_the_prompt():
    whole = random_reading(L=3, T=5)
    fields = whole.fields()
    fields["meta"] = {**whole.meta, "positions": [2, 4, 5, 8, 9], "prompt_tokens": 12}
    part = Reading(**fields)
    assert part.positions == [2, 4, 5, 8, 9]
    assert part.columns("4:9") == [1, 2, 3]
    assert part.columns(-3) == [4]
    with pytest.raises(PromptError, match="no position 3: expected one of 2, 4, 5, 8, 9"):
        part.columns(3)
    frame = part.to_pandas()
    assert frame.position.tolist() == [2, 4, 5, 8, 9] * 3
    assert frame.query("position == 8").entropy.tolist() == part.entropy[:, 3].tolist()


def test_equals_sees_every_field(reading):
    for name in ("entropy", "top_ids", "track_ranks"):
        fields = reading.fields()
        fields[name] = fields[name] + 1
        assert not Reading(**fields).equals(reading)


def test_infinite_and_missing_numbers_survive_json(tmp_path):
    before = random_reading(seed=2, L=2, T=3, K=2, M=1)
    fields = before.fields()
    fields["track_logprobs"] = np.full((2, 3, 1), -np.inf, np.float32)
    Reading(**fields).save(tmp_path / "r.json")
    text = (tmp_path / "r.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    after = Reading.load(tmp_path / "r.json")
    assert np.isneginf(after.track_logprobs).all()
    assert np.isnan(after.next_logprobs[:, -1]).all()


def test_arrays_are_read_only_and_not_shared(reading):
    with pytest.raises(ValueError, match="read-only"):
        reading.entropy[0, 0] = 1.0


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda good: good[: len(good) // 2], "cut short"),
        (lambda good: b"hello", "cut short"),
        (lambda good: b"[]", "expected a reading"),
        (lambda good: b'{"a": 1}', "lacks 'format'"),
        (lambda good: good.replace(b'"version": 2', b'"version": 99'), "pip install --upgrade"),
        (lambda good: good.replace(b'"entropy"', b'"entropia"'), "lacks entropy"),
        (lambda good: good.replace(b'"layers": [', b'"layers": ["extra", '), "shape"),
        (lambda good: b"\xff\xfe", "cut short"),
    ],
)
def test_a_bad_json_file_is_one_line(tmp_path, reading, make, says):
    reading.save(tmp_path / "good.json")
    path = tmp_path / "bad.json"
    path.write_bytes(make((tmp_path / "good.json").read_bytes()))
    with pytest.raises(FormatError, match=says) as caught:
        Reading.load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_bad_parquet_file_is_one_line(tmp_path, reading):
    import pyarrow as pa
    import pyarrow.parquet as pq

    reading.save(tmp_path / "good.parquet")
    good = (tmp_path / "good.parquet").read_bytes()
    path = tmp_path / "bad.parquet"
    for content in (good[: len(good) // 2], b"", b"PAR1"):
        path.write_bytes(content)
        with pytest.raises(FormatError, match="cut short") as caught:
            Reading.load(path)
        assert "\n" not in str(caught.value)
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(FormatError, match="not written by logitlens"):
        Reading.load(path)


def test_a_missing_file_is_an_oserror(tmp_path):
    with pytest.raises(FileNotFoundError, match="no reading at"):
        Reading.load(tmp_path / "none.json")


@pytest.mark.parametrize("name", ["r.docx", "r", "r.npz"])
def test_unknown_suffix_names_the_known_ones(tmp_path, reading, name):
    with pytest.raises(FormatError, match=r"\.html .*\.parquet"):
        reading.save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_what_was_given_is_quoted(reading):
    with pytest.raises(FormatError, match="cannot tell a format from '': end it in"):
        reading.save("")


def test_unwritable_path_is_one_line_and_leaves_nothing(tmp_path, reading):
    with pytest.raises(OSError, match="cannot write"):
        reading.save(tmp_path / "absent" / "r.json")
    (tmp_path / "r.json").mkdir()
    with pytest.raises(OSError, match="cannot write"):
        reading.save(tmp_path / "r.json")
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_a_failed_write_keeps_the_old_file(tmp_path, reading, monkeypatch):
    path = tmp_path / "r.json"
    reading.save(path)
    before = path.read_bytes()
    monkeypatch.setattr(
        "os.replace", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    with pytest.raises(OSError, match="No space left"):
        reading.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_wrong_shapes_are_refused(reading):
    fields = reading.fields()
    fields["kl"] = fields["kl"][:, :-1]
    with pytest.raises(FormatError, match="kl has shape"):
        Reading(**fields)
    for wrong in (3.5, np.nan):
        with pytest.raises(FormatError, match=rf"^ids holds {wrong}: not whole numbers"):
            Reading(**reading.fields() | {"ids": [*map(float, reading.ids[1:]), wrong]})


def test_settled_and_first():
    reading = random_reading(seed=3, L=4, T=3, K=1, M=0)
    fields = reading.fields()
    fields["top_ids"] = np.array([[1, 2, 9], [1, 9, 2], [3, 9, 9], [3, 9, 8]])[:, :, None]
    fields["vocab"] = {i: f"w{i}" for i in range(10)}
    reading = Reading(**fields)
    assert reading.settled().tolist() == [1, 0, 2]
    assert reading.first(9).tolist() == [None, 0, "embed"]
    assert reading.first("w3").tolist() == [1, None, None]
    assert reading.words[-1] == ["w3", "w9", "w8"]
    with pytest.raises(PromptError, match="no token of this reading"):
        reading.first("absent")


def test_diff_is_other_minus_self(reading):
    other = random_reading(seed=7, L=4, T=6, K=5, M=2)
    difference = reading.diff(other)
    assert np.allclose(difference["kl"], other.kl - reading.kl)
    assert difference["top_changed"].shape == (4, 6)
    with pytest.raises(FormatError, match="same layers and length"):
        reading.diff(random_reading(seed=7, L=3, T=6, K=5, M=2))


def test_pandas_has_one_row_for_each_cell(reading):
    frame = reading.to_pandas()
    assert len(frame) == 4 * 6
    cell = frame[(frame.layer == reading.layers[2]) & (frame.position == 3)].iloc[0]
    assert math.isclose(cell.entropy, reading.entropy[2, 3])
    assert cell.word == reading.words[2][3]
    assert list(cell.top_ids) == reading.top_ids[2, 3].tolist()


def test_repr_says_what_was_read(reading):
    text = repr(reading)
    for part in ("logit lens", "4 layers × 6 positions × top 5", "within"):
        assert part in text


def test_public_names_are_pinned():
    assert logitlens.__all__ == [
        "load",
        "LensModel",
        "Residuals",
        "Reading",
        "Scores",
        "Attribution",
        "PatchGrid",
        "VectorTable",
        "edit",
        "Lens",
        "table",
        "curves",
        "compare",
        "Comparison",
        "LogitLensError",
        "ModelNotAvailable",
        "LensNotAvailable",
        "UnknownLens",
        "UnsupportedModel",
        "LensMismatch",
        "PromptError",
        "InputError",
        "FormatError",
        "SettingError",
        "FitError",
        "SurveyError",
        "MissingExtra",
    ]
    for name in logitlens.__all__:
        assert getattr(logitlens, name) is not None


@pytest.mark.parametrize(
    "again",
    [copy.copy, copy.deepcopy, lambda r: pickle.loads(pickle.dumps(r))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_copies_are_the_same_and_as_frozen(reading, again):
    other = again(reading)
    assert other.equals(reading)
    assert not any(
        getattr(other, name).flags.writeable for name in (s.name for s in statistics.stored())
    )


def test_rows_of_a_parquet_file_may_come_in_any_order(tmp_path, reading):
    import pyarrow.parquet as pq

    table = reading.to_arrow()
    shuffled = np.random.default_rng(0).permutation(table.num_rows)
    pq.write_table(table.take(shuffled), tmp_path / "r.parquet")
    assert Reading.load(tmp_path / "r.parquet").equals(reading)


@pytest.mark.parametrize(
    "header", ["{", "[]", "{}", '{"format":"logitlens.reading","version":1}', "[" * 100_000]
)
def test_a_damaged_parquet_header_is_one_line(tmp_path, reading, header):
    import pyarrow.parquet as pq

    path = tmp_path / "r.parquet"
    pq.write_table(reading.to_arrow().replace_schema_metadata({"logitlens.reading": header}), path)
    with pytest.raises(FormatError) as caught:
        Reading.load(path)
    assert "\n" not in str(caught.value)


def test_json_nested_beyond_reason_is_one_line(tmp_path):
    path = tmp_path / "r.json"
    path.write_text("[" * 100_000)
    with pytest.raises(FormatError, match="nested deeper|not JSON"):
        Reading.load(path)


def test_a_page_of_one_reading_loads_like_a_file(tmp_path):
    from logitlens.view import page

    reading = random_reading()
    loaded = Reading.load(reading.save(tmp_path / "x.html"))
    assert loaded.top_ids.tolist() == reading.top_ids.tolist()
    np.testing.assert_allclose(loaded.kl, reading.kl, rtol=1e-3)
    page.save([reading, reading], tmp_path / "two.html")
    with pytest.raises(FormatError, match=r"holds 2 readings: .*page\.load"):
        Reading.load(tmp_path / "two.html")


@pytest.mark.parametrize("threshold", [5, -0.1, float("nan")])
def test_a_threshold_that_is_no_probability_is_refused(threshold):
    with pytest.raises(FormatError, match=f"threshold={threshold}: expected a probability"):
        random_reading().exits(threshold)


def test_reading_ahead_is_of_one_position_at_least():
    with pytest.raises(FormatError, match="n=0: expected how many positions ahead"):
        random_reading().reads_ahead(0)


def test_exits_and_reading_ahead_count_what_they_say():
    reading = random_reading(L=4, T=6)
    agrees = reading.top_ids[..., 0] == reading.top_ids[-1, :, 0]
    assert reading.exits()[-1] == 1
    assert np.allclose(reading.exits(), agrees.mean(axis=1))
    sure = agrees & (reading.probs[..., 0] >= 0.5)
    assert np.allclose(reading.exits(0.5), sure.mean(axis=1))
    ids = [*reading.ids.tolist(), 10**6]
    for n in (1, 3):
        found = reading.reads_ahead(n)
        for row in range(4):
            for t in range(6):
                assert found[row, t] == (reading.top_ids[row, t, 0] in ids[t + 1 : t + 1 + n])
