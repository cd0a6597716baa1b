"""Attribution: parts that sum to the model's own logit, exactly, or are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import logitlens
from logitlens import PromptError, Reading, UnsupportedModel, edit
from logitlens.cli.read import read_all
from logitlens.model import attribute as attributing
from logitlens.view import page
from tests.architectures.build import build
from tests.models import tiny_gpt2, tiny_llama, tiny_tokenizer

IDS = [5, 1, 17, 33, 3, 42, 9, 8, 7]
FAMILIES = [
    "GPT2LMHeadModel",
    "LlamaForCausalLM",
    "Gemma2ForCausalLM",  # softcap; norms after the sublayers
    "CohereForCausalLM",  # scaled logits, parallel blocks
    "GraniteForCausalLM",  # multipliers everywhere
    "GPTJForCausalLM",  # a biased head
    "MixtralForCausalLM",
    "MambaForCausalLM",
]


@pytest.fixture(scope="module")
def gpt2():
    return logitlens.load(tiny_gpt2(), tokenizer=tiny_tokenizer())


@pytest.mark.parametrize("name", FAMILIES)
def test_parts_sum_to_the_models_own_logit(name):
    hf = build(name)
    model = logitlens.load(hf)
    with torch.no_grad():
        own_V = hf(input_ids=torch.tensor([IDS])).logits[0, -1].double()
    for by in ("sublayer", "layer"):
        found = model.attribute(IDS, 7, versus=3, by=by)
        finished = found.token_parts.sum(), found.versus_parts.sum()
        cap = model.tail.head.softcap
        if cap:
            finished = tuple(np.tanh(np.array(finished) / cap) * cap)
            assert found.meta["slopes"][0] == pytest.approx(1 - (finished[0] / cap) ** 2)
        assert finished[0] == pytest.approx(float(own_V[7]), abs=1e-4)
        assert finished[0] - finished[1] == pytest.approx(float(own_V[7] - own_V[3]), abs=1e-4)
        assert found.logit == pytest.approx(float(own_V[7] - own_V[3]), abs=1e-5)
        assert abs(found.difference) <= found.meta["bound"] < 2e-4


def test_a_part_is_what_removing_the_component_takes_away(gpt2):
    """By brute force, in float64: the norm's statistics held, one component left out."""
    hf = gpt2.hf
    with torch.no_grad():
        out = hf(torch.tensor([IDS]))
    (final,) = gpt2.capture(IDS, layers=-1).h
    h_D = final[-1].double()
    added = {
        stream: gpt2.capture(IDS, stream=stream).h[:-1] for stream in ("attn", "mlp")
    }  # of three blocks
    weights = {name: p.detach().double() for name, p in hf.named_parameters()}
    w_E, gain_D = weights["lm_head.weight"][7], weights["transformer.ln_f.weight"]
    bias_D = weights["transformer.ln_f.bias"]
    deviation = (h_D.var(unbiased=False) + hf.transformer.ln_f.eps).sqrt()

    def logit(x_D):
        return float(w_E @ ((x_D - x_D.mean()) / deviation * gain_D + bias_D))

    assert logit(h_D) == pytest.approx(float(out.logits[0, -1, 7]), abs=1e-4)
    found = gpt2.attribute(IDS, 7)
    for stream, rows in added.items():
        for block, h_TD in enumerate(rows):
            without = logit(h_D - h_TD[-1].double())
            assert found.part(f"{block}.{stream}") == pytest.approx(logit(h_D) - without, abs=1e-4)
    wte = weights["transformer.wte.weight"][IDS[-1]]
    wpe = weights["transformer.wpe.weight"][len(IDS) - 1]
    for name, row_D in (("embed.wte", wte), ("embed.wpe", wpe)):
        assert found.part(name) == pytest.approx(logit(h_D) - logit(h_D - row_D), abs=1e-4)
    assert found.part("ln_f bias") == pytest.approx(float(w_E @ bias_D), abs=1e-6)


def test_what_a_layer_did_is_what_its_sublayers_did(gpt2):
    fine, coarse = gpt2.attribute(IDS, 7, versus=3), gpt2.attribute(IDS, 7, versus=3, by="layer")
    assert coarse.components == ["embed.wte", "embed.wpe", "0", "1", "2", "ln_f bias"]
    for block in "012":
        both = fine.part(f"{block}.attn") + fine.part(f"{block}.mlp")
        assert coarse.part(block) == pytest.approx(both, abs=1e-4)


def test_without_a_token_it_is_what_the_model_says_there(gpt2):
    reading = gpt2.read(IDS, top=1)
    for position in (-1, 2):
        found = gpt2.attribute(IDS, position=position)
        assert found.token == reading.top_ids[-1, position, 0]
        assert found.meta["position"] == position % len(IDS)


