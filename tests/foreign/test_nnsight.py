"""nnsight's models, and the lens inside one of its traces."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import logitlens
from logitlens import ModelNotAvailable, UnsupportedModel
from logitlens.model import nnsight as lens
from tests.models import tiny_gpt2, tiny_llama, tiny_tokenizer

nnsight = pytest.importorskip("nnsight")

IDS = [5, 1, 17, 200, 3, 42, 9]
FIELDS = ("top_logprobs", "entropy", "kl", "next_logprobs", "track_logprobs")


def make(hf, kind: str = "LanguageModel"):
    """nnsight's wrapper under its old or new name, which its versions from 0.8 on have."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the old name warns
        if kind == "LanguageModel":
            return nnsight.LanguageModel(hf, tokenizer=tiny_tokenizer())
        return nnsight.TransformersModel(hf, task="text-generation", tokenizer=tiny_tokenizer())


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def wrapped(request):
    if request.param == "gpt2":
        return make(tiny_gpt2())
    if not hasattr(nnsight, "TransformersModel"):
        return make(tiny_llama())
    return make(tiny_llama(), "TransformersModel")


def parts(wrapped):
    """The entry, blocks, final norm and head, as nnsight's envoys."""
    if hasattr(wrapped, "transformer"):
        return wrapped.transformer.h, wrapped.transformer.ln_f, wrapped.lm_head
    return wrapped.model.layers, wrapped.model.norm, wrapped.lm_head


def traced(wrapped, ids, **options):
    blocks, norm, head = parts(wrapped)
    with wrapped.trace(torch.tensor([ids])):
        h = [blocks[0].input]
        for block in blocks:
            h.append(block.output)

        def tail(x):
            return head(norm(x))

        found = nnsight.save(lens.statistics(h, tail, head.output, ids, **options))
    return found


def test_a_language_model_reads_like_the_model_inside(wrapped):
    reading = logitlens.load(wrapped).read("In Paris", top=4)
    plain = logitlens.load(wrapped._module, tokenizer=tiny_tokenizer()).read("In Paris", top=4)
    assert reading.pieces == plain.pieces
    assert (reading.top_ids == plain.top_ids).all()
    np.testing.assert_allclose(reading.top_logprobs, plain.top_logprobs, atol=1e-6)
    assert reading.meta["check"]["ok"]


def test_an_own_tokenizer_goes_before_the_wrappers(wrapped):
    assert logitlens.load(wrapped, tokenizer=(other := tiny_tokenizer())).tokenizer is other
    assert logitlens.load(wrapped).tokenizer is wrapped.tokenizer


def test_a_trace_still_works_after_loading_and_reading(wrapped):
    before = traced(wrapped, IDS)
    logitlens.load(wrapped).read(IDS)
    after = traced(wrapped, IDS)
    torch.testing.assert_close(before["top_logprobs"], after["top_logprobs"])


def test_the_lens_inside_a_trace_equals_read(wrapped):
    found = traced(wrapped, IDS, k=5, track=[9, 11])
    reading = lens.reading(found, IDS, tokenizer=wrapped.tokenizer, name="tiny")
    mine = logitlens.load(wrapped).read(IDS, top=5, track=[9, 11])
    assert reading.layers == mine.layers
    assert reading.pieces == mine.pieces
    for name in ("top_ids", "next_ids", "next_ranks", "track_ids", "track_ranks"):
        assert (getattr(reading, name) == getattr(mine, name)).all(), name
    for name in FIELDS:
        np.testing.assert_allclose(getattr(reading, name), getattr(mine, name), atol=1e-5)
    assert reading.meta["check"]["max_abs_diff"] <= 1e-4
    assert reading.meta["check"].keys() == mine.meta["check"].keys()
    assert "✓" in str(reading)


def test_only_small_tensors_leave_the_trace(wrapped):
    found = traced(wrapped, IDS, k=5)
    leaving = sum(v.numel() for v in found.values() if isinstance(v, torch.Tensor))
    L, T = found["entropy"].shape
    assert leaving == L * T * (5 + 5 + 1 + 1 + 1 + 1)  # ids, logprobs, entropy, kl, next, its rank


def test_a_trace_without_the_norm_is_refused(wrapped):
    blocks, _, head = parts(wrapped)
    with wrapped.trace(torch.tensor([IDS])):
        h = [blocks[0].input]
        for block in blocks:
            h.append(block.output)
        found = nnsight.save(lens.statistics(h, lambda x: head(x), head.output, IDS))
    with pytest.raises(UnsupportedModel, match="not the model's own output") as caught:
        lens.reading(found, IDS)
    assert "\n" not in str(caught.value)


REMOTE = """
import sys, warnings
sys.path.insert(0, sys.argv[1])
import torch, nnsight
from tests.models import tiny_gpt2, tiny_tokenizer
from logitlens.model import nnsight as lens
torch.set_num_threads(1)
warnings.simplefilter("ignore")
model = nnsight.LanguageModel(tiny_gpt2(), tokenizer=tiny_tokenizer())
nnsight.register(lens)
ids = [5, 1, 17, 200, 3]
with model.trace(torch.tensor([ids]), remote="local"):
    h = [model.transformer.h[0].input]
    for block in model.transformer.h:
        h.append(block.output)
    tail = lambda x: model.lm_head(model.transformer.ln_f(x))
    found = nnsight.save(lens.statistics(h, tail, model.lm_head.output, ids, k=3))
print(*found["top_ids"].flatten().tolist())
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(nnsight, "register"), reason="nnsight without register()")
def test_a_server_without_this_package_runs_it():
    """nnsight's own rehearsal of a remote run: the trace is serialised, our package hidden."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", REMOTE, str(root)], capture_output=True, text=True, cwd=root
    )
    here = logitlens.load(tiny_gpt2()).read([5, 1, 17, 200, 3], top=3)
    assert done.stdout.split() == [str(i) for i in here.top_ids.flatten()], done.stderr[-2000:]


def test_weights_not_loaded_are_one_line(tmp_path):
    hf = tiny_gpt2()
    hf.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    lazy = make(str(tmp_path))
    with pytest.raises(UnsupportedModel, match=r"dispatch\(\)") as caught:
        logitlens.load(lazy)
    assert "\n" not in str(caught.value)
    lazy.dispatch()
    assert logitlens.load(lazy).read(IDS).meta["check"]["ok"]


def test_what_is_no_model_is_one_line():
    with pytest.raises(ModelNotAvailable, match="got dict"):
        logitlens.load({"weights": nn.Linear(2, 2)})


@pytest.mark.slow
def test_the_documented_example_runs_and_stands_in_the_docs():
    root = Path(__file__).parents[2]
    example = root / "examples" / "nnsight_trace.py"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(example)], capture_output=True, text=True, cwd=root
    )
    assert "Paris" in done.stdout, done.stderr[-2000:]
    assert "✓ last row checked" in done.stdout
    code = example.read_text(encoding="utf-8").partition("from __future__ import annotations\n\n")[
        2
    ]
    assert code in (root / "docs" / "models.md").read_text(encoding="utf-8")
