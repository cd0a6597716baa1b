"""`Attribution`: a table of parts that goes to files and back, and says what is wrong with others."""

from __future__ import annotations

import html
import json
import sys

import numpy as np
import pytest

from logitlens import Attribution, FormatError, MissingExtra, PromptError


def made(versus: int | None = 4, **meta) -> Attribution:
    count = 1 if versus is None else 2
    return Attribution(
        components=["embed", "0.attn", "0.mlp", "norm bias"],
        token_parts=[0.5, 2.25, -1.0, 0.125],
        versus_parts=None if versus is None else [0.25, 0.5, 0.0, 0.0],
        token=3,
        versus=versus,
        vocab={3: " Paris", 4: "\x1b[31m Rome"},
        meta={
            "logits": [1.875, 0.75][:count],
            "finished": [1.8750001, 0.75][:count],
            "bound": 1e-5,
            "model": "tiny",
            "piece": " of",
            **meta,
        },
    )


def test_parts_sum_and_the_difference_to_the_models_logit_is_shown():
    found = made()
    np.testing.assert_array_equal(found.parts, [0.25, 1.75, -1.0, 0.125])
    assert (found.sum, found.logit) == (1.125, 1.125)
    assert found.difference == pytest.approx(-1e-7)
    assert found.part("0.attn") == 1.75
    assert found.largest(2) == [("0.attn", 1.75), ("0.mlp", -1.0)]
    with pytest.raises(PromptError, match="no component '9.mlp': expected one of embed"):
        found.part("9.mlp")
    with pytest.raises(ValueError, match="read-only"):
        found.token_parts[0] = 1
    assert "sum to 1.1250" in repr(found)


@pytest.mark.parametrize("versus", [None, 4])
@pytest.mark.parametrize("suffix", [".json", ".parquet"])
def test_files_give_everything_back(tmp_path, suffix, versus):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    found = made(versus)
    path = found.save(tmp_path / f"found{suffix}")
    assert Attribution.load(path).equals(found)


def test_a_page_holds_picture_and_text_and_nothing_that_runs(tmp_path):
    pytest.importorskip("matplotlib")
    found = made(model="<script>alert(1)</script>")
    page = found.save(tmp_path / "found.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 1
    assert html.escape(str(found)) in page
    assert "<script" not in page
    assert "default-src 'none'" in page
    assert found.save(tmp_path / "again.html").read_text(encoding="utf-8") == page


def test_a_data_frame_has_a_row_for_each_component():
    pytest.importorskip("pandas")
    frame = made().to_pandas()
    assert list(frame["component"]) == made().components
    assert frame["part"].sum() == pytest.approx(made().sum)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "other"}, "expected a file of logitlens.attribution"),
        ({"version": 9}, "written in format version 9"),
        ({"components": ["a", "a", "b", "c"]}, "a name of its own"),
        ({"components": []}, "token_parts needs 0"),
        ({"token_parts": [1.0]}, "token_parts needs 4 finite numbers"),
        ({"token_parts": ["x"] * 4}, "token_parts"),
        ({"versus": None}, "needs 1 numbers"),
        ({"vocab": {"x": "y"}}, "no whole number"),
        ({"meta": {"bound": 1.0}}, "lacks 'logits'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_files_that_are_no_attribution_are_refused_in_one_line(tmp_path, change, said):
    path = tmp_path / "found.json"
    path.write_text(json.dumps({**made().to_dict(), **change}), encoding="utf-8")
    with pytest.raises(FormatError, match=said) as caught:
        Attribution.load(path)
    assert "\n" not in str(caught.value)


def test_cut_and_foreign_files_are_refused(tmp_path):
    pytest.importorskip("pyarrow")
    whole = made().save(tmp_path / "found.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cut.json").write_text("{", encoding="utf-8")
    for name in ("cut.parquet", "cut.json", "found.html"):
        with pytest.raises(FormatError):
            Attribution.load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        Attribution.load(tmp_path / "none.parquet")
    with pytest.raises(FormatError, match="end it in"):
        made().save(tmp_path / "found.gif")


def test_a_data_frame_without_pandas_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtra, match="pip install 'logitlens"):
        made().to_pandas()
