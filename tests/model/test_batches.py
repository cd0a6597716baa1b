"""Batches: each prompt's reading equals its reading alone, whatever stands beside it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import logitlens
from logitlens import PromptError
from logitlens.anatomy import watch
from logitlens.model import batches, capture
from logitlens.readout.chunked import Chunked
from tests.architectures.build import build
from tests.models import VOCAB, tiny_gpt2, tiny_llama, tiny_tokenizer

PROMPTS = [
    [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16],
    [20, 21, 22],
    [30],
    [40, 41, 42, 43, 44, 45, 46],
]
FAMILIES = {
    "GPT2LMHeadModel": {},  # learned positions
    "LlamaForCausalLM": {},  # rotary
    "BloomForCausalLM": {},  # ALiBi
    "MptForCausalLM": {},  # ALiBi
    "FalconForCausalLM": {},
    "OPTForCausalLM": {},  # positions counted along the mask
    "XGLMForCausalLM": {},  # sinusoidal
    "Gemma2ForCausalLM": {"sliding_window": 4},
    "GPTNeoForCausalLM": {},  # local attention
    "MixtralForCausalLM": {},  # experts
    "MambaForCausalLM": {},
    "JambaForCausalLM": {},
    "RecurrentGemmaForCausalLM": {},
    "RwkvForCausalLM": {},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_equals_its_prompts_alone(name):
    model = logitlens.load(build(name, **FAMILIES[name]))
    together = model.read_batch(PROMPTS, top=4, track=[7], token_budget=48)
    for prompt, reading in zip(PROMPTS, together):
        alone = model.read(prompt, top=4, track=[7])
        assert reading.ids.tolist() == prompt, "no pad column"
        for field in ("top_logprobs", "entropy", "kl", "next_logprobs", "track_logprobs"):
            mine, other = getattr(reading, field), getattr(alone, field)
            assert mine.shape == other.shape
            np.testing.assert_allclose(mine, other, atol=1e-4, err_msg=field)


def test_short_prompts_share_a_product_and_differ_in_what_they_track(monkeypatch):
    model, read = logitlens.load(tiny_gpt2()), []
    stats = Chunked.stats

    def counted(self, x_TLE, *given, **options):
        read.append(len(x_TLE))
        return stats(self, x_TLE, *given, **options)

    monkeypatch.setattr(Chunked, "stats", counted)
    tracks = [[1], [2, 3, {"some": [4, 5]}], [], [6]]
    together = model.read_batch(PROMPTS, top=3, track=tracks)
    assert read == [sum(map(len, PROMPTS))]
    for prompt, track, reading in zip(PROMPTS, tracks, together):
        alone = model.read(prompt, top=3, track=track)
        assert reading.track == alone.track
        for field in ("next_logprobs", "track_logprobs", "candidate_logprobs", "top_logprobs"):
            np.testing.assert_allclose(getattr(reading, field), getattr(alone, field), atol=1e-4)
        for field in ("track_ranks", "candidate_ranks", "next_ranks"):
            apart = np.abs(getattr(reading, field) - getattr(alone, field))
            assert apart.max(initial=0) <= 1, field  # a tie may be rounded the other way


def test_the_models_own_head_computes_one_row_of_each_prompt():
    model = logitlens.load(tiny_gpt2())
    shapes = []

    def note(module, args, output):
        shapes.append(tuple(output.shape[:-1]))

    with watch.hooked(after=[(model.hf.lm_head, note)]):
        readings = model.read_batch(PROMPTS)
    # the model, which now has a hook, is looked at again by other batches
    assert [shape for shape in shapes if shape[0] == len(PROMPTS)] == [(len(PROMPTS), 1)]
    assert all(reading.meta["check"]["ok"] for reading in readings)


def test_a_model_that_minds_the_width_of_the_batch_is_read_by_length():
    hf = build("LlamaForCausalLM")
    model = logitlens.load(hf)
    assert model._pads_change_nothing
    # Still causal, so loading has nothing to object to; a padded batch would be silently wrong.
    hf.model.embed_tokens.register_forward_hook(lambda m, a, out: out + 0.2 * out.shape[1])
    minding = logitlens.load(hf)
    assert not minding._pads_change_nothing
    for prompt, reading in zip(PROMPTS, minding.read_batch(PROMPTS)):
        alone = minding.read(prompt)
        np.testing.assert_allclose(reading.top_logprobs, alone.top_logprobs, atol=1e-4)


def test_left_padding_needs_position_ids_and_we_do_not():
    """The trap: GPT-2's own logits for a prompt padded on the left are wrong without them."""
    hf = tiny_gpt2()
    hf.transformer.wpe.weight.data.mul_(30)  # positions as audible as in the trained model
    tokenizer = tiny_tokenizer()
    texts = ["In Paris", "The Eiffel Tower is in the city of Paris"]
    encoding = padded_by(tokenizer, texts, "left")
    ids = encoding["input_ids"][0][encoding["attention_mask"][0].bool()]
    assert encoding["attention_mask"][0, 0] == 0
    with torch.no_grad():
        alone = hf(ids[None]).logits[0, -1].log_softmax(-1)
        left = hf(**encoding).logits[0, -1].log_softmax(-1)
    assert (left - alone).abs().max() > 1
    reading = logitlens.load(hf, tokenizer=tokenizer).read_batch(encoding, top=5)[0]
    assert reading.ids.tolist() == ids.tolist()
    truth = alone[torch.tensor(reading.top_ids[-1, -1]).long()]
    np.testing.assert_allclose(reading.top_logprobs[-1, -1], truth, atol=1e-4)


