"""Our own lens files: what is written is what is read, and nothing else is."""

from __future__ import annotations

import json
import os
from dataclasses import asdict

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from logitlens.errors import FormatError, LensMismatch, LensNotAvailable
from logitlens.lenses import (
    Header,
    JacobianLens,
    TunedLens,
    fingerprint,
    merge,
    open_lens,
    save,
    store,
)
from logitlens.readout.head import Head
from tests.lenses import tiny


def header(model, kind="tuned", **more) -> Header:
    values = {
        "kind": kind,
        "width": model.width,
        "depths": tuple(range(model.n_blocks)),
        "n_blocks": model.n_blocks,
        "model": model.name,
        "unembedding": fingerprint.of_model(model),
        "corpus": {"name": "novels", "hash": "abc", "documents": 3, "tokens": 900},
        "settings": {"steps": 10},
        "losses": {d: 0.5 - 0.1 * d for d in range(model.n_blocks)},
        **more,
    }
    return Header(**values)


def with_header(path, **entries):
    """The file with entries of its header replaced."""
    with safe_open(path, framework="pt") as file:
        head = json.loads(file.metadata()["logitlens"])
    text = json.dumps({**head, **entries})
    save_file(load_file(path), path, metadata={"logitlens": text})
    return path


def tuned(model, seed=0, scale=0.1) -> TunedLens:
    generator = torch.Generator().manual_seed(seed)
    D = model.width
    tensors = {}
    for d in range(model.n_blocks):
        tensors[f"{d}.weight"] = torch.randn(D, D, generator=generator) * scale
        tensors[f"{d}.bias"] = torch.randn(D, generator=generator) * scale
    return TunedLens(tensors, header(model))


@pytest.mark.parametrize(
    ("dtype", "error"), [("float16", 1e-3), ("bfloat16", 1e-2), ("float32", 0)]
)
def test_round_trip(tmp_path, dtype, error):
    model = tiny.gpt2()
    lens = tuned(model)
    path = save(lens, tmp_path / "tuned.safetensors", dtype=dtype)
    back = open_lens(path)
    assert back.header == lens.header
    assert {t.dtype for t in back.tensors.values()} == {store.DTYPES[dtype]}
    h_ND = tiny.rows(model)
    torch.testing.assert_close(
        back.apply(h_ND, 1), lens.apply(h_ND, 1), atol=10 * error, rtol=error
    )
    assert store.read_header(path) == lens.header
    assert os.listdir(tmp_path) == ["tuned.safetensors"]


def test_low_rank_is_the_product(tmp_path):
    model = tiny.gpt2()
    up, down, bias = torch.randn(32, 4), torch.randn(4, 32), torch.randn(32)
    low = TunedLens({"1.up": up, "1.down": down, "1.bias": bias}, header(model, depths=(1,)))
    full = TunedLens({"1.weight": up @ down, "1.bias": bias}, header(model, depths=(1,)))
    h_ND = tiny.rows(model)
    torch.testing.assert_close(low.apply(h_ND, 1), full.apply(h_ND, 1), atol=1e-3, rtol=1e-4)
    with pytest.raises(LensMismatch, match="no map for layer 1: it has 0"):
        low.apply(h_ND, 2)


def test_a_value_too_large_for_float16_is_refused_and_nothing_is_written(tmp_path):
    model = tiny.gpt2()
    lens = tuned(model, scale=1e6)
    with pytest.raises(FormatError, match="bfloat16"):
        save(lens, tmp_path / "tuned.safetensors", dtype="float16")
    assert os.listdir(tmp_path) == []


def test_other_files_are_refused(tmp_path):
    plain = tmp_path / "plain.safetensors"
    save_file({"a": torch.zeros(2)}, plain)
    with pytest.raises(FormatError, match="without a lens header"):
        open_lens(plain)
    text = tmp_path / "text.safetensors"
    text.write_text("hello")
    with pytest.raises(FormatError, match="not a lens file"):
        open_lens(text)
    newer = tmp_path / "newer.safetensors"
    save_file(
        {"a": torch.zeros(2)}, newer, metadata={"logitlens": json.dumps({"format": "lens/9"})}
    )
    with pytest.raises(FormatError, match="newer logitlens"):
        open_lens(newer)
    with pytest.raises(LensNotAvailable, match="does not exist"):
        store.load(tmp_path / "missing.safetensors")


