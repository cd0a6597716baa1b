"""The head, and what the model does to its output: scale, softcap, final bias.

What follows the head is measured: for one forward pass the head's output is replaced by chosen
numbers (zeros, ones, something huge), and the logits that come out show the function. Numbers in
the configuration only round a measured constant to the exact one; no name is trusted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from logitlens.anatomy.final_norm import Step
from logitlens.anatomy.forward import as_found, embeddings, logits
from logitlens.anatomy.probe import Observation
from logitlens.anatomy.watch import Call, Rows, hooked, leaf, replace_leaf, same
from logitlens.readout.head import Head

HUGE = 3e4  # far beyond any softcap, still finite in float16


@dataclass(frozen=True, eq=False)
class HeadCall:
    """A call that may be the head's: what it received, and the rows of the vocabulary it returned."""

    call: Call
    x: Rows
    raw: Rows


def head_calls(seen: Observation, after: int) -> list[HeadCall]:
    """Calls after event `after` that may be the head, likeliest first.

    Likeliest: one with weights, then the one the model declares, then the innermost and last.
    """
    declared = embeddings(seen.model, "output")
    found = []
    for call in seen.calls:
        wide = [rows for rows in call.outputs if rows.h_BTD.shape[-1] >= seen.vocab]
        if call.start >= after and call.inputs and wide:
            found.append(HeadCall(call, call.inputs[0], wide[0]))

    def likely(head: HeadCall) -> tuple[bool, bool]:
        module = head.call.module
        return _readable(getattr(module, "weight", None)), module is declared

    return sorted(found, key=likely)[::-1]


def find_head(seen: Observation, found: HeadCall) -> tuple[Head, str] | None:
    """The head for kernels, and how it is read: by its "weights", or by calling its "module".

    None where the logits are no function of each number the call returned.
    """
    finish = _find_finish(seen, found)
    if finish is None:
        return None
    vocab, module = seen.vocab, found.call.module
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if _readable(weight) and (bias is None or _readable(bias)) and _is_linear(found, weight, bias):
        bias_V = None if bias is None else bias.detach()[:vocab]
        return replace(finish, weight_VE=weight.detach()[:vocab], bias_V=bias_V), "weights"
    return replace(finish, call=_calling(seen.model, found, vocab)), "module"


def _calling(model: nn.Module, found: HeadCall, vocab: int) -> Callable[[Tensor], Tensor]:
    """Rows (N, E) → (N, V) by the head module itself."""
    step = Step.of(found.call, found.x, found.raw)

    def call(x_NE: Tensor) -> Tensor:
        # Only who asks for a gradient at the rows (fitting a lens) gets one.
        wanted = x_NE.requires_grad and torch.is_grad_enabled()
        with as_found(model), torch.set_grad_enabled(wanted):
            return step(x_NE)[:, :vocab]

    return call


def _readable(weight: Any) -> TypeGuard[Tensor]:
    """A plain tensor in memory: not quantised, not sharded, not on the meta device."""
    plain = type(weight) in (Tensor, nn.Parameter)
    return plain and weight.is_floating_point() and weight.device.type != "meta"


