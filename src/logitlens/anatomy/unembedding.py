"""The head, and what the model does to its output: scale, softcap, final bias.

The function after the head is found by asking: the head's output is replaced, for one forward
pass, by chosen numbers (zeros, ones, something huge) and the logits that come out are its answer.
Configuration values only round a measured constant to the exact one; no name is trusted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from logitlens.anatomy.blocks import Observation, same
from logitlens.anatomy.final_norm import device_of, rows_of
from logitlens.anatomy.forward import as_found, embeddings, forward, logits_of
from logitlens.anatomy.watch import Call, leaf, replace_leaf
from logitlens.readout.head import Head

HUGE = 3e4  # far beyond any softcap, still finite in float16


@dataclass(frozen=True, eq=False)
class Finish:
    """logits = softcap · tanh(raw · scale / softcap) + bias, as in `readout.head.Head`."""

    scale: float = 1.0
    softcap: float | None = None
    bias_V: Tensor | None = None

    def __call__(self, raw: Tensor) -> Tensor:
        return Head(0, scale=self.scale, softcap=self.softcap, final_bias_V=self.bias_V).finish(raw)


def head_calls(model: Any, seen: Observation, after: int) -> Iterator[Call]:
    """Calls that may be the head, likeliest first, with one row of the vocabulary a position.

    Likeliest: one with weights, then the one the model declares, then the innermost and last.
    """
    batch, positions, vocab = seen.logits_BTV.shape
    declared = embeddings(model, "output")
    fitting = []
    for call in seen.calls:
        if call.start < after or not call.inputs:
            continue
        outs = [rows_of(t, batch, positions) for _, t in call.outputs]
        ins = [rows_of(t, batch, positions) for _, t in call.inputs]
        if any(o and o[1].shape[-1] >= vocab for o in outs) and any(ins):
            fitting.append(call)
    fitting.sort(key=lambda c: (_readable(getattr(c.module, "weight", None)), c.module is declared))
    yield from reversed(fitting)


def find_finish(model: nn.Module, seen: Observation, call: Call) -> Finish | None:
    """What happens between the call's output and the logits; None if it is no such function."""
    batch, positions, vocab = seen.logits_BTV.shape
    slot, out = next((s, t) for s, t in call.outputs if t.shape[-1] >= vocab)
    found = rows_of(out, batch, positions)
    if found is None:
        return None
    axes, raw_BTV = found
    if raw_BTV.shape[-1] >= vocab and same(
        raw_BTV[..., :vocab].float(), seen.logits_BTV.float().to(raw_BTV.device)
    ):
        return Finish()
    asked_BTV = _questions(raw_BTV)

    def substitute(module: nn.Module, args: Any, output: Any) -> Any:
        old = leaf(output, slot)
        return replace_leaf(output, slot, axes.stream(asked_BTV).to(old.device))

    handle = call.module.register_forward_hook(substitute)
    try:
        with as_found(model):
            answer = logits_of(forward(model, seen.ids_BT, **seen.extra)).detach()
    finally:
        handle.remove()
    asked_NV = asked_BTV.flatten(0, 1)[:, :vocab].double().cpu()
    answer_NV = answer.flatten(0, 1).double().cpu()
    finish = _fit(model, asked_NV, answer_NV, answer.dtype)
    if finish is None or finish.bias_V is None:
        return finish
    return Finish(finish.scale, finish.softcap, finish.bias_V.to(raw_BTV.device))


def _questions(raw_BTV: Tensor) -> Tensor:
    """Rows 0 … 2: nothing, ones, something huge; the rest as observed, twice as large."""
    asked_BTV = raw_BTV.float() * 2
    rows = asked_BTV.view(-1, asked_BTV.shape[-1])
    rows[0], rows[1], rows[2] = 0.0, 1.0, HUGE
    return asked_BTV