def test_a_truncated_file_is_refused(tmp_path):
    path = save(tuned(tiny.gpt2()), tmp_path / "tuned.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FormatError, match="not a lens file"):
        open_lens(path)


def test_header_and_tensors_must_agree():
    model = tiny.gpt2()
    with pytest.raises(FormatError, match="lists layers embed, 0–1, the tensors are for embed"):
        TunedLens({"0.weight": torch.zeros(32, 32)}, header(model))
    with pytest.raises(LensMismatch, match=r"\(31, 31\)"):
        TunedLens({"0.weight": torch.zeros(31, 31)}, header(model, depths=(0,)))
    with pytest.raises(FormatError, match="int64"):
        TunedLens({"0.weight": torch.zeros(32, 32).long()}, header(model, depths=(0,)))


@pytest.mark.parametrize("covers", ["all", "sample"])
def test_the_fingerprint_forgives_precision_and_nothing_else(covers):
    model, again, other = tiny.gpt2(), tiny.gpt2(), tiny.gpt2(seed=1)
    one = fingerprint.of_model(model, covers)
    assert fingerprint.of_model(again, covers) == one
    assert fingerprint.of_model(other, covers).difference(one) > 0.5
    again.hf.bfloat16()
    coarse = fingerprint.of_model(tiny.wrap(again.hf, "coarse"), covers)
    assert 0 < coarse.difference(one) < fingerprint.FLOAT_TOLERANCE / 2
    called = fingerprint.fingerprint(
        type(model.tail.head)(tiny.VOCAB, call=lambda x: x @ model.tail.head.weight_VE.T),
        32,
        covers,
    )
    assert called.difference(one) < 1e-5


def test_every_row_of_the_unembedding_has_its_share_in_the_fingerprint():
    """Also one of a thousand; a permutation of rows is another unembedding, too."""
    generator = torch.Generator().manual_seed(0)
    weight_VE = torch.randn(1000, 32, generator=generator)
    own = fingerprint.fingerprint(Head(1000, weight_VE), 32)
    for row in torch.randint(1000, (40,), generator=generator).tolist():
        changed_VE = weight_VE.clone()
        changed_VE[row] = torch.randn(32, generator=generator)
        new = fingerprint.fingerprint(Head(1000, changed_VE), 32)
        assert new.difference(own) > fingerprint.FLOAT_TOLERANCE
    order = torch.randperm(1000, generator=generator)
    assert fingerprint.fingerprint(Head(1000, weight_VE[order]), 32).difference(own) > 0.5
    for dtype in (torch.bfloat16, torch.float16):
        rounded = fingerprint.fingerprint(Head(1000, weight_VE.to(dtype)), 32)
        assert rounded.difference(own) < fingerprint.FLOAT_TOLERANCE / 2
    step_V1 = weight_VE.abs().amax(1, keepdim=True) / 127  # int8, row by row
    int8 = fingerprint.fingerprint(Head(1000, (weight_VE / step_V1).round() * step_V1), 32)
    assert int8.difference(own) < fingerprint.CALLED_TOLERANCE / 2


def test_a_lens_with_an_older_fingerprint_is_still_known(tmp_path):
    """Files say nothing of what the fingerprint covers where it is 64 tokens of the vocabulary."""
    model = tiny.gpt2()
    path = save(tuned(model), tmp_path / "tuned.safetensors")
    own = asdict(fingerprint.of_model(model, fingerprint.SAMPLE))
    del own["covers"]
    with_header(path, unembedding=own)
    lens = open_lens(path)
    assert lens.header.unembedding.covers == "sample"
    lens.check_model(model)
    with pytest.raises(LensMismatch, match="another unembedding"):
        lens.check_model(tiny.gpt2(seed=1))


def test_a_lens_is_refused_for_another_unembedding(tmp_path):
    model = tiny.gpt2()
    lens = open_lens(save(tuned(model), tmp_path / "tuned.safetensors"))
    lens.check_model(model)
    model_of_same_shape = tiny.gpt2(seed=1, name="tiny/other")
    with pytest.raises(LensMismatch, match="another unembedding than tiny/other"):
        lens.check_model(model_of_same_shape)


def test_merge_is_the_weighted_mean():
    model = tiny.gpt2()
    parts = []
    for n, value in [(3, 1.0), (1, 5.0)]:
        head = header(model, "jacobian", depths=(1,), weight=float(n), losses={})
        parts.append(JacobianLens({"1.jacobian": torch.full((32, 32), value)}, head))
    whole = merge(parts)
    assert whole.header.weight == 4
    assert whole.header.corpus["documents"] == 6
    torch.testing.assert_close(whole.tensors["1.jacobian"], torch.full((32, 32), 2.0))
    odd = parts[1].with_header(settings={"steps": 11})
    with pytest.raises(LensMismatch, match="settings"):
        merge([parts[0], odd])
    with pytest.raises(LensMismatch, match="how many prompts"):
        merge([parts[0], parts[1].with_header(weight=0.0)])
    with pytest.raises(LensMismatch, match="at least one"):
        merge([])
