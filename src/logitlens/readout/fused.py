"""The statistics of `online`, compiled: one look at every logit while it is in the first cache.

Needs numba (extra `fast`). The torch operations of `online` read a tile seven times or more; this
reads it once, so that the readout costs little more than its product. Same sums, same ties,
same treatment of NaN and ±inf; results agree up to float32 rounding.

What multiplies and looks in turn is in the same file, as numba keeps what it compiled for as long as
that is unchanged.
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
from logitlens.readout.product import Packing, packed_bytes
from logitlens.readout.stats import FinalRows
from logitlens.readout.threads import pool

STRIP = 512  # tokens that a thread multiplies at a time, …
ROWS = 1024  # … by so many rows at most: 2 MB
WHOLE = 128  # rows that it multiplies by all tokens of a small vocabulary


class Fused(Online):
    """`Online` with the same state, updated by the compiled loop."""

    def __init__(self, k: int, targets_PM: Tensor, target_PLM: Tensor):
        super().__init__(k, targets_PM, target_PLM)
        self.held_N = torch.zeros(self.P * self.L, dtype=torch.int32, device="cpu")

    def update(self, z_NC: Tensor) -> None:
        """Take in the next C columns; see `Online.update`."""
        z_NS, begin = _whole_rows(z_NC)
        place = (z_NS, begin, 0, 1, self.P, z_NS, begin, (self.L - 1) * self.P, 1)
        C, threads = z_NC.shape[1], min(torch.get_num_threads(), self.P)
        if threads > 1:
            with pool(threads):
                _tiles(*place, C, self.seen, threads, *self._state())
        else:
            _tile(*place, C, self.seen, 0, self.P, *self._state())
        self.seen += C

    def multiply(
        self, mkl: Packing, x_PRE: Tensor, weight_VE: Tensor, final: FinalRows,
        held_PV: Tensor | None, whole: bool, *, known: bool = False,
    ) -> None:  # fmt: skip
        """Take in all columns, which each thread multiplies for rows of its own and looks at while
        they are in that core's second cache: whole rows of a small vocabulary, or a strip of a larger
        one at a time, after the targets' logits.

        mkl        addresses of its functions
        x_PRE      the rows of all layers, float32        held_PV   the final rows' logits, which
        known      whether the targets' logits are                  x_PRE then lacks
        """
        (P, R, E), V = x_PRE.shape, len(weight_VE)
        threads = min(torch.get_num_threads(), P)
        strip, most = (V, WHOLE) if whole else (STRIP, ROWS)
        share = -(-P // threads)
        each = max(1, most // R) if whole else -(-share // -(-share * R // most))
        room = _Packed(
            threads, {each * R, (P - 1) % each * R + R}, {strip, V % strip or strip}, E, whole
        )
        # Distances that are no power of two: the caches would map rows onto each other.
        stride = -(-strip // LANES) * LANES + LANES
        room_TnS = x_PRE.new_empty(threads, each * R, stride)
        room_TcE = x_PRE.new_empty(threads, 0 if whole or known else strip, E)
        wanted_FV = x_PRE.new_empty(len(final), V)
        wanted_P = np.full(P, -1)
        wanted_P[list(final)] = range(len(final))
        f_PS, begin = _whole_rows(room_TnS[0] if held_PV is None else held_PV)
        with pool(threads):
            _strips(
                mkl, x_PRE.data_ptr(), R, weight_VE.numpy(), strip, each, whole, known, room.rows_T,
                room.tokens_T, room_TnS.numpy(), room_TcE.numpy(), f_PS, begin, wanted_P,
                wanted_FV.numpy(), *self._state(),
            )  # fmt: skip
        for z_V, wanted_V in zip(final.values(), wanted_FV):
            z_V.copy_(wanted_V)
        self.seen += V

    def _state(self) -> list[np.ndarray]:
        """What the compiled loops write."""
        tensors = (
            self.c_PL, self.s_PL, self.a_PL, self.x_PL, self.targets_PM, self.target_PLM,
            self.above_PLM, self.own_PLM, self.top.values_NK, self.top.ids_NK, self.held_N,
        )  # fmt: skip
        return [t.numpy() for t in tensors]


class _Packed:
    """Memory for packed operands: addresses for the rows of each thread, and for its tokens; or where
    all tokens are packed together, for all threads, in each number of rows."""

    def __init__(self, threads: int, rows: set[int], tokens: set[int], E: int, whole: bool):
        self._memory: list[Tensor] = []
        self.rows_T = self._addresses(threads, blas.LEFT, rows, tokens, E)
        self.tokens_T = self._addresses(2 if whole else threads, blas.RIGHT, rows, tokens, E)

    def _addresses(
        self, count: int, side: int, rows: set[int], tokens: set[int], E: int
    ) -> np.ndarray:
        size = max(packed_bytes(side, n, c, E) for n in rows for c in tokens) + 64
        # Apart, as the C library keeps blocks of less than 32 MB for the next that ask.
        memory = [torch.empty(size, dtype=torch.uint8, device="cpu") for _ in range(count)]
        self._memory += memory
        return np.array([-(-each.data_ptr() // 64) * 64 for each in memory])


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
    z_NS, begin, base, apart, between, f_PS, f_begin, f_first, f_apart, C, first, start, stop, c_PL, s_PL, a_PL,
    x_PL, targets_PM, target_PLM, above_PLM, own_PLM, values_NK, ids_NK, held_N,
):  # fmt: skip
    """Tokens first … first + C of positions start … stop into the state arrays.

    z_NS   the rows, from the column `begin` on: of layer r at position p, (p − base) apart + r between
    f_PS   the final rows, from the column f_begin on: of p, f_first + p f_apart
    """
    P, L = c_PL.shape
    M, K = targets_PM.shape[1], values_NK.shape[1]
    maxima = np.empty((C + SPAN - 1) // SPAN * LANES, np.float32)
    final = np.empty(C, np.float32)
    none = np.float32(np.inf)
    for p in range(start, stop):
        old_sf, shrink_f, sf, wf = s_PL[p, L - 1], 1.0, 0.0, 1.0
        for row in range(L - 1, -1, -1):  # the final row first: the others need its 2^d
            n, final_row = row * P + p, row == L - 1
            if final_row:
                z = f_PS[f_first + p * f_apart][f_begin : f_begin + C]
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
                ahead = f_PS[f_first + min(p + 1, stop - 1) * f_apart][f_begin:]
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
    z_NS, begin, base, apart, between, f_PS, f_begin, f_first, f_apart, C, first, shares, c_PL, s_PL,
    a_PL, x_PL, targets_PM, target_PLM, above_PLM, own_PLM, values_NK, ids_NK, held_N,
):  # fmt: skip
    """`_tile` for all positions, an equal share to each thread."""
    P = c_PL.shape[0]
    for share in numba.prange(shares):
        _tile(
            z_NS, begin, base, apart, between, f_PS, f_begin, f_first, f_apart, C, first,
            share * P // shares, (share + 1) * P // shares, c_PL, s_PL, a_PL, x_PL, targets_PM,
            target_PLM, above_PLM, own_PLM, values_NK, ids_NK, held_N,
        )  # fmt: skip


@numba.njit(parallel=True, cache=True)
def _strips(
    mkl, x, R, weight_VE, strip, each, whole, known, rows_T, tokens_T, room_TnS, room_TcE, f_PS, f_begin,
    wanted_P, wanted_FV, c_PL, s_PL, a_PL, x_PL, targets_PM, target_PLM, above_PLM, own_PLM, values_NK,
    ids_NK, held_N,
):  # fmt: skip
    """All tokens, an equal share of the positions to each thread, which takes `each` of them at a time."""
    (P, L), (V, E), threads = c_PL.shape, weight_VE.shape, room_TnS.shape[0]
    pack, compute, alone = mkl
    goes = (P + each - 1) // each
    before = blas.use_threads(alone, 1)  # what MKL packs depends on it
    if whole:  # once for the last positions, which may be fewer, and once for all others
        for last in range(1 if goes == 1 else 0, 2):
            n = (P - (goes - 1) * each if last else each) * R
            blas.pack_tokens(pack, n, V, E, weight_VE.ctypes.data, tokens_T[last])
    blas.use_threads(alone, before)
    for t in numba.prange(threads):
        z_nS = room_TnS[t]
        before = blas.use_threads(alone, 1)
        for go in range(t * goes // threads, (t + 1) * goes // threads):
            start, stop = go * each, min(P, (go + 1) * each)
            n, of = (stop - start) * R, x + 4 * start * R * E
            packed = 0
            if not (whole or known):
                _multiply_targets(
                    mkl, n, of, R, start, stop, weight_VE, rows_T[t], tokens_T[t], z_nS, room_TcE[t],
                    f_PS, f_begin, targets_PM, target_PLM,
                )  # fmt: skip
                packed = strip if targets_PM.size else 0
            for v in range(0, V, strip):
                C = min(strip, V - v)
                if packed != C:
                    blas.pack_rows(pack, n, C, E, of, rows_T[t])
                    packed = C
                tokens = tokens_T[1 if go == goes - 1 else 0] if whole else tokens_T[t]
                if not whole:
                    blas.pack_tokens(pack, n, C, E, weight_VE[v:].ctypes.data, tokens)
                blas.multiply(compute, n, C, E, rows_T[t], tokens, z_nS.ctypes.data, z_nS.shape[1])
                if whole and not known:
                    _look_up(z_nS, R, start, stop, f_PS, f_begin, targets_PM, target_PLM)
                if R == L:
                    place = (z_nS, 0, L - 1 - start * L, L)
                else:
                    place = (f_PS, f_begin + v, 0, 1)
                _tile(
                    z_nS, 0, start, R, 1, *place, C, v, start, stop, c_PL, s_PL, a_PL, x_PL,
                    targets_PM, target_PLM, above_PLM, own_PLM, values_NK, ids_NK, held_N,
                )  # fmt: skip
                for p in range(start, stop):
                    if wanted_P[p] >= 0:
                        final = place[0][place[2] + p * place[3]]
                        wanted_FV[wanted_P[p], v : v + C] = final[place[1] : place[1] + C]
        blas.use_threads(alone, before)


@numba.njit
def _look_up(z_nS, R, start, stop, f_PS, f_begin, targets_PM, target_PLM):
    """The targets' logits in whole rows."""
    L, M = target_PLM.shape[1:]
    for p in range(start, stop):
        for m in range(M):
            v = max(0, targets_PM[p, m])
            for row in range(R):
                target_PLM[p, row, m] = z_nS[(p - start) * R + row, v]
            if R < L:
                target_PLM[p, R, m] = f_PS[p, f_begin + v]


@numba.njit
def _multiply_targets(
    mkl, n, of, R, start, stop, weight_VE, rows, tokens, z_nS, room_cE, f_PS, f_begin, targets_PM,
    target_PLM,
):  # fmt: skip
    """The targets' logits, by the function that multiplies them later with all others."""
    (_, L, M), (strip, E) = target_PLM.shape, room_cE.shape
    pack, compute, _ = mkl
    count = (stop - start) * M
    if count:
        blas.pack_rows(pack, n, strip, E, of, rows)
    for first in range(0, count, strip):
        here = min(strip, count - first)
        for c in range(here):
            room_cE[c] = weight_VE[max(0, targets_PM[start + (first + c) // M, (first + c) % M])]
        blas.pack_tokens(pack, n, strip, E, room_cE.ctypes.data, tokens)
        blas.multiply(compute, n, strip, E, rows, tokens, z_nS.ctypes.data, z_nS.shape[1])
        for c in range(here):
            p, m = start + (first + c) // M, (first + c) % M
            for row in range(R):
                target_PLM[p, row, m] = z_nS[(p - start) * R + row, c]
            if R < L:
                target_PLM[p, R, m] = f_PS[p, f_begin + max(0, targets_PM[p, m])]
