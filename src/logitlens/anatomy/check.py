"""The check: the tail's logits against the model's own, column by column.

Tail and model multiply the same rows with the same unembedding, so their logits may differ by what
rounding costs and by nothing else. A sum of E terms in float32 rounds E partial sums s, each by at
most u |s|, up or down as it happens: two such sums, taken in any two orders, differ by about
u √E rms(s), and never in practice by ten times as much (Higham and Mary, "A New Approach to
Probabilistic Rounding Error Analysis", SIAM Journal on Scientific Computing 41(5), 2019). How large
partial sums are is measured on the rows at hand. A model in half precision then rounds its product,
and what scale, softcap and bias make of it: both ends of the interval are rounded in the same way,
and the model's logit must lie between them, to the last bit of its dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial, reduce
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from logitlens.errors import UnsupportedModel
from logitlens.reading import check_sentence
from logitlens.readout.head import SLICE, Head

UNIT = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}  # unit roundoff of half precision
UNIT32 = 2.0**-24
SUMS = 8.0  # × u √E rms(s): about ten standard deviations of the difference of two sums
SAMPLE = (
    256  # columns whose partial sums are measured; the others' are taken to be like the largest
)
PARTS = 1.0  # × u ‖x‖ ‖w‖ / √E: parts of a sum that half precision rounds, or some of its factors
PASS = 16 * UNIT32  # relative: what the roundings of a pass in float32 make of its logits
FORBIDDEN = -1e30  # a column at −inf or at the dtype's minimum is one the model forbids


class TailLike(Protocol):
    """What the check needs of a tail; see `logitlens.anatomy.tail.Tail`."""

    @property
    def head(self) -> Head: ...
    @property
    def kind(self) -> str: ...
    @property
    def steps(self) -> Sequence[Any]: ...
    @property
    def dtype(self) -> torch.dtype: ...
    def head_input(self, h_ND: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Check:
    """One comparison of logits: ours against the model's own.

    max_abs_diff  largest |Δ log-probability| in nats, over all positions and the whole vocabulary
    tolerance     what rounding may make of it, in nats
    worst         largest |Δ logit|, each as a multiple of its own bound: decides
    top1_agree    the likeliest token is the same at every position (or tied with it)
    dtype         what the head computes in
    """

    max_abs_diff: float
    tolerance: float
    positions: int
    top1_agree: bool
    dtype: str
    method: str = "weights"
    worst: float = 0.0

    @property
    def ok(self) -> bool:
        return self.worst <= 1  # False for nan

    def widened(self, difference: float) -> Check:
        """The same check with one more difference of a log-probability, in nats."""
        if difference == 0:
            return self
        worst = difference / self.tolerance if self.tolerance else torch.inf
        return replace(
            self,
            max_abs_diff=_larger(self.max_abs_diff, difference),
            worst=_larger(self.worst, worst),
        )

    def over_shown(self, own_PV: Tensor, sums_P: Tensor, ids_PK: Any, shown_PK: Any) -> Check:
        """The same check with the log-probabilities that are shown, beside those of the model, whose
        `sums` are given."""
        ids_PK, shown_PK = (torch.from_numpy(np.atleast_2d(a)) for a in (ids_PK, shown_PK))
        own_PV = own_PV.cpu()
        own_PK = own_PV.gather(1, ids_PK.long()).double() - sums_P[:, None]
        off_PK = (shown_PK.double() - own_PK).abs()
        off_PK = off_PK.masked_fill(shown_PK == own_PK, 0.0)  # −inf in both
        return self.widened(float(off_PK.max()))

    def require(self, name: str) -> Check:
        """Itself; raises UnsupportedModel where the last row is not the model's own output."""
        if not self.ok:
            raise UnsupportedModel(
                f"{name}: the last row is not the model's own output: {self.line()}"
            )
        return self

    def joined(self, other: Check) -> Check:
        """This check and that of other positions of the same tail, as one."""
        return replace(
            self,
            max_abs_diff=_larger(self.max_abs_diff, other.max_abs_diff),
            tolerance=max(self.tolerance, other.tolerance),
            positions=self.positions + other.positions,
            top1_agree=self.top1_agree and other.top1_agree,
            worst=_larger(self.worst, other.worst),
        )

    def line(self) -> str:
        """One sentence for people."""
        return check_sentence({**asdict(self), "ok": self.ok})[1]

    def to_meta(self) -> dict[str, Any]:
        """JSON-able, for `Reading.meta["check"]`."""
        return {**asdict(self), "ok": self.ok, "line": self.line()}


