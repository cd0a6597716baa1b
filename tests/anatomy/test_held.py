"""Norms with their statistics held: the form is found by trying, and what is no norm is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import logitlens
from logitlens import UnsupportedModel
from logitlens.anatomy import held
from tests.models import tiny_gpt2, tiny_llama

IDS = [5, 1, 17, 33, 3, 42, 9, 8, 7]


class OnePlus(nn.Module):
    """Gemma's: the gain is 1 + weight."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width))

    def forward(self, x):
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * (1 + self.weight)


def row(model):
    (residuals,) = logitlens.model.capture.capture(model, [IDS])
    return residuals.h[-1][-1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("make", "centred", "biased"),
    [
        (lambda: nn.LayerNorm(32), True, True),
        (lambda: nn.LayerNorm(32, bias=False), True, False),
        (lambda: nn.LayerNorm(32, elementwise_affine=False), True, False),
        (lambda: nn.RMSNorm(32), False, False),
        (lambda: OnePlus(32), False, False),
    ],
    ids=["layernorm", "no-bias", "no-parameters", "rmsnorm", "one-plus"],
)
def test_the_form_of_a_norm_is_found_and_weights_are_pulled_through_it(
    make, centred, biased, dtype
):
    hf = tiny_gpt2()
    torch.manual_seed(3)
    norm = make()
    with torch.no_grad():
        for p in norm.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    hf.transformer.ln_f = norm
    model = logitlens.load(hf.to(dtype))
    h_D = row(model)
    (step,) = model.tail.steps
    form = held.held(step, h_D)
    assert (form.centred, bool(form.bias_E.any())) == (centred, biased)
    w_RE = torch.randn(2, 32, dtype=torch.float64)
    x_E = model.tail.head_input(h_D[None])[0].double()
    ours_R = form.transposed(w_RE) @ h_D.double() + w_RE @ form.bias_E
    allowed = 1e-5 if dtype == torch.float32 else 0.15
    torch.testing.assert_close(ours_R, w_RE @ x_E, atol=allowed, rtol=0)


def test_an_affine_map_is_a_step_like_any_other():
    class Two(nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.norm, self.project = norm, nn.Linear(32, 32)

        def forward(self, x):
            return self.project(self.norm(x))

    hf = tiny_llama()
    hf.model.norm = Two(hf.model.norm)
    model = logitlens.load(hf)
    assert [step.path for step in model.tail.steps] == ["model.norm"]
    with pytest.raises(UnsupportedModel, match="neither a LayerNorm, an RMSNorm nor an affine map"):
        model.attribute(IDS)
    hf.model.norm.norm = nn.Identity()
    found = logitlens.load(hf).attribute(IDS)
    assert abs(found.difference) < 1e-4
    assert "norm bias" in found.components


def test_what_is_neither_is_refused():
    hf = tiny_llama()
    hf.model.norm = nn.Sequential(hf.model.norm, nn.Tanh())
    with pytest.raises(UnsupportedModel, match="neither a LayerNorm"):
        logitlens.load(hf).attribute(IDS)