@torch.no_grad()
def _is_linear(found: HeadCall, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether a module is the product with its weight, plus its bias, and nothing more.

    Whatever else it holds (an adapter, a prior) and its hooks may do nothing today and much
    tomorrow, so equal numbers alone do not decide.
    """
    module, x, raw = found.call.module, found.x.tensor, found.raw.tensor
    state = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
    more = state - {"weight", "bias"} or module._modules
    if more or module._forward_hooks or module._forward_pre_hooks:
        return False
    try:
        product = nn.functional.linear(x.to(weight.device), weight, bias)
    except RuntimeError:  # of other shapes or dtypes than the module makes of them
        return False
    return same(product, raw.to(product.device))


def _find_finish(seen: Observation, found: HeadCall) -> Head | None:
    """A head without weights: what happens between the call's output and the logits."""
    vocab, raw = seen.vocab, found.raw
    if same(raw.h_BTD[..., :vocab].float(), seen.logits_BTV.float().to(raw.h_BTD.device)):
        return Head(vocab)
    asked_BTV = _questions(raw.h_BTD)

    def substitute(module: nn.Module, args: Any, output: Any) -> Any:
        old = leaf(output, raw.slot)
        return replace_leaf(output, raw.slot, raw.axes.carried(asked_BTV).to(old.device))

    answer = logits(seen.model, seen.ids_BT, hooked(after=[(found.call.module, substitute)]))
    asked_NV = asked_BTV.flatten(0, 1)[:, :vocab].double().cpu()
    head = _fit(seen.model, asked_NV, answer.flatten(0, 1).double().cpu(), answer.dtype)
    if head is None or head.final_bias_V is None:
        return head
    return replace(head, final_bias_V=head.final_bias_V.to(raw.h_BTD.device))


def _questions(raw_BTV: Tensor) -> Tensor:
    """Rows 0 … 2: zeros, ones, something huge; the rest as observed, twice as large."""
    asked_BTV = raw_BTV.float() * 2
    rows = asked_BTV.view(-1, asked_BTV.shape[-1])
    rows[0], rows[1], rows[2] = 0.0, 1.0, HUGE
    return asked_BTV


def _fit(model: nn.Module, asked_NV: Tensor, answer_NV: Tensor, dtype: torch.dtype) -> Head | None:
    """Scale, softcap and bias from the answers, tested on the remaining rows; or None."""
    zero_V = answer_NV[0]
    bias_V = zero_V if bool((zero_V != 0).any()) else None
    plain = zero_V > -1e30  # a column at the dtype's minimum is one the model forbids
    if not bool(plain.any()):
        return None
    top = float((answer_NV[2] - zero_V)[plain].median())
    one = float((answer_NV[1] - zero_V)[plain].median())
    if not (math.isfinite(top) and math.isfinite(one)) or one == 0 or top == 0:
        return None
    coarse = max(torch.finfo(dtype).eps, 1e-6)
    if abs(top / HUGE - one) <= 64 * coarse * abs(one):
        scale, softcap = snap(model, top / HUGE, 4 * coarse), None
    else:
        softcap = snap(model, abs(top), 4 * coarse)
        inside = min(max(one / softcap, -1 + 1e-12), 1 - 1e-12)
        scale = snap(model, softcap * math.atanh(inside), 64 * coarse)
    final_bias_V = None if bias_V is None else bias_V.float()
    expected_NV = asked_NV * scale
    if softcap is not None:
        expected_NV = torch.tanh(expected_NV / softcap) * softcap
    if bias_V is not None:
        expected_NV = expected_NV + bias_V
    error = (expected_NV - answer_NV)[:, plain].abs().amax(0)
    allowed = 32 * coarse * (answer_NV[:, plain].abs().amax(0) + 1.0)
    if not bool((error <= allowed).all()):
        return None
    return Head(asked_NV.shape[-1], scale=scale, softcap=softcap, final_bias_V=final_bias_V)


def snap(model: nn.Module, value: float, tolerance: float) -> float:
    """The configuration's number (or its inverse or root) nearest a measured constant, if near."""
    best, distance = value, tolerance * abs(value)
    for number in (1.0, *numbers(model)):
        for candidate in (number, 1 / number, math.sqrt(number), 1 / math.sqrt(number)):
            if abs(candidate - value) < distance:
                best, distance = candidate, abs(candidate - value)
    return best


def numbers(model: nn.Module) -> list[float]:
    """Every positive number in the configuration, whatever its name."""
    config: Any = getattr(model, "config", None)
    if config is None:
        return []
    if hasattr(config, "get_text_config"):
        config = config.get_text_config(decoder=True)
    # vars, not getattr: some configurations raise for an attribute that differs between layers.
    found = {
        float(v)
        for v in vars(config).values()
        if isinstance(v, (int, float)) and not isinstance(v, bool)
    }
    return sorted(v for v in found if v > 0 and math.isfinite(v))
