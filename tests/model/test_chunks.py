"""Long prompts in chunks: the same reading, or a refusal with the reason."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch

import logitlens
from logitlens import PromptError, UnsupportedModel
from logitlens.model import capture, chunks
from tests.architectures.build import build
from tests.model.test_capture import state
from tests.models import tiny_gpt2, tiny_llama, tiny_tokenizer

IDS = torch.randint(3, 90, (41,), generator=torch.Generator().manual_seed(3)).tolist()
FAMILIES = {
    "GPT2LMHeadModel": {},
    "LlamaForCausalLM": {},
    "BloomForCausalLM": {},  # ALiBi: distances go on through the cache
    "FalconForCausalLM": {},
    "OPTForCausalLM": {},  # positions counted along the mask
    "Gemma2ForCausalLM": {"sliding_window": 6},  # the cache forgets
    "MixtralForCausalLM": {},
}


def equal(ours, theirs):
    assert ours.depths == theirs.depths
    assert np.array_equal(ours.ids, theirs.ids)
    assert np.array_equal(ours.next_ids, theirs.next_ids)
    for name in ("top_logprobs", "entropy", "kl", "next_logprobs", "track_logprobs"):
        np.testing.assert_allclose(
            getattr(ours, name), getattr(theirs, name), atol=2e-4, rtol=1e-4, err_msg=name
        )
    clear = theirs.top_logprobs[..., 0] - theirs.top_logprobs[..., 1] > 1e-3
    assert np.array_equal(ours.top_ids[..., 0][clear], theirs.top_ids[..., 0][clear])


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("chunk", [1, 8, 40, 64])
def test_a_prompt_in_chunks_reads_as_it_does_whole(name, chunk):
    model = logitlens.load(build(name, **FAMILIES[name]))
    before = state(model.hf)
    whole = model.read(IDS, top=4, track=[7])
    parts = model.read(IDS, top=4, track=[7], chunk=chunk)
    equal(parts, whole)
    assert parts.meta["check"]["ok"]
    assert state(model.hf) == before


@pytest.mark.parametrize("positions", ["-3:", "3,20", [0], "::7"])
def test_chosen_positions_and_depths(positions):
    model = logitlens.load(tiny_llama(), tokenizer=tiny_tokenizer())
    wanted = {"top": 3, "positions": positions, "depths": "1:3"}
    equal(model.read(IDS, **wanted, chunk=10), model.read(IDS, **wanted))


def test_sublayers_in_chunks():
    model = logitlens.load(tiny_gpt2(), tokenizer=tiny_tokenizer())
    equal(model.read(IDS, stream="mlp", chunk=16), model.read(IDS, stream="mlp"))


def test_no_more_than_a_chunk_of_residuals_is_held(monkeypatch):
    model = logitlens.load(tiny_gpt2())
    held = []

    def spying(*args, **options):
        found = capture.capture(*args, **options)
        held.append(max(len(h) for r in found for h in r.h))
        return found

    monkeypatch.setattr(chunks, "capture", spying)
    model.differs_in_parts  # noqa: B018 - asked before, so that only the reading is watched
    held.clear()
    model.read(IDS, chunk=8)
    assert held == [8, 8, 8, 8, 8, 1]


def test_parts_shrink_where_the_mask_would_grow(monkeypatch):
    assert chunks.ends(10, 4) == [4, 8, 10]
    assert chunks.ends(3, 100) == [3]
    stops = chunks.ends(200_000, 1024)
    starts = [0, *stops[:-1]]
    assert stops[-1] == 200_000
    assert all((b - a) * b <= chunks.MASK or b - a == 16 for a, b in zip(starts, stops))
    assert stops[0] == 1024
    sizes = {b - a for a, b in zip(starts[:-1], stops[:-1])}
    assert sizes == {1024, 512, 256, 128, 64, 32, 16}, "a compiled product is kept for each size"
    monkeypatch.setattr(chunks, "MASK", 20 * 16)
    model = logitlens.load(tiny_gpt2())
    equal(model.read(IDS, chunk=20), model.read(IDS))


def test_memory_is_handed_back_between_parts_only(monkeypatch):
    """It takes milliseconds, which a reading in one pass must not pay."""
    model = logitlens.load(tiny_gpt2())
    model.differs_in_parts  # noqa: B018 - asked before, so that only the readings are counted
    calls = []
    monkeypatch.setattr(chunks, "_trim", lambda: calls.append(1))
    model.read(IDS)
    assert not calls
    model.read(IDS, chunk=8)
    assert len(calls) == len(chunks.ends(len(IDS), 8)) - 1


@pytest.mark.parametrize("ends_early", [False, True])
def test_the_cache_goes_with_the_reading(ends_early):
    """Without a collector: a cycle would keep 300 MB of keys and values at 32k positions."""
    model = logitlens.load(tiny_gpt2())
    rooms = []
    gc.collect()
    gc.disable()
    try:
        parts = chunks.capture_in_parts(model, IDS, [10, 20, len(IDS)])
        for _ in parts:
            if not rooms:
                rooms += [weakref.ref(r) for r in gc.get_objects() if type(r) is chunks._Room]
            if ends_early:
                break
        assert rooms
        parts.close()
        assert not any(room() for room in rooms)
    finally:
        gc.enable()


@pytest.mark.parametrize("chunk", [0, -1, 2.5])
def test_a_chunk_that_is_none(chunk):
    model = logitlens.load(tiny_gpt2())
    with pytest.raises(PromptError, match="at least 1 position"):
        model.read(IDS, chunk=chunk)


def test_a_cache_that_changes_the_model_is_refused_with_the_figure():
    hf = tiny_llama()
    rotary = hf.model.rotary_emb
    forward = rotary.forward
    # Positions that start again at every call: a cache is then of no use.
    rotary.forward = lambda x, position_ids: forward(
        x, position_ids - position_ids.min(-1, keepdim=True).values
    )
    model = logitlens.load(hf)
    assert model.read(IDS).meta["check"]["ok"]
    with pytest.raises(UnsupportedModel, match=r"in parts: .*differ by up to .* nats"):
        model.read(IDS, chunk=8)
    assert model.read(IDS[:8], chunk=8).meta["check"]["ok"], "one part needs no cache"


def test_a_model_without_a_cache_is_refused():
    model = logitlens.load(build("MambaForCausalLM"))
    with pytest.raises(UnsupportedModel, match=r"cannot be read in parts: .*cache"):
        model.read(IDS, chunk=8)


def test_frequencies_that_depend_on_the_length_are_refused():
    hf = build(
        "LlamaForCausalLM",
        max_position_embeddings=64,
        rope_parameters={
            "rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0,
            "original_max_position_embeddings": 16,
        },
    )  # fmt: skip
    model = logitlens.load(hf)
    assert model.read(IDS[:16], chunk=8).meta["check"]["ok"]
    with pytest.raises(UnsupportedModel, match="depend on the length of the prompt beyond 16"):
        model.read(IDS, chunk=8)
