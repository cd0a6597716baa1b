"""The check: what rounding may cost is granted, in any order of summation, and nothing else."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import logitlens
from logitlens.anatomy import check as checking
from logitlens.anatomy.check import Check, compare, distance, norms
from logitlens.anatomy.tail import Tail
from logitlens.errors import UnsupportedModel
from logitlens.reading import check_sentence
from logitlens.readout.head import Head
from tests.anatomy import rounding
from tests.anatomy.tails import at_scale, in_another_order, loaded, wrong
from tests.architectures.build import build
from tests.models import tiny_gpt2, tiny_llama
from tests.processors import RESTRICTED

IDS = [5, 60, 7, 82, 9, 10, 11, 33, 34]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
HALF = DTYPES[1:]
# Plain; a softcap; a bias; a scale; products before the head; called; replayed.
NAMES = [
    "GPT2LMHeadModel",
    "Gemma2ForCausalLM",
    "GPTJForCausalLM",
    "CohereForCausalLM",
    "RemBertForCausalLM",
    "RobertaForCausalLM",
    "Gemma3nForCausalLM",
]


# -- correct tails and wrong ones -----------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_right_tail_passes_at_every_scale_and_in_every_order_and_a_wrong_one_never(name, dtype):
    lens = loaded(name, dtype)
    for deviation in (1.0, 30.0, 300.0):
        seen = at_scale(lens, deviation)
        for tail in (seen.tail, in_another_order(seen.tail)):
            assert seen.check(tail).ok, (deviation, seen.check(tail))
            for p in range(0, len(seen.h_PD), 5):
                one = seen.check(tail, slice(p, p + 1))
                assert one.ok, (deviation, p, one)
        for kind, tail in wrong(seen):
            assert not seen.check(tail).ok, (deviation, kind, seen.check(tail))


def scaled(model, deviation, shift=0.0):
    """A head whose logits have this standard deviation and this mean."""
    with torch.no_grad():
        ids = torch.tensor([IDS])
        head = model.get_output_embeddings()
        head.weight.mul_(deviation / float(model(ids).logits.std()))
        if shift:  # what the final norm adds to every row adds the same to every logit
            model.transformer.ln_f.bias.add_(1.0)
            head.weight.add_(shift / head.weight.shape[1])
    return model


@pytest.mark.parametrize(("deviation", "shift"), [(30, 0), (300, 0), (3, -110), (30, -330)])
def test_large_logits_are_loaded_and_read(deviation, shift):
    model = logitlens.load(scaled(tiny_gpt2(), deviation, shift))
    check = model.read(IDS).meta["check"]
    assert check["ok"]
    assert check["worst"] < 0.5


def test_the_bound_grows_with_the_logits_and_with_nothing_else():
    tolerances = [logitlens.load(scaled(tiny_gpt2(), s)).check.tolerance for s in (1, 10, 100)]
    assert tolerances[1] == pytest.approx(10 * tolerances[0], rel=0.3)
    assert tolerances[2] == pytest.approx(100 * tolerances[0], rel=0.3)
    assert tolerances[0] < 1e-4


@pytest.mark.parametrize("name", ["RemBertForCausalLM", "HyperCLOVAXForCausalLM"])
def test_a_prompt_in_a_batch_is_read(name):
    model = loaded(name, torch.float32)
    prompts = [IDS, IDS[:4], IDS[2:], IDS * 2]
    for reading in model.read_batch(prompts):
        assert reading.meta["check"]["ok"]


# -- sums -----------------------------------------------------------------------------------------


def plain_tail(weight_VE, **values):
    head = Head(len(weight_VE), weight_VE, **values)
    return Tail(nn.Identity(), head, "weights", weight_VE.dtype)


@pytest.mark.parametrize("E", [16, 768, 16_384])
@pytest.mark.parametrize("kind", ["random", "one sign", "constant", "one huge number"])
def test_float32_sums_of_any_kind_and_order_pass(E, kind):
    rng = torch.Generator().manual_seed(E)
    x_PE, w_VE = torch.randn(3, E, generator=rng), torch.randn(40, E, generator=rng)
    if kind == "one sign":
        x_PE, w_VE = x_PE.abs(), w_VE.abs()
    if kind == "constant":
        x_PE, w_VE = torch.full_like(x_PE, 1.1), torch.full_like(w_VE, 0.7)
    if kind == "one huge number":
        x_PE[:, 0], w_VE[:, 0] = 3000.0, -30.0
        x_PE[:, -1], w_VE[:, -1] = 3000.0, 30.0
    truth_PV = x_PE.double() @ w_VE.double().T
    block = 1024 if kind == "constant" else E  # equal terms are rounded alike: errors add up
    one_by_one_PV = torch.zeros(3, 40)
    for terms in torch.arange(E).split(block):
        sum_PV = torch.zeros(3, 40)
        for e in terms:  # the worst order there is: one accumulator
            sum_PV += x_PE[:, e, None] * w_VE[None, :, e]
        one_by_one_PV += sum_PV
    for model_PV in (truth_PV.float(), x_PE @ w_VE.T, one_by_one_PV):
        tail = plain_tail(w_VE)
        check = compare(model_PV, tail.logits(x_PE), tail, x_PE)
        assert check.ok, check


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_precision_is_held_to_the_last_bit(dtype):
    rng = torch.Generator().manual_seed(0)
    x_PE = torch.randn(1, 64, generator=rng).to(dtype)
    w_VE = torch.randn(500, 64, generator=rng).to(dtype)
    tail = plain_tail(w_VE)
    own_PV = (x_PE.double() @ w_VE.double().T).to(dtype)
    assert compare(own_PV, tail.logits(x_PE), tail, x_PE).ok
    for token in (0, 77, 499):
        other_PV = own_PV.clone()
        other_PV[0, token] = torch.nextafter(own_PV[0, token], own_PV[0, token] + 1)
        assert not compare(other_PV, tail.logits(x_PE), tail, x_PE).ok


def test_logits_may_not_differ_by_a_constant():
    weight_VE = torch.randn(30, 8, generator=torch.Generator().manual_seed(2))
    tail, x_PE = plain_tail(weight_VE), torch.ones(2, 8)
    z_PV = tail.logits(x_PE)
    assert compare(z_PV, z_PV, tail, x_PE).worst == 0
    shifted = compare(z_PV + 3.0, z_PV, tail, x_PE)
    assert not shifted.ok
    assert shifted.max_abs_diff < 1e-5  # which is why logits are compared, not probabilities


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("side", ["model", "ours"])
def test_what_is_no_number_on_one_side_only_never_passes(value, side):
    weight_VE = torch.randn(30, 8, generator=torch.Generator().manual_seed(2))
    tail, x_PE = plain_tail(weight_VE), torch.ones(2, 8)
    z_PV = tail.logits(x_PE)
    odd_PV = z_PV.clone()
    odd_PV[1, 7] = value
    one, two = (odd_PV, z_PV) if side == "model" else (z_PV, odd_PV)
    assert not compare(one, two, tail, x_PE).ok


# -- columns a model forbids ----------------------------------------------------------------------


class Forbidding(nn.Module):
    """A Llama with a final bias that forbids some tokens."""

    def __init__(self, value, dtype=torch.float32):
        super().__init__()
        self.inner = build("LlamaForCausalLM", dtype=dtype)
        self.config = self.inner.config
        bias_V = torch.randn(97, generator=torch.Generator().manual_seed(3))
        bias_V[90:] = value if value == -float("inf") else torch.finfo(dtype).min
        self.register_buffer("bias_V", bias_V.to(dtype))

    def get_input_embeddings(self):
        return self.inner.get_input_embeddings()

    def get_output_embeddings(self):
        return self.inner.get_output_embeddings()

    def forward(self, input_ids, attention_mask=None, use_cache=None):
        out = self.inner(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)
        out.logits = out.logits + self.bias_V
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("value", [-float("inf"), "the least number"])
def test_top_may_reach_beyond_what_is_finite(value, dtype):
    model = logitlens.load(Forbidding(value, dtype))
    reading = model.read(IDS, top=97)
    assert reading.meta["check"]["ok"]
    assert np.isfinite(reading.meta["check"]["max_abs_diff"])
    assert set(reading.top_ids[-1, -1, 90:].tolist()) == set(range(90, 97))
    assert (reading.top_logprobs[-1, -1, 90:] < -1e30).all()
    if value == -float("inf"):
        wrong_head = dataclasses.replace(model.tail.head, final_bias_V=None)
        model.tail = dataclasses.replace(model.tail, head=wrong_head)
        with pytest.raises(UnsupportedModel, match="DIFFERS"):
            model.read(IDS)


# -- at read time ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_tail_that_goes_wrong_after_loading_is_refused_when_it_is_read(dtype):
    model = logitlens.load(tiny_llama().to(dtype))
    model.read(IDS)
    weight_VE = model.tail.head.weight_VE.clone()
    weight_VE[int(model.read(IDS).top_ids[-1, -1, 0])] *= 1.01
    model.tail = dataclasses.replace(
        model.tail, head=dataclasses.replace(model.tail.head, weight_VE=weight_VE)
    )
    with pytest.raises(UnsupportedModel, match="DIFFERS from the model's own logits"):
        model.read(IDS)


def test_norms_are_measured_once_and_again_when_the_weights_change():
    model = logitlens.load(tiny_llama())
    head = model.tail.head
    first_V = norms(head)
    assert torch.allclose(first_V, head.weight_VE.norm(dim=1))
    assert norms(head) is first_V
    with torch.no_grad():
        head.weight_VE.mul_(2)
    assert torch.allclose(norms(head), 2 * first_V)
    with torch.inference_mode():
        frozen = Head(3, torch.ones(3, 4))
    assert norms(frozen).tolist() == [2.0, 2.0, 2.0]


# -- two passes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_encoder_is_told_from_a_decoder_in_every_dtype(dtype):
    encoder = build("BertLMHeadModel", dtype=dtype, is_decoder=False)
    with pytest.raises(UnsupportedModel, match="not causal"):
        logitlens.load(encoder)
    assert loaded("BertLMHeadModel", dtype).check.ok


def test_the_distance_of_two_passes_is_in_units_of_rounding():
    z_PV = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    assert distance(z_PV, z_PV, torch.float32) == (0.0, 0.0)
    for dtype, unit in ((torch.bfloat16, 2**-8), (torch.float32, checking.PASS)):
        apart = distance(z_PV, z_PV * (1 + 3 * unit), dtype)
        assert apart.rounding == pytest.approx(3, rel=0.1)
    forbidden_PV = z_PV.masked_fill(torch.arange(50) > 40, -torch.inf)
    assert distance(forbidden_PV, forbidden_PV, torch.float32) == (0.0, 0.0)
    assert not distance(forbidden_PV, z_PV, torch.float32).rounding <= 1e6


# -- words ----------------------------------------------------------------------------------------


def test_a_check_is_said_in_the_sentence_of_every_view():
    check = Check(1.2e-6, 3.1e-5, 22, True, "float32", worst=0.04)
    assert check.line() == (
        "last row checked against the model's own logits: within 1.2e-06 nats at 22 positions"
    )
    off = dataclasses.replace(check, worst=12.3)
    assert off.line() == (
        "last row DIFFERS from the model's own logits by 1.2e-06 nats at 22 positions, a logit by 12 "
        "times what rounding may cost; do not trust this reading"
    )
    assert check_sentence(off.to_meta()) == (False, off.to_meta()["line"])
    old = {"ok": False, "max_abs_diff": 0.5, "tolerance": 1e-4, "positions": 1}
    assert "by 5.0e-01 nats (bound 1.0e-04);" in check_sentence(old)[1]


def test_a_difference_of_what_is_shown_counts_against_the_bound():
    check = Check(0.0, 2e-5, 1, True, "float32")
    assert check.widened(1e-5).ok
    assert not check.widened(4e-5).ok
    assert not check.widened(float("nan")).ok
    assert not check.widened(float("nan")).widened(1e-6).ok
    assert Check(0.0, 0.0, 1, True, "float32").widened(0.0).ok


# -- every class, scale, dtype, order and processor -----------------------------------------------

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("processor", ["this one", *RESTRICTED])
def test_of_many_classes_nothing_right_is_refused_and_nothing_wrong_passes(processor):
    """A sixth of the classes and half of the scales; docs/reliability.py counts all of them."""
    command = [sys.executable, "-m", "tests.anatomy.rounding", *rounding.FEW]
    # Two threads that wait without spinning, where another test runs beside this one.
    threads = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
    environment = os.environ | RESTRICTED.get(processor, {}) | threads
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    assert sum(c["tried"] for what, c in counts.items() if what.startswith("right")) > 1000
    assert {what: c["odd"] for what, c in counts.items() if c["odd"]} == {}
    for what, c in counts.items():
        wrong = not what.startswith(("right", "loaded"))
        assert c["passed"] == (0 if wrong else c["tried"]), what
