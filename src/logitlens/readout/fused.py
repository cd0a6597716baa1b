"""The statistics of `online`, compiled: one look at every logit while it is in the first cache.

Needs numba (extra `fast`). The torch operations of `online` read a tile seven times or more; this
reads it once, so that the readout costs little more than its product. Same sums, same ties,
same treatment of NaN and ±inf; results agree up to float32 rounding.
"""

# pyright: reportMissingImports=false, reportCallIssue=false
from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from logitlens.readout import blas, lanes
from logitlens.readout.lanes import LANES, LENGTH, LOG2E, SPAN, STEP
from logitlens.readout.online import Online
from logitlens.readout.threads import pool

STRIP = 512  # tokens that a thread multiplies at a time, …
ROWS = 1024  # … by so many rows at most: 2 MB


class Fused(Online):
    """`Online` with the same state, updated by the compiled loop."""

    def __init__(self, k: int, targets_PM: Tensor, target_PLM: Tensor):
        super().__init__(k, targets_PM, target_PLM)
        self.held_N = torch.zeros(self.P * self.L, dtype=torch.int32, device="cpu")

    def update(self, z_NC: Tensor) -> None:
        """Take in the next C columns; see `Online.update`."""
        z_NS, begin = _whole_rows(z_NC)
        place = (z_NS, begin, 0, 1, self.P, z_NS, begin, (self.L - 1) * self.P)
        C, threads = z_NC.shape[1], min(torch.get_num_threads(), self.P)
        if threads > 1:
            with pool(threads):
                _tiles(*place, C, self.seen, threads, *self._state())
        else:
            _tile(*place, C, self.seen, 0, self.P, *self._state())
        self.seen += C

    def multiply(self, sgemm: int, x_NE: Tensor, weight_VE: Tensor, final_PV: Tensor) -> None:
        """Take in all columns, which each thread multiplies for rows of its own: a strip of the
        vocabulary at a time, looked at while it is in that core's second cache.

        sgemm      the address of BLAS's function, which in one of several threads uses that alone
        x_NE       the rows of all layers but the final one, a position's together
        final_PV   the final rows' logits
        """
        (V, E), threads = weight_VE.shape, min(torch.get_num_threads(), self.P)
        rows = -(-self.P // threads) * (self.L - 1)
        goes = -(-rows // ROWS)
        # Distances that are no power of two: the caches would map rows onto each other.
        room_TnS = x_NE.new_empty(threads, -(-rows // goes) + self.L, STRIP + LANES)
        f_PS, begin = _whole_rows(final_PV)
        with pool(threads):
            _strips(
                sgemm, x_NE.data_ptr(), E, weight_VE.data_ptr(), weight_VE.stride(0), V,
                room_TnS.numpy(), goes, f_PS, begin, *self._state(),
            )  # fmt: skip
        self.seen += V

    def _state(self) -> list[np.ndarray]:
        """What the compiled loops write."""
        tensors = (
            self.c_PL, self.s_PL, self.a_PL, self.x_PL, self.targets_PM, self.target_PLM,
            self.above_PLM, self.own_PLM, self.top.values_NK, self.top.ids_NK, self.held_N,
        )  # fmt: skip
        return [t.numpy() for t in tensors]


def _whole_rows(z_NC: Tensor) -> tuple[np.ndarray, int]:
    """The rows of the buffer and where in them the columns begin: the compiled loop is fast on a
    contiguous array only."""
    offset, stride = int(z_NC.storage_offset()), z_NC.stride(0)
    z_NS = z_NC.as_strided((z_NC.shape[0], stride), (stride, 1), offset - offset % stride)
    return z_NS.numpy(), offset % stride


@numba.njit
def _maxima(z, maxima):
    """Lane maxima of spans of 1,024: lane b of a span holds columns b, b + 64, … Highest of all.

    Lanes, not runs of neighbours, so that one instruction takes the maxima of many of them. A NaN
    is skipped here (the sums find it).
    """
    C, to, of = z.shape[0], maxima.ctypes.data, z.ctypes.data
    whole = C // SPAN * SPAN
    for v in range(0, whole, SPAN):
        lanes.span_maxima(to + v // LENGTH * 4, of + v * 4)
    maxima[whole // LENGTH :] = np.float32(-np.inf)
    for v in range(whole, C - LANES + 1, LANES):
        lanes.raise_lanes(to + whole // LENGTH * 4, of + v * 4)
    for v in range(C // LANES * LANES, C):
        b = v // SPAN * LANES + v % LANES
        maxima[b] = z[v] if z[v] > maxima[b] else maxima[b]
    top = lanes.highest(to)
    for start in range(LANES, maxima.shape[0], LANES):
        high = lanes.highest(to + start * 4)
        top = high if high > top else top
    return top


@numba.njit
def _sums(z, c, target, final, is_final, ahead):
    """Σ 2^d, Σ 2^d d and Σ 2^(d_f) d of a row, and how many exceed the target; the final row writes
    its 2^d for the others. ahead: the address of the row that is looked at next."""
    C, at, other = z.shape[0], z.ctypes.data, final.ctypes.data
    whole = C // STEP * STEP
    if is_final:
        s, a, x, above = lanes.final_sums(at, whole, c, target, other, ahead)
    else:
        s, a, x, above = lanes.row_sums(at, whole, c, target, other, ahead)
    for v in range(whole, C):
        d = _d(z[v], c)
        e = np.float32(2.0) ** d
        if is_final:
            final[v] = e
        s += e
        a += e * d
        x += final[v] * d
        above += np.float32(1.0) if z[v] > target else np.float32(0.0)
    return s, a, x, above


@numba.njit(inline="always")
def _d(z, c):
    """z log₂e − c, rounded once as the vectors' is: float64 holds the product of two float32."""
    return np.float32(LOG2E * z - c)


@numba.njit
def _careful(z, c, final):
    """The sums of `_sums` where there is a −inf: 0 · (−inf) is 0. NaN stays NaN."""
    s, a, x = 0.0, 0.0, 0.0
    for v in range(z.shape[0]):
        d = _d(z[v], c)
        e = 2.0**d
        s += e
        if e != 0.0:
            a += e * d
        if final[v] != 0.0:
            x += final[v] * d
    return s, a, x


@numba.njit
def _count(z, target):
    whole = z.shape[0] // STEP * STEP
    above = lanes.count(z.ctypes.data, whole, target)
    for v in range(whole, z.shape[0]):
        above += np.float32(1.0) if z[v] > target else np.float32(0.0)
    return above


@numba.njit
def _keep(z, maxima, top, first, values, ids, held):
    """Insert what beats the k-th value, or equals it with a lower id; opens lanes that may."""
    K, C = values.shape[0], z.shape[0]
    for first_lane in range(0, maxima.shape[0], LANES):
        if lanes.highest(maxima.ctypes.data + first_lane * 4) < _least(values, held, top):
            continue
        for b in range(first_lane, first_lane + LANES):
            if maxima[b] < _least(values, held, top):
                continue
            start = b // LANES * SPAN + b % LANES
            for v in range(start, min(C, start + SPAN), LANES):
                value, id = z[v], first + v
                if np.isnan(value):
                    continue
                if held == K and not _beats(value, id, values[K - 1], ids[K - 1]):
                    continue
                at = held if held < K else K - 1
                while at > 0 and _beats(value, id, values[at - 1], ids[at - 1]):
                    values[at], ids[at] = values[at - 1], ids[at - 1]
                    at -= 1
                values[at], ids[at] = value, id
                held = min(K, held + 1)
    return held


@numba.njit(inline="always")
def _least(values, held, top):
    """What a logit must reach to be kept: of one token, the highest of all."""
    K = values.shape[0]
    if K == 1:
        return top
    return values[K - 1] if held == K else np.float32(-np.inf)


@numba.njit(inline="always")
def _beats(value, id, other, other_id):
    return value > other or (value == other and id < other_id)


@numba.njit(nogil=True, cache=True)
def _tile(
    z_NS, begin, base, apart, between, f_PS, f_begin, f_first, C, first, start, stop, c_PL, s_PL, a_PL,
    x_PL, targets_PM, target_PLM, above_PLM, own_PLM, values_NK, ids_NK, held_N,
):  # fmt: skip
    """Tokens first … first + C of positions start … stop into the state arrays.

    z_NS   the rows, from the column `begin` on: of layer r at position p, (p − base) apart + r between
    f_PS   the final rows, from the column f_begin on: of p, f_first + p
    """
    (P, L), M, K = c_PL.shape, targets_PM.shape[1], values_NK.shape[1]
    maxima = np.empty((C + SPAN - 1) // SPAN * LANES, np.float32)
    final = np.empty(C, np.float32)
    none = np.float32(np.inf)
    for p in range(start, stop):
        old_sf, shrink_f, sf, wf = s_PL[p, L - 1], 1.0, 0.0, 1.0
        for row in range(L - 1, -1, -1):  # the final row first: the others need its 2^d
            n, final_row = row * P + p, row == L - 1
            if final_row:
                z = f_PS[f_first + p][f_begin : f_begin + C]
            else:
                z = z_NS[(p - base) * apart + row * between][begin : begin + C]
            old, top = c_PL[p, row], _maxima(z, maxima)
            c = max(old, top)
            safe = c if c > -np.inf else np.float32(0.0)
            bits = np.float32(np.rint(LOG2E * safe))  # whole, so that d is rounded once
            target = target_PLM[p, row, 0] if M else none
            if row:
                ahead = z_NS[(p - base) * apart + (row - 1) * between][begin:]
            else:
                ahead = f_PS[f_first + min(p + 1, P - 1)][f_begin:]
            s, a, x, above = _sums(z, bits, target, final, final_row, ahead.ctypes.data)
            if not np.isfinite(a + x):
                s, a, x = _careful(z, bits, final)
            off = LOG2E * safe - bits
            w = 2.0**-off
            grow = float(c) - float(old) if old > -np.inf else 0.0
            shrink = np.exp(-grow) if old > -np.inf else 0.0
            if final_row:
                shrink_f, sf, wf = shrink, s, w
            # From powers of two beside `bits` to powers of e beside c.
            s, a, x = s * w, (a - off * s) * w / LOG2E, (x - off * sf) * wf / LOG2E
            a_PL[p, row] = (a_PL[p, row] - grow * s_PL[p, row]) * shrink + a
            x_PL[p, row] = (x_PL[p, row] - grow * old_sf) * shrink_f + x
            s_PL[p, row] = s_PL[p, row] * shrink + s
            c_PL[p, row] = c
            if held_N[n] < K or not top < values_NK[n, K - 1]:
                held_N[n] = _keep(z, maxima, top, first, values_NK[n], ids_NK[n], held_N[n])
            for m in range(M):
                target, own = target_PLM[p, row, m], targets_PM[p, m] - first
                if m > 0:  # of candidates hardly any tile holds something greater
                    above = _count(z, target) if top > target else np.float32(0.0)
                above_PLM[p, row, m] += above
                if 0 <= own < C:
                    own_PLM[p, row, m] = z[own]
                    above_PLM[p, row, m] -= 1.0 if z[own] > target else 0.0


@numba.njit(parallel=True, cache=True)
def _tiles(
    z_NS, begin, base, apart, between, f_PS, f_begin, f_first, C, first, shares, c_PL, s_PL, a_PL, x_PL,
    targets_PM, target_PLM, above_PLM, own_PLM, values_NK, ids_NK, held_N,
):  # fmt: skip
    """`_tile` for all positions, an equal share to each thread."""
    P = c_PL.shape[0]
    for share in numba.prange(shares):
        _tile(
            z_NS, begin, base, apart, between, f_PS, f_begin, f_first, C, first,
            share * P // shares, (share + 1) * P // shares, c_PL, s_PL, a_PL, x_PL, targets_PM,
            target_PLM, above_PLM, own_PLM, values_NK, ids_NK, held_N,
        )  # fmt: skip


@numba.njit(parallel=True, cache=True)
def _strips(
    sgemm, x, E, weight, apart, V, room_TnS, goes, f_PS, f_begin, c_PL, s_PL, a_PL, x_PL, targets_PM,
    target_PLM, above_PLM, own_PLM, values_NK, ids_NK, held_N,
):  # fmt: skip
    """All tokens, an equal share of the positions to each thread, which takes it in so many goes."""
    (P, L), threads = c_PL.shape, room_TnS.shape[0]
    for t in numba.prange(threads):
        z_nS = room_TnS[t]
        parts = threads * goes
        for g in range(goes):
            part = t * goes + g
            start, stop = part * P // parts, (part + 1) * P // parts
            for v in range(0, V, STRIP):
                C = min(STRIP, V - v)
                blas.multiply(
                    sgemm, C, (stop - start) * (L - 1), E, weight + 4 * v * apart, apart,
                    x + 4 * start * (L - 1) * E, z_nS.ctypes.data, z_nS.shape[1],
                )  # fmt: skip
                _tile(
                    z_nS, 0, start, L - 1, 1, f_PS, f_begin + v, 0, C, v, start, stop, c_PL, s_PL,
                    a_PL, x_PL, targets_PM, target_PLM, above_PLM, own_PLM, values_NK, ids_NK, held_N,
                )  # fmt: skip
