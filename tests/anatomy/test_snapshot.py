"""A model that changes after it was loaded is read as it is now, or refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import logitlens
from logitlens.errors import UnsupportedModel
from logitlens.model import lens_model
from tests.models import VOCAB, tiny_gpt2, tiny_llama

IDS = [5, 60, 7, 82, 9, 110, 11, 33, 34]


def swap_blocks(hf):
    first, *rest = hf.model.layers
    hf.model.layers = nn.ModuleList([rest[1], rest[0], first, *rest[2:]])


def replace_a_block(hf):
    hf.model.layers[1] = tiny_llama(seed=7).model.layers[1]


def drop_a_block(hf):
    hf.model.layers = hf.model.layers[:3]


def replace_the_final_norm(hf):
    hf.model.norm = tiny_llama(seed=7).model.norm


def replace_the_heads_weight(hf):
    hf.lm_head.weight = nn.Parameter(hf.lm_head.weight.detach() * 1.3)


def double_what_the_head_returns(hf):
    hf.lm_head.register_forward_hook(lambda module, args, output: output * 2)


def double_what_a_block_returns(hf):
    hf.model.layers[2].register_forward_hook(lambda module, args, output: output * 2)


def steer_the_final_norm(hf):
    hf.model.norm.register_forward_pre_hook(lambda module, args: (args[0] + 0.5,))


def patch_the_norms_forward(hf):
    forward = hf.model.norm.forward
    hf.model.norm.forward = lambda x: forward(x) * 2


STRUCTURE = [
    swap_blocks,
    replace_a_block,
    drop_a_block,
    replace_the_final_norm,
    replace_the_heads_weight,
    double_what_the_head_returns,
    double_what_a_block_returns,
    steer_the_final_norm,
    patch_the_norms_forward,
]
KIND = {
    "half": lambda hf: hf.half(),
    "bfloat16": lambda hf: hf.bfloat16(),
    "double": lambda hf: hf.double(),
    "more tokens": lambda hf: hf.resize_token_embeddings(VOCAB + 30),
    "fewer tokens": lambda hf: hf.resize_token_embeddings(VOCAB - 100),
}


def same(one, two):
    assert one.layers == two.layers
    for field in ("top_logprobs", "entropy", "kl"):
        np.testing.assert_allclose(getattr(one, field), getattr(two, field), atol=1e-4)


def read_like_one_loaded_now(model, hf):
    after = model.read(IDS)
    assert after.meta["check"]["ok"]
    same(after, logitlens.load(hf).read(IDS))
    same(model.read_batch([IDS])[0], after)
    same(model.readout(model.capture(IDS)), after)
    return after


@pytest.mark.parametrize("change", STRUCTURE)
def test_a_changed_model_is_read_as_it_is_now(change):
    hf = tiny_llama()
    model = logitlens.load(hf)
    before = model.read(IDS)
    change(hf)
    after = read_like_one_loaded_now(model, hf)
    with pytest.raises(AssertionError):  # the change is one that shows
        same(after, before)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("kind", KIND)
@pytest.mark.filterwarnings("ignore")  # transformers': of the mean that new rows are made with
def test_another_dtype_and_vocabulary_are_noticed(make, kind):
    hf = make()
    model = logitlens.load(hf)
    model.read(IDS)
    KIND[kind](hf)
    after = read_like_one_loaded_now(model, hf)
    assert after.meta["dtype"] == str(hf.dtype).removeprefix("torch.")
    assert after.meta["vocab_size"] == hf.config.vocab_size == model.vocab_size


def test_a_bias_that_training_changes_in_place_is_measured_again():
    class Biased(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = tiny_llama()
            self.config = self.inner.config
            self.prior = nn.Parameter(torch.randn(VOCAB))

        def forward(self, input_ids, attention_mask=None, use_cache=None):
            out = self.inner(input_ids=input_ids, attention_mask=attention_mask)
            out.logits = out.logits + self.prior
            return out

        def get_input_embeddings(self):
            return self.inner.get_input_embeddings()

    hf = Biased()
    model = logitlens.load(hf)
    assert model.tail.head.final_bias_V is not None
    with torch.no_grad():
        hf.prior.mul_(3)
    read_like_one_loaded_now(model, hf)


def test_a_model_that_can_no_longer_be_read_is_refused_with_what_changed():
    hf = tiny_llama()
    model = logitlens.load(hf)

    def last_position_only(module, args):
        return (torch.cat([args[0][:, :-1], args[0][:, -1:] * 3], dim=1),)

    handle = hf.model.norm.register_forward_pre_hook(last_position_only)
    for read in (
        lambda: model.read(IDS),
        lambda: model.read(IDS, positions="3"),
        lambda: model.read_batch([IDS], positions="3"),
    ):
        with pytest.raises(UnsupportedModel, match=r"has changed since it was loaded \(hooks\)"):
            read()
    handle.remove()
    assert model.read(IDS).meta["check"]["ok"]


def test_an_unchanged_model_is_looked_at_once(monkeypatch):
    hf = tiny_llama().train()
    model = logitlens.load(hf)
    monkeypatch.setattr(lens_model, "look_at", None)  # calling it fails
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.mul_(1.01)  # weights may change in place: they are read where they are
    model.read(IDS)
    model.read(IDS, stream="attn")
    model.read_batch([IDS, IDS[:4]])
    model.read(IDS, chunk=4)


# -- the position that is checked -----------------------------------------------------------------


class Late(nn.Module):
    """A final norm that does something else at positions 14 and 15, which no probe reaches."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, h_BTD):
        late = torch.arange(h_BTD.shape[1], device=h_BTD.device) // 2 == 7
        return self.norm(h_BTD) * torch.where(late, 3.0, 1.0)[:, None].to(h_BTD.dtype)


@pytest.mark.parametrize(
    "read",
    [
        lambda model, ids, **where: model.read(ids, **where),
        lambda model, ids, **where: model.read(ids, chunk=20, **where),
        lambda model, ids, **where: model.read_batch([ids[:30], ids], **where)[1],
        lambda model, ids, **where: model.readout(model.capture(ids), **where),
    ],
    ids=["read", "chunks", "batch", "readout"],
)
def test_the_check_is_of_a_position_that_is_shown(read):
    hf = tiny_llama()
    hf.model.norm = Late(hf.model.norm)
    model = logitlens.load(hf)
    ids = [(7 * i) % VOCAB for i in range(40)]
    assert read(model, ids, positions="3:6").meta["check"]["ok"]
    with pytest.raises(UnsupportedModel, match="the last row is not the model's own output"):
        read(model, ids, positions="15")
