"""Tails to judge the check by: those of tiny models at any scale of their logits, and wrong ones."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import logitlens
from logitlens.anatomy.check import UNIT, UNIT32, Check, compare
from logitlens.anatomy.tail import Tail
from logitlens.model.capture import capture
from tests.architectures.build import VOCAB, build, quiet

POSITIONS = 16


@dataclass(frozen=True, eq=False)
class Seen:
    """What a model made of a prompt: P residual rows and its own logits of them."""

    lens: Any
    h_PD: Tensor
    logits_PV: Tensor

    @property
    def tail(self) -> Tail:
        return self.lens.tail

    def check(self, tail: Tail, rows: slice = slice(None)) -> Check:
        """The check of a tail on some of the rows, as loading and reading make it."""
        h_PD = self.h_PD[rows]
        return compare(self.logits_PV[rows], tail.logits(h_PD), tail, h_PD)


def loaded(name: str, dtype: torch.dtype) -> Any:
    with quiet():
        return logitlens.load(build(name, dtype=dtype))


@torch.no_grad()
def at_scale(lens: Any, deviation: float) -> Seen:
    """The same model with a head so large that its own output has this standard deviation, beside its bias."""
    weight = lens.hf.get_output_embeddings().weight
    original, factor = weight.clone(), 1.0
    weight.zero_()
    bias_PV = _seen(lens).logits_PV
    weight.copy_(original)
    for target in (0.1, 0.1, deviation):  # measured where no softcap acts
        factor *= target / float((_seen(lens).logits_PV - bias_PV).std())
        weight.copy_(original * factor)
    return _seen(lens)


def _seen(lens: Any) -> Seen:
    ids = torch.randint(3, VOCAB, (POSITIONS,), generator=torch.Generator().manual_seed(1))
    (residuals,) = capture(lens, [ids.tolist()], check="all")
    return Seen(lens, residuals.h[-1], residuals.final_logits)


def in_another_order(tail: Tail, seed: int = 0) -> Tail:
    """The same tail, its sums of E terms taken in another order."""
    weight_VE = tail.head.weight_VE
    if weight_VE is None:
        return tail
    order = torch.randperm(weight_VE.shape[1], generator=torch.Generator().manual_seed(seed))
    head = dataclasses.replace(tail.head, weight_VE=weight_VE[:, order].contiguous())
    return dataclasses.replace(tail, head=head, steps=[*tail.steps, lambda x_NE: x_NE[:, order]])


def wrong(seen: Seen) -> Iterator[tuple[str, Tail]]:
    """Every way to spoil a tail that this model's tail has a place for."""
    tail, head = seen.tail, seen.tail.head

    def with_head(**values: Any) -> Tail:
        return dataclasses.replace(tail, head=dataclasses.replace(head, **values))

    yield "scale off by 1 %", with_head(scale=head.scale * 1.01)
    if head.softcap is not None:
        yield "no softcap", with_head(softcap=None)
    if head.bias_V is not None:
        yield "no bias", with_head(bias_V=None)
    if head.final_bias_V is not None:
        yield "no final bias", with_head(final_bias_V=None)
    if tail.steps and (other := _of_another_layer(seen.lens.hf, tail.steps[0].module)):
        steps = [dataclasses.replace(tail.steps[0], module=other), *tail.steps[1:]]
        yield "norm of another layer", dataclasses.replace(tail, steps=steps)
    tokens = {int(seen.logits_PV[-1].argmax()), 5, VOCAB // 2}
    for token in sorted(tokens):
        other = with_head(**_column(head, token))
        if _shows(seen, other, token):
            yield "one column off by 1 %", other


def _of_another_layer(model: Any, norm: Any) -> Any:
    """A copy of the norm with the weights of another of its kind, or None where there is none."""
    for module in model.modules():
        same = type(module) is type(norm) and module is not norm
        weight = getattr(module, "weight", None)
        if same and weight is not None and weight.shape == norm.weight.shape:
            other = copy.deepcopy(norm)
            other.load_state_dict(module.state_dict())
            return other
    return None


def _column(head: Any, token: int) -> dict[str, Any]:
    """The head with one token's weights (or what a called head returns for it) 1 % larger."""
    if head.weight_VE is not None:
        weight_VE = head.weight_VE.clone()
        weight_VE[token] *= 1.01
        return {"weight_VE": weight_VE}

    def call(x_NE: Tensor) -> Tensor:
        z_NV = head.call(x_NE).clone()
        z_NV[:, token] *= 1.01
        return z_NV

    return {"call": call}


def _shows(seen: Seen, tail: Tail, token: int) -> bool:
    """Whether the model's own dtype tells the two tails apart at any position: the flat part of a
    softcap hides what is wrong before it, and 1 % of next to nothing is nothing."""
    ours_PV, theirs_PV = (t.logits(seen.h_PD) for t in (seen.tail, tail))
    raw_PV = seen.tail.head.raw(seen.tail.head_input(seen.h_PD))
    unit = UNIT.get(seen.lens.dtype, 64 * UNIT32)
    seen_P = (ours_PV - theirs_PV)[:, token].abs() > 2 * unit * ours_PV[:, token].abs()
    return bool((seen_P & (raw_PV[:, token].abs() > 0.1 * raw_PV.std(-1))).any())
