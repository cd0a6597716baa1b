"""Threads that multiply rows of their own, by the function of MKL inside torch."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("numba")

from logitlens.readout import chunked, fused, product
from logitlens.readout.chunked import Chunked
from logitlens.readout.fused import ROWS, STRIP, Fused
from logitlens.readout.head import Head
from tests.readout.heads import make_head, make_rows, make_targets
from tests.readout.truth import judge


@pytest.fixture(params=["whole rows", "strips"])
def taken(monkeypatch, request):
    """However few the rows; gives how many positions went this way."""
    if not product.mkl_packing(torch.ones(1, 1)):
        pytest.skip("MKL's packed operands are for Intel's processors with AVX-512")
    monkeypatch.setattr(chunked, "FEW", 0)
    if request.param == "strips":
        monkeypatch.setattr(chunked, "SMALL", 0)
    calls, multiply = [], Fused.multiply

    def counted(self, *given, **more):
        calls.append(self.P)
        multiply(self, *given, **more)

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
    """As if those looked up before were others: the second pass counts against what tiles held."""
    head, x, targets = make_head(3000, 48), make_rows(3, 4, 48), make_targets(3, 3000)
    multiply = Fused.multiply

    def otherwise(self, *given, known=False):
        if not known:
            own_PLM = (
                head.logits(x.flatten(0, 1))
                .view(3, 4, -1)
                .gather(-1, targets.clamp(min=0)[:, None].expand(3, 4, -1))
            )
            self.target_PLM = own_PLM + torch.linspace(-0.1, 0.1, 4)[:, None]
        multiply(self, *given, known=True)

    monkeypatch.setattr(Fused, "multiply", otherwise)
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


def test_positions_of_a_block(taken, monkeypatch):
    """Tiles stay as they were where threads would have too few rows; and what is held beside the
    candidates' rows has its limit."""
    kernel, L, vocab = Chunked("numba"), 9, 200_000
    head = Head(vocab, torch.empty(vocab, 1))
    monkeypatch.setattr(chunked, "FEW", 256)
    for threads, tiles in ((1, 1), (2, 2), (7, 7), (8, 1), (64, 1)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert kernel.positions(L, head, 0) == chunked.TOGETHER * tiles * (chunked.ROWS // L)
        assert kernel.positions(L, head, 5) == chunked.TOGETHER * (chunked.HELD // vocab)


def test_a_vocabulary_is_small_by_its_weights_too():
    """They are packed for all threads together."""
    for vocab, width, small in ((8192, 512, True), (8192, 513, False), (8193, 1, False)):
        assert chunked._small(Head(vocab, torch.empty(vocab, width))) == small
    assert not chunked._small(Head(10, call=torch.clone))


def test_one_layer_goes_another_way(taken):
    head, x, targets = make_head(), make_rows(40, 1), make_targets(40, 4099)
    judge(Chunked("numba").stats(x, head, 3, targets), x, head, 3, targets)
    assert not taken


@pytest.mark.parametrize(("vocab", "tokens"), [(1024, {512}), (1030, {512, 6}), (300, {512, 300})])
def test_packed_tokens_take_the_room_of_a_strip_whatever_the_vocabulary(monkeypatch, vocab, tokens):
    """Also where it is a multiple of a strip; on any processor, as nothing is multiplied."""
    assert STRIP == 512
    asked = []

    class Packed:
        def __init__(self, threads, rows, tokens, E, whole):
            asked.append(tokens)
            raise InterruptedError

    monkeypatch.setattr(fused, "_Packed", Packed)
    taken = Fused(1, torch.tensor([[1]]), torch.zeros(1, 4, 1))
    with pytest.raises(InterruptedError):
        taken.multiply(None, torch.zeros(1, 4, 8), torch.zeros(vocab, 8), {}, None, False)
    assert asked == [tokens]
