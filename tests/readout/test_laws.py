"""What must hold for any rows, any head, any way of cutting the work up."""

from __future__ import annotations

import math
from importlib.util import find_spec

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from logitlens.readout import chunked
from logitlens.readout.chunked import Chunked
from logitlens.readout.head import Head
from logitlens.readout.stats import Stats
from tests.readout.heads import called, make_head, make_rows, make_targets
from tests.readout.truth import judge

KERNELS = ["torch", "numba"] if find_spec("numba") else ["torch"]
LIGHT = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))

shapes = st.fixed_dictionaries(
    {
        "positions": st.integers(1, 6),
        "depths": st.integers(1, 5),
        "width": st.sampled_from([1, 8, 33]),
    }
)
heads = st.fixed_dictionaries(
    {
        "bias": st.booleans(),
        "final_bias": st.booleans(),
        "scale": st.sampled_from([0.0625, 1.0, 16.0]),
        "softcap": st.sampled_from([None, 30.0]),
        "dtype": st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
        "seed": st.integers(0, 99),
    }
)


@LIGHT
@given(
    shapes,
    heads,
    st.integers(2, 700),
    st.integers(1, 80),
    st.integers(1, 40),
    st.integers(1, 800),
)
# Final logits 60 nats from where other rows have them: each ulp of the product counts 70 times in KL.
@example(
    {"positions": 2, "depths": 3, "width": 8},
    {"bias": True, "final_bias": True, "scale": 16.0, "softcap": None, "dtype": torch.float32, "seed": 27},
    2, 1, 1, 2,
)  # fmt: skip
def test_true_however_the_work_is_cut(shape, parts, vocab, k, rows, columns):
    k = min(k, vocab)
    head, x = make_head(vocab, shape["width"], **parts), make_rows(**shape)
    targets = make_targets(shape["positions"], vocab, 2)
    ours = Chunked(rows=rows, columns=columns).stats(x, head, k, targets)
    judge(ours, x, head, k, targets)
    laws(ours, vocab)


@LIGHT
@given(shapes, heads, st.integers(2, 300), st.randoms(use_true_random=False))
def test_permuting_the_vocabulary_permutes_ids_only(shape, parts, vocab, random):
    head, x = make_head(vocab, shape["width"], **parts), make_rows(**shape)
    targets = make_targets(shape["positions"], vocab, 2)
    order = list(range(vocab))
    random.shuffle(order)
    new_of_old = torch.tensor(order)  # token i becomes token new_of_old[i]
    old_of_new = new_of_old.argsort()

    def permuted(values):
        return None if values is None else values[old_of_new]

    other = Head(
        vocab,
        permuted(head.weight_VE),
        permuted(head.bias_V),
        head.scale,
        head.softcap,
        permuted(head.final_bias_V),
    )
    moved = torch.where(targets < 0, targets, new_of_old[targets.clamp(min=0)])
    k = min(5, vocab)
    ours, theirs = Chunked().stats(x, head, k, targets), Chunked().stats(x, other, k, moved)
    judge(theirs, x, other, k, moved)
    torch.testing.assert_close(ours.entropy, theirs.entropy, atol=2e-4, rtol=1e-5)
    torch.testing.assert_close(ours.kl, theirs.kl, atol=2e-4, rtol=1e-5)
    torch.testing.assert_close(ours.top_logprobs, theirs.top_logprobs, atol=2e-4, rtol=1e-5)
    gaps = ours.top_logprobs[..., :-1] - ours.top_logprobs[..., 1:]
    clear = (gaps > 1e-3).all(-1)
    # The k-th value may tie with one left out, so the last place is not compared.
    assert torch.equal(new_of_old[ours.top_ids[clear][:, :-1]], theirs.top_ids[clear][:, :-1])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("rows", [1, 13, 64])
def test_rows_and_threads_change_nothing(kernel, threads, rows):
    head, x, targets = make_head(5000, 48, bias=True), make_rows(9, 4, 48), make_targets(9, 5000)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        judge(Chunked(kernel, rows=rows).stats(x, head, 12, targets), x, head, 12, targets)
    finally:
        torch.set_num_threads(before)


def test_a_head_that_may_only_be_called_is_asked_for_few_rows_at_a_time(monkeypatch):
    monkeypatch.setattr(chunked, "CALLED", 4 * 3000)
    head, x, targets = make_head(3000, final_bias=True), make_rows(3, 11), make_targets(3, 3000)
    asked = []

    def call(x_NE):
        asked.append(x_NE.shape[0])
        return called(head).raw(x_NE)

    shy = Head(3000, final_bias_V=head.final_bias_V, call=call)
    judge(Chunked().stats(x, shy, 10, targets), x, head, 10, targets)
    assert max(asked) <= 4
    assert sum(asked) == 3 * 11


def test_a_target_among_the_top_k_has_its_place_as_rank():
    head, x = make_head(4099), make_rows()
    first = Chunked().stats(x, head, 10, torch.full((7, 1), -1))
    for place in range(10):
        targets = first.top_ids[:, -1, place : place + 1]
        again = Chunked().stats(x, head, 10, targets)
        assert bool((again.target_ranks[:, -1, 0] == place + 1).all())
        shown, top = again.target_logprobs[:, -1, 0], first.top_logprobs[:, -1, place]
        torch.testing.assert_close(shown, top, atol=1e-5, rtol=1e-6)


def laws(stats: Stats, vocab: int) -> None:
    """Bounds that need no reference."""
    assert bool(stats.finite.all())
    assert bool((stats.entropy >= 0).all())
    assert bool((stats.entropy <= math.log(vocab) + 1e-4).all())
    assert bool((stats.kl >= 0).all())
    assert bool((stats.kl[:, -1] == 0).all())
    assert bool((stats.top_logprobs <= 1e-6).all())
    assert bool((stats.top_logprobs[..., 1:] <= stats.top_logprobs[..., :-1]).all())
    assert bool((stats.target_ranks <= vocab).all())
