"""The streaming readout against the specification, by each of its kernels."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from logitlens.errors import MissingExtra, PromptError
from logitlens.readout import chunked, online, product, reference
from logitlens.readout.chunked import Chunked
from logitlens.readout.head import Head
from logitlens.readout.online import Online
from tests.readout.heads import called, eighths, make_head, make_rows, make_targets
from tests.readout.truth import judge

KERNELS = ["torch", "numba"] if find_spec("numba") else ["torch"]


@pytest.fixture(params=KERNELS)
def kernel(request):
    return request.param


@pytest.fixture
def read(kernel):
    """`Chunked.stats` with each kernel that is installed, and a size of tiles."""

    def stats(*given, rows=None, columns=None, **options):
        return Chunked(kernel, rows, columns).stats(*given, **options)

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


@pytest.mark.parametrize("positions", [3, 40])
def test_what_a_called_head_returns_may_lie_in_any_order_and_stays_as_it_is(read, positions):
    """Transposed, as `(W @ x.T).T` is; and a hook of the user's may have kept it."""
    plain, kept = make_head(191, softcap=30.0, scale=0.5), []

    def call(x_NE):
        kept.append((plain.weight_VE @ x_NE.T).T)
        return kept[-1]

    head = Head(191, call=call, softcap=30.0, scale=0.5)
    x, targets = make_rows(positions), make_targets(positions, 191)
    judge(read(x, head, 5, targets), x, plain, 5, targets)
    rows = torch.cat(kept)
    assert torch.equal(rows.sort(0).values, (x.flatten(0, 1) @ plain.weight_VE.T).sort(0).values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype_accumulates_in_float32(read, dtype):
    head = make_head(191, 64, dtype=dtype, bias=True)
    x, targets = make_rows(width=64).to(dtype), make_targets(7, 191)
    judge(read(x, head, 5, targets), x, head, 5, targets)


@pytest.mark.parametrize("wrong", [AttributeError("no such product"), 1.0])
def test_bfloat16_is_widened_where_mkl_has_no_right_product(wrong, monkeypatch):
    def multiply(x_NE, weight_CE, out_NC):
        if isinstance(wrong, Exception):
            raise wrong
        out_NC.fill_(wrong)

    head, x, targets = (
        make_head(191, 64, dtype=torch.bfloat16),
        make_rows(width=64),
        make_targets(7, 191),
    )
    monkeypatch.setattr(product, "_mkl_halves", multiply)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    product.multiplies_bfloat16.cache_clear()
    try:
        judge(
            Chunked("torch").stats(x.bfloat16(), head, 5, targets), x.bfloat16(), head, 5, targets
        )
        assert not product.multiplies_bfloat16()
    finally:
        product.multiplies_bfloat16.cache_clear()


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
    head = Head(5000, torch.full((5000, 24), 0.125))
    x = eighths(make_rows(2, 3))
    ours = read(x, head, 70, torch.tensor([[4999], [0]]), columns=512)
    assert torch.equal(ours.top_ids, torch.arange(70).expand(2, 3, 70))
    assert bool((ours.target_ranks == 1).all())
    judge(ours, x, head, 70, torch.tensor([[4999], [0]]))


def test_ties_within_the_top_k(read):
    weight = eighths(make_head(300).weight_VE)
    head = Head(600, torch.cat([weight, weight]))  # every token twice
    x, targets = eighths(make_rows(3, 4)), make_targets(3, 600)
    ours = read(x, head, 9, targets, columns=128)
    truth = reference.stats(x, head, 9, targets)  # no sum was rounded, here or there
    assert torch.equal(ours.top_ids, truth.top_ids)
    assert torch.equal(ours.target_ranks, truth.target_ranks)


LAID_OUT = {
    "in order": lambda w: w,
    "transposed": lambda w: w.T.contiguous().T,
    "every other row": lambda w: w.repeat_interleave(2, 0)[::2],
    "every other number": lambda w: w.repeat_interleave(2, 1)[:, ::2],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layers", [1, 13, 300])
@pytest.mark.parametrize("lay", LAID_OUT.values(), ids=LAID_OUT.keys())
def test_a_rank_is_one_more_than_the_greater_logits_among_those_that_were_read(
    kernel, dtype, layers, lay
):
    """Sums of the same numbers may differ in the last bit from kernel to kernel of a library. A rank
    is the count among the logits of the tiles, so that a token never ranks below its twin there."""
    weight = make_head(3000, 48, dtype=dtype).weight_VE
    assert weight is not None
    head, x = Head(6000, lay(torch.cat([weight, weight]))), make_rows(1, layers, 48)
    first = torch.randint(0, 3000, (1, 30), generator=torch.Generator().manual_seed(3))
    targets = torch.cat([first, first + 3000], 1)
    ours = Chunked(kernel, columns=512).stats(x, head, 5, targets)
    tile = chunked.tiles(x[0], head, compiled=kernel == "numba")
    z_LV = torch.cat([tile(slice(v, min(6000, v + 512))).clone() for v in range(0, 6000, 512)], 1)
    for m, target in enumerate(targets[0].tolist()):
        greater_L = (z_LV > z_LV[:, target, None]).sum(-1)
        assert torch.equal(ours.target_ranks[0, :, m], 1 + greater_L)
    same_L30 = z_LV[:, first[0]] == z_LV[:, first[0] + 3000]
    assert bool(same_L30.any())
    twins_L230 = ours.target_ranks[0].unflatten(-1, (2, 30))
    assert torch.equal(twins_L230[:, 0][same_L30], twins_L230[:, 1][same_L30])


def test_targets_that_another_kernel_multiplied_are_counted_again(kernel, monkeypatch):
    head, x, targets = make_head(3000, 48), make_rows(3, 4, 48), make_targets(3, 3000)
    expected = Chunked(kernel).stats(x, head, 5, targets)
    exact = chunked.target_logits

    def otherwise(*given):
        z_PLM = exact(*given)
        return z_PLM + torch.linspace(-0.1, 0.1, z_PLM.shape[1])[:, None]

    monkeypatch.setattr(chunked, "target_logits", otherwise)
    ours = Chunked(kernel, columns=512).stats(x, head, 5, targets)
    assert torch.equal(ours.target_ranks, expected.target_ranks)
    assert torch.equal(ours.top_ids, expected.top_ids)
    judge(ours, x, head, 5, targets)


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


@pytest.mark.parametrize(
    ("positions", "candidates", "sizes"),
    [
        (128, 5, [64, 64]),  # not 60, 60 and 8
        (128, 0, [64, 64]),
        (160, 0, [54, 54, 52]),
        (74, 0, [74]),
        (74, 5, [37, 37]),  # no more final rows than may be held
        (7, 5, [7]),
    ],
)
def test_tiles_of_a_prompt_are_of_one_size(monkeypatch, kernel, positions, candidates, sizes):
    L, vocab = 17, 128_256
    head = Head(vocab, weight_VE=torch.empty(vocab, 0))
    found = []

    def part(self, x_PLE, *rest):
        found.append(P := len(x_PLE))
        return Online(1, torch.zeros(P, 0).long(), torch.zeros(P, L, 0))

    monkeypatch.setattr(Chunked, "_part", part)
    monkeypatch.setattr(Chunked, "_strips", lambda *of: None)
    monkeypatch.setattr(chunked, "LIBRARY", 1)
    targets_PM = torch.zeros(positions, 0).long()
    Chunked(kernel).block(torch.zeros(positions, L, 0), head, 1, targets_PM, candidates, {})
    assert found == sizes


@pytest.mark.parametrize("once", [True, False])
def test_logits_far_from_zero_keep_their_digits(once, monkeypatch):
    if once and not online.rounds_once(torch.device("cpu")):
        pytest.skip("this processor rounds a scaled sum twice")
    monkeypatch.setattr(online, "rounds_once", lambda device: once)
    g = torch.Generator().manual_seed(5)
    z_NV = torch.randn(6, 700, generator=g) * 6 - 30_000
    kept = Online(3, torch.empty(2, 0, dtype=torch.long), torch.empty(2, 3, 0))
    for v in range(0, 700, 192):
        kept.update(z_NV[:, v : v + 192])
    found = kept.result()
    logprobs_PLV = z_NV.double().unflatten(0, (3, 2)).transpose(0, 1).log_softmax(-1)
    p_PLV = logprobs_PLV.exp()
    entropy_PL = -(p_PLV * logprobs_PLV).sum(-1)
    kl_PL = (p_PLV[:, -1:] * (logprobs_PLV[:, -1:] - logprobs_PLV)).sum(-1)
    assert (found.entropy - entropy_PL).abs().max() < 5e-6
    assert (found.kl - kl_PL).abs().max() < 5e-5
    whole_PL = z_NV.double().logsumexp(-1).unflatten(0, (3, 2)).transpose(0, 1)
    assert (kept.logsumexp() - whole_PL).abs().max() < 2e-6
