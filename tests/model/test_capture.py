"""capture: every depth, nothing left behind, batches that change nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import logitlens
from logitlens.errors import PromptError, UnsupportedModel
from logitlens.model.batches import batches
from logitlens.model.capture import capture
from tests.architectures.build import build

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [40, 41, 42], [90, 3, 44, 20, 21]]


@pytest.fixture(scope="module", params=["GPT2LMHeadModel", "BloomForCausalLM", "Gemma2ForCausalLM"])
def model(request):
    return logitlens.load(build(request.param))


def state(hf):
    """All that must be as found: hooks, flags, attributes, weights."""
    return {
        name: (
            sorted(module.__dict__),
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            module.training,
            [(p.requires_grad, p._version, p.grad) for p in module.parameters(recurse=False)],
        )
        for name, module in hf.named_modules()
    }


def close(a, b) -> bool:
    """Equal but for the order in which a library sums: two passes may differ in it."""
    return torch.allclose(a, b, rtol=1e-5, atol=1e-5)


def test_depths_and_labels(model):
    (r,) = capture(model, PROMPTS[:1])
    assert r.layers == ["embed", "0", "1", "2", "3"]
    assert [tuple(h.shape) for h in r.h] == [(7, 32)] * 5
    assert r.ids.tolist() == PROMPTS[0]
    assert r.final_logits.shape == (1, 97)
    assert r.final_positions == [6]


def test_the_raw_stream_and_not_the_normed_one(model):
    """Every depth but the last is transformers' hidden state; the last is before the norm."""
    (r,) = capture(model, PROMPTS[:1])
    with torch.no_grad():
        out = model.hf(input_ids=torch.tensor(PROMPTS[:1]), output_hidden_states=True)
    for ours, theirs in zip(r.h[:-1], out.hidden_states[:-1]):
        assert close(ours, theirs[0])
    assert not torch.allclose(r.h[-1], out.hidden_states[-1][0], atol=1e-2)


def test_some_depths_only(model):
    (r,) = capture(model, PROMPTS[:1], depths=[4, 1])
    (whole,) = capture(model, PROMPTS[:1])
    assert r.layers == ["0", "3"]
    assert close(r.h[0], whole.h[1])


def test_logits_at_all_positions_or_the_last(model):
    (last,) = capture(model, PROMPTS[:1])
    (every,) = capture(model, PROMPTS[:1], check="all")
    assert every.final_logits.shape == (7, 97)
    assert torch.allclose(every.final_logits[-1], last.final_logits[0], atol=1e-5)


def test_a_batch_changes_nothing(model):
    for r, ids in zip(capture(model, PROMPTS), PROMPTS):
        (alone,) = capture(model, [ids])
        assert len(r.ids) == len(ids) == len(r.h[0])
        for a, b in zip(r.h, alone.h):
            assert (a - b).abs().max() <= 1e-4
        assert (r.final_logits - alone.final_logits).abs().max() <= 1e-4


def test_prompts_of_one_batch_may_repeat_and_be_of_one_token(model):
    same = capture(model, [[7], [7], [7, 8]])
    assert close(same[0].h[-1], same[1].h[-1])
    assert same[0].h[0].shape == (1, 32)


def test_nothing_is_left_on_the_model(model):
    before = state(model.hf)
    capture(model, PROMPTS)
    assert state(model.hf) == before


def test_nothing_is_left_after_an_exception(model):
    def broken(module, args, output):
        raise ValueError("a hook of the user's\nfails")

    handle = model.anatomy.blocks[2].register_forward_hook(broken)
    before = state(model.hf)
    with pytest.raises(UnsupportedModel, match="ValueError.*a hook of the user's fails"):
        capture(model, PROMPTS)
    assert state(model.hf) == before
    handle.remove()


def test_training_mode_is_left_as_found():
    hf = build("GPT2LMHeadModel", resid_pdrop=0.5, embd_pdrop=0.5)
    hf.train()
    hf.transformer.h[1].eval()  # and not the same everywhere
    hf.transformer.wte.weight.requires_grad_(False)
    before = state(hf)
    model = logitlens.load(hf)
    reading = model.read(PROMPTS[0])
    assert state(hf) == before
    assert not hf.transformer.h[1].training
    assert hf.transformer.h[0].training
    hf.eval()
    alone = logitlens.load(hf).read(PROMPTS[0])
    assert close(torch.tensor(reading.top_logprobs), torch.tensor(alone.top_logprobs))


