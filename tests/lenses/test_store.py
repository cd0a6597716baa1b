"""Our own lens files: what is written is what is read, and nothing else is."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import save_file

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
    with pytest.raises(LensMismatch, match="no map for depth 2: it has 1"):
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
    with pytest.raises(FormatError, match="lists depths"):
        TunedLens({"0.bias": torch.zeros(32)}, header(model))
    with pytest.raises(LensMismatch, match=r"\(31,\)"):
        TunedLens({"0.bias": torch.zeros(31)}, header(model, depths=(0,)))
    with pytest.raises(FormatError, match="int64"):
        TunedLens({"0.bias": torch.zeros(32, dtype=torch.long)}, header(model, depths=(0,)))


def test_the_fingerprint_forgives_precision_and_nothing_else():
    model, again, other = tiny.gpt2(), tiny.gpt2(), tiny.gpt2(seed=1)
    one = fingerprint.of_model(model)
    assert fingerprint.of_model(again) == one
    assert fingerprint.of_model(other).difference(one) > 0.5
    again.hf.bfloat16()
    coarse = fingerprint.of_model(tiny.wrap(again.hf, "coarse"))
    assert 0 < coarse.difference(one) < fingerprint.FLOAT_TOLERANCE / 2
    called = fingerprint.fingerprint(
        type(model.tail.head)(tiny.VOCAB, call=lambda x: x @ model.tail.head.weight_VE.T), 32
    )
    assert called.difference(one) < 1e-5


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
