"""The streaming readout against the specification, by each of its kernels."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from logitlens.errors import MissingExtra, PromptError
from logitlens.readout import chunked, reference
from logitlens.readout.chunked import Chunked
from logitlens.readout.head import Head
from tests.readout.heads import called, make_head, make_rows, make_targets
from tests.readout.truth import judge

KERNELS = ["torch", "numba"] if find_spec("numba") else ["torch"]


@pytest.fixture(params=KERNELS)
def read(request):
    """`Chunked.stats` with each kernel that is installed, and a size of tiles."""

    def stats(*given, rows=None, columns=None, **options):
        return Chunked(request.param, rows, columns).stats(*given, **options)

    return stats


@pytest.mark.skipif("numba" in KERNELS, reason="the compiled kernel is tested too")
def test_the_compiled_kernel_names_the_extra_that_brings_it():
    with pytest.raises(MissingExtra, match=r"logitlens\[fast\]"):
        Chunked("numba")


def test_a_kernel_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match='"torch" or "numba"; got \'cuda\''):
        Chunked("cuda")


PARTS = {
    "plain": {},
    "bias": {"bias": True},
    "final bias": {"final_bias": True},
    "softcap 30": {"softcap": 30.0, "spread": 20.0},
    "scale 0.0625": {"scale": 0.0625},
    "scale 16": {"scale": 16.0},
    "all": {"bias": True, "final_bias": True, "softcap": 30.0, "scale": 2.0},
}


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS.keys())
@pytest.mark.parametrize("called_only", [False, True], ids=["weights", "called"])
def test_every_part_of_a_head(read, parts, called_only):
    head, x = make_head(**parts), make_rows()
    targets = make_targets(7, head.vocab)
    ours = read(x, called(head) if called_only else head, 10, targets, columns=512)
    judge(ours, x, head, 10, targets)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype_accumulates_in_float32(read, dtype):
    head = make_head(191, 64, dtype=dtype, bias=True)
    x, targets = make_rows(width=64).to(dtype), make_targets(7, 191)
    judge(read(x, head, 5, targets), x, head, 5, targets)


@pytest.mark.parametrize("vocab", [7, 64, 191, 4099])
@pytest.mark.parametrize("k", [1, 2, 7, 63, 64, 65, 191, 256])
@pytest.mark.parametrize("columns", [64, 100, 4096])
def test_ragged_shapes_and_k_beyond_a_tile(read, vocab, k, columns):
    k = min(k, vocab)
    head, x, targets = make_head(vocab), make_rows(3, 4), make_targets(3, vocab, 2)
    judge(read(x, head, k, targets, rows=9, columns=columns), x, head, k, targets)


@pytest.mark.parametrize(("positions", "depths"), [(1, 1), (1, 13), (5, 1), (13, 3)])
def test_shapes_of_rows(read, positions, depths):
    head, x, targets = make_head(300), make_rows(positions, depths), make_targets(positions, 300)
    ours = read(x, head, 4, targets, rows=7, columns=128)
    judge(ours, x, head, 4, targets)
    assert bool((ours.kl[:, -1] == 0).all())


def test_no_positions_and_no_targets(read):
    head = make_head(50)
    none = read(make_rows(0, 3), head, 4, make_targets(0, 50, 2))
    assert none.top_ids.shape == (0, 3, 4)
    assert none.target_ranks.shape == (0, 3, 2)
    bare = read(make_rows(2, 3), head, 4, torch.empty(2, 0, dtype=torch.long))
    assert bare.target_logprobs.shape == (2, 3, 0)


def test_large_vocabulary(read):
    head, x, targets = make_head(262_144, 8), make_rows(2, 3, 8), make_targets(2, 262_144)
    judge(read(x, head, 256, targets), x, head, 256, targets)


def test_equal_logits_keep_the_lower_ids_and_rank_one(read):
    head = Head(5000, torch.ones(5000, 24) * 0.1)
    x = make_rows(2, 3)
    ours = read(x, head, 70, torch.tensor([[4999], [0]]), columns=512)
    assert torch.equal(ours.top_ids, torch.arange(70).expand(2, 3, 70))
    assert bool((ours.target_ranks == 1).all())
    judge(ours, x, head, 70, torch.tensor([[4999], [0]]))


def test_ties_within_the_top_k(read):
    weight = make_head(300).weight_VE
    assert weight is not None
    head = Head(600, torch.cat([weight, weight]))  # every token twice
    x, targets = make_rows(3, 4), make_targets(3, 600)
    ours = read(x, head, 9, targets, columns=128)
    pairs = ours.top_ids[..., :8].unflatten(-1, (4, 2))
    assert torch.equal(pairs[..., 0] + 300, pairs[..., 1])
    judge(ours, x, head, 9, targets)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("depths", [1, 13, 300])
def test_a_token_never_ranks_below_its_twin(read, dtype, depths):
    weight = make_head(3000, 48, dtype=dtype).weight_VE
    assert weight is not None
    head, x = Head(6000, torch.cat([weight, weight])), make_rows(1, depths, 48)
    first = torch.randint(0, 3000, (1, 30))
    ours = read(x, head, 5, torch.cat([first, first + 3000], 1), columns=512)
    assert torch.equal(ours.target_ranks[..., :30], ours.target_ranks[..., 30:])
    assert bool((ours.target_ranks % 2 == 1).all())  # twins above come in pairs


def test_one_huge_logit(read):
    head, x = make_head(4099), make_rows()
    head.weight_VE[3000] *= 1000  # type: ignore[index]
    targets = make_targets(7, 4099)
    targets[0, 1] = 3000
    judge(read(x, head, 10, targets, columns=512), x, head, 10, targets)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("depth", [1, 4])
def test_a_bad_logit_spoils_its_row_only_and_is_reported(read, bad, depth):
    head, x, targets = make_head(4099), make_rows(), make_targets(7, 4099)

    def spoilt(x_NE):
        z = called(head).raw(x_NE)
        z[(x_NE == x[2, depth]).all(-1), 4000] = bad
        return z

    broken = Head(4099, call=spoilt)
    ours = read(x, broken, 10, targets, columns=512)
    judge(ours, x, broken, 10, targets)
    assert not bool(ours.finite[2, depth])
    assert int(ours.finite.sum()) == 7 * 5 - 1
    assert bool(ours.kl[2].isnan().sum() == (5 if depth == 4 else 1))


def test_minus_infinity_is_a_logit_like_any_other(read):
    head, x = make_head(4099, final_bias=True), make_rows()
    assert head.final_bias_V is not None
    head.final_bias_V[1000:3000] = float("-inf")  # whole tiles, and more than k in the first
    head.final_bias_V[:600] = float("-inf")
    targets = make_targets(7, 4099)
    targets[0] = 1500
    ours = read(x, head, 10, targets, columns=512)
    judge(ours, x, head, 10, targets)
    assert bool(ours.finite.all())
    assert bool((ours.target_logprobs[0] == float("-inf")).all())


def test_a_token_only_the_final_row_allows_costs_infinite_kl(read):
    head, x, targets = make_head(300), make_rows(2, 3), make_targets(2, 300)

    def barred(x_NE):
        z = called(head).raw(x_NE)
        z[(x_NE == x[0, 1]).all(-1), 17] = float("-inf")
        return z

    ours = read(x, Head(300, call=barred), 3, targets)
    assert ours.kl[0, 1] == float("inf")
    assert int(ours.kl.isinf().sum()) == 1


def test_a_row_with_nothing_above_minus_infinity_is_reported(read):
    head = Head(300, call=lambda x_NE: torch.full((x_NE.shape[0], 300), float("-inf")))
    ours = read(make_rows(2, 3), head, 3, make_targets(2, 300))
    assert not bool(ours.finite.any())
    assert bool(ours.entropy.isnan().all())
    assert bool((ours.top_ids == -1).all())


@pytest.mark.parametrize("called_only", [False, True], ids=["weights", "called"])
@pytest.mark.parametrize("asked", [4099, 3 * 4099], ids=["one row at a time", "three"])
def test_final_rows_are_handed_out_whole(read, called_only, asked, monkeypatch):
    monkeypatch.setattr(chunked, "CALLED", asked)
    head, x = make_head(4099, bias=True, softcap=30.0, scale=2.0), make_rows()
    final = {p: torch.full((4099,), float("nan")) for p in (0, 3, 6)}
    used = called(head) if called_only else head
    read(x, used, 10, make_targets(7, 4099), rows=11, columns=512, final=final)
    for p, z_V in final.items():
        torch.testing.assert_close(z_V, head.logits(x[p, -1:])[0], atol=1e-4, rtol=1e-5)


def test_requests_that_cannot_be_met(read):
    head, x = make_head(50), make_rows(2, 3)
    with pytest.raises(PromptError, match="between 1 and the vocabulary's 50; got 51"):
        read(x, head, 51, make_targets(2, 50))
    with pytest.raises(PromptError, match="token id 50 is outside"):
        read(x, head, 5, torch.tensor([[50], [1]]))
    with pytest.raises(ValueError, match="positions, layers, width"):
        reference.stats(x[0], head, 5, make_targets(2, 50))
    with pytest.raises(ValueError, match="2 positions"):
        reference.stats(x, head, 5, make_targets(3, 50))
