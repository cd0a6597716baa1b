"""What "read correctly" means, judged on a tiny model against the model's own plain forward.

Nothing here uses the way the package found the tail: logits come from calling the model, the stream
from plain hooks, and rows of other depths from the model's own code after the last block.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

import numpy as np
import torch

import logitlens
from logitlens.anatomy.replay import Replay
from logitlens.errors import LogitLensError, UnsupportedModel
from logitlens.model.capture import capture
from tests.architectures.build import DROP, ENCODER_DECODERS, PREFIX_MODELS, VOCAB, build, quiet

TOLERANCE = 1e-4
LENGTHS = (11, 6, 9)
ENCODER = {"input_ids": torch.tensor([[5, 60, 7, 82, 9, 10, 33]])}


@dataclass(frozen=True)
class Verdict:
    """One class: correct, refused (with the reason), wrong (with the law broken), or not built."""

    name: str
    verdict: str
    blocks: str = ""
    tail: str = ""
    error: float = float("nan")
    reason: str = ""
    attribution: str = ""


def judge(name: str, **overrides) -> Verdict:
    """Build the class tiny and random, load it, and hold it to every law."""
    if name in ENCODER_DECODERS:
        overrides.setdefault("is_decoder", DROP)
    try:
        model = build(name, **overrides)
    except Exception as error:
        return Verdict(name, "not built", reason=one_line(error))
    return judge_model(name, model)


def judge_model(name: str, model, prompts=None) -> Verdict:
    if prompts is None:
        rng = torch.Generator().manual_seed(1)
        prompts = [torch.randint(3, VOCAB, (t,), generator=rng).tolist() for t in LENGTHS]
    with quiet():
        try:
            lens = logitlens.load(model, inputs=ENCODER if name in ENCODER_DECODERS else None)
        except LogitLensError as refusal:
            return Verdict(name, "refused", reason=one_line(refusal))
        except Exception as error:
            return Verdict(name, "wrong", reason=f"loading raises: {one_line(error)}")
        blocks = f"{lens.anatomy.blocks_path} ({lens.n_blocks})"
        tail = "; ".join(f"{k}: {v}" for k, v in lens.tail.description)
        try:
            errors = laws(model, lens, prompts)
            attribution, errors["attribution"] = attributed(model, lens, prompts[0])
        except Exception as error:
            return Verdict(name, "wrong", blocks, tail, reason=f"raises: {one_line(error)}")
    worst = max(errors.values())
    broken = [f"{law} off by {e:.2g}" for law, e in errors.items() if not e <= TOLERANCE]
    return Verdict(
        name, "wrong" if broken else "correct", blocks, tail, worst, "; ".join(broken), attribution
    )


def attributed(model, lens, ids) -> tuple[str, float]:
    """Which components sum to the model's own logits, with the reasons why others do not, and by how
    much they are off at most. "Experts" are asked of models that have a module of that name."""
    truth_V = plain_logprobs(model, ids)[-1]
    best, other = truth_V.topk(2).indices.tolist()
    mixture = any(
        "expert" in f"{path} {type(m).__name__}".lower() for path, m in model.named_modules()
    )
    sums: list[str] = []
    reasons: dict[str, list[str]] = {}  # each reason, and the kinds refused for it
    errors = [0.0]
    for by in ("sublayer", "head", *(["expert"] if mixture else []), "layer"):
        if by == "layer" and sums:
            break
        try:
            found = lens.attribute(ids, best, versus=other, by=by)
        except UnsupportedModel as refusal:
            reasons.setdefault(one_line(refusal).partition("; try by=")[0], []).append(by)
            continue
        errors.append(abs(found.finished - float(truth_V[best] - truth_V[other])))
        blocks = {c.partition(".")[0] for c in found.components if f".{by}" in c}
        partly = f" ({len(blocks)} of {lens.n_blocks} blocks)"
        sums.append(by + (partly if 0 < len(blocks) < lens.n_blocks else ""))
    whys = [f"not by {', '.join(kinds)}: {reason}" for reason, kinds in reasons.items()]
    return "; ".join([", ".join(sums) or "none", *whys]), max(errors)


def laws(model, lens, prompts) -> dict[str, float]:
    """Law → by how much it is off (nats for logits, relative for the stream)."""
    ids = prompts[0]
    truth = plain_logprobs(model, ids)
    (residuals,) = capture(lens, [ids], check="all")
    ours = lens.tail.logits(residuals.h[-1]).double().log_softmax(-1)
    errors = {"last row": gap(ours, truth), "check": lens.check.max_abs_diff}

    received = streams_received(model, lens.anatomy.entries, ids)
    errors["stream"] = max(
        min(relative(h_TD, t) for t in tensors) for h_TD, tensors in zip(residuals.h, received)
    )
    if lens.tail.kind != "replay":
        oracle = Replay(lens.hf, lens.anatomy, torch.tensor(ids), skip=False)
        for d in (0, 1):
            rows = residuals.h[d]
            theirs = oracle(rows).double().log_softmax(-1)
            errors[f"depth {d} through the model's own tail"] = gap(
                lens.tail.logits(rows).double().log_softmax(-1), theirs
            )

    alone = [lens.read(p, top=5) for p in prompts]
    order = torch.tensor(alone[0].top_ids[-1].astype(np.int64))
    shown = torch.tensor(alone[0].top_logprobs[-1]).double()
    errors["read"] = gap(shown, truth.gather(-1, order))
    errors["read, best token"] = gap(shown[:, 0], truth.amax(-1))
    together = lens.read_batch(prompts, top=5)
    errors["read_batch"] = max(
        float(np.abs(getattr(a, f) - getattr(b, f)).max())
        for a, b in zip(alone, together)
        for f in ("top_logprobs", "entropy", "kl")
    )
    return errors


def plain_logprobs(model, ids) -> torch.Tensor:
    """The model called as anybody calls it: (T, V) log-probabilities, float64."""
    name, ids_1T = type(model).__name__, torch.tensor([ids])
    given = {"input_ids": ids_1T}
    if name in ENCODER_DECODERS:
        given = {**ENCODER, "decoder_input_ids": ids_1T}
    if name in PREFIX_MODELS:
        given["token_type_ids"] = torch.ones_like(ids_1T)
    with torch.no_grad():
        try:
            output = model(**given, use_cache=False)
        except TypeError:
            output = model(**given)
    return output.logits[0].double().log_softmax(-1)


def streams_received(model, blocks, ids) -> list[list[torch.Tensor]]:
    """For every block, the floating tensors it was given, by plain hooks: (T, D) each."""
    given: list[list[torch.Tensor]] = [[] for _ in blocks]

    def hook_for(index):
        def hook(module, args, kwargs):
            for value in (*args, *kwargs.values()):
                if isinstance(value, torch.Tensor) and value.is_floating_point():
                    given[index].append(value.detach().clone())

        return hook

    handles = [
        b.register_forward_pre_hook(hook_for(i), with_kwargs=True) for i, b in enumerate(blocks)
    ]
    try:
        plain_logprobs(model, ids)
    finally:
        for handle in handles:
            handle.remove()
    return given


def relative(h_TD: torch.Tensor, tensor: torch.Tensor) -> float:
    """How far rows are from a tensor that holds the same numbers, positions anywhere in it."""
    if tensor.numel() != h_TD.numel():
        return float("inf")
    T = len(h_TD)
    for axis, size in enumerate(tensor.shape):
        if size % T == 0:  # S · T: several streams one after another
            rows = tensor.movedim(axis, 0).unflatten(0, (size // T, T)).transpose(0, 1)
            rows = rows.reshape(T, -1)
            if torch.equal(rows.float(), h_TD.float()):
                return 0.0
    return float("inf")


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    forbidden = (a < -1e30) & (b < -1e30)
    return float((a - b).abs().masked_fill(forbidden, 0.0).max())


def one_line(error: BaseException) -> str:
    return textwrap.shorten(str(error), 400, placeholder=" …")