def _larger(a: float, b: float) -> float:
    return b if b != b else max(a, b)  # nan stays


def sums(z_PV: Tensor) -> Tensor:
    """(P,) float64 on the CPU: the log of the sum of exp of each row of logits."""
    return torch.cat([z_pV.double().logsumexp(-1) for z_pV in z_PV.detach().split(8)]).cpu()


@torch.no_grad()
def compare(
    model_PV: Tensor, ours_PV: Tensor, tail: TailLike, h_PD: Tensor, sums_P: Tensor | None = None
) -> Check:
    """Compare P rows of logits: the model's own, and the tail's of the raw residual rows h_PD.
    sums_P: the `sums` of the model's, where they are known.

    Where the head's weights are not at hand (called, sharded, replayed), partial sums are taken to be
    as large as the row's logits (root mean square). Rows that go through a product before they reach
    the head, and logits of a head that is called, may be rounded the other way in half precision
    when other rows are beside them. That is granted in every row, but not in half of them.
    """
    model_PV, ours_PV = (z.detach().float().cpu() for z in (model_PV, ours_PV))
    weight_VE, bias_V = tail.head.weight_VE, tail.head.final_bias_V
    dtype = tail.dtype if weight_VE is None else weight_VE.dtype
    head = replace(tail.head, final_bias_V=None if bias_V is None else bias_V.float().cpu())
    raw_PV = _raw(ours_PV, head)
    slack_PV, flips_PV = _slack(raw_PV, tail, h_PD, UNIT.get(dtype, 0.0))
    ends = partial(_ends, model_PV, raw_PV, head=head, dtype=dtype)
    low_PV, high_PV, unit = ends(slack_PV + flips_PV)
    worst = _largest(_off(model_PV, low_PV, high_PV, unit))
    if len(model_PV) > 1 and bool(flips_PV.any()):
        worst = _larger(worst, _largest(_off(model_PV, *ends(slack_PV)).median(0).values))

    # A difference of log-probabilities is one of logits, less the same number in all of a row.
    our_sums_P = sums(ours_PV)
    same_P = (sums(model_PV) if sums_P is None else sums_P) - our_sums_P
    apart_PV, forbidden_PV = model_PV - ours_PV, None
    if bool((model_PV < FORBIDDEN).any()):
        forbidden_PV = (model_PV < FORBIDDEN) & (ours_PV < FORBIDDEN)
        apart_PV = torch.where(forbidden_PV, same_P[:, None].float(), apart_PV)
    least_P, most_P = apart_PV.amin(-1), apart_PV.amax(-1)  # faster than aminmax
    bound_PV = torch.maximum(high_PV.sub_(ours_PV), torch.sub(ours_PV, low_PV, out=low_PV))
    bound_PV = bound_PV.add_(model_PV.abs(), alpha=unit)
    if forbidden_PV is not None:
        bound_PV.masked_fill_(forbidden_PV, 0.0)
    bound_P = bound_PV.amax(-1) + ((ours_PV + bound_PV).logsumexp(-1) - our_sums_P)
    best_P1 = ours_PV.argmax(-1, keepdim=True)
    near_P = model_PV.amax(-1) - model_PV.gather(-1, best_P1)[:, 0]
    return Check(
        max_abs_diff=_largest(torch.maximum(most_P - same_P, same_P - least_P)),
        tolerance=_largest(bound_P),
        positions=len(model_PV),
        top1_agree=bool((near_P <= 2 * bound_P).all()),
        dtype=str(dtype).removeprefix("torch."),
        method=tail.kind,
        worst=worst,
    )


