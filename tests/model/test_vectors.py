"""Directions read as rows of the stream: as the model's own tail reads them."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

import logitlens
from logitlens import LogitLensError, MissingExtra
from logitlens.model import vectors
from tests.anatomy.test_sublayers import loud
from tests.models import tiny_gpt2, tiny_llama

ROWS = np.random.default_rng(3).standard_normal((7, 32)).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    return logitlens.load(tiny_gpt2())


def test_a_vector_is_read_as_a_row_of_the_stream(model, monkeypatch):
    whole = model.read_vectors(ROWS, top=4)
    logits = model.tail.logits(torch.from_numpy(ROWS))
    best = logits.topk(4)
    np.testing.assert_array_equal(whole.top_ids, best.indices.numpy())
    np.testing.assert_allclose(whole.top_logits, best.values.numpy(), atol=1e-4)
    opposite = model.tail.logits(-torch.from_numpy(ROWS)).topk(4)
    np.testing.assert_array_equal(whole.low_ids, opposite.indices.numpy())
    monkeypatch.setattr(vectors, "BYTES", 1)  # one at a time
    np.testing.assert_array_equal(model.read_vectors(ROWS, top=4).top_ids, whole.top_ids)


def test_many_vectors_are_read_a_few_at_a_time(model, tmp_path, monkeypatch):
    """A million as well: only the rows being read are in memory, beside the table itself."""
    rows = np.lib.format.open_memmap(tmp_path / "rows.npy", "w+", np.float16, (3000, 32))
    rows[:] = np.tile(ROWS, (429, 1))[:3000]
    taken = []

    class Watched:
        shape = rows.shape

        def __getitem__(self, where):
            taken.append(where)
            return rows[where]

    monkeypatch.setattr(vectors, "BYTES", 100 * 4 * model.vocab_size)
    table = model.read_vectors(Watched(), top=3)
    assert len(taken) == 30
    assert max(s.stop - s.start for s in taken) == 100
    np.testing.assert_array_equal(table.top_ids[:7], table.top_ids[2800:2807])
    kept = sum(
        getattr(table, name).nbytes for name in ("top_ids", "top_logits", "low_ids", "low_logits")
    )
    assert kept == 3000 * 2 * 3 * 8


def test_without_the_norm_it_is_the_head_alone(model):
    table = model.read_vectors(torch.from_numpy(ROWS), norm=False, both_signs=False, top=1)
    weight = model.hf.lm_head.weight.detach()
    best = (torch.from_numpy(ROWS) @ weight.T).max(-1)
    np.testing.assert_array_equal(table.top_ids[:, 0], best.indices.numpy())
    assert table.low_ids.shape == (7, 0)


def test_an_unembedding_row_raises_its_own_token():
    model = logitlens.load(tiny_llama())
    table = model.read_vectors(model.weights("unembed"), norm=False, top=1, both_signs=False)
    agree = table.top_ids[:, 0] == np.arange(model.vocab_size)
    assert agree.mean() > 0.9


@pytest.mark.parametrize(
    ("name", "mlp", "attn"),
    [
        ("GPT2LMHeadModel", "transformer.h.1.mlp.c_proj", "transformer.h.1.attn.c_proj"),
        ("LlamaForCausalLM", "model.layers.1.mlp.down_proj", "model.layers.1.self_attn.o_proj"),
        ("Gemma2ForCausalLM", "model.layers.1.mlp.down_proj", "model.layers.1.self_attn.o_proj"),
        ("GPTNeoXForCausalLM", "gpt_neox.layers.1.mlp.dense_4h_to_h", "gpt_neox.layers.1.attention.dense"),
    ],
)  # fmt: skip
def test_weights_are_the_rows_that_write_to_the_stream(name, mlp, attn):
    model = logitlens.load(loud(name))
    for kind, path in (("mlp_out", mlp), ("attn_out", attn)):
        rows, weight = model.weights(kind, block=1), model.hf.get_submodule(path).weight
        expected = weight if name.startswith("GPT2") else weight.T
        assert rows.shape[1] == model.width
        assert torch.equal(rows, expected)


def test_tables_are_text_and_frames(model):
    table = model.read_vectors(np.repeat(ROWS, 8, axis=0), top=2)
    lines = str(table).splitlines()
    assert len(lines) == 41
    assert lines[-1] == "16 more vectors"
    assert table.words(0)[0] in lines[0]
    assert len(table) == 56
    pytest.importorskip("pandas")
    frame = table.to_pandas()
    assert list(frame["top_words"][3]) == table.words(3)


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda m: m.read_vectors(ROWS[:, :5]), r"shape \(7, 5\): expected \(N, 32\)"),
        (lambda m: m.read_vectors(ROWS[0]), "expected"),
        (lambda m: m.read_vectors(ROWS * np.nan), "vector 0 holds nan or inf"),
        (lambda m: m.read_vectors(ROWS * 1j), "vectors of complex"),
        (lambda m: m.read_vectors([[1.0], [1.0, 2.0]]), "vectors of several lengths"),
        (lambda m: m.read_vectors(ROWS, layer="0:2"), "expected one layer, got 2"),
        (lambda m: m.read_vectors(ROWS, top=0), "top=0"),
        (lambda m: m.read_vectors(ROWS, layer=9), "no layer 9"),
        (lambda m: m.weights("mlp_in", 1), "no weights 'mlp_in'"),
        (lambda m: m.weights("mlp_out"), "give block=0 to 2"),
        (lambda m: m.weights("mlp_out", 9), "no layer 9"),
    ],
)
def test_mistakes_are_one_line(model, ask, said):
    with pytest.raises(LogitLensError, match=said) as caught:
        ask(model)
    assert "\n" not in str(caught.value)


def test_experts_have_no_one_map():
    model = logitlens.load(loud("MixtralForCausalLM"))
    with pytest.raises(LogitLensError, match="has no mlp_out: what it adds is not what one linear"):
        model.weights("mlp_out", 0)


def test_a_data_frame_without_pandas_is_one_line(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtra, match="pip install 'logitlens"):
        model.read_vectors(ROWS).to_pandas()
