"""Long prompts in chunks: the same reading, or a refusal with the reason."""

from __future__ import annotations

import contextlib
import functools
import gc
import weakref

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

import logitlens
from logitlens import PromptError, UnsupportedModel
from logitlens.model import capture, chunks
from tests.architectures.build import build, quiet
from tests.model.test_capture import state
from tests.models import tiny_gpt2, tiny_llama, tiny_tokenizer

IDS = torch.randint(3, 90, (41,), generator=torch.Generator().manual_seed(3)).tolist()
LONG = torch.randint(3, 90, (61,), generator=torch.Generator().manual_seed(4)).tolist()
SLIDING = ["sliding_attention", "full_attention"] * 2
LINEAR = ["linear_attention", "full_attention"] * 2
FAMILIES = {
    "GPT2LMHeadModel": {},
    "LlamaForCausalLM": {},
    "BloomForCausalLM": {},  # ALiBi: distances go on through the cache
    "FalconForCausalLM": {},
    "OPTForCausalLM": {},  # positions counted along the mask
    "GraniteMoeForCausalLM": {},  # takes use_cache among other keywords
    # Windows, states and both: LONG is several times as long as any of them.
    "MistralForCausalLM": {"sliding_window": 8},
    "Gemma2ForCausalLM": {"sliding_window": 8},
    "Gemma3ForCausalLM": {"sliding_window": 8, "layer_types": SLIDING},
    "GptOssForCausalLM": {"sliding_window": 8},
    "Llama4ForCausalLM": {"attention_chunk_size": 8},
    "ModernBertDecoderForCausalLM": {"sliding_window": 8},
    "MoshiForCausalLM": {"sliding_window": 8},
    "FalconH1ForCausalLM": {"mamba_chunk_size": 8},
    "Qwen3NextForCausalLM": {"layer_types": LINEAR},
    "JambaForCausalLM": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "BambaForCausalLM": {"attn_layer_indices": [1, 3], "mamba_chunk_size": 8},
    "Lfm2ForCausalLM": {"layer_types": ["conv", "full_attention"] * 2},
    "MiniMaxForCausalLM": {},  # a cache of its own kind
    "WhisperForCausalLM": {"sliding_window": 8},  # an encoder–decoder's
    "MambaForCausalLM": {},
    "RecurrentGemmaForCausalLM": {"attention_window_size": 8},
}
# Their states do not go on through transformers' cache; one that mends it may be read.
REFUSED = {
    "JambaForCausalLM",
    "BambaForCausalLM",
    "MambaForCausalLM",
    "RecurrentGemmaForCausalLM",
}
# Their configurations name a window, and they attend to everything.
STRAY = [
    "LlamaForCausalLM",
    "HunYuanDenseV1ForCausalLM",
    "DbrxForCausalLM",
    "MiniCPM3ForCausalLM",
    "NemotronForCausalLM",
]


def equal(ours, theirs):
    assert ours.layers == theirs.layers
    assert np.array_equal(ours.ids, theirs.ids)
    assert np.array_equal(ours.next_ids, theirs.next_ids)
    for name in ("top_logprobs", "entropy", "kl", "next_logprobs", "track_logprobs"):
        np.testing.assert_allclose(
            getattr(ours, name), getattr(theirs, name), atol=2e-4, rtol=1e-4, err_msg=name
        )
    clear = theirs.top_logprobs[..., 0] - theirs.top_logprobs[..., 1] > 1e-3
    assert np.array_equal(ours.top_ids[..., 0][clear], theirs.top_ids[..., 0][clear])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompt_in_chunks_reads_as_it_does_whole_or_is_refused(name):
    with quiet():
        model = logitlens.load(build(name, **FAMILIES[name]))
    before = state(model.hf)
    whole = model.read(LONG, top=4, track=[7])
    for chunk in (5, 20):
        allowed = [UnsupportedModel] if name in REFUSED else []
        with contextlib.suppress(*allowed):
            equal(model.read(LONG, top=4, track=[7], chunk=chunk), whole)
    assert state(model.hf) == before
    equal(model.read(LONG, top=4, track=[7]), whole)


@pytest.mark.parametrize("chunk", [1, 40, 64])
def test_chunks_of_any_size(chunk):
    model = logitlens.load(tiny_gpt2())
    equal(model.read(IDS, chunk=chunk), model.read(IDS))


@pytest.mark.parametrize("name", STRAY)
def test_a_window_that_only_the_configuration_has_is_none(name, monkeypatch):
    """transformers' own cache would forget what the model attends to, from position 8 on."""
    with quiet():
        model = logitlens.load(build(name, sliding_window=8))
    whole = model.read(LONG)
    equal(model.read(LONG, chunk=20), whole)
    equal(model.read(LONG, chunk=60), whole)
    monkeypatch.setattr(chunks, "PROBE", 16)
    equal(model.read(LONG, chunk=30), whole)


@pytest.mark.parametrize("positions", ["-3:", "3,20", [0], "::7"])
def test_chosen_positions_and_layers(positions):
    model = logitlens.load(tiny_llama(), tokenizer=tiny_tokenizer())
    wanted = {"top": 3, "positions": positions, "layers": "1:3"}
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
    model.read(IDS, chunk=8)  # probed before, so that only the next reading is watched
    held.clear()
    model.read(IDS, chunk=8)
    assert held == [1, 8, 8, 8, 8, 8]