def test_half_precision_is_judged_by_its_own_roundings():
    model = logitlens.load(tiny_llama().to(torch.bfloat16))
    found = model.attribute(IDS, 7, versus=3)
    assert abs(found.difference) <= found.meta["bound"] < abs(found.logit) + 5


def test_a_form_that_is_not_the_models_is_refused(gpt2, monkeypatch):
    """Sabotage: the norm's bias forgotten, its mean not removed, its gain taken for 1."""
    real = attributing.pull_back

    def forgetful(*args):
        pulled = real(*args)
        pulled.constants.clear()
        return pulled

    def tilted(*args):
        pulled = real(*args)
        pulled.u_RD.add_(0.01)
        return pulled

    for wrong in (forgetful, tilted):
        monkeypatch.setattr(attributing, "pull_back", wrong)
        with pytest.raises(UnsupportedModel, match="the parts sum to .* model's own logit is"):
            gpt2.attribute(IDS, 7)


def test_where_sublayers_do_not_sum_the_reason_is_given_and_layers_may():
    model = logitlens.load(build("BartForCausalLM"))
    with pytest.raises(UnsupportedModel, match="do not sum to what it does; try by='layer'"):
        model.attribute(IDS, 7)
    found = model.attribute(IDS, 7, by="layer")
    assert abs(found.difference) < 1e-4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"token": "tower of"}, "tokens"),
        ({"versus": " Paris"}, "is the token itself"),
        ({"token": 9999}, "token id 9999 is outside the vocabulary"),
        ({"position": 44}, "no position 44: expected 0 to"),
        ({"position": "0:2"}, "expected one position, got 2"),
        ({"by": "neuron"}, "by='neuron': expected one of sublayer"),
    ],
)
def test_mistakes_are_one_line(gpt2, options, said):
    with pytest.raises(PromptError, match=said) as caught:
        gpt2.attribute("The tower", **{"token": " Paris", **options})
    assert "\n" not in str(caught.value)


def test_a_reading_keeps_who_wrote_a_token_in_every_file_of_it(gpt2, tmp_path):
    reading = gpt2.read("The tower of Paris")
    last = reading.positions[-1]
    first, again = gpt2.attribute("The tower of Paris"), gpt2.attribute("The tower of Paris", 7)
    (readings,) = read_all(
        gpt2, ["The tower of Paris"], lenses=["logit"], top=3, track=[], attribute="-1"
    )
    kept = again.added_to(first.added_to(first.added_to(reading)))
    assert [(a["position"], a["id"]) for a in kept.meta["attributions"]] == [
        (last, first.token), (last, 7),
    ]  # fmt: skip
    assert kept.meta["attributions"][0] == readings[0].meta["attributions"][0]
    shown = kept.meta["attributions"][1]
    assert shown["parts"] == [[name, part] for name, part in again.largest(12)]
    assert sum(part for _, part in shown["parts"]) + shown["rest"] == pytest.approx(again.sum)
    for suffix in (".json", ".parquet", ".html"):
        back = kept.save(tmp_path / f"kept{suffix}")
        (back,) = page.load(back) if suffix == ".html" else [Reading.load(back)]
        assert back.meta["attributions"] == kept.meta["attributions"]


def test_of_a_prompt_that_is_cut_it_is_kept_too(gpt2):
    long = " ".join(["The tower of Paris"] * 20)
    (readings,) = read_all(
        gpt2, [long], lenses=["logit"], top=3, track=[], attribute="-1", truncate=True
    )
    assert readings[0].meta["truncated"]
    (kept,) = readings[0].meta["attributions"]
    assert kept["position"] == readings[0].positions[-1]
    assert kept["id"] == readings[0].top_ids[-1, -1, 0]


def test_an_attribution_of_something_else_is_not_kept(gpt2):
    found = gpt2.attribute("The tower of Paris", 7, position=2)
    for reading, said in [
        (gpt2.read("The tower of Paris", positions=0), "does not have position 2"),
        (gpt2.read("A tower of Paris"), "is of another prompt"),
        (gpt2.read("The tower of Paris", edits=edit.ablate(1, "mlp")), "of other edits"),
    ]:
        with pytest.raises(PromptError, match=said):
            found.added_to(reading)


def test_nothing_remains_on_the_model(gpt2):
    def hooks():
        return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in gpt2.hf.modules()]

    before = hooks()
    gpt2.attribute(IDS, 7)
    with pytest.raises(PromptError):
        gpt2.attribute(IDS, 7, versus=7)
    assert hooks() == before