def test_under_inference_mode_and_with_gradients_on(model):
    (plain,) = capture(model, PROMPTS[:1])
    with torch.inference_mode():
        (r,) = capture(model, PROMPTS[:1])
        assert close(r.h[2], plain.h[2])
    with torch.enable_grad():
        (r,) = capture(model, PROMPTS[:1])
        assert not r.h[2].requires_grad
        assert torch.is_grad_enabled()
    # Residuals can be trained on: they are ordinary tensors.
    weight = torch.zeros(32, requires_grad=True)
    (plain.h[2] @ weight).sum().backward()
    assert weight.grad is not None


def test_residuals_are_copies(model):
    (r,) = capture(model, PROMPTS[:1])
    kept = [h.clone() for h in r.h]
    capture(model, PROMPTS[1:])
    assert all(torch.equal(a, b) for a, b in zip(r.h, kept))
    assert len({h.untyped_storage().data_ptr() for h in r.h}) == 5


def test_empty_prompts_are_refused(model):
    with pytest.raises(PromptError, match="at least one token"):
        capture(model, [[5], []])
    with pytest.raises(PromptError):
        capture(model, [])


# -- batches by length ----------------------------------------------------------------------------


def test_batches_hold_to_the_budget_and_lose_nothing():
    lengths = [7, 3, 5, 100, 1, 8, 8, 2]
    groups = batches(lengths, 16)
    assert sorted(i for g in groups for i in g) == list(range(8))
    for g in groups:
        assert len(g) == 1 or max(lengths[i] for i in g) * len(g) <= 16
    assert [3] in groups  # longer than the budget: alone
    assert batches([], 10) == []
    with pytest.raises(PromptError):
        batches([3], 0)


# -- models that do not behave --------------------------------------------------------------------


class Moody:
    """Runs a model's second block as often as it likes."""

    def __init__(self, decoder):
        self.decoder, self.runs, self.forward = decoder, 1, decoder.forward
        decoder.forward = self

    def __call__(self, *args, **kwargs):
        layers = self.decoder.layers
        self.decoder.layers = nn.ModuleList([*layers[:1], *[layers[1]] * self.runs, *layers[2:]])
        try:
            return self.forward(*args, **kwargs)
        finally:
            self.decoder.layers = layers


def test_a_number_of_blocks_that_changes_at_run_time():
    hf = build("LlamaForCausalLM")
    moody = Moody(hf.model)
    model = logitlens.load(hf)
    model.read(PROMPTS[0])
    for runs in (2, 0):
        moody.runs = runs
        with pytest.raises(UnsupportedModel, match=f"ran {runs} times in one forward pass"):
            model.read(PROMPTS[0])


def test_hooks_that_alter_outputs_are_part_of_the_model():
    """A steering hook on a block is read as the model now computes."""
    hf = build("LlamaForCausalLM")
    handle = hf.model.layers[2].register_forward_hook(lambda m, a, out: out + 1.0)
    model = logitlens.load(hf)
    with torch.no_grad():
        truth = hf(input_ids=torch.tensor(PROMPTS[:1])).logits[0].argmax(-1)
    assert (torch.tensor(model.read(PROMPTS[0]).top_ids[-1, :, 0]) == truth).all()
    handle.remove()


def test_a_model_that_returns_no_logits():
    from transformers import LlamaModel

    with pytest.raises(UnsupportedModel, match="holds no logits"):
        logitlens.load(LlamaModel(build("LlamaForCausalLM").config))


def test_a_model_that_raises_in_its_forward():
    hf = build("LlamaForCausalLM")
    hf.model.layers[3].forward = lambda *a, **k: 1 / 0
    before = state(hf)
    with pytest.raises(UnsupportedModel, match="raises ZeroDivisionError on a prompt of 11 tokens"):
        logitlens.load(hf)
    assert state(hf) == before