def _fit(model: nn.Module, asked_NV: Tensor, answer_NV: Tensor, dtype: torch.dtype):
    """Scale, softcap and bias from the answers, proven on the remaining rows; or None."""
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
    finish = Finish(scale, softcap, None if bias_V is None else bias_V.float())
    expected_NV = asked_NV * scale
    if softcap is not None:
        expected_NV = torch.tanh(expected_NV / softcap) * softcap
    if bias_V is not None:
        expected_NV = expected_NV + bias_V
    error = (expected_NV - answer_NV)[:, plain].abs().amax(0)
    allowed = 32 * coarse * (answer_NV[:, plain].abs().amax(0) + 1.0)
    return finish if bool((error <= allowed).all()) else None


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


def make_head(seen: Observation, call: Call, finish: Finish) -> tuple[Head, str]:
    """The head for kernels: its weights where they may be read and prove right, else the module."""
    batch, positions, vocab = seen.logits_BTV.shape
    slot_out = next(s for s, t in call.outputs if t.shape[-1] >= vocab)
    x_NE, raw_NV = head_rows(seen, call)
    after = {"scale": finish.scale, "softcap": finish.softcap, "final_bias_V": finish.bias_V}
    weight, bias = getattr(call.module, "weight", None), getattr(call.module, "bias", None)
    if _readable(weight) and weight.dim() == 2 and weight.shape[1] == x_NE.shape[-1]:
        bias = bias.detach()[:vocab] if _readable(bias) and bias.dim() == 1 else None
        head = Head(vocab, weight.detach()[:vocab], bias, **after)
        if weight.shape[0] >= vocab and _agrees(head.raw(x_NE), raw_NV[:, :vocab]):
            return head, "weights"
    return Head(vocab, call=_caller(call, slot_out, vocab, batch, positions), **after), "module"


def head_rows(seen: Observation, call: Call) -> tuple[Tensor, Tensor]:
    """What the head received and returned in the watched pass: (B·T, E) and (B·T, V or more)."""
    batch, positions, vocab = seen.logits_BTV.shape
    x = next(f for _, t in call.inputs if (f := rows_of(t, batch, positions)))
    out = next(t for _, t in call.outputs if t.shape[-1] >= vocab)
    raw = rows_of(out, batch, positions)
    assert raw is not None, "head_calls admits only calls with one output row a position"
    return x[1].flatten(0, 1), raw[1].flatten(0, 1)


def _readable(weight: Any) -> TypeGuard[Tensor]:
    """A plain tensor in memory: not quantised, not sharded, not on the meta device."""
    plain = type(weight) in (Tensor, nn.Parameter)
    return plain and weight.is_floating_point() and weight.device.type != "meta"


def _agrees(ours_NV: Tensor, raw_NV: Tensor) -> bool:
    coarse = max(torch.finfo(raw_NV.dtype).eps, 1e-6)
    error = (ours_NV - raw_NV.float().to(ours_NV.device)).abs().max()
    return bool(error <= 16 * coarse * (raw_NV.float().abs().max() + 1))


def _caller(call: Call, slot_out: Any, vocab: int, batch: int, positions: int):
    slot_in, given = next((s, t) for s, t in call.inputs if rows_of(t, batch, positions))
    found = rows_of(given, batch, positions)
    out = rows_of(dict(call.outputs)[slot_out], batch, positions)
    assert found is not None
    assert out is not None
    axes_in, axes_out, dtype = found[0], out[0], given.dtype

    def rows(x_NE: Tensor) -> Tensor:
        """Rows (N, E) through the head module itself → (N, V)."""
        place = device_of(call.module) or x_NE.device
        stream = axes_in.stream(x_NE.to(dtype).to(place)[None])
        args, kwargs = call.args, call.kwargs
        if slot_in[0] == "args":
            args = replace_leaf(args, slot_in[1:], stream)
        else:
            kwargs = replace_leaf(kwargs, slot_in[1:], stream)
        # Only who asks for a gradient at the rows (fitting a lens) gets one.
        with torch.set_grad_enabled(x_NE.requires_grad and torch.is_grad_enabled()):
            y = leaf(call.module(*args, **kwargs), slot_out)
        return axes_out.rows(y, 1)[0][:, :vocab]

    return rows
