"""Threads that multiply rows of their own, by the function of MKL inside torch."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("numba")

from logitlens.readout import chunked, product
from logitlens.readout.chunked import Chunked
from logitlens.readout.fused import ROWS, STRIP, Fused
from logitlens.readout.head import Head
from logitlens.readout.threads import share_openmp
from tests.readout.heads import make_head, make_rows, make_targets
from tests.readout.truth import judge


@pytest.fixture
def taken(monkeypatch):
    """Every product of plain float32 heads goes this way, on every processor; gives how many did."""
    if not (product._sgemm() and share_openmp()):
        pytest.skip("torch has no MKL inside, or numba's threads are not OpenMP's")
    monkeypatch.setattr(product, "_mkl_is_faster", lambda: True)
    monkeypatch.setattr(product, "_compiles", lambda weight_VE: False)
    monkeypatch.setattr(chunked, "LARGE", 0)
    monkeypatch.setattr(chunked, "FEW", 0)
    calls, multiply = [], Fused.multiply

    def counted(self, *given):
        calls.append(self.P)
        multiply(self, *given)

    monkeypatch.setattr(Fused, "multiply", counted)
    return calls


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("candidates", [0, 6])
@pytest.mark.parametrize("vocab", [1, 65, STRIP, 8 * STRIP + 3])
@pytest.mark.parametrize("positions", [1, 2, 7])
def test_all_that_a_reading_keeps(taken, threads, positions, vocab, candidates):
    head, x = make_head(vocab), make_rows(positions)
    targets, candidates = make_targets(positions, vocab), min(candidates, vocab)
    k = min(5, vocab)
    final = {positions - 1: torch.empty(vocab)}
    ours = Chunked("numba").stats(x, head, k, targets, candidates=candidates, final=final)
    assert taken
    judge(ours, x, head, k, targets, candidates)
    torch.testing.assert_close(final[positions - 1], head.logits(x[-1, -1:])[0])


def test_more_rows_than_a_thread_takes_in_one_go(taken):
    positions = torch.get_num_threads() * (ROWS // 4) + 51
    head, x, targets = make_head(1100, 8), make_rows(positions, 5, 8), make_targets(positions, 1100)
    judge(Chunked("numba", rows=5 * positions).stats(x, head, 3, targets), x, head, 3, targets)
    assert taken == [positions]


def test_a_logit_that_is_no_number_spoils_its_own_row_alone(taken):
    head, x, targets = make_head(1100), make_rows(), make_targets(7, 1100)
    x[2, 1], x[4, -1] = torch.nan, torch.inf
    assert head.weight_VE is not None
    head.weight_VE[700] = 0
    ours = Chunked("numba").stats(x, head, 3, targets)
    assert taken
    judge(ours, x, head, 3, targets)


@pytest.mark.parametrize("rows", [None, 24])
def test_a_token_never_ranks_below_its_twin(taken, rows):
    """Whatever function multiplied the targets first, counts are against what is shown of them."""
    weight = make_head(3000, 48).weight_VE
    assert weight is not None
    head, x = Head(6000, torch.cat([weight, weight])), make_rows(40, 12, 48)
    first = torch.randint(0, 3000, (40, 5), generator=torch.Generator().manual_seed(3))
    ours = Chunked("numba", rows).stats(x, head, 5, torch.cat([first, first + 3000], 1))
    assert taken
    one, other = ours.target_logprobs.unflatten(-1, (2, 5)).unbind(2)
    ranks_one, ranks_other = ours.target_ranks.unflatten(-1, (2, 5)).unbind(2)
    assert bool((one == other).any())
    assert torch.equal(ranks_one[one == other], ranks_other[one == other])


def test_targets_that_another_function_multiplied_are_counted_again(taken, monkeypatch):
    head, x, targets = make_head(3000, 48), make_rows(3, 4, 48), make_targets(3, 3000)
    exact = chunked.target_logits

    def otherwise(*given):
        z_PLM = exact(*given)
        return z_PLM + torch.linspace(-0.1, 0.1, z_PLM.shape[1])[:, None]

    monkeypatch.setattr(chunked, "target_logits", otherwise)
    judge(Chunked("numba").stats(x, head, 5, targets), x, head, 5, targets)
    assert taken == [3, 3]


@pytest.mark.parametrize(
    "head",
    [
        make_head(bias=True), make_head(final_bias=True), make_head(scale=2.0),
        make_head(softcap=30.0), make_head(dtype=torch.bfloat16),
        Head(4099, make_head().weight_VE.T.contiguous().T),  # type: ignore[union-attr]
    ],
    ids=["bias", "final bias", "scale", "softcap", "bfloat16", "transposed"],
)  # fmt: skip
def test_other_heads_go_another_way(taken, head):
    x, targets = make_rows(), make_targets(7, 4099)
    judge(Chunked("numba").stats(x, head, 3, targets), x, head, 3, targets)
    assert not taken


def test_tiles_stay_as_they_were_where_threads_have_too_few_rows(taken, monkeypatch):
    """Neither by their size nor by what is held beside them."""
    kernel, L, vocab = Chunked("numba"), 9, 200_000
    head = Head(vocab, torch.empty(vocab, 1))
    monkeypatch.setattr(chunked, "FEW", 256)
    for threads, step in (
        (1, chunked.HELD // vocab),
        (2, chunked.ROWS // L),
        (64, chunked.ROWS // L),
    ):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert kernel.positions(L, head, 0) == chunked.TOGETHER * step


def test_one_layer_goes_another_way(taken):
    head, x, targets = make_head(), make_rows(40, 1), make_targets(40, 4099)
    judge(Chunked("numba").stats(x, head, 3, targets), x, head, 3, targets)
    assert not taken
