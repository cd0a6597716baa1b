"""Screening in bfloat16 gives the ids of float32, and says how far the sums may be off."""

from __future__ import annotations

import pytest
import torch

from logitlens.readout import chunked, reference, screened
from logitlens.readout.head import Head
from logitlens.readout.product import SplitProduct
from tests.readout.heads import called, make_head, make_rows, make_targets

needs_bfloat16 = pytest.mark.skipif(
    not SplitProduct.possible(make_head(8)), reason="this processor has no bfloat16 products"
)


@needs_bfloat16
@pytest.mark.parametrize("parts", [{}, {"bias": True, "scale": 16.0}, {"softcap": 30.0}])
@pytest.mark.parametrize("width", [24, 768])
def test_ids_are_those_of_float32_and_the_bound_holds(parts, width):
    head, x = make_head(5000, width, **parts), make_rows(20, 5, width)
    targets = make_targets(20, 5000)
    ours = screened.stats(x, head, 10, targets)
    exact = chunked.stats(x, head, 10, targets)
    assert torch.equal(ours.stats.top_ids, exact.top_ids)
    assert not bool(ours.again.all()), "nothing was screened"

    z = reference.logits(x, head)
    split = SplitProduct(x.flatten(0, 1), head)
    z_split = split.tile(slice(0, 5000)).view_as(z)
    assert bool(((z_split - z).abs().amax(-1) <= ours.bound).all())
    lse = torch.logsumexp(z, -1)
    off = (torch.logsumexp(z_split.double(), -1) - lse).abs()
    assert bool((off <= ours.bound).all())
    within = ours.bound.max() + 1e-5
    for name in ("top_logprobs", "entropy", "kl", "target_logprobs"):
        mine, theirs = getattr(ours.stats, name), getattr(exact, name)
        torch.testing.assert_close(mine, theirs, atol=float(within), rtol=0, equal_nan=True)


@needs_bfloat16
def test_what_the_bound_cannot_settle_is_read_again():
    weight = torch.randn(1, 24).expand(5000, -1) + 1e-6 * torch.randn(5000, 24)
    head, x, targets = Head(5000, weight), make_rows(3, 2), make_targets(3, 5000)
    ours = screened.stats(x, head, 10, targets)
    assert bool(ours.again.all())
    assert torch.equal(ours.stats.top_ids, chunked.stats(x, head, 10, targets).top_ids)


@needs_bfloat16
def test_a_row_that_is_no_number_spoils_no_other():
    head, x, targets = make_head(5000), make_rows(4, 3), make_targets(4, 5000)
    x[1, 1, 0] = float("nan")
    ours = screened.stats(x, head, 10, targets)
    assert int((~ours.stats.finite).sum()) == 1
    assert torch.equal(ours.stats.top_ids, chunked.stats(x, head, 10, targets).top_ids)


def test_what_cannot_be_screened_is_read_exactly():
    head, x, targets = make_head(500), make_rows(4, 3), make_targets(4, 500)
    ours = screened.stats(x, called(head), 10, targets)
    assert bool((ours.bound == 0).all())
    assert torch.equal(ours.stats.top_ids, chunked.stats(x, head, 10, targets).top_ids)
    with pytest.raises(ValueError, match="exact"):
        chunked.stats(x, head, 10, targets, precision="rough")
    assert chunked.stats(x, head, 600 - 100, targets, precision="screened").top_ids.shape[-1] == 500
