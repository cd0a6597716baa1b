"""Rows in vector registers, against numpy: with the processor's instructions for 2^d and without."""

from __future__ import annotations

import numpy as np
import pytest

numba = pytest.importorskip("numba")

from logitlens.readout import lanes  # noqa: E402

LOG2E = np.float32(lanes.LOG2E)


@pytest.fixture(params=[True, False], ids=["scales", "shifts"])
def sums(request, monkeypatch):
    """(final, row): the two operations on arrays, compiled for one way to a power of two."""
    if request.param and not lanes.SCALES:
        pytest.skip("the processor has no such instruction")
    monkeypatch.setattr(lanes, "SCALES", request.param)
    out = []
    for final in (True, False):
        operation = lanes._sums_of(final=final)

        @numba.njit
        def call(z, c, target, other, operation=operation):
            at = z.ctypes.data
            return operation(at, len(z), c, target, other.ctypes.data, at)

        out.append(call)
    return out


def test_powers_of_two_are_right_to_an_ulp_and_zero_where_they_are_tiny(sums):
    z = np.linspace(-140, 0, 1 << 14, dtype=np.float32)
    found = np.full_like(z, np.nan)
    sums[0](z, np.float32(0), np.float32(0), found)
    d = (z * LOG2E).astype(np.float64)
    large = d >= -126
    np.testing.assert_allclose(found[large], 2.0 ** d[large], rtol=1.2e-7)
    assert found[-1] == 1
    assert not found[d < -127].any()


@pytest.mark.parametrize("n", [0, lanes.STEP, 7 * lanes.STEP])
def test_sums_are_those_of_the_definition(sums, n):
    generator = np.random.default_rng(3)
    z, final = (generator.normal(0, 4, n).astype(np.float32) for _ in range(2))
    c, target = np.float32(9), np.float32(1)
    e_f = np.empty_like(final)
    sums[0](final, c, target, e_f)
    d, d_f = (each * float(LOG2E) - 9 for each in (z.astype(float), final.astype(float)))
    above = (z > target).sum()
    wanted = (2**d).sum(), (2**d * d).sum(), (2**d_f * d).sum(), above
    np.testing.assert_allclose(sums[1](z, c, target, e_f), wanted, rtol=3e-6)
    wanted = (2**d_f).sum(), (2**d_f * d_f).sum(), (2**d_f * d_f).sum(), (final > target).sum()
    np.testing.assert_allclose(sums[0](final, c, target, e_f), wanted, rtol=3e-6)


def test_a_token_that_is_ruled_out_counts_nothing_and_a_nan_spoils_the_sums(sums):
    z, e_f = np.zeros(lanes.STEP, np.float32), np.empty(lanes.STEP, np.float32)
    z[3] = -np.inf
    s, a, *_ = sums[0](z, np.float32(0), np.float32(0), e_f)
    assert e_f.tolist() == [float(i != 3) for i in range(lanes.STEP)]
    assert s == lanes.STEP - 1
    assert np.isnan(a)  # 0 · (−inf), which is then summed with care
    z[3] = np.nan
    assert np.isnan(sums[0](z, np.float32(0), np.float32(0), e_f)[1])
