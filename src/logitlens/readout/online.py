"""Statistics of rows of logits, gathered while tiles of the vocabulary pass by.

With d = z − c, where c is a stabiliser near the row's running maximum, a row keeps

    s = Σ e^d              logsumexp = c + log s
    a = Σ e^d d            entropy   = log s − a / s
    x = Σ e^(d_f) d        KL(final ‖ row) = (a_f/s_f − log s_f) − (x/s_f − log s),
                           f: the final row

Everything is relative to c, so that logits far from zero cost no digits. When c grows by δ, sums are
carried over exactly: s → s e^−δ, a → (a − δ s) e^−δ, x → (x − δ s_f) e^−δ_f. Tiles are summed in
float32, the running sums held in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial

import torch
from torch import Tensor

from logitlens.readout.stats import Stats
from logitlens.readout.topk import BLOCK, RunningTopK, block_maxima

HOT = 200_000  # logits per thread looked at together: more, with what is made of them, leave a core's cache
SUMMED = 4096  # products added up by a matrix product: their error grows with how many there are
SPARSE = 0.5  # share of the rows below which those to be counted are copied side by side
BITS = 1.4426950216293335  # of a nat, as float32 has it
LEAP = 20.0  # how far a logit may exceed c before its position is summed again with a new c


class Online:
    """P positions × L rows; feed every column of the vocabulary once, in order, then `result`.

    targets_PM (int64, −1 = none) and the logits of those targets in every row, target_PLM: ranks
    count what is greater. Where `differs` says afterwards that the tiles held other numbers for them,
    a token may have been counted above its twin, and the tiles must pass again.
    """

    def __init__(self, k: int, targets_PM: Tensor, target_PLM: Tensor):
        P, L, M = target_PLM.shape
        device = target_PLM.device
        self.P, self.L, self.M = P, L, M
        self.targets_PM, self.target_PLM = targets_PM, target_PLM.contiguous()
        self.top = RunningTopK(P * L, k, device)
        self.c_PL = torch.full((P, L), float("-inf"), device=device, dtype=torch.float32)
        zeros_3PL = torch.zeros((3, P, L), dtype=torch.float64, device=device)
        self.s_PL, self.a_PL, self.x_PL = zeros_3PL.unbind()
        self.above_PLM = torch.zeros((P, L, M), device=device, dtype=torch.float64)
        self.own_PLM = torch.full((P, L, M), float("nan"), device=device, dtype=torch.float32)
        self.work = torch.empty(2, 0, device=device, dtype=torch.float32)
        self.seen = 0

    @staticmethod
    def joined(parts: Sequence[Online]) -> Online:
        """Positions one after another, of which all columns have been fed, for `result`."""
        first = parts[0]
        if len(parts) == 1:
            return first
        whole = Online(first.top.k, *(_cat(parts, name) for name in ("targets_PM", "target_PLM")))
        for name in ("c_PL", "s_PL", "a_PL", "x_PL", "above_PLM", "own_PLM"):
            setattr(whole, name, _cat(parts, name))
        for name in ("values_NK", "ids_NK"):
            by_layer = [getattr(p.top, name).unflatten(0, (p.L, p.P)) for p in parts]
            setattr(whole.top, name, torch.cat(by_layer, 1).flatten(0, 1))
        return whole

    def update(self, z_NC: Tensor) -> None:
        """Take in the next C columns of all L · P rows (a layer's one after another), float32,
        unchanged."""
        C = z_NC.shape[1]
        z_PLC = self._by_position(z_NC)
        maxima_NB = z_NC.new_empty(z_NC.shape[0], -(-C // BLOCK))
        maxima_PLB = self._by_position(maxima_NB)
        sums_3PL = z_NC.new_empty(3, self.P, self.L)
        if self.seen == 0:  # later tiles are stabilised by the maxima of those before
            block_maxima(z_NC, maxima_NB)
            self.raise_to(maxima_PLB.amax(-1))
        for p in self._hot(C):
            if self.seen:
                block_maxima(z_PLC[p], maxima_PLB[p])
            self._sum(z_PLC[p], p, sums_3PL)
            self._count(z_PLC[p], maxima_PLB[p].amax(-1), p)
        self._add(z_PLC, self._in_nats(sums_3PL), maxima_PLB.amax(-1))
        self._own(z_PLC)
        self.top.update(z_NC, maxima_NB)
        self.seen += C

    def _by_position(self, rows_N: Tensor) -> Tensor:
        """(P, L, …): a view of rows."""
        return rows_N.unflatten(0, (self.L, self.P)).transpose(0, 1)

    def _hot(self, C: int) -> Iterator[slice]:
        """Positions, a few at a time: as many as stay in the caches."""
        step = max(1, HOT * torch.get_num_threads() // (self.L * C))
        size = min(step, self.P) * self.L * math.prod(_summed(C))
        if self.work.shape[1] < size:
            self.work = self.work.new_empty(2, size)
        for start in range(0, self.P, step):
            yield slice(start, min(self.P, start + step))

    def _sum(self, z_pLC: Tensor, p: slice, sums_3PL: Tensor) -> None:
        s_pL, a_pL, x_pL = sums_3PL[:, p]
        n, L, C = z_pLC.shape
        parts, size = _summed(C)
        work_2pLW = self.work[:, : n * L * parts * size].view(2, n, L, parts * size)
        work_2pLW[..., C:].zero_()
        d_pLW, e_pLW = work_2pLW
        d_pLC, e_pLC = d_pLW[..., :C], e_pLW[..., :C]
        if rounds_once(z_pLC.device):  # powers of two take half as long as those of e
            torch.add(-self._bits_PL()[p, :, None], z_pLC, alpha=BITS, out=d_pLC)
        else:
            torch.sub(z_pLC, self.c_PL[p, :, None], out=d_pLC).mul_(BITS)
        torch.exp2(d_pLC, out=e_pLC)
        torch.sum(e_pLC, -1, out=s_pL)
        d_pLwB, e_pLwB = work_2pLW.unflatten(-1, (parts, size))
        a_n1 = _dots(e_pLwB.flatten(0, 2)[:, None], d_pLwB.flatten(0, 2)[:, None])
        a_pL.copy_(a_n1.view(n, L, parts).sum(-1))
        if n < parts:  # whichever loop is the shorter
            for x_L, e_LwB, d_LwB in zip(x_pL, e_pLwB, d_pLwB):
                x_L.copy_(_dots(e_LwB[-1][:, None], d_LwB.transpose(0, 1)).sum(0))
            return
        x_pL.zero_()
        for part in range(parts):
            x_pL += _dots(e_pLwB[:, -1:, part], d_pLwB[:, :, part])

    def _count(self, z_pLC: Tensor, highest_pL: Tensor, p: slice) -> None:
        """Of the rows that hold something greater than a target: few do, of likely ones."""
        target_pLM, above_pLM = self.target_PLM[p], self.above_PLM[p]
        open_pLM = ~(highest_pL[..., None] <= target_pLM)  # a NaN is looked at
        counts_M = open_pLM.sum((0, 1)).tolist()
        counted_MpL = z_pLC.new_zeros(self.M, *z_pLC.shape[:2])
        for counted_pL, target_pL, open_pL, count in zip(
            counted_MpL, target_pLM.unbind(-1), open_pLM.unbind(-1), counts_M
        ):
            if count >= SPARSE * target_pL.numel():
                torch.sum(self._above(z_pLC, target_pL), -1, out=counted_pL)
            elif count:
                rows = open_pL.nonzero(as_tuple=True)
                counted_pL[rows] = self._above(z_pLC[rows], target_pL[rows]).sum(-1)
        above_pLM += counted_MpL.permute(1, 2, 0)

    def _above(self, z: Tensor, target: Tensor) -> Tensor:
        """0.0 or 1.0: summing floats is several times faster than bools."""
        return torch.gt(z, target[..., None], out=self.work[0, : z.numel()].view(z.shape))

    def _bits_PL(self) -> Tensor:
        """c in bits."""
        return self.c_PL * BITS

    def _in_nats(self, sums_3PL: Tensor) -> Tensor:
        """Sums of powers of two → float64 ones of powers of e, relative to c itself: in bits, as float32 has
        it, that was a little more or less."""
        s_PL, a_PL, x_PL = sums_3PL.double()
        c_PL = self.c_PL.double()
        off_PL = (self._bits_PL().double() / BITS if rounds_once(c_PL.device) else c_PL) - c_PL
        a_PL, x_PL = a_PL / BITS + off_PL * s_PL, x_PL / BITS + off_PL * s_PL[:, -1:]
        by_PL = off_PL.exp()
        return torch.stack([s_PL * by_PL, a_PL * by_PL, x_PL * by_PL[:, -1:]])

    def _add(self, z_PLC: Tensor, sums_3PL: Tensor, highest_PL: Tensor) -> None:
        """Add a tile's sums, then move c up to the running maximum.

        Two kinds of positions are summed again before, both rare: where a logit is so far above
        c that the sums lose digits or overflow, and where there is a −inf, with 0 · (−inf) = 0.
        """
        leap_P = (highest_PL - self.c_PL > LEAP).any(-1)
        again_P = leap_P | ~sums_3PL[1:].sum(0).isfinite().all(-1)
        if bool(leap_P.any()):
            self.raise_to(torch.where(leap_P[:, None], highest_PL, self.c_PL))
        for p in again_P.nonzero()[:, 0].tolist():
            d_LC = z_PLC[p] - self.c_PL[p, :, None].nan_to_num(0.0, neginf=0.0)
            e_LC = d_LC.exp()
            sums_3PL[0, p] = e_LC.sum(-1)
            sums_3PL[1, p] = torch.where(e_LC > 0, e_LC * d_LC, 0).sum(-1)
            sums_3PL[2, p] = torch.where(e_LC[-1:] > 0, e_LC[-1:] * d_LC, 0).sum(-1)
        self.s_PL += sums_3PL[0]
        self.a_PL += sums_3PL[1]
        self.x_PL += sums_3PL[2]
        self.raise_to(highest_PL)

    def raise_to(self, highest_PL: Tensor) -> None:
        """Move c up to what is higher and carry the sums over."""
        old_PL, self.c_PL = self.c_PL, torch.maximum(self.c_PL, highest_PL)
        grow_PL = self.c_PL.double() - old_PL.double()
        grow_PL = grow_PL.masked_fill_(self.c_PL == old_PL, 0.0)
        shrink_PL = torch.exp(-grow_PL)
        grow_PL = grow_PL.masked_fill_(old_PL == float("-inf"), 0.0)  # nothing to carry yet
        self.a_PL = (self.a_PL - grow_PL * self.s_PL) * shrink_PL
        self.x_PL = (self.x_PL - grow_PL * self.s_PL[:, -1:]) * shrink_PL[:, -1:]
        self.s_PL = self.s_PL * shrink_PL

    def _own(self, z_PLC: Tensor) -> None:
        """Where a target's own column passes, take its logit and never count it above itself."""
        C = z_PLC.shape[2]
        p, m = ((self.targets_PM >= self.seen) & (self.targets_PM < self.seen + C)).nonzero().T
        own_nL = z_PLC[p, :, self.targets_PM[p, m] - self.seen]
        self.own_PLM[p, :, m] = own_nL
        self.above_PLM[p, :, m] -= (own_nL > self.target_PLM[p, :, m]).double()

    def differs(self) -> bool:
        """Whether the tiles held other logits of the targets, `own_PLM`, than those counted against."""
        return bool(((self.own_PLM != self.target_PLM) & ~self.own_PLM.isnan()).any())

    def logsumexp(self) -> Tensor:
        """(P, L) float64, nats, of all columns fed so far."""
        return self.c_PL.double() + self.s_PL.log()

    def result(self, candidates: int = 0) -> Stats:
        """The statistics of all columns fed so far, as float32 and int64. The last targets are the
        candidates."""
        nan = float("nan")
        log_s_PL, lse_PL = self.s_PL.log(), self.logsumexp()
        finite_PL = lse_PL.isfinite()
        mean_PL = self.a_PL / self.s_PL
        cross_PL = self.x_PL / self.s_PL[:, -1:]
        entropy_PL = log_s_PL - mean_PL
        kl_PL = (mean_PL - log_s_PL)[:, -1:] - (cross_PL - log_s_PL)
        kl_PL[:, -1] = 0.0

        values_PLK = self._by_position(self.top.values_NK)
        ids_PLK = self._by_position(self.top.ids_NK)
        lost_PL1, lse_PL1 = ~finite_PL[..., None], lse_PL[..., None]
        targets_PM = self.targets_PM.clone()
        candidates_PC = targets_PM[:, self.M - candidates :]
        candidates_PC.masked_fill_(~finite_PL[:, -1:], -1)
        absent_PLM = (targets_PM < 0)[:, None] | lost_PL1
        return Stats(
            top_ids=ids_PLK.masked_fill(lost_PL1, -1),
            top_logprobs=(values_PLK - lse_PL1).float().masked_fill(lost_PL1, nan),
            entropy=entropy_PL.clamp(min=0).float().masked_fill(~finite_PL, nan),
            kl=kl_PL.clamp(min=0).float().masked_fill(~(finite_PL & finite_PL[:, -1:]), nan),
            target_logprobs=(self.own_PLM - lse_PL1).float().masked_fill(absent_PLM, nan),
            target_ranks=self._ranks(values_PLK, ids_PLK).masked_fill(absent_PLM, 0),
            candidate_ids=candidates_PC,
            finite=finite_PL,
        )

    def _ranks(self, values_PLK: Tensor, ids_PLK: Tensor) -> Tensor:
        """1 + those counted above; for a token among the top k, from the top k itself."""
        ranks_PLM = 1 + self.above_PLM.long()
        for m in range(self.M):
            among_PL = (ids_PLK == self.targets_PM[:, m, None, None]).any(-1)
            own_PL1 = self.own_PLM[..., m, None]
            ranks_PLM[..., m] = torch.where(
                among_PL, 1 + (values_PLK > own_PL1).sum(-1), ranks_PLM[..., m]
            )
        return ranks_PLM


@lru_cache
def rounds_once(device: torch.device) -> bool:
    """Whether a scaled sum of floats is rounded once there, as by all but very old processors: else logits far
    from zero would lose digits."""
    e, new = 2.0**-12, partial(torch.full, dtype=torch.float32, device=device)
    z_LC, c_L1, out_LC = new((2, 67), 1 + e), new((2, 1), -1 - 2 * e), new((2, 80), 0.0)[:, :67]
    return bool((torch.add(c_L1, z_LC, alpha=1 + e, out=out_LC) == e * e).all())


def _summed(C: int) -> tuple[int, int]:
    """How many sums C products are added up in, and of how many each: a multiple of 16."""
    parts = -(-C // SUMMED)
    return parts, C if parts == 1 else -(-C // (16 * parts)) * 16


def _dots(e_n1B: Tensor, d_nLB: Tensor) -> Tensor:
    """(n, L): products summed over B. Matrix products write nothing as large as their operands; a GPU
    might round those to ten bits."""
    if not d_nLB.is_cpu:
        return (e_n1B * d_nLB).sum(-1)
    return torch.bmm(e_n1B, d_nLB.transpose(1, 2))[:, 0]


def _cat(parts: Sequence[Online], name: str) -> Tensor:
    return torch.cat([getattr(part, name) for part in parts])
