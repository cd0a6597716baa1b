"""Edits as plain data: built, read from a line, saved, loaded, and refused in one line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from logitlens import FormatError, LogitLensError, PromptError, edit

VECTOR = np.arange(1, 5, dtype=np.float32)


def same(a: edit.Edit, b: edit.Edit) -> bool:
    def key(e):
        return json.dumps(edit.to_data([e]), sort_keys=True)

    return key(a) == key(b)


ALL = [
    edit.add(VECTOR, layer=5, positions=-1, scale=4.0, generated=True),
    edit.add(" Paris", layer="embed"),
    edit.project_out(VECTOR, layer=-1, positions=slice(2, None)),
    edit.swap(VECTOR, VECTOR[::-1], layer=2, positions=[0, 3], scale=0.5),
    edit.ablate(3, "mlp", how="mean", positions="-4:"),
    edit.patch("Rome is in", layer=5, positions=-1, from_positions=-1, stream="attn"),
    edit.patch([3, 4, 5], layer=5),
    edit.ablate(3, head=2),
    edit.patch("Rome is in", layer=5, head=1),
]


@pytest.mark.parametrize("one", ALL, ids=lambda e: e.kind)
def test_a_file_gives_an_edit_back(tmp_path, one):
    path = edit.save([one], tmp_path / "edits.json")
    (again,) = edit.load(path)
    assert same(again, one)
    assert str(again) == str(one)
    assert edit.parse(str(path))[0].kind == one.kind


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("add:layer=5,token= Paris,scale=4", edit.add(" Paris", "5", scale=4)),
        ("add:layer=5,token=, ,scale=4", edit.add(", ", "5", scale=4)),
        ("project_out:layer=-1,token=Paris,positions=3,4", edit.project_out("Paris", "-1", "3,4")),
        ("swap:layer=2,a= Paris,b= Rome,generated=yes", edit.swap(" Paris", " Rome", "2", generated=True)),
        ("ablate:block=3,stream=attn,how=mean", edit.ablate(3, "attn", "mean")),
        ("patch:layer=5,prompt=In Rome, at,positions=-1,from=-2", edit.patch("In Rome, at", "5", "-1", "-2")),
    ],
)  # fmt: skip
def test_a_line_says_what_an_edit_is(line, expected):
    (found,) = edit.parse(line)
    assert same(found, expected)


def test_a_vector_of_a_line_is_a_file(tmp_path):
    np.save(tmp_path / "v.npy", VECTOR)
    (found,) = edit.parse(f"add:layer=5,vector={tmp_path / 'v.npy'}")
    assert same(found, edit.add(VECTOR, "5"))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: edit.parse("steer:layer=5"), "no edit 'steer:layer=5'"),
        (lambda: edit.parse("add"), "expected one like 'add:layer=5"),
        (lambda: edit.parse("add:token= Paris"), "lacks layer="),
        (lambda: edit.parse("add:layer=5,strength=4"), "lacks token="),
        (lambda: edit.parse("add:layer=5,token=a,scale=x"), "expected a number"),
        (lambda: edit.parse("ablate:block=3,stream=mlp,scale=2"), "ablate takes block, stream"),
        (lambda: edit.parse("add:5"), "expected key=value"),
        (lambda: edit.add([1, np.nan], 3), "nan or inf"),
        (lambda: edit.add([[1.0, 2.0]], 3), "one dimension"),
        (lambda: edit.add(None, 3), "a vector"),
        (lambda: edit.add(object(), 3), "cannot take object for a vector"),
        (lambda: edit.add(VECTOR, 3, scale=np.inf), "scale=inf"),
        (lambda: edit.project_out(np.zeros(4), 3), "no direction"),
        (lambda: edit.ablate(3, "resid"), "expected one of attn, mlp"),
        (lambda: edit.ablate(3, "mlp", how="noise"), "expected zero or mean"),
        (lambda: edit.ablate(3), "stream='resid': expected one of attn, mlp, head"),
        (lambda: edit.ablate(3, "head"), "with head=none: a head is of the stream 'head'"),
        (lambda: edit.ablate(3, "mlp", head=1), "with head=1: a head is of the stream"),
        (lambda: edit.ablate(3, head=-1), "expected its number, from 0"),
        (lambda: edit.parse("ablate:block=3,head=x"), "head=x: expected a whole number"),
        (lambda: edit.control(edit.ablate(3, "mlp")), "expected an edit along vectors"),
        (lambda: edit.control("add"), "expected an edit along vectors"),
        (lambda: edit.add(VECTOR, 1.5), "layer=1.5: expected one layer"),
        (lambda: edit.add(VECTOR, [1, 2]), "expected one layer"),
        (lambda: edit.add(VECTOR, 3, scale="4"), "scale='4': expected a number"),
        (lambda: edit.add(VECTOR, 3, scale=10**400), "expected a number"),
        (lambda: edit.add(VECTOR * 1j, 3), "cannot take ndarray for a vector"),
        (lambda: edit.add([[1.0], [1.0, 2.0]], 3), "cannot take list for a vector"),
        (lambda: edit.add(np.full(4, 1e300), 3), "nan or inf"),
        (lambda: edit.add(torch.empty(4, dtype=torch.float32, device="meta"), 3), "on meta"),
        (lambda: edit.parse(5), "cannot read int as an edit: expected text, like 'add:"),
        (lambda: edit.add(True, 3), "cannot take bool for a vector"),
        (lambda: edit.patch(3, 5), "cannot patch from int: expected a prompt's text or token ids"),
        (lambda: edit.patch([1.5], 5), "cannot patch from list"),
        (lambda: edit.patch(VECTOR, 5), "cannot patch from ndarray"),
        (lambda: edit.patch("Rome", 5, stream="mid"), "stream='mid': expected one of resid"),
        (lambda: edit.save(["add"], "edits.json"), "cannot save str: expected edits"),
        (lambda: edit.parse("add:layer=5,layer=6,token=a"), "layer= is given twice"),
        (lambda: edit.parse("add:layer=5,token=a,generated=maybe"), "expected yes or no"),
        (lambda: edit.parse("add:layer=5,token=a,vector=v.npy"), "token= or vector=, not both"),
    ],
)
def test_mistakes_are_one_line(make, said):
    with pytest.raises(LogitLensError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "steer"}, "no edit 'steer'"),
        ({"layer": None}, "expected"),
        ({"vectors": [{"hash": "00"}]}, "is missing"),
        ({"scale": "much"}, "expected a number"),
        ({"vectors": []}, "add has 0 vectors"),
    ],
)
def test_damaged_edits_in_a_file_are_refused(tmp_path, change, said):
    data = {"format": edit.FORMAT, "version": edit.VERSION, **edit.to_data([ALL[0]])}
    data["edits"][0].update(change)
    path = tmp_path / "edits.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(FormatError, match=said):
        edit.load(path)


def test_a_vector_that_was_tampered_with_is_noticed(tmp_path):
    data = {"format": edit.FORMAT, "version": edit.VERSION, **edit.to_data([ALL[0]])}
    (stored,) = data["vectors"].values()
    stored["float32"] = "AAAA" + stored["float32"][4:]
    path = tmp_path / "edits.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(FormatError, match="its hash is another"):
        edit.load(path)


def test_a_control_is_as_long_and_points_elsewhere():
    one = ALL[0]
    other = edit.control(one)
    assert np.linalg.norm(other.vectors[0]) == pytest.approx(np.linalg.norm(VECTOR), rel=1e-5)
    assert not np.allclose(other.vectors[0], VECTOR)
    assert not np.allclose(edit.control(one, seed=1).vectors[0], other.vectors[0])
    with pytest.raises(PromptError):
        edit.control(edit.add(" Paris", 5))