def _largest(values: Tensor) -> float:
    return float(values.max()) if values.numel() else 0.0


def _raw(z_PV: Tensor, head: Head) -> Tensor:
    """`Head.finish` undone: what the head itself returned."""
    if head.final_bias_V is not None:
        z_PV = torch.where(head.final_bias_V == -torch.inf, 0.0, z_PV - head.final_bias_V)
    if head.softcap is not None:
        z_PV = torch.atanh((z_PV / head.softcap).clamp(1e-7 - 1, 1 - 1e-7)) * head.softcap
    return z_PV if head.scale == 1 else z_PV / head.scale


def _slack(raw_PV: Tensor, tail: TailLike, h_PD: Tensor, unit: float) -> tuple[Tensor, Tensor]:
    """(P, V) twice: how far apart two products of the same rows may be, before half precision rounds
    them (unit: its roundoff, 0 for float32); and how much further, now and then."""
    x_PE, head, plain_PV = tail.head_input(h_PD), tail.head, raw_PV.abs()
    E, called = x_PE.shape[-1], head.weight_VE is None
    if called:
        allowed_PV = plain_PV.masked_fill(plain_PV > -FORBIDDEN, 0.0)
        rms_P1 = allowed_PV.square().mean(-1, keepdim=True).sqrt()
        usual_PV = sums_PV = rms_P1 + plain_PV
    else:
        length_P1 = x_PE.float().norm(dim=-1, keepdim=True).cpu()
        usual_PV = length_P1 / E**0.5 * norms(head) if unit else plain_PV
        sums_PV = torch.addcmul(plain_PV, _partial(x_PE, head), norms(head))
    if head.bias_V is not None:
        sums_PV += head.bias_V.float().cpu().abs()
    slack_PV = SUMS * E**0.5 * UNIT32 * sums_PV
    if called:  # what is replayed may go through a product before the head's
        slack_PV *= 2
    parts_PV = PARTS * unit * usual_PV if unit else sums_PV.new_zeros(1)
    if x_PE.device.type != "cpu":
        slack_PV += parts_PV
    flips_PV = parts_PV if called or _multiplies(tail.steps) else sums_PV.new_zeros(1)
    if called:
        flips_PV = flips_PV + 2 * unit * torch.exp2(plain_PV.log2().floor())  # an ulp
    return slack_PV, flips_PV


def _partial(x_PE: Tensor, head: Head) -> Tensor:
    """(P, 1): the largest root mean square of a sum's partial sums, in units of ‖w‖, measured on
    some of the columns."""
    _, w_CE, size_C = _sizes(head)
    parts = [
        (x_E * w_CE).cumsum(-1).square().mean(-1).sqrt().cpu() / size_C for x_E in x_PE.float()
    ]
    return torch.stack(parts).amax(-1, keepdim=True)


def _multiplies(steps: Sequence[Any]) -> bool:
    """Whether rows go through a product before they reach the head."""
    modules = (getattr(step, "module", None) for step in steps)
    return any(p.dim() > 1 for m in modules if isinstance(m, nn.Module) for p in m.parameters())


