"""The tail: what is found, what a wrong one costs, and that wrong ones are always refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

import logitlens
from logitlens.anatomy import tail as finding
from logitlens.anatomy.replay import Replay
from logitlens.anatomy.watch import ratio
from logitlens.errors import UnsupportedModel
from logitlens.model.capture import capture
from tests.architectures.build import build

IDS = [5, 60, 7, 82, 9, 10, 11, 33, 34]


def loaded(name, **options):
    return logitlens.load(build(name, **options))


def proof(model, tail):
    """Verify `tail` on a prompt's last residual; raises when it is wrong."""
    (r,) = capture(model, [IDS], check="all")
    return finding.verify(tail, r.h[-1][None], r.final_logits[None])


def changed_head(tail, **values):
    return dataclasses.replace(tail, head=dataclasses.replace(tail.head, **values))


# -- mutants: every way a tail can be wrong must be refused ---------------------------------------

MUTANTS = {
    "no final norm": ("GPT2LMHeadModel", lambda t: dataclasses.replace(t, steps=[])),
    "norm twice": ("LlamaForCausalLM", lambda t: dataclasses.replace(t, steps=t.steps * 2)),
    "softcap forgotten": ("Gemma2ForCausalLM", lambda t: changed_head(t, softcap=None)),
    "softcap of another size": ("Gemma2ForCausalLM", lambda t: changed_head(t, softcap=4.1)),
    "scale forgotten": ("GraniteForCausalLM", lambda t: changed_head(t, scale=1.0)),
    "scale inverted": ("HyperCLOVAXForCausalLM", lambda t: changed_head(t, scale=0.25)),
    "scale a little off": ("CohereForCausalLM", lambda t: changed_head(t, scale=0.301)),
    "bias forgotten": ("GPTJForCausalLM", lambda t: changed_head(t, bias_V=None)),
    "projection forgotten": ("OPTForCausalLM", lambda t: dataclasses.replace(t, steps=[])),
    "columns swapped": (
        "LlamaForCausalLM",
        lambda t: changed_head(t, weight_VE=t.head.weight_VE.roll(1, 0)),
    ),
    "pre-scale forgotten": (
        "InklingForCausalLM",
        lambda t: dataclasses.replace(t, steps=[dataclasses.replace(t.steps[0], scale=1.0)]),
    ),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_tail_is_refused_with_what_differs_and_by_how_much(mutant):
    name, spoil = MUTANTS[mutant]
    model = loaded(name)
    assert proof(model, model.tail).ok
    with pytest.raises(UnsupportedModel) as refused:
        proof(model, spoil(model.tail))
    assert "differ from the model's own by up to" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_tail_that_mixes_positions_is_refused():
    """Proven on shuffled rows: a tail that needs its neighbours gives other numbers."""
    model = loaded("LlamaForCausalLM")
    step = model.tail.steps[0]

    class Mixing(nn.Module):
        def forward(self, hidden):
            before = nn.functional.pad(hidden[:, :-1], (0, 0, 1, 0))
            return step.module(hidden) + 0.1 * before

    hf = build("LlamaForCausalLM")
    hf.model.norm = Mixing()
    with pytest.raises(UnsupportedModel, match="cannot be read"):
        logitlens.load(hf)


# -- what follows the head ------------------------------------------------------------------------


class Finished(nn.Module):
    """A Llama whose logits go through any function."""

    def __init__(self, function, **options):
        super().__init__()
        self.inner = build("LlamaForCausalLM", **options)
        self.config = self.inner.config
        self.function = function

    def get_input_embeddings(self):
        return self.inner.get_input_embeddings()

    def get_output_embeddings(self):
        return self.inner.get_output_embeddings()

    def forward(self, input_ids, attention_mask=None, use_cache=None):
        out = self.inner(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)
        out.logits = self.function(out.logits)
        return out


def finished(function):
    model = logitlens.load(Finished(function))
    return model.tail.head, proof(model, model.tail)


def test_nothing_after_the_head():
    head, check = finished(lambda z: z)
    assert (head.scale, head.softcap, head.final_bias_V) == (1.0, None, None)
    assert check.max_abs_diff < 1e-5


@pytest.mark.parametrize("scale", [0.0625, 24.0, 1 / 3])
def test_a_scale(scale):
    head, check = finished(lambda z: z * scale)
    assert head.scale == pytest.approx(scale, rel=1e-6)
    assert head.softcap is None
    assert check.ok


def test_scale_and_softcap_together():
    head, check = finished(lambda z: torch.tanh(z * 0.7 / 5.0) * 5.0)
    assert head.scale == pytest.approx(0.7, rel=1e-5)
    assert head.softcap == pytest.approx(5.0, rel=1e-5)
    assert check.ok


def test_a_softcap_that_hardly_acts_is_found_all_the_same():
    """With logits far below the cap the watched pass shows nothing; asking does."""
    head, _ = finished(lambda z: torch.tanh(z / 900.0) * 900.0)
    assert head.softcap == pytest.approx(900.0, rel=1e-4)


def test_a_final_bias_and_forbidden_columns():
    bias_V = torch.randn(97, generator=torch.Generator().manual_seed(3))
    head, check = finished(lambda z: z * 2 + bias_V)
    assert head.final_bias_V is not None
    assert torch.allclose(head.final_bias_V, bias_V, atol=1e-5)
    assert check.ok

    def forbid(z):
        z = z.clone()
        z[..., 90:] = torch.finfo(z.dtype).min
        return z

    head, check = finished(forbid)
    assert check.ok
    model = logitlens.load(Finished(forbid))
    assert int(model.read(IDS, top=97).top_ids[-1, 0, 90:].min()) >= 90


def test_a_vocabulary_cut_short():
    head, check = finished(lambda z: z[..., :80])
    assert head.vocab == 80
    assert check.ok


def test_what_is_no_function_of_one_logit_is_replayed():
    model = logitlens.load(Finished(lambda z: z.flip(-1) * 0.5))
    assert model.tail.kind == "replay"
    assert proof(model, model.tail).ok


def test_a_head_that_is_not_linear_is_called():
    hf = build("LlamaForCausalLM")

    class Odd(nn.Module):
        def __init__(self, weight):
            super().__init__()
            self.weight = nn.Parameter(weight)

        def forward(self, x):
            return (x @ self.weight.T).relu() + x[..., :1]

    hf.lm_head = Odd(hf.lm_head.weight.detach())
    model = logitlens.load(hf)
    assert model.tail.kind == "module"
    assert model.read(IDS).meta["check"]["ok"]


def test_tied_weights_are_read_once_and_right():
    model = loaded("GPT2LMHeadModel", tie_word_embeddings=True)
    assert model.tail.head.weight_VE is not None
    assert model.tail.head.weight_VE.data_ptr() == model.hf.transformer.wte.weight.data_ptr()
    assert model.check.ok


def test_a_context_shorter_than_the_probe():
    model = loaded("GPT2LMHeadModel", n_positions=5)
    assert model.check.positions == 10
    assert model.read(IDS[:5]).meta["check"]["ok"]


def test_an_embedding_smaller_than_the_configuration_says():
    hf = build("LlamaForCausalLM")
    hf.model.embed_tokens = nn.Embedding.from_pretrained(hf.model.embed_tokens.weight[:20].detach())
    assert logitlens.load(hf).check.ok


# -- the oracle -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "Gemma2ForCausalLM", "MptForCausalLM"])
def test_any_row_through_our_tail_equals_the_models_own_code(name):
    """Rows the model has never made: the tail is right everywhere, not on the probe alone."""
    model = loaded(name)
    rows_ND = torch.randn(30, 32, generator=torch.Generator().manual_seed(1)) * 5
    for skip in (True, False):
        if name == "MptForCausalLM" and skip:
            continue  # its blocks return tuples
        replay = Replay(model.hf, model.anatomy, torch.tensor(IDS), skip=skip)
        theirs = replay(rows_ND).log_softmax(-1)
        ours = model.tail.logits(rows_ND).log_softmax(-1)
        assert (theirs - ours).abs().max() <= 1e-4


def test_replay_leaves_the_models_forward_methods_alone():
    hf = build("Gemma3nForCausalLM")

    def own():
        return [m.__dict__.get("forward") for m in hf.modules()]

    before = own()
    model = logitlens.load(hf)
    assert model.tail.kind == "replay"
    assert own() == before
    model.read(IDS)
    assert own() == before


@pytest.mark.parametrize(
    ("name", "scale", "softcap"),
    [("Gemma2ForCausalLM", 1.0, 4.0), ("GraniteForCausalLM", 0.25, None),
     ("InklingForCausalLM", 1.0, None)],
)  # fmt: skip
def test_measured_constants_are_rounded_to_the_configurations(name, scale, softcap):
    """Measured in bfloat16 they are off by a per cent; the configuration's number is exact."""
    head = logitlens.load(build(name, dtype=torch.bfloat16)).tail.head
    assert (head.scale, head.softcap) == (scale, softcap)


# -- the check itself -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["LlamaForCausalLM", "Gemma2ForCausalLM", "GraniteForCausalLM"])
def test_coarse_models_are_read_and_their_mutants_refused(name, dtype):
    model = loaded(name, dtype=dtype)
    assert model.tail.kind == "weights"
    reading = model.read(IDS)
    assert reading.meta["check"]["ok"]
    assert reading.meta["dtype"] == str(dtype).removeprefix("torch.")
    if name == "Gemma2ForCausalLM":
        assert model.tail.head.softcap == 4.0  # exact, though measured in a coarse dtype
        with pytest.raises(UnsupportedModel):
            proof(model, changed_head(model.tail, softcap=None))
    if name == "GraniteForCausalLM":
        assert model.tail.head.scale == 0.25
        with pytest.raises(UnsupportedModel):
            proof(model, changed_head(model.tail, scale=1.0))
    with pytest.raises(UnsupportedModel):
        proof(model, dataclasses.replace(model.tail, steps=[]))


def test_words_for_people():
    model = loaded("Gemma2ForCausalLM")
    assert model.check.line().startswith("last row checked against the model's own logits: within")
    assert model.check.to_meta()["ok"] is True
    assert ("softcap", "4") in model.tail.description


def test_ratio_is_one_factor_or_none():
    x = torch.randn(3, 4, 5)
    assert ratio(x, x) == 1.0
    assert ratio(x * 0.3, x) == pytest.approx(0.3)
    assert ratio(x * torch.rand(3, 4, 1), x) is None
    assert ratio(x, torch.zeros_like(x)) is None
    assert ratio(x[:2], x) is None
