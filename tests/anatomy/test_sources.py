"""What a head read from each position: attention weight times value times projection, by hand."""

from __future__ import annotations

import pytest
import torch

import logitlens
from logitlens import UnsupportedModel
from logitlens.anatomy.heads import BlockHeads
from tests.anatomy.test_sublayers import loud

IDS = [5, 1, 17, 33, 3, 42, 9, 8, 7]


def eager(name):
    hf = loud(name)
    hf.set_attn_implementation("eager")
    return hf


@pytest.mark.parametrize(
    "name",
    [
        "GPT2LMHeadModel",
        "LlamaForCausalLM",  # grouped queries
        pytest.param("Gemma2ForCausalLM", marks=pytest.mark.slow),  # a norm after the projection
        pytest.param("GPTNeoXForCausalLM", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("position", [-1, 3])
def test_sources_sum_to_the_heads(name, position):
    model = logitlens.load(eager(name))
    options = {"versus": 3, "position": position}
    coarse = model.attribute(IDS, 7, by="head", **options)
    fine = model.attribute(IDS, 7, by="token", **options)
    assert abs(fine.difference) <= fine.meta["bound"]
    last = position % len(IDS)
    for block, heads in enumerate(model.heads.blocks):
        assert isinstance(heads, BlockHeads)
        for head in range(heads.count):
            names = [f"{block}.head{head}@{s}" for s in range(last + 1)]
            assert sum(map(fine.part, names)) == pytest.approx(
                coarse.part(f"{block}.head{head}"), abs=1e-4
            )
    assert f"0.head0@{last + 1}" not in fine.components
    assert "what a head read there, by its attention weight" in str(fine)


def test_a_source_is_its_weight_times_its_value_times_the_projection():
    hf = eager("LlamaForCausalLM")
    model, attention, seen = logitlens.load(hf), hf.model.layers[1].self_attn, {}
    handle = attention.v_proj.register_forward_hook(
        lambda m, a, out: seen.update(v=out[0].detach())
    )
    with torch.no_grad():
        weights = hf(torch.tensor([IDS]), output_attentions=True).attentions[1][0].double()
    handle.remove()
    size, groups = (
        attention.head_dim,
        hf.config.num_attention_heads // hf.config.num_key_value_heads,
    )
    found = model.attribute(IDS, 7, by="token")
    h_D = model.capture(IDS, layers=-1).h[-1][-1].double()
    norm = (h_D.square().mean() + hf.config.rms_norm_eps).rsqrt()
    u_D = hf.lm_head.weight[7].detach().double() * hf.model.norm.weight.detach().double() * norm
    for head in range(hf.config.num_attention_heads):
        columns = slice(head * size, (head + 1) * size)
        own = attention.o_proj.weight[:, columns].detach().double()
        start = head // groups * size
        for source in (0, 4, 8):
            value = seen["v"][source, start : start + size].double()
            part = float(u_D @ own @ value * weights[head, -1, source])
            assert found.part(f"1.head{head}@{source}") == pytest.approx(part, abs=1e-4)


def test_weights_inside_a_kernel_are_refused():
    hf = loud("LlamaForCausalLM")
    hf.set_attn_implementation("sdpa")
    model = logitlens.load(hf)
    with pytest.raises(UnsupportedModel, match=r"not exposed.*implementation='eager' \(--attn"):
        model.attribute(IDS, 7, by="token")