def padded_by(tokenizer, texts, side):
    """A tokenizer's own padding, with a token the prompts have too as the pad."""
    encoded = [tokenizer(text)["input_ids"] for text in texts]
    longest = max(map(len, encoded))
    pads = [[0] * (longest - len(row)) for row in encoded]
    rows = [pad + row if side == "left" else row + pad for pad, row in zip(pads, encoded)]
    ones = [[1] * len(row) for row in encoded]
    zeros = [[0] * len(pad) for pad in pads]
    mask = [z + o if side == "left" else o + z for z, o in zip(zeros, ones)]
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
def test_padded_encodings_of_either_side(make, side):
    tokenizer = tiny_tokenizer()
    model = logitlens.load(make(), tokenizer=tokenizer)
    texts = ["In Paris", "The Eiffel Tower is in the city of", "there"]
    for text, reading in zip(texts, model.read_batch(padded_by(tokenizer, texts, side), top=3)):
        alone = model.read(text, top=3)
        assert reading.pieces == alone.pieces
        np.testing.assert_allclose(reading.top_logprobs, alone.top_logprobs, atol=1e-4)


def test_a_real_tokenizers_own_padding():
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    model = logitlens.load(tiny_llama(), tokenizer=tokenizer)
    for side in ("left", "right"):
        tokenizer.padding_side = side
        for kind in ("pt", "np", None):
            encoding = tokenizer(["In Paris", "of the city"], padding=True, return_tensors=kind)
            readings = model.read_batch(encoding, top=2)
            assert ["".join(r.pieces) for r in readings] == ["In Paris", "of the city"]
    one = model.read(tokenizer("In Paris", return_tensors="pt"), top=2)
    assert "".join(one.pieces) == "In Paris"


@pytest.mark.parametrize(
    ("encoding", "says"),
    [
        ({"ids": [1]}, "expected input_ids"),
        ({"input_ids": [[1, 2, 3]], "attention_mask": [[1, 0, 1]]}, "has a hole"),
        ({"input_ids": [[1, 2, 3]], "attention_mask": [[1, 1]]}, "shape of input_ids"),
        ({"input_ids": [[1, 2]], "attention_mask": [[0, 0]]}, "empty"),
        ({"input_ids": [[0.5, 2]]}, "integer ids"),
        ({"input_ids": [[VOCAB]]}, "outside the vocabulary"),
    ],
)
def test_bad_encodings_are_one_line(encoding, says):
    model = logitlens.load(tiny_gpt2())
    for read in (model.read, model.read_batch):
        with pytest.raises(PromptError, match=says) as caught:
            read(encoding)
        assert "\n" not in str(caught.value)


def test_several_prompts_are_not_one():
    model = logitlens.load(tiny_gpt2())
    for many in ({"input_ids": [[1, 2], [3, 4]]}, [[1, 2], [3, 4]], [[1, 2], [3]]):
        with pytest.raises(PromptError, match="read_batch"):
            model.read(many)


def test_frequencies_that_depend_on_the_longest_prompt():
    """Long-context Phi: one prompt beyond the original length changes the whole batch's positions."""
    rope = {
        "rope_type": "longrope",
        "factor": 4.0,
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [3.0] * 4,
        "original_max_position_embeddings": 16,
    }
    hf = build("LlamaForCausalLM", rope_parameters=rope)
    with torch.no_grad():
        for layer in hf.model.layers:
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                projection.weight.mul_(30)
    model = logitlens.load(hf)
    generator = torch.Generator().manual_seed(0)
    long = torch.randint(3, 97, (40,), generator=generator).tolist()
    prompts = [long[:10], long, long[5:], long[:16]]
    alone = [model.read(prompt, top=3) for prompt in prompts]
    wrong = model.readout(capture.capture(model, prompts)[0], top=3)
    assert np.abs(wrong.top_logprobs - alone[0].top_logprobs).max() > 0.1, "the trap is real"
    for reading, truth in zip(model.read_batch(prompts, top=3), alone):
        np.testing.assert_allclose(reading.top_logprobs, truth.top_logprobs, atol=1e-4)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(1, 200), max_size=40),
    st.integers(1, 500),
    st.none() | st.integers(0, 200),
)
def test_batches_keep_to_the_budget_and_lose_nothing(lengths, budget, beyond):
    groups = batches.batches(lengths, budget, alone_beyond=beyond)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        widths = [lengths[i] for i in group]
        assert len(group) == 1 or max(widths) * len(group) <= budget
        if beyond is not None and max(widths) > beyond:
            assert len(set(widths)) == 1


def test_pads_are_the_last_token_again_and_masked():
    cpu = torch.device("cpu")
    uneven = batches.padded([torch.tensor([1, 2, 3]), torch.tensor([7])], cpu)
    assert uneven.ids_BT.tolist() == [[1, 2, 3], [7, 7, 7]]
    assert uneven.extra["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batches.padded([torch.tensor([1, 2]), torch.tensor([7, 8])], cpu).extra == {}


def test_rescaling_is_found_in_nested_parameters():
    class Config:
        max_position_embeddings = 99
        rope_parameters = {
            "full_attention": {"rope_type": "dynamic", "factor": 2.0},
            "sliding_attention": {"rope_type": "default"},
        }

    assert batches.rescales_beyond(Config) == 99
    Config.rope_parameters = {"rope_type": "yarn"}
    assert batches.rescales_beyond(Config) is None
    assert batches.rescales_beyond(None) is None
