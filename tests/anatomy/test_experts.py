"""Experts are found without names: what each adds equals its own weights by hand."""

from __future__ import annotations

import pytest
import torch

import logitlens
from logitlens import UnsupportedModel
from logitlens.anatomy.experts import Routed
from tests.anatomy.test_sublayers import loud

IDS = [5, 1, 17, 33, 3, 42, 9, 8, 7]


def by_hand(hf, block, position):
    """(contribution of each chosen expert (K, D), their numbers, weights) from the module's weights."""
    experts, seen = hf.get_submodule(f"model.layers.{block}.mlp.experts"), {}
    handle = experts.register_forward_pre_hook(lambda m, args: seen.update(args=args))
    with torch.no_grad():
        hf(input_ids=torch.tensor([IDS]))
    handle.remove()
    x, index, weight = (
        t[position].double() if t.is_floating_point() else t[position] for t in seen["args"]
    )
    out = []
    for expert, w in zip(index.tolist(), weight.tolist()):
        gate, up = (experts.gate_up_proj[expert].detach().double() @ x).chunk(2)
        hidden = torch.nn.functional.silu(gate) * up
        out.append(w * (experts.down_proj[expert].detach().double() @ hidden))
    return torch.stack(out), index.tolist(), weight.tolist()


@pytest.mark.parametrize(
    "name",
    [
        "MixtralForCausalLM",
        "Qwen2MoeForCausalLM",  # a shared expert, times a gate of the row
        "GraniteMoeSharedForCausalLM",  # and both times a factor
        pytest.param(
            "DeepseekV3ForCausalLM", marks=pytest.mark.slow
        ),  # first blocks without experts
        pytest.param("OlmoeForCausalLM", marks=pytest.mark.slow),
        pytest.param("GptOssForCausalLM", marks=pytest.mark.slow),  # biases of experts
    ],
)
def test_experts_and_what_is_shared_are_the_mlp(name):
    hf = loud(name)
    model = logitlens.load(hf)
    coarse, fine = model.attribute(IDS, 7, versus=3), model.attribute(IDS, 7, versus=3, by="expert")
    assert abs(fine.difference) <= fine.meta["bound"]
    assert set(fine.meta["router"]) == {c for c in fine.components if ".expert" in c}
    for block in range(model.n_blocks):
        names = [c for c in fine.components if c.startswith((f"{block}.expert", f"{block}.shared"))]
        names = names or [f"{block}.mlp"]
        total = sum(fine.part(n) for n in names)
        assert total == pytest.approx(coarse.part(f"{block}.mlp"), abs=2e-3)
    assert any(c.endswith(".shared") for c in fine.components) == (
        name in ("Qwen2MoeForCausalLM", "DeepseekV3ForCausalLM", "GraniteMoeSharedForCausalLM")
    )


@pytest.mark.parametrize("name", ["MixtralForCausalLM", "Qwen2MoeForCausalLM"])
def test_each_expert_is_the_product_of_its_own_weights(name):
    hf = loud(name)
    model = logitlens.load(hf)
    out_KD, numbers, weights = by_hand(hf, 1, len(IDS) - 1)
    found = model.attribute(IDS, 7, by="expert")
    gain_D = hf.model.norm.weight.detach().double()
    h_D = model.capture(IDS, layers=-1).h[-1][-1].double()
    norm = (h_D.square().mean() + hf.config.rms_norm_eps).rsqrt()
    u_D = hf.lm_head.weight[7].detach().double() * gain_D * norm
    for number, weight, row_D in zip(numbers, weights, out_KD):
        assert found.part(f"1.expert{number}") == pytest.approx(float(u_D @ row_D), abs=1e-4)
        assert found.meta["router"][f"1.expert{number}"] == pytest.approx(weight, abs=1e-6)
    assert f"1.expert{numbers[0]} ×{weights[0]:.2f}" in str(found)


def test_experts_that_do_not_sum_are_refused(monkeypatch):
    model = logitlens.load(loud("MixtralForCausalLM"))
    real = Routed.each
    monkeypatch.setattr(Routed, "each", lambda self: real(self) * torch.tensor([[1.0], [1.01]]))
    with pytest.raises(
        UnsupportedModel, match="the experts of block 0, and one shared expert, do not"
    ):
        model.attribute(IDS, 7, by="expert")


def test_without_experts_the_reason_is_given():
    model = logitlens.load(loud("LlamaForCausalLM"))
    with pytest.raises(
        UnsupportedModel, match=r"no experts that can be told apart: .*by='sublayer'"
    ):
        model.attribute(IDS, 7, by="expert")
