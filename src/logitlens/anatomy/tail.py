"""The tail: everything between the last block's output and the logits, found and checked.

Hypotheses come from watching (`final_norm`, `unembedding`) and are tried in order; the first whose
logits equal the model's own is the tail. What does not come apart is read by `replay`, and what
cannot be reproduced is refused with what was found, what differs and by how much.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from logitlens.anatomy.blocks import Anatomy, find_blocks
from logitlens.anatomy.check import Check, compare
from logitlens.anatomy.final_norm import Step, find_steps
from logitlens.anatomy.forward import as_found, interrupted, model_dtype
from logitlens.anatomy.probe import Observation, probe
from logitlens.anatomy.replay import Replay
from logitlens.anatomy.unembedding import HeadCall, find_head, head_calls, snap
from logitlens.anatomy.watch import Call
from logitlens.errors import LogitLensError, UnsupportedModel
from logitlens.readout.head import Head

Lines = list[tuple[str, str]]


@dataclass(frozen=True, eq=False)
class Tail:
    """What follows the last block of `model`.

    kind   "weights"  the head's weights may be read by a kernel
           "module"   the head is called (quantised, offloaded, sharded, adapted, hooked, not linear)
           "replay"   exact slow path: rows are substituted into the model itself
    """

    model: nn.Module
    head: Head
    kind: str
    dtype: torch.dtype
    steps: list[Step] = field(default_factory=list)
    before: float = 1.0
    description: Lines = field(default_factory=list)

    def head_input(self, h_ND: Tensor) -> Tensor:
        """Raw residual rows (N, D) → rows (N, E) as the head receives them.

        The norm's statistics are computed for every row, in the model's dtype. With a gradient
        where the rows ask for one.
        """
        wanted = h_ND.requires_grad and torch.is_grad_enabled()
        x_NE = h_ND.to(self.dtype)
        if self.before != 1.0:
            x_NE = x_NE * self.before
        if not self.steps:
            return x_NE
        with as_found(self.model), torch.set_grad_enabled(wanted):
            for step in self.steps:
                x_NE = step(x_NE)
        return x_NE

    def logits(self, h_ND: Tensor) -> Tensor:
        """Raw residual rows (N, D) → logits (N, V), float32, the naive way."""
        return self.head.logits(self.head_input(h_ND))


def look_at(model: nn.Module, tokenizer: Any = None) -> tuple[Anatomy, Tail, Check]:
    """Anatomy, tail and their check, from one or two forward passes over a probe.

    Raises UnsupportedModel: no blocks, no logits, logits that are not finite, attention that looks
    ahead, or no tail that reproduces the logits.
    """
    seen = probe(model, tokenizer)
    anatomy, last = find_blocks(seen)
    h_BTD = next(out.h_BTD for out in last.outputs if out.slot == anatomy.exits[-1])
    reasons = []
    for tail in hypotheses(seen, anatomy, last, h_BTD):
        try:
            return anatomy, tail, verify(tail, h_BTD, seen.logits_BTV)
        except UnsupportedModel as reason:
            reasons.append(str(reason))
    raise UnsupportedModel(
        f"{type(model).__name__} cannot be read: {'; '.join(dict.fromkeys(reasons))}. Its logits "
        f"need more than what the last of {len(anatomy.blocks)} blocks at {anatomy.blocks_path} "
        "returns for their own position"
    )


def hypotheses(seen: Observation, anatomy: Anatomy, last: Call, h_BTD: Tensor) -> Iterator[Tail]:
    """Tails to try, the fastest first."""
    model, dtype = seen.model, h_BTD.dtype
    after = [call for call in seen.calls if call.start > last.end]
    for found in head_calls(seen, last.end):
        explained = find_steps(found.x.h_BTD, found.call.start, h_BTD, after)
        head = find_head(seen, found) if explained is not None else None
        if explained is not None and head is not None:
            before, steps = _exact(model, *explained)
            lines = _describe(before, steps, found, head[0])
            yield Tail(model, *head, dtype, steps, before, lines)
    lines = [("tail", "the model's own code, replayed on substituted rows (exact, slow)")]
    for skip in (True, False):
        replay = Replay(model, anatomy, seen.ids_BT[0], skip=skip)
        yield Tail(model, Head(seen.vocab, call=replay), "replay", dtype, description=lines)


def _exact(model: nn.Module, before: float, steps: list[Step]) -> tuple[float, list[Step]]:
    """Measured factors, rounded to 1 or to the configuration's numbers where they are that near."""
    near = torch.finfo(model_dtype(model)).eps / 16  # means over all numbers of the probe
    exact = [replace(step, scale=snap(model, step.scale, near)) for step in steps]
    return snap(model, before, near), exact


def _describe(before: float, steps: list[Step], found: HeadCall, head: Head) -> Lines:
    lines = []
    if before != 1.0:
        lines.append(("pre-scale", f"× {before:.6g}"))
    if not steps:
        lines.append(("final norm", "none: the head reads the last block's output"))
    for number, step in enumerate(steps):
        text = f"{step.path} ({type(step.module).__name__})"
        text += "" if step.scale == 1.0 else f", then × {step.scale:.6g}"
        lines.append(("final norm" if number == 0 else "then", text))
    call = found.call
    name = f"{call.path} ({type(call.module).__name__}, vocabulary {head.vocab})"
    lines.append(("head", name + (" with bias" if head.bias_V is not None else "")))
    if head.scale != 1.0:
        lines.append(("scale", f"× {head.scale:.6g}"))
    if head.softcap is not None:
        lines.append(("softcap", f"{head.softcap:.6g}"))
    if head.final_bias_V is not None:
        lines.append(("final bias", f"{int((head.final_bias_V != 0).sum())} columns"))
    return lines


@torch.no_grad()
def verify(tail: Tail, h_BTD: Tensor, logits_BTV: Tensor) -> Check:
    """Check a tail on the probe's rows, shuffled and in two unequal parts: a row's logits may not
    depend on the rows beside it.

    Raises UnsupportedModel naming what was found, what differs and by how much.
    """
    rows_ND, model_NV = h_BTD.flatten(0, 1), logits_BTV.flatten(0, 1)
    shuffle = torch.randperm(
        len(rows_ND), generator=torch.Generator().manual_seed(0), dtype=torch.long, device="cpu"
    )
    found = ", ".join(f"{name} {value}" for name, value in tail.description)
    try:
        shuffled_ND = rows_ND[shuffle.to(rows_ND.device)]
        ours_NV = torch.cat([tail.logits(shuffled_ND[:3]), tail.logits(shuffled_ND[3:])])
    except Exception as error:
        if isinstance(error, LogitLensError) or interrupted(error):
            raise
        text = " ".join(str(error).split())[:200]
        raise UnsupportedModel(f"found {found}: it fails on rows alone ({text})") from error
    check = compare(model_NV[shuffle.to(model_NV.device)], ours_NV, tail, shuffled_ND)
    if not check.ok:
        raise UnsupportedModel(
            f"found {found}: its log-probabilities differ from the model's own by up to "
            f"{check.max_abs_diff:.3g} nats over {check.positions} positions, a logit by "
            f"{check.worst:.3g} times its bound"
        )
    return check
