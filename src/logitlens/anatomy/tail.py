"""The tail: everything between the last block's output and the logits, found and proven.

Hypotheses come from watching (`steps`, `unembed`) and are tried in order; the first whose logits
equal the model's own is the tail. What does not come apart is read by `replay`, and what cannot be
proven is refused with what was found, what differs and by how much.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from logitlens.anatomy.blocks import (
    PROBE_BATCH,
    PROBE_POSITIONS,
    Anatomy,
    Observation,
    find_blocks,
    observe,
)
from logitlens.anatomy.check import Check, compare
from logitlens.anatomy.final_norm import Step, find_steps, rows_of
from logitlens.anatomy.forward import as_found, embeddings, input_device, refusing, unwrap
from logitlens.anatomy.replay import Replay
from logitlens.anatomy.unembedding import Finish, find_finish, head_calls, make_head
from logitlens.anatomy.watch import Call
from logitlens.errors import LogitLensError, UnsupportedModel
from logitlens.readout.head import Head


@dataclass(frozen=True, eq=False)
class Tail:
    """What follows the last block.

    kind   "weights"  the head's weights may be read by a kernel
           "module"   the head can only be called (quantised, offloaded, sharded, not linear)
           "replay"   exact slow path: rows are substituted into the model itself
    """

    head: Head
    kind: str
    steps: list[Step] = field(default_factory=list)
    before: float = 1.0
    dtype: torch.dtype = torch.float32
    description: list[tuple[str, str]] = field(default_factory=list)
    context: Callable[[], Any] | None = None

    @torch.no_grad()
    def head_input(self, h_ND: Tensor) -> Tensor:
        """Raw residual rows (N, D) → rows (N, E) as the head receives them.

        The norm's statistics are computed for every row, in the model's dtype.
        """
        x_NE = h_ND.to(self.dtype)
        if self.before != 1.0:
            x_NE = x_NE * self.before
        if not self.steps:
            return x_NE
        with self.context() if self.context else torch.no_grad():
            for step in self.steps:
                x_NE = step(x_NE)
        return x_NE

    def logits(self, h_ND: Tensor) -> Tensor:
        """Raw residual rows (N, D) → logits (N, V), float32, the naive way."""
        return self.head.logits(self.head_input(h_ND))


def find(
    model: nn.Module, tokenizer: Any = None, extra: dict[str, Any] | None = None
) -> tuple[Anatomy, Tail, Check]:
    """Anatomy, tail and their proof, from one or two forward passes over a probe.

    Raises UnsupportedModel: no blocks, no logits, attention that looks ahead, not a number in the
    logits, or no tail that reproduces them.
    """
    inner = unwrap(model)
    ids_BT = probe_ids(inner, tokenizer)
    seen = _observe(inner, ids_BT, extra)
    refuse_nonfinite(inner, seen.logits_BTV)
    refuse_lookahead(inner, seen)
    anatomy, chain = find_blocks(inner, seen)
    exit_stream = dict(chain[-1].outputs)[anatomy.exits[-1]]
    h_BTD = anatomy.rows(exit_stream, len(ids_BT))
    reasons = []
    for tail in hypotheses(inner, seen, anatomy, chain, h_BTD):
        try:
            return anatomy, tail, verify(inner, tail, h_BTD, seen.logits_BTV)
        except UnsupportedModel as reason:
            reasons.append(str(reason))
    raise UnsupportedModel(
        f"{type(inner).__name__} cannot be read: {'; '.join(dict.fromkeys(reasons))}. Its logits "
        f"need more than what the last of {len(anatomy.blocks)} blocks at {anatomy.blocks_path} "
        "returns for their own position"
    )


def _observe(model: nn.Module, ids_BT: Tensor, extra: dict[str, Any] | None) -> Observation:
    with refusing(model, f"on a prompt of {ids_BT.shape[1]} tokens"):
        try:
            return observe(model, ids_BT, extra)
        except UnsupportedModel as error:
            raise UnsupportedModel(f"{type(model).__name__}: {error}") from error


def hypotheses(
    model: nn.Module, seen: Observation, anatomy: Anatomy, chain: list[Call], h_BTD: Tensor
):
    """Tails to try, the fastest first."""
    after = [call for call in seen.calls if call.start > chain[-1].end]
    for call in head_calls(model, seen, chain[-1].end):
        given = next(f for _, t in call.inputs if (f := rows_of(t, *seen.ids_BT.shape)))
        found = find_steps(given[1], call.start, h_BTD, after)
        if found is None:
            continue
        finish = find_finish(model, seen, call)
        if finish is None:
            continue
        before, steps = found
        head, kind = make_head(seen, call, finish)
        lines = _describe(before, steps, call, finish, head)
        yield Tail(head, kind, steps, before, h_BTD.dtype, lines, context=lambda: as_found(model))
    vocab = seen.logits_BTV.shape[-1]
    lines = [("tail", "the model's own code, replayed on substituted rows (exact, slow)")]
    for skip in (True, False):
        replay = Replay(model, anatomy, seen.ids_BT[0], seen.extra, skip=skip)
        yield Tail(Head(vocab, call=replay), "replay", dtype=h_BTD.dtype, description=lines)


def _describe(
    before: float, steps: list[Step], call: Call, finish: Finish, head: Head
) -> list[tuple[str, str]]:
    lines = []
    if before != 1.0:
        lines.append(("pre-scale", f"× {before:.6g}"))
    if not steps:
        lines.append(("final norm", "none: the head reads the last block's output"))
    for number, step in enumerate(steps):
        lines.append(("final norm" if number == 0 else "then", step.describe()))
    name = f"{call.path} ({type(call.module).__name__}, vocabulary {head.vocab})"
    lines.append(("head", name + (" with bias" if head.bias_V is not None else "")))
    if finish.scale != 1.0:
        lines.append(("scale", f"× {finish.scale:.6g}"))
    if finish.softcap is not None:
        lines.append(("softcap", f"{finish.softcap:.6g}"))
    if finish.bias_V is not None:
        lines.append(("final bias", f"{int((finish.bias_V != 0).sum())} columns"))
    return lines


def verify(model: nn.Module, tail: Tail, h_BTD: Tensor, logits_BTV: Tensor) -> Check:
    """Prove a tail on the probe's rows, shuffled and in two unequal parts: a row's logits may not
    depend on the rows beside it.

    Raises UnsupportedModel naming what was found, what differs and by how much.
    """
    rows_ND, model_NV = h_BTD.flatten(0, 1), logits_BTV.flatten(0, 1)
    shuffle = torch.randperm(len(rows_ND), generator=torch.Generator().manual_seed(0))
    found = ", ".join(f"{name} {value}" for name, value in tail.description)
    try:
        shuffled_ND = rows_ND[shuffle.to(rows_ND.device)]
        ours_NV = torch.cat([tail.logits(shuffled_ND[:3]), tail.logits(shuffled_ND[3:])])
    except LogitLensError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        raise UnsupportedModel(f"found {found}: it fails on rows alone ({text})") from error
    check = compare(
        model_NV[shuffle.to(model_NV.device)], ours_NV, model_dtype(model), method=tail.kind
    )
    if not check.ok:
        raise UnsupportedModel(
            f"found {found}: its log-probabilities differ from the model's own by up to "
            f"{check.max_abs_diff:.3g} nats over {check.positions} positions "
            f"(tolerance {check.tolerance:.1e})"
        )
    return check


def model_dtype(model: nn.Module) -> torch.dtype:
    """The dtype the model computes in: that of its floating-point parameters."""
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    for coarse in (torch.float16, torch.bfloat16):
        if coarse in dtypes:
            return coarse
    return torch.float32


def probe_ids(model: Any, tokenizer: Any = None, length: int = PROBE_POSITIONS) -> Tensor:
    """Two prompts of ordinary tokens, equal but for the last one: (2, T) on the model's device."""
    embedding = embeddings(model, "input")
    config: Any = getattr(model, "config", None)
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    sizes = (getattr(text, "vocab_size", None), getattr(embedding, "num_embeddings", None))
    vocab = min((v for v in sizes if isinstance(v, int) and v > 0), default=0)
    if vocab < 4:
        raise UnsupportedModel(
            f"{type(model).__name__} has no vocabulary of token ids: not a causal language model"
        )
    special = {v for c in (config, text) for v in _special_ids(c)}
    usual = [i for i in range(min(vocab, 50_000)) if i not in special]
    context = getattr(text, "max_position_embeddings", None)
    if isinstance(context, int) and PROBE_BATCH < context < length:
        length = context
    generator = torch.Generator().manual_seed(5)
    picks = torch.randint(len(usual), (length + 1,), generator=generator)
    ids = [usual[i] for i in picks]
    if ids[-1] == ids[-2]:
        ids[-1] = usual[(int(picks[-1]) + 1) % len(usual)]
    if tokenizer is not None:
        # A tokenizer may know more tokens than the model: reading says so, loading need not fail.
        words = [i for i in tokenizer("The quick brown fox")["input_ids"][:5] if i < vocab]
        words = words[: length - 1]
        ids[: len(words)] = words
    one = torch.tensor(ids[:length])
    two = one.clone()
    two[-1] = ids[-1]
    return torch.stack([one, two]).to(input_device(model))


