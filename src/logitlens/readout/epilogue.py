"""The statistics of `online`, in Triton: one look at every logit of a slab while the second cache holds it.

Needs triton (extra `gpu`). A slab is what the library's product left: raw float32 logits of some
rows × C tokens. Five kernels, of one warp a program and with 2 KB of shared memory at most:

    pick      the targets' logits, from a slab
    look      the epilogue proper: each logit once; sums of every 512 tokens, counts above the targets,
              maxima of every 64 tokens; final rows that are wanted whole
    merge     a row's sums into what it had, and its k likeliest tokens: blocks of 64 are opened highest
              maximum first, until none can beat the k-th
    leading   the likeliest tokens of final rows, among the targets
    result    `Stats` of a row, once all slabs have passed

What they write is written whole, so that nobody has to fill it before. Same sums, same ties, same
treatment of NaN and ±inf as `online`. Nothing depends on the order in which programs run: counts are
whole numbers, sums are merged in the order of the tokens.

Triton compiles a kernel again for each integer that is 1 or a multiple of 16. Where that brings nothing it
is told not to. `look` alone keeps it for what says where its rows and biases begin and end: four numbers are
loaded at once where these are multiples, and the biases take half of the registers.
"""

# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportArgumentType=false
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false, reportIndexIssue=false
from __future__ import annotations

import triton
import triton.language as tl

TILE = 512  # tokens a program looks at in each of its rows
BLOCK = 64  # tokens of a block that the top k opens
LOWEST = -(2**63)  # key of nothing; a list that is not full holds the next ones
HIGHEST = 2**63 - 1  # fills a list's places beyond k
# A key's lower half is this less (or xor) the id, so that of equal logits the lower id leads.
LAST = 2**31 - 1

_TILE, _BLOCK = tl.constexpr(TILE), tl.constexpr(BLOCK)
_LOWEST, _LAST = tl.constexpr(LOWEST), tl.constexpr(LAST)
_HIGHEST = tl.constexpr(HIGHEST)
_LOG2E, _LN2 = tl.constexpr(1.4426950408889634), tl.constexpr(0.6931471805599453)


@triton.jit
def _finish(z, id, valid, bias, final_bias, scale, cap, BIAS: tl.constexpr, FINAL: tl.constexpr,
            CAP: tl.constexpr):  # fmt: skip
    """Raw products with the tokens `id` → logits; see `head`."""
    if BIAS:
        z += tl.load(bias + id, mask=valid, other=0.0).to(tl.float32)
    z *= scale
    if CAP:
        z = cap * _tanh(z / cap)
    if FINAL:
        z += tl.load(final_bias + id, mask=valid, other=0.0).to(tl.float32)
    return z


@triton.jit
def _tanh(y):
    """Near zero by its series, so that small logits keep their digits."""
    q = y * y
    series = y + y * q * (-0.33333334 + q * (0.13333334 + q * (-0.053968254 + q * 0.021869488)))
    t = tl.exp2(tl.abs(y) * -2.885390081777927)
    whole = (1.0 - t) / (1.0 + t)
    return tl.where(q < 0.04, series, tl.where(y < 0, -whole, whole))


@triton.jit
def _key(z, id):
    """A number that orders logits from low to high, and equal ones from high to low id."""
    bits = (z + 0.0).to(tl.int32, bitcast=True)  # −0 becomes 0: they are equal
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) | (id ^ _LAST).to(tl.int64)


@triton.jit(do_not_specialize=["stride", "first", "C", "L", "M"])
def pick(slab, stride, first, C, targets, wanted, above, bias, final_bias, scale, cap, L, M,
         MP: tl.constexpr, GATHERED: tl.constexpr, BIAS: tl.constexpr, FINAL: tl.constexpr,
         CAP: tl.constexpr):  # fmt: skip
    """Logits wanted (R, M) of every row's targets (P, M), +inf where there is none: nothing exceeds it.
    Sets above (R, M), the counts of what is greater, to 0.

    A slab has all tokens or, GATHERED, those of the C targets from the `first` on, one after another.
    """
    n = tl.program_id(0)
    m = tl.arange(0, MP)
    at = n // L * M + m
    id = tl.load(targets + at, mask=m < M, other=-1).to(tl.int32)
    here, column = m < M, id
    if GATHERED:
        column = at - first
        here = here & (column >= 0) & (column < C)
    valid = here & (id >= 0)
    z = tl.load(slab + n.to(tl.int64) * stride + column, mask=valid, other=0.0)
    z = _finish(z, id, valid, bias, final_bias, scale, cap, BIAS, FINAL, CAP)
    tl.store(wanted + n * M + m, tl.where(valid, z, float("inf")), mask=here)
    tl.store(above + n * M + m, tl.zeros((MP,), tl.int32), mask=here)