def _ends(
    model_PV: Tensor, raw_PV: Tensor, slack_PV: Tensor, *, head: Head, dtype: torch.dtype
) -> tuple[Tensor, Tensor, float]:
    """The least and the largest logit that the model's roundings make of raw ± slack, and the unit
    roundoff of the last of them."""
    raw = raw_PV - slack_PV, raw_PV + slack_PV
    if dtype not in UNIT:
        ends = [head.finish(z_PV) for z_PV in raw]
    elif torch.equal(model_PV.to(dtype).float(), model_PV):  # every step is in half precision
        ends = [head.finish(z_PV.to(dtype)).float() for z_PV in raw]
    else:  # the model computes in float32, from the product on or from what it returns
        ends = [head.finish(z_PV) for z_PV in (*raw, *(z_PV.to(dtype).float() for z_PV in raw))]
        dtype = torch.float32
    return (
        reduce(torch.minimum, ends),
        reduce(torch.maximum, ends),
        UNIT.get(dtype, 4 * UNIT32),
    )


def _off(model_PV: Tensor, low_PV: Tensor, high_PV: Tensor, unit: float) -> Tensor:
    """How far the model's logits are from the middle of their interval, in units of half its width;
    a roundoff more belongs to it, which is less than an ulp."""
    half_PV = (high_PV - low_PV).mul_(0.5).add_(model_PV.abs(), alpha=unit)
    off_PV = torch.lerp(low_PV, high_PV, 0.5).sub_(model_PV).abs_().div_(half_PV)
    equal_PV = (model_PV == low_PV) | (model_PV == high_PV)  # also −inf, and 0 in no width
    return off_PV.masked_fill_(equal_PV, 0.0)


_Sizes = tuple[Tensor, Tensor, Tensor]
_kept: WeakKeyDictionary[Head, tuple[Any, _Sizes]] = WeakKeyDictionary()


def norms(head: Head) -> Tensor:
    """(V,) float32 on the CPU: ‖w‖ for every token's weights, kept until they change."""
    return _sizes(head)[0]


def _sizes(head: Head) -> _Sizes:
    """The norms (V,), and of a sample of tokens the weights (C, E) in float32 and their norms (C,)."""
    weight_VE = head.weight_VE
    assert weight_VE is not None, "a head that is only called shows no weights"
    version = None if weight_VE.is_inference() else weight_VE._version
    state = (weight_VE.data_ptr(), version, weight_VE.dtype)
    kept = _kept.get(head)
    if kept is None or kept[0] != state:
        parts = [w_CE.float().norm(dim=-1) for w_CE in weight_VE.detach().split(SLICE)]
        norm_V = torch.cat(parts).cpu()
        some_C = torch.linspace(
            0, head.vocab - 1, min(head.vocab, SAMPLE), dtype=torch.float64, device="cpu"
        ).long()
        sample_CE = weight_VE.detach()[some_C.to(weight_VE.device)].float()
        size_C = norm_V[some_C].clamp(min=torch.finfo(torch.float32).tiny)
        kept = _kept[head] = (state, (norm_V, sample_CE, size_C))
    return kept[1]


class Distance(NamedTuple):
    """How far two passes of a model are apart.

    rounding  the largest relative difference of a row of logits (root mean square), in units of what
              rounding makes of one pass
    nats      the largest difference of a log-probability
    """

    rounding: float
    nats: float


@torch.no_grad()
def distance(one_PV: Tensor, two_PV: Tensor, dtype: torch.dtype) -> Distance:
    """Two passes of a model in `dtype` over the same tokens, P rows of logits each."""
    one_PV, two_PV = (z.detach().float().cpu() for z in (one_PV, two_PV))
    forbidden_PV = (one_PV < FORBIDDEN) & (two_PV < FORBIDDEN)
    off_P, size_P = (
        z_PV.masked_fill(forbidden_PV, 0.0).norm(dim=-1) for z_PV in (one_PV - two_PV, one_PV)
    )
    rounding_P = (off_P / (UNIT.get(dtype, PASS) * size_P)).masked_fill(off_P == 0, 0.0)
    nats_PV = (one_PV.log_softmax(-1) - two_PV.log_softmax(-1)).abs()
    return Distance(_largest(rounding_P), _largest(nats_PV.masked_fill(forbidden_PV, 0.0)))
