"""Which map a lens file holds: its numbers, tried in every way in which look-alikes mean them.

A file says neither where its maps apply nor whether they are residual, transposed, or lead to the
last block's output. All of these give some reading, and only one is right:

tuned      Every translator reads the residuals of a text; the right interpretation has the lowest
           KL(final ‖ lens), since it is what the translators were trained for.
jacobian   A Jacobian is not trained to read well: at a neighbouring layer it may read better than
           at its own. But it says what a small change of a layer does to its target, so the change
           is made and what it does is compared. The measure is the relative error of J v.

An interpretation is right where it beats every other on the same text by a margin, and what needs no
lens as well; otherwise the file is ambiguous, and said to be.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from logitlens.anatomy.forward import as_found, forward, input_device, refusing
from logitlens.anatomy.readable import Readable
from logitlens.errors import InputError, LogitLensError, PromptError
from logitlens.select import layer_label

if TYPE_CHECKING:
    from logitlens.lenses.fitted import FittedLens

MARGIN = 0.95  # of the error of any other interpretation
CERTAIN = 2.5  # standard errors by which it is smaller
NOTHING = "no lens at all"
AVERAGE = "the same guess everywhere"  # the mean of what the model says after all of the text
NORMED = -1  # in place of a depth: what the head receives
STEP = 0.05  # of the length of a residual: how far it is moved to see what that does
TEXT = """The old lighthouse stood at the end of the long stone pier, and every evening the keeper \
climbed its stairs to light the lamp. In winter the sea was grey and loud, and ships from France and \
Norway waited in the bay until the wind had turned. His daughter, who was nine years old, counted \
the steps on the way up. There were one hundred and twelve of them. She liked to read about rivers \
and mountains, about the capital of Japan, the kings of England and the stars above the desert."""


@dataclass(frozen=True)
class Verdict:
    """What a file was found to hold.

    errors   interpretation → KL in nats (tuned) or relative error (jacobian), the best first
    clear    whether the best beats every other by a margin
    usual    the interpretation in which a file of this kind is read
    tokens   how many were read, or 0 and the reason in `untested`
    """

    kind: str
    usual: str
    errors: dict[str, float]
    clear: bool
    tokens: int
    untested: str = ""

    @property
    def found(self) -> str | None:
        """The interpretation that is right; None where none is clearly so."""
        return next(iter(self.errors)) if self.clear else None

    def line(self) -> str:
        """The verdict in words."""
        if self.untested:
            return f"not tested: {self.untested}"
        first, second = list(self.errors)[:2]
        shown = f"{first} ({self.errors[first]:.3g} against {self.errors[second]:.3g} as {second})"
        if first in (NOTHING, AVERAGE):
            return f"no interpretation fits: {shown}"
        if not self.clear:
            return f"ambiguous: {shown}"
        return shown if first == self.usual else f"not what it is read as, but {shown}"

    def to_meta(self) -> dict[str, Any]:
        """For `Reading.meta["lens"]`: `as_read` is True, False, or None where it is not known."""
        errors = {name: round(error, 4) for name, error in list(self.errors.items())[:4]}
        known = None if self.found is None else self.found == self.usual
        return {"as_read": known, "verdict": self.line(), "errors": errors, "tokens": self.tokens}


def first_use(lens: FittedLens, model: Any) -> Verdict:
    """The verdict on a lens that is used with `model`: from few tokens, once for both of them."""
    kept: dict[str, Verdict] = model.__dict__.setdefault("_lens_verdicts", {})
    if lens.hash not in kept:
        try:
            kept[lens.hash] = interpret(lens, model, tokens=64, directions=4)
        except LogitLensError as error:
            reason = " ".join(str(error).split())[:100]
            kept[lens.hash] = Verdict(lens.kind, "", {}, False, 0, reason)
    return kept[lens.hash]


def interpret(
    lens: FittedLens,
    model: Readable,
    *,
    ids: Sequence[int] | None = None,
    tokens: int = 256,
    directions: int = 8,
) -> Verdict:
    """What the maps of `lens` mean, tried on `model`.

    ids          a text; None: a paragraph that comes with the package
    tokens       how many of them are read, at most
    directions   in which residuals are moved (jacobian); each costs the tokens again, twice

    Raises PromptError where there are too few tokens or layers to tell anything.
    """
    if model.tail.head.shard is not None:
        raise PromptError("the vocabulary is spread over several processes")
    ids_T = torch.tensor(_ids(model) if ids is None else list(ids), dtype=torch.long, device="cpu")
    ids_T = ids_T[: min(tokens, model.context or tokens)]
    if len(ids_T) < 12:
        raise InputError(f"{len(ids_T)} tokens are too few to tell interpretations apart")
    with as_found(model.hf):
        if lens.kind == "tuned":
            usual, errors = _tuned(lens, model, ids_T)
        else:
            usual, errors = _jacobian(lens, model, ids_T, directions)
    return _judge(lens.kind, usual, errors, len(ids_T))


def _ids(model: Readable) -> list[int]:
    if model.tokenizer is None:
        raise PromptError("there is no tokenizer")
    ids = [int(i) for i in model.tokenizer(TEXT)["input_ids"]]
    if not all(0 <= i < model.vocab_size for i in ids):
        raise PromptError("the tokenizer is not the model's own")
    return ids


def _judge(kind: str, usual: str, samples: Mapping[str, Tensor], tokens: int) -> Verdict:
    """The same samples (n,) of every interpretation's error → the verdict."""
    logs = {name: error.clamp(min=1e-9).log() for name, error in samples.items()}
    order = sorted(logs, key=lambda name: float(logs[name].mean()))
    clear = order[0] not in (NOTHING, AVERAGE)
    for other in order[1:]:
        apart = logs[order[0]] - logs[other]
        mean, error = float(apart.mean()), float(apart.std() / math.sqrt(len(apart)))
        clear = clear and mean < math.log(MARGIN) and mean < -CERTAIN * error
    errors = {name: float(logs[name].mean().exp()) for name in order}
    return Verdict(kind, usual, errors, clear, tokens)