def test_chunks_shrink_where_the_mask_would_grow(monkeypatch):
    assert chunks.ends(10, 4) == [1, 5, 9, 10]
    assert chunks.ends(3, 100) == [3]
    stops = chunks.ends(200_000, 1024)
    starts = [0, *stops[:-1]]
    assert stops[-1] == 200_000
    assert all((b - a) * b <= chunks.MASK or b - a <= 16 for a, b in zip(starts, stops))
    assert stops[:2] == [1, 1025]
    sizes = {b - a for a, b in zip(starts[1:-1], stops[1:-1])}
    assert sizes == {1024, 512, 256, 128, 64, 32, 16}, "a compiled product is kept for each size"
    monkeypatch.setattr(chunks, "MASK", 20 * 16)
    model = logitlens.load(tiny_gpt2())
    equal(model.read(IDS, chunk=20), model.read(IDS))


def test_memory_is_handed_back_between_chunks_only(monkeypatch):
    """Handing memory back takes milliseconds, which a reading in one pass must not pay."""
    model = logitlens.load(tiny_gpt2())
    model.read(IDS, chunk=8)  # probed before, so that only the next readings are counted
    calls = []
    monkeypatch.setattr(chunks, "_trim", lambda: calls.append(1))
    model.read(IDS)
    assert not calls
    model.read(IDS, chunk=8)
    assert len(calls) == len(chunks.ends(len(IDS), 8)) - 1


@pytest.mark.parametrize("ends_early", [False, True])
def test_the_cache_goes_with_the_reading(ends_early, monkeypatch):
    """Without a collector: a cycle would keep 300 MB of keys and values at 32k positions."""
    model = logitlens.load(tiny_gpt2())
    rooms = []

    class Watched(chunks.Room):
        def __init__(self, layer, T):
            super().__init__(layer, T)
            rooms.append(weakref.ref(self))

    monkeypatch.setattr(chunks, "Room", Watched)
    gc.collect()
    gc.disable()
    try:
        captured = chunks.capture_chunks(model, IDS, [1, 20, len(IDS)])
        for _ in captured:
            if ends_early:
                break
        assert rooms
        captured.close()
        assert not any(room() for room in rooms)
    finally:
        gc.enable()


@pytest.mark.parametrize("chunk", [0, -1, 2.5, True, "8"])
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
    with pytest.raises(UnsupportedModel, match=r"in chunks: .*differ by up to .* nats"):
        model.read(IDS, chunk=8)
    assert model.read(IDS[:8], chunk=8).meta["check"]["ok"], "one chunk needs no cache"


def restarting(hf, beyond):
    """Llama's positions begin again in a chunk that starts beyond a length."""
    rotary = hf.model.rotary_emb
    forward = rotary.forward

    def restarted(x, position_ids):
        first = position_ids.min(-1, keepdim=True).values
        return forward(x, position_ids - first * (first > beyond))

    rotary.forward = restarted
    return hf


def test_a_probe_is_as_long_as_the_prompt():
    model = logitlens.load(restarting(tiny_llama(), beyond=20))
    short = IDS[:16]
    equal(model.read(short, chunk=8), model.read(short))
    with pytest.raises(UnsupportedModel, match=r"in chunks: .*differ by up to .* nats"):
        model.read(IDS, chunk=8)


def test_a_probe_crosses_every_window_that_the_configuration_names():
    config = LlamaConfig(sliding_window=3000, ssm={"conv_kernel": 4}, chunks=True)
    assert chunks.probe_length(config, 41, None) == 64
    assert chunks.probe_length(config, 41, 64) == 41, "no longer than a context that it fills"
    assert chunks.probe_length(config, 32_000, None) == 6000
    assert chunks.probe_length(LlamaConfig(), 32_000, None) == chunks.PROBE
    config._attn_implementation = "eager"  # keeps scores of length × length for every head
    assert chunks.probe_length(config, 32_000, None) == chunks.PROBE
    assert chunks.probe_length(LlamaConfig(attn={"window": 10**6}), 32_000, None) == 8192


@pytest.mark.parametrize("failure", [TimeoutError("too long"), KeyboardInterrupt()])
def test_a_probe_that_was_interrupted_is_run_again(failure):
    model = logitlens.load(tiny_gpt2())
    forward, passes = model.hf.forward, []

    @functools.wraps(forward)
    def interrupted(*args, **options):
        passes.append(1)
        if len(passes) == 2:
            raise failure
        return forward(*args, **options)

    model.hf.forward = interrupted
    with pytest.raises((UnsupportedModel, TimeoutError, KeyboardInterrupt)):
        model.read(IDS, chunk=8)
    equal(model.read(IDS, chunk=8), model.read(IDS))


def test_a_model_without_a_cache_is_refused():
    model = logitlens.load(build("XLMWithLMHeadModel"))
    with pytest.raises(UnsupportedModel, match=r"cannot be read in chunks: .*keeps no cache"):
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
