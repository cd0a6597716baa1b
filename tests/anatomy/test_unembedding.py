"""A head that is more than its weight is called; one that is no more is read by its weight."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import logitlens
from tests.models import VOCAB, tiny_llama

IDS = [5, 60, 7, 82, 9, 110, 11, 33, 34]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# How far a reading may be from the model's own logits: rounding, and nothing that a change makes.
ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def off(hf, reading):
    """The mean |Δ log-probability| of the last row against the model's own logits, nats."""
    with torch.no_grad():
        own_TV = hf(input_ids=torch.tensor([IDS])).logits[0].double().log_softmax(-1)
    ids = torch.tensor(reading.top_ids[-1].astype(np.int64))
    shown = torch.tensor(reading.top_logprobs[-1]).double()
    return float((shown - own_TV.gather(-1, ids)).abs().mean())


def with_lora(hf, *, trained=True):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["lm_head"], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(hf, config, autocast_adapter_dtype=False)
    if trained:
        train(adapted)
    return adapted.eval()


def train(adapted):
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)


class WithPrior(nn.Linear):
    """A head with a learned prior over tokens beside its weight."""

    def __init__(self, linear):
        super().__init__(
            linear.in_features, linear.out_features, bias=False, dtype=linear.weight.dtype
        )
        self.weight = linear.weight
        prior = torch.randn(VOCAB, generator=torch.Generator().manual_seed(2))
        self.prior = nn.Parameter(prior.to(linear.weight.dtype))

    def forward(self, input):
        return super().forward(input) + self.prior * input.norm(dim=-1, keepdim=True)


def with_prior(hf):
    hf.lm_head = WithPrior(hf.lm_head)
    return hf


def with_hook(hf):
    hf.lm_head.register_forward_hook(lambda module, args, output: output * 1.1)
    return hf


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft, about transformers
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("more", [with_lora, with_prior, with_hook])
def test_a_head_that_is_more_than_its_weight_is_read_whole(more, dtype):
    hf = more(tiny_llama().to(dtype))
    reading = logitlens.load(hf).read(IDS, top=VOCAB)
    assert reading.meta["tail"] == "module"
    assert off(hf, reading) < ROUNDING[dtype]
    bare = logitlens.load(tiny_llama().to(dtype)).read(IDS, top=VOCAB)
    assert off(hf, bare) > 2 * ROUNDING[dtype]  # what reading the weight alone would show


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_comes_to_the_head_after_loading_is_read_too(dtype):
    hf = tiny_llama().to(dtype)
    model = logitlens.load(hf)
    assert model.tail.kind == "weights"
    with_hook(hf)
    assert off(hf, model.read(IDS, top=VOCAB)) < ROUNDING[dtype]

    adapted = with_lora(tiny_llama().to(dtype), trained=False)  # it begins as no change at all
    model = logitlens.load(adapted)
    model.read(IDS)
    train(adapted)
    assert off(adapted, model.read(IDS, top=VOCAB)) < ROUNDING[dtype]


def test_a_hook_that_does_nothing_yet_is_called_all_the_same():
    strength = [1.0]
    hf = tiny_llama().bfloat16()
    hf.lm_head.register_forward_hook(lambda module, args, output: output * strength[0])
    model = logitlens.load(hf)
    model.read(IDS)
    strength[0] = 1.1
    assert off(hf, model.read(IDS, top=VOCAB)) < ROUNDING[torch.bfloat16]


def test_a_called_head_does_not_drop_out():
    """Calling the head is part of reading: it runs in evaluation mode like every pass."""

    class Dropping(nn.Module):
        def __init__(self, head):
            super().__init__()
            self.head, self.drop = head, nn.Dropout(0.5)

        def forward(self, x):
            return self.drop(self.head(x).relu())

    hf = tiny_llama()
    hf.lm_head = Dropping(hf.lm_head)
    hf.train()
    model = logitlens.load(hf)
    rows = torch.randn(5, 32)
    torch.testing.assert_close(model.tail.logits(rows), model.tail.logits(rows))
    assert hf.lm_head.drop.training