def _special_ids(config: Any) -> set[int]:
    found: set[int] = set()
    for name, value in vars(config).items() if config is not None else ():
        if name.endswith(("_token_id", "_token_index", "_id")):
            values = value if isinstance(value, (list, tuple)) else [value]
            found |= {v for v in values if isinstance(v, int)}
    return found


def refuse_nonfinite(model: nn.Module, logits_BTV: Tensor) -> None:
    """Raise UnsupportedModel where the logits hold nan or +inf, naming a weight that does."""
    bad = logits_BTV.isnan() | (logits_BTV == torch.inf)
    if not bool(bad.any()):
        return
    guilty = next(
        (n for n, p in model.named_parameters() if p.device.type != "meta" and p.isnan().any()),
        None,
    )
    where = f"the weight {guilty} holds nan" if guilty else "no weight does: try dtype='float32'"
    count = int(bad.any(-1).sum())
    raise UnsupportedModel(
        f"{type(model).__name__}: its own logits are not finite at {count} of "
        f"{bad[..., 0].numel()} positions ({where})"
    )


class NotCausal(UnsupportedModel):
    """A later token changes an earlier position."""


def refuse_lookahead(model: nn.Module, seen: Observation) -> None:
    """Raise NotCausal where a later token changes an earlier position's logits."""
    one, two = seen.logits_BTV[0, :-1], seen.logits_BTV[1, :-1]
    check = compare(one, two, model_dtype(model), tolerance=1e-3)
    allowed = check.tolerance
    if model_dtype(model) == torch.float32:
        # An untrained encoder's logits hardly differ: rounding is judged by how far apart they lie.
        likely = one[one.isfinite() & (one > -1e30)].float()
        allowed = min(allowed, 1e-4 * float(likely.std()))
    if check.max_abs_diff > allowed:
        raise NotCausal(
            f"{type(model).__name__} is not causal: changing the last token changes earlier "
            f"positions by {check.max_abs_diff:.2g} nats. Encoders and masked models have no logit "
            "lens; a decoder of such a family needs is_decoder=True in its configuration"
        )