# -- tuned ----------------------------------------------------------------------------------------


def _tuned(lens: FittedLens, model: Readable, ids_T: Tensor) -> tuple[str, dict[str, Tensor]]:
    """Interpretation → KL(final ‖ lens) of every token, the mean over a few layers."""
    N = len(model.anatomy.blocks)
    # States that have a translator both before and after them.
    known = [d for d in range(1, N) if {d - 1, d} <= lens.depths()]
    if not known:
        raise PromptError("too few layers have a map")
    chosen = sorted({known[0], known[len(known) // 2], known[-1]})
    kept = _states(model, ids_T[None], [*chosen, N])
    h = {depth: h_BTD[0][_first(len(ids_T)) :] for depth, h_BTD in kept.items()}
    final_TV = model.tail.logits(h[N]).log_softmax(-1)
    forms = {
        f"{'h + ' if residual else ''}A h + b, h {place} block i": (residual, offset)
        for residual, (place, offset) in itertools.product(
            (True, False), (("entering", 0), ("leaving", 1))
        )
    }
    errors = {name: [] for name in (*forms, NOTHING, AVERAGE)}
    mean_V = final_TV.logsumexp(0) - math.log(len(final_TV))
    for depth in chosen:
        errors[AVERAGE].append((final_TV.exp() * (final_TV - mean_V)).sum(-1).double().cpu())
        errors[NOTHING].append(_kl(model, final_TV, h[depth]))
        for name, (residual, offset) in forms.items():
            y_TD = lens.apply(h[depth], depth - offset)
            errors[name].append(_kl(model, final_TV, y_TD if residual else y_TD - h[depth].float()))
    return next(iter(forms)), {name: torch.stack(kl).mean(0) for name, kl in errors.items()}


def _kl(model: Readable, final_TV: Tensor, y_TD: Tensor) -> Tensor:
    """KL(final ‖ y read through the tail) of every row (T,), float64."""
    out = []
    for part_TV, part_TD in zip(final_TV.split(64), y_TD.split(64)):
        own_TV = model.tail.logits(part_TD).log_softmax(-1).to(part_TV.device)
        out.append((part_TV.exp() * (part_TV - own_TV)).sum(-1).double().cpu())
    return torch.cat(out)


# -- jacobian -------------------------------------------------------------------------------------


def _jacobian(
    lens: FittedLens, model: Readable, ids_T: Tensor, directions: int
) -> tuple[str, dict[str, Tensor]]:
    """Interpretation → relative error of J v, of every direction v at a few layers."""
    N, D, has = len(model.anatomy.blocks), model.width, lens.depths()
    # Layers whose neighbours have maps, so that all are tried in the same places.
    known = [d for d in range(1, N) if {d - 1, d, d + 1} <= has] or [d for d in has if 0 < d < N]
    if not known:
        raise PromptError("no layer has a map")
    sources = sorted(known)[-2:]
    generator = torch.Generator("cpu").manual_seed(0)
    v_KD = torch.randn(directions, D, generator=generator, dtype=torch.float32, device="cpu")
    v_KD = (v_KD / v_KD.norm(dim=-1, keepdim=True)).double()
    moved = [_responses(model, ids_T, source, v_KD) for source in sources]
    targets = {"the last block's output": N, "the final norm's output": NORMED}
    targets |= {f"the output of block {layer_label(t)}": t for t in range(sources[-1] + 1, N)}
    errors = {NOTHING: torch.ones(len(sources) * directions, dtype=torch.float64, device="cpu")}
    for place, offset in (("leaving", 0), ("entering", 1), ("leaving the block after", -1)):
        if not all(d + offset in has for d in sources):
            continue
        maps = [lens.tensors[f"{d + offset}.jacobian"].float() for d in sources]
        for form, answers in (
            ("J h", [v_KD.float() @ J_DD.T for J_DD in maps]),
            ("J transposed h", [v_KD.float() @ J_DD for J_DD in maps]),
        ):
            for target, t in targets.items():
                pairs = [(y_KD.double(), r[t]) for y_KD, r in zip(answers, moved)]
                if all(y_KD.shape == true_KD.shape for y_KD, true_KD in pairs):
                    errors[f"{form}, h {place} block i, to {target}"] = torch.cat(
                        [(y - true).norm(dim=-1) / true.norm(dim=-1) for y, true in pairs]
                    )
    return "J h, h leaving block i, to the last block's output", errors


def _responses(model: Readable, ids_T: Tensor, source: int, v_KD: Tensor) -> dict[int, Tensor]:
    """Depth → what a unit step along v at `source` does there (K, D), as the fit averages it.

    Every position but the first and the last moves, and what that does to all of them is summed, and
    divided by their number. NORMED: to the head's input.
    """
    N, T = len(model.anatomy.blocks), len(ids_T)
    valid_T = torch.zeros(T, dtype=torch.float64, device="cpu")
    valid_T[_first(T) : -1] = 1
    size = 0.0

    def move(h_BTD: Tensor) -> Tensor:
        nonlocal size
        size = STEP * float(h_BTD[0].float().norm(dim=-1).median())
        steps_BD = torch.cat([torch.zeros_like(v_KD[:1]), size * v_KD])  # the first is not moved
        return h_BTD + (steps_BD[:, None] * valid_T[None, :, None]).to(h_BTD)

    ids_BT = ids_T.expand(1 + len(v_KD), -1)
    kept = _states(model, ids_BT, list(range(source + 1, N + 1)), (source, move))
    h_BTD = kept[N]
    kept[NORMED] = model.tail.head_input(h_BTD.flatten(0, 1)).unflatten(0, h_BTD.shape[:2])
    out = {}
    for depth, h_BTD in kept.items():
        change_KTD = (h_BTD[1:].double() - h_BTD[:1].double()).cpu()
        out[depth] = (change_KTD * valid_T[None, :, None]).sum(1) / (size * valid_T.sum())
    return out


def _first(T: int) -> int:
    """The first position that counts: those before are attention sinks, as in the fits."""
    return min(16, T // 4)


def _states(
    model: Readable,
    ids_BT: Tensor,
    depths: Sequence[int],
    change: tuple[int, Callable[[Tensor], Tensor]] | None = None,
) -> dict[int, Tensor]:
    """Depth → the residual stream (B, T, D) of one pass, in which one depth may be changed."""
    kept: dict[int, Tensor] = {}

    def see(depth: int, stream: Tensor) -> Tensor | None:
        h_BTD = model.anatomy.rows(stream, len(ids_BT)).clone()
        if change is not None and depth == change[0]:
            return model.anatomy.stream(change[1](h_BTD))
        kept[depth] = h_BTD
        return None

    at = [change[0]] if change else []
    what = f"on {ids_BT.shape[1]} tokens"
    with refusing(model.hf, what), model.anatomy.following([*at, *depths], see):
        forward(model.hf, ids_BT.to(input_device(model.hf)))
    return kept
