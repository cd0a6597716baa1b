"""Models that change under our hands: one line each, the model left as it was."""

from __future__ import annotations

import pytest
import torch

import logitlens
from logitlens import UnsupportedModel
from tests.models import tiny_llama

IDS = [1, 2, 3, 4]


def out_of_memory(module, args, output):
    raise torch.OutOfMemoryError("there is no more\nat all")


# What a hook does one day that has done nothing before, and what is said of it.
MOODS = {
    "a hook that returns a tuple": (
        lambda hf: hf.model.layers[1],
        lambda m, a, out: (out, None),
        "block 1 of model.layers returns tuple, another structure",
    ),
    "a hook that drops a position": (
        lambda hf: hf.model.layers[1],
        lambda m, a, out: out[:, :-1],
        "raises RuntimeError on 1 × 4 tokens",
    ),
    "a hook on the model's output": (
        lambda hf: hf,
        lambda m, a, out: type(out)(logits=out.logits * 2),
        "not the model's own output",
    ),
    "a hook that takes the logits away": (
        lambda hf: hf,
        lambda m, a, out: {"x": 1},
        "holds no logits",
    ),
    "memory that ends": (
        lambda hf: hf.model.layers[2],
        out_of_memory,
        "raises OutOfMemoryError on 1 × 4 tokens: there is no more",
    ),
}


def traces(hf):
    """What a reading could leave behind."""
    return [
        (len(m._forward_hooks), len(m._forward_pre_hooks), m.training, "forward" in m.__dict__)
        for m in hf.modules()
    ]


@pytest.mark.parametrize("mood", MOODS)
@pytest.mark.parametrize("stream", ["resid", "attn"])
def test_a_model_that_does_something_else_than_when_it_was_loaded(mood, stream):
    hf = tiny_llama().train()
    of, act, says = MOODS[mood]
    awake: list[bool] = []
    of(hf).register_forward_hook(lambda *call: act(*call) if awake else None)
    model = logitlens.load(hf)
    model.read(IDS, stream=stream)
    awake.append(True)
    before = traces(hf)
    with pytest.raises(UnsupportedModel, match=None if stream != "resid" else says) as caught:
        model.read(IDS, stream=stream)
    assert "\n" not in str(caught.value)
    assert traces(hf) == before
    assert all(p.requires_grad for p in hf.parameters())
    assert torch.is_grad_enabled()
    awake.clear()
    assert model.read(IDS, stream=stream).meta["check"]["ok"]


def test_a_block_that_is_random_is_not_causal():
    hf = tiny_llama()
    hf.model.layers[2].register_forward_hook(lambda m, a, out: out + torch.randn_like(out))
    before = traces(hf)
    with pytest.raises(UnsupportedModel, match="not causal"):
        logitlens.load(hf)
    assert traces(hf) == before


def test_a_model_whose_rounding_depends_on_the_place_in_the_batch_is_causal():
    """Large logits make much of an order of summation, which differs along a batch."""
    hf = tiny_llama()

    def rounded(module, arguments, output):
        output[1:] *= 1 + 1e-5
        return output

    hf.model.layers[1].register_forward_hook(rounded)
    model = logitlens.load(hf)
    assert model.read([5, 60, 7, 82]).meta["check"]["ok"]