@triton.jit
def _logits(row, inside, id, most, bias, final_bias, scale, cap, WHOLE: tl.constexpr,
            BIAS: tl.constexpr, FINAL: tl.constexpr, CAP: tl.constexpr):  # fmt: skip
    """A row's logits of a tile; −inf where there is no token to look at."""
    if WHOLE:
        z = tl.load(row)
        z = _finish(z, id, True, bias, final_bias, scale, cap, BIAS, FINAL, CAP)
    else:
        z = tl.load(row, mask=inside, other=0.0)
        z = _finish(z, id, inside, bias, final_bias, scale, cap, BIAS, FINAL, CAP)
        z = tl.minimum(z, most)  # of NaN and +inf this is +inf, which spoils a row just as well
    return z


@triton.jit(do_not_specialize=["L", "M", "R", "G", "share"])
def look(slab, stride, begin, C, skip, sums, maxima, targets, wanted, above, places, whole, bias,
         final_bias, scale, cap, L, M, R, G, V, share, WHOLE: tl.constexpr, HELD: tl.constexpr,
         BIAS: tl.constexpr, FINAL: tl.constexpr, CAP: tl.constexpr):  # fmt: skip
    """512 tokens of a share of the rows of one position; programs are (tiles, positions, shares).

    Columns are tokens begin … begin + C, of which the first `skip` have been looked at before; WHOLE:
    none, and C is whole tiles. sums (4, R, G): c, s, a, x of each tile; maxima (R, 8 G). wanted
    (R, M): the targets' logits. HELD: logits of final rows go into whole (…, V) as well, at the places
    (P,) that are not −1.
    """
    g, p = tl.program_id(0), tl.program_id(1)
    inf = float("inf")
    column = g * _TILE + tl.arange(0, _TILE)
    id = begin + column
    inside = column < C
    most = tl.where(inside & (column >= skip), inf, -inf)
    final = (p * L + L - 1).to(tl.int64)
    if HELD:
        place = tl.load(places + p)
        if (place >= 0) & (tl.program_id(2) == 0):
            f = tl.load(slab + final * stride + column, mask=inside, other=0.0)
            f = _finish(f, id, inside, bias, final_bias, scale, cap, BIAS, FINAL, CAP)
            tl.store(whole + place.to(tl.int64) * V + id, f, mask=inside)
    f = _logits(slab + final * stride + column, inside, id, most, bias, final_bias, scale, cap,
                WHOLE, BIAS, FINAL, CAP)  # fmt: skip
    c = tl.max(f, axis=0)
    f = tl.exp2((f - tl.where(c > -inf, c, 0.0)) * _LOG2E)
    start = p * L + tl.program_id(2) * share
    for n in range(start, tl.minimum(start + share, p * L + L)):
        row = slab + tl.cast(n, tl.int64) * stride
        z = _logits(row + column, inside, id, most, bias, final_bias, scale, cap,
                    WHOLE, BIAS, FINAL, CAP)  # fmt: skip
        blocks = tl.max(tl.reshape(z, (_TILE // _BLOCK, _BLOCK)), axis=1)
        b = (n * G + g) * (_TILE // _BLOCK) + tl.arange(0, _TILE // _BLOCK)
        tl.store(maxima + b, blocks)
        c = tl.max(blocks, axis=0)
        d = (z - tl.where(c > -inf, c, 0.0)) * _LOG2E
        e = tl.exp2(d)
        s, a, x = tl.sum(e, axis=0), tl.sum(e * d, axis=0), tl.sum(f * d, axis=0)
        if a + x != a + x:  # a −inf: 0 · (−inf) is 0; a NaN stays one, by s
            a = tl.sum(tl.where(e > 0, e * d, 0.0), axis=0)
            x = tl.sum(tl.where(f > 0, f * d, 0.0), axis=0)
        at = sums + n * G + g
        tl.store(at, c)
        tl.store(at + R * G, s)
        tl.store(at + 2 * R * G, a)
        tl.store(at + 3 * R * G, x)
        for m in range(M):
            least = tl.load(wanted + n * M + m)
            if c > least:
                higher = tl.sum((z > least).to(tl.int32), axis=0)
                own = tl.load(targets + p * M + m).to(tl.int32) - begin
                if (own >= skip) & (own < C) & (own // _TILE == g):  # no token ranks below itself
                    z_own = tl.load(row + own)
                    z_own = _finish(
                        z_own, begin + own, True, bias, final_bias, scale, cap, BIAS, FINAL, CAP
                    )
                    higher -= (z_own > least).to(tl.int32)
                tl.atomic_add(above + n * M + m, higher, sem="relaxed")


@triton.jit
def _carried(c, new):
    """What sums relative to c have to be multiplied by to be relative to `new`, and by how many bits
    that is: 1 and 0 where there is nothing to carry."""
    grow = tl.where(c > -float("inf"), (new - c) * _LOG2E, 0.0)
    return tl.exp2(-grow), grow


@triton.jit
def _merge_sums(n, old, sums, state, L, R, G, GP: tl.constexpr):
    """The sums of a slab's part into those of row n, if they are `old` and not the first."""
    g = tl.arange(0, GP)
    there = g < G
    of_row, of_final = sums + n * G + g, sums + (n // L * L + L - 1) * G + g
    inf = float("inf")
    c = tl.load(of_row, mask=there, other=-inf)
    s = tl.load(of_row + R * G, mask=there, other=0.0)
    a = tl.load(of_row + 2 * R * G, mask=there, other=0.0)
    x = tl.load(of_row + 3 * R * G, mask=there, other=0.0)
    cf = tl.load(of_final, mask=there, other=-inf)
    sf = tl.load(of_final + R * G, mask=there, other=0.0)

    had = state + n
    old_c = tl.load(had, mask=old, other=-inf).to(tl.float32)
    old_s = tl.load(had + R, mask=old, other=0.0)
    old_a = tl.load(had + 2 * R, mask=old, other=0.0)
    old_x = tl.load(had + 3 * R, mask=old, other=0.0)
    old_cf = tl.load(had + 4 * R, mask=old, other=-inf).to(tl.float32)
    old_sf = tl.load(had + 5 * R, mask=old, other=0.0)
    new_c = tl.maximum(old_c, tl.max(c, axis=0))
    new_cf = tl.maximum(old_cf, tl.max(cf, axis=0))
    w, grow = _carried(c, new_c)
    wf, _ = _carried(cf, new_cf)
    old_w, old_grow = _carried(old_c, new_c)
    old_wf, _ = _carried(old_cf, new_cf)
    tl.store(had, new_c.to(tl.float64))
    tl.store(had + R, old_s * old_w + tl.sum(s * w, axis=0))
    tl.store(had + 2 * R, (old_a - old_grow * old_s) * old_w + tl.sum((a - grow * s) * w, axis=0))
    tl.store(
        had + 3 * R, (old_x - old_grow * old_sf) * old_wf + tl.sum((x - grow * sf) * wf, axis=0)
    )
    tl.store(had + 4 * R, new_cf.to(tl.float64))
    tl.store(had + 5 * R, old_sf * old_wf + tl.sum(sf * wf, axis=0))


@triton.jit(do_not_specialize=["stride", "begin", "C", "skip", "L", "R", "G", "k"])
def merge(slab, stride, begin, C, skip, sums, maxima, state, keys, low, bias, final_bias, scale, cap,
          L, R, G, k, GP: tl.constexpr, BP: tl.constexpr, KP: tl.constexpr, BIAS: tl.constexpr,
          FINAL: tl.constexpr, CAP: tl.constexpr):  # fmt: skip
    """A slab's part into what each row has: sums, state (6, R) float64, and the k likeliest, keys (R, KP).

    state: c, s, a, x and its final row's c and s. low (R,): the k-th of a row's keys.
    """
    n = tl.program_id(0)
    old = begin > 0
    _merge_sums(n, old, sums, state, L, R, G, GP)
    # As many blocks as a multiple that triton sees, so that four maxima are loaded at once.
    b, B = tl.arange(0, BP), G * (_TILE // _BLOCK)
    highest = tl.load(maxima + n * B + b, mask=b < B, other=-float("inf"))
    blocks = tl.where(b * _BLOCK < C, _key(highest, begin + b * _BLOCK), _LOWEST)
    best, least = tl.max(blocks, axis=0), tl.load(low + n, mask=old, other=_LOWEST + 1)
    if (best > least) | (begin == 0):
        i = tl.arange(0, KP)
        place = n * KP + i
        none = tl.where(i < k, i.to(tl.int64) + (_LOWEST + 1), _HIGHEST)
        held = tl.load(keys + place, mask=old & (i < KP), other=none)
        while best > least:
            first = (best & 0xFFFFFFFF).to(tl.int32) ^ _LAST  # of the block's tokens
            id = first + tl.arange(0, _BLOCK)
            column = id - begin
            inside = column < C
            z = tl.load(slab + n.to(tl.int64) * stride + column, mask=inside, other=0.0)
            z = _finish(z, id, inside, bias, final_bias, scale, cap, BIAS, FINAL, CAP)
            fresh = tl.where(inside & (column >= skip) & (z == z), _key(z, id), _LOWEST)
            most = tl.max(fresh, axis=0)
            while most > least:  # it takes the place of the k-th
                held = tl.where(held == least, most, held)
                fresh = tl.where(fresh == most, _LOWEST, fresh)
                least, most = tl.min(held, axis=0), tl.max(fresh, axis=0)
            blocks = tl.where(blocks == best, _LOWEST, blocks)
            best = tl.max(blocks, axis=0)
        tl.store(keys + place, held)
        tl.store(low + n, least)


@triton.jit
def _ranked(keys, n, k, KP: tl.constexpr):
    """Logits and ids of the k likeliest of row n, which place each takes, and what of it is there."""
    i = tl.arange(0, KP)
    key = tl.load(keys + n * KP + i, mask=i < k, other=_LOWEST)
    place = tl.zeros((KP,), tl.int32)
    for j in range(k):  # keys are unique
        place += (tl.load(keys + n * KP + j) > key).to(tl.int32)
    ordered = (key >> 32).to(tl.int32)
    z = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    return z, (key & 0xFFFFFFFF).to(tl.int32) ^ _LAST, place, i < k


@triton.jit(do_not_specialize=["k", "M", "V"])
def leading(keys, targets, k, M, V, KP: tl.constexpr):
    """The k likeliest of each row as the last of the targets (P, M) of a position."""
    p = tl.program_id(0)
    _, id, place, there = _ranked(keys, p, k, KP)
    # The keys of a row of NaN are still those it began with, of no token.
    tl.store(targets + p * M + M - k + place, tl.where(id < V, id, -1).to(tl.int64), mask=there)


@triton.jit
def _sums(row, R):
    """Logsumexp, log s, a / s and s of a row, in nats: a is of powers of two."""
    s = tl.load(row + R)
    log_s = tl.log(s)
    return tl.load(row) + log_s, log_s, tl.load(row + 2 * R) * _LN2 / s, s


@triton.jit(do_not_specialize=["P", "L", "R", "k", "M", "candidates"])
def result(state, keys, targets, wanted, above, top_ids, top_logprobs, entropy, kl, target_logprobs,
           target_ranks, candidate_ids, finite, P, L, R, k, M, candidates, KP: tl.constexpr):  # fmt: skip
    """A row's `Stats`, laid out with the layer first; the last targets are the candidates."""
    n = tl.program_id(0)
    inf, nan = float("inf"), float("nan")
    p = n // L
    layer = n - p * L
    last = layer == L - 1
    at = layer * P + p
    lse, log_s, mean, _ = _sums(state + n, R)
    lse_f, log_sf, mean_f, sf = _sums(state + p * L + L - 1, R)
    good, good_f = tl.abs(lse) < inf, tl.abs(lse_f) < inf
    e = log_s - mean
    d = (mean_f - log_sf) - (tl.load(state + n + 3 * R) * _LN2 / sf - log_s)
    d = tl.where((d < 0) | last, 0.0, d)
    tl.store(entropy + at, tl.where(good, tl.where(e < 0, 0.0, e), nan).to(tl.float32))
    tl.store(kl + at, tl.where(good & good_f, d, nan).to(tl.float32))
    tl.store(finite + at, good)

    z, id, place, there = _ranked(keys, n, k, KP)
    logprob = tl.where(good, z.to(tl.float64) - lse, nan).to(tl.float32)
    tl.store(top_ids + at * k + place, tl.where(good, id, -1), mask=there)
    tl.store(top_logprobs + at * k + place, logprob, mask=there)
    for m in range(M):
        target = tl.load(targets + p * M + m).to(tl.int32)
        asked = M - candidates
        target = tl.where((m < asked) | good_f, target, -1)
        tl.store(candidate_ids + p * candidates + m - asked, target, mask=last & (m >= asked))
        own, higher = tl.load(wanted + n * M + m), tl.load(above + n * M + m)
        same = id == target
        if tl.max(same.to(tl.int32), axis=0) > 0:  # its logit and its rank are those of the top k
            own = tl.max(tl.where(same, z, -inf), axis=0)
            higher = tl.sum((z > own).to(tl.int32), axis=0)
        counted = good & (target >= 0)
        surprise = tl.where(counted, own.to(tl.float64) - lse, nan).to(tl.float32)
        tl.store(target_logprobs + at * M + m, surprise)
        tl.store(target_ranks + at * M + m, tl.where(counted, 1 + higher, 0))
