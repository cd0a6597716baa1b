"""The engine of GPUs, its kernels run by Triton's interpreter: no GPU is needed."""

from __future__ import annotations

from dataclasses import fields
from functools import partial

import pytest
import torch

pytest.importorskip("triton")
from logitlens.readout import gpu, proof
from logitlens.readout.gpu import Slabs, slab_columns
from logitlens.readout.head import Head
from tests.readout.heads import eighths, make_head, make_rows, make_targets
from tests.readout.interpreter import patched_once
from tests.readout.truth import judge

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of infinities and NaN
SMALL = {"logits": 6 * 512, "rows": 6}  # slabs of 512 tokens of six rows


@pytest.fixture(scope="module", autouse=True)
def interpreter():
    """Memory that is taken has NaN and the greatest numbers in it, as it may have on a GPU."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert bool(torch.empty(1).isnan())
    with patched_once():
        yield
    torch.use_deterministic_algorithms(before)


def read(x, head, k, targets, size=SMALL, **options):
    return Slabs(**size).stats(x, head, k, targets, **options)


PARTS = {
    "plain": {},
    "bias": {"bias": True},
    "final bias": {"final_bias": True},
    "softcap 30": {"softcap": 30.0, "spread": 20.0},
    "scale 16": {"scale": 16.0},
    "all": {"bias": True, "final_bias": True, "softcap": 30.0, "scale": 2.0},
}
QUICK = ("all",)


@pytest.mark.parametrize(
    "parts",
    [pytest.param(p, marks=() if n in QUICK else pytest.mark.slow) for n, p in PARTS.items()],
    ids=PARTS,
)
def test_every_part_of_a_head(parts):
    head, x, targets = make_head(700, **parts), make_rows(2, 3), make_targets(2, 700, 2)
    judge(read(x, head, 5, targets), x, head, 5, targets)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_dtype_accumulates_in_float32(dtype):
    head = make_head(191, 64, dtype=dtype, final_bias=True)
    x, targets = make_rows(1, 3, 64).to(dtype), make_targets(1, 191)
    judge(read(x, head, 5, targets), x, head, 5, targets)


@pytest.mark.parametrize(
    ("vocab", "k"),
    [(7, 7), (64, 1), (191, 64), (1101, 2)]
    + [
        pytest.param(v, k, marks=pytest.mark.slow) for v, k in [(1101, 65), (1101, 256), (600, 256)]
    ],
)
def test_ragged_shapes_and_every_k(vocab, k):
    head, x, targets = make_head(vocab), make_rows(1, 2), make_targets(1, vocab, 2)
    judge(read(x, head, k, targets, {"logits": 1024}), x, head, k, targets)


@pytest.mark.parametrize(("positions", "depths"), [(1, 1), (1, 4), (3, 1)])
def test_shapes_of_rows(positions, depths, monkeypatch):
    monkeypatch.setattr(gpu, "PROGRAMS", 2 * positions)  # programs share a position's rows
    head, x, targets = make_head(300), make_rows(positions, depths), make_targets(positions, 300, 1)
    ours = read(x, head, 4, targets, {"rows": 2 * depths})
    judge(ours, x, head, 4, targets)
    assert bool((ours.kl[:, -1] == 0).all())


def test_no_positions_and_no_targets():
    head = make_head(50)
    none = read(make_rows(0, 3), head, 4, make_targets(0, 50, 2), candidates=3)
    assert none.top_ids.shape == (0, 3, 4)
    assert none.target_ranks.shape == (0, 3, 5)
    bare = read(make_rows(1, 2), head, 4, torch.empty(1, 0, dtype=torch.long))
    assert bare.target_logprobs.shape == (1, 2, 0)


@pytest.mark.parametrize("vocab", [90, 1100], ids=["one slab", "slabs"])
def test_candidates_are_followed_and_final_rows_handed_out(vocab):
    head, x = make_head(vocab, bias=True, softcap=30.0, final_bias=True), make_rows(2, 2)
    final = {1: torch.full((vocab,), float("nan"))}
    ours = read(x, head, 3, make_targets(2, vocab, 1), candidates=4, final=final)
    judge(ours, x, head, 3, make_targets(2, vocab, 1), candidates=4)
    assert torch.equal(ours.candidate_ids[:, :3], ours.top_ids[:, -1])
    torch.testing.assert_close(final[1], head.logits(x[1, -1:])[0], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("vocab", [90, 1100], ids=["one slab", "slabs"])
def test_some_final_rows_are_handed_out_as_they_are(vocab, monkeypatch):
    monkeypatch.setattr(gpu, "PROGRAMS", 12)  # programs share a position's rows
    head, x = make_head(vocab, bias=True, scale=2.0, final_bias=True), make_rows(3, 2)
    assert head.weight_VE is not None
    head.weight_VE[77] = float("nan")
    final = {2: torch.zeros(vocab), 0: torch.zeros(vocab)}
    ours = read(x, head, 3, make_targets(3, vocab, 1), candidates=2, final=final)
    assert not bool(ours.finite.any())
    for p, z_V in final.items():
        expected = head.logits(x[p, -1:])[0]
        torch.testing.assert_close(z_V, expected, atol=1e-4, rtol=1e-5, equal_nan=True)


ENDS = [(1, 1, 0), (3, 0, 4), (5, 3, 0), (65, 2, 3), (12, 2, 33)]


@pytest.mark.parametrize(
    ("k", "M", "candidates"), [*ENDS, pytest.param(256, 2, 200, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("logits", [4096, 1024], ids=["one slab", "slabs"])
def test_the_end_of_a_row_is_that_of_the_torch_path(logits, k, M, candidates):
    """Logits of few values, so that nearly all are tied; rows that are no numbers, and −inf in others."""
    head, x = make_head(600, 4, final_bias=True), eighths(make_rows(2, 3, 4))
    assert head.weight_VE is not None
    assert head.final_bias_V is not None
    head.weight_VE.copy_(head.weight_VE.round())
    head.final_bias_V.copy_(head.final_bias_V.round())
    head.final_bias_V[5:9] = float("-inf")
    x[..., 1] = 0
    head.weight_VE[:, 1] = 0
    head.weight_VE[3, 1] = 1
    x[0, 1, 1], x[1, 0, 1] = float("inf"), float("nan")
    x[1, 2] = x[1, 1]  # two rows that are the same
    targets = torch.tensor([[6, -1, 3], [599, 2, 0]])[:, :M]
    ours = read(x, head, k, targets, {"logits": logits, "rows": 6}, candidates=candidates)
    theirs = proof.Chunked("torch").stats(x, head, k, targets, candidates=candidates)
    assert ours.finite.tolist() == [[True, False, True], [False, True, True]]
    for field in fields(ours):
        mine, yours = getattr(ours, field.name), getattr(theirs, field.name)
        exact = (
            {"rtol": 0, "atol": 0} if not mine.is_floating_point() else {"rtol": 1e-5, "atol": 1e-5}
        )
        torch.testing.assert_close(mine, yours, **exact, equal_nan=True, check_dtype=False)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("logits", [2048, 1024], ids=["one slab", "slabs"])
def test_candidates_of_a_final_row_that_is_no_number(logits, bad):
    head, x, targets = make_head(600, 8), make_rows(1, 2, 8), make_targets(1, 600, 1)
    x[0, 1, 3] = bad
    ours = read(x, head, 4, targets, {"logits": logits}, candidates=3)
    assert ours.finite.tolist() == [[True, False]]
    assert ours.candidate_ids.tolist() == [[-1] * 3]
    assert bool(ours.target_logprobs[0, :, 1:].isnan().all())
    assert bool(ours.kl.isnan().all())
    assert bool(ours.entropy[0, 0].isfinite())


def test_statistics_are_views_of_one_memory_the_layer_first():
    head, x, targets = make_head(90), make_rows(3, 2), make_targets(3, 90, 2)
    stats = read(x, head, 5, targets, {}, candidates=3)
    assert len({getattr(stats, f.name).untyped_storage().data_ptr() for f in fields(stats)}) == 1
    assert stats.top_ids.shape == (3, 2, 5)
    assert stats.top_ids.transpose(0, 1).is_contiguous()
    assert {stats.top_ids.dtype, stats.target_ranks.dtype} == {torch.int32}


@pytest.mark.parametrize("vocab", [90, 1100], ids=["one slab", "slabs"])
def test_a_final_row_that_is_no_number_has_no_candidates(vocab):
    head, x, targets = make_head(vocab), make_rows(2, 2), make_targets(2, vocab, 1)
    x[1, -1] = float("nan")
    ours = read(x, head, 3, targets, candidates=4)
    assert ours.finite.tolist() == [[True, True], [True, False]]
    assert ours.candidate_ids[1].tolist() == [-1] * 4
    assert ours.target_ranks[1, :, 1:].tolist() == [[0] * 4] * 2
    alone = read(x[:1], head, 3, targets[:1], candidates=4)
    assert torch.equal(ours.candidate_ids[:1], alone.candidate_ids)


def test_equal_logits_keep_the_lower_ids_and_rank_one():
    head, x = Head(700, torch.full((700, 24), 0.125)), eighths(make_rows(1, 2))
    targets = torch.tensor([[699, 0]])
    ours = read(x, head, 66, targets, {"logits": 1024})
    assert torch.equal(ours.top_ids.long(), torch.arange(66).expand(1, 2, 66))
    assert bool((ours.target_ranks == 1).all())


def test_a_token_ranks_no_lower_than_its_twin():
    weight = make_head(350, 48).weight_VE
    assert weight is not None
    head, x = Head(700, torch.cat([weight, weight])), make_rows(1, 3, 48)
    first = torch.randint(350, (1, 8), generator=torch.Generator().manual_seed(3))
    ranks = read(x, head, 2, torch.cat([first, first + 350], 1)).target_ranks
    assert torch.equal(ranks[..., :8], ranks[..., 8:])


def test_more_targets_than_a_slab_has_tokens(monkeypatch):
    monkeypatch.setattr(gpu, "STEP", 64)
    head, x = make_head(150), make_rows(1, 2)
    targets = torch.arange(0, 150, 2)[None]
    judge(read(x, head, 2, targets, {"logits": 128}), x, head, 2, targets)


@pytest.mark.parametrize("bad", [1e38, -1e38, float("nan")])
def test_a_bad_logit_spoils_its_row_only(bad):
    head, x, targets = make_head(600, 8), make_rows(1, 3, 8), make_targets(1, 600, 2)
    assert head.weight_VE is not None
    x[..., 7] = 0
    head.weight_VE[530, 7] = 0.0 if bad != bad else bad
    x[0, 1, 7] = bad if bad != bad else 1e3  # ±1e41 is infinite in float32
    ours = read(x, head, 3, targets)
    assert ours.finite.tolist() == [[True, bad < 0, True]]
    assert ours.entropy.isnan().tolist() == [[False, not bad < 0, False]]
    if bad < 0:  # a token that only the final row allows
        assert ours.kl[0, 1] == float("inf")
        assert bool(ours.kl[0, [0, 2]].isfinite().all())


def test_minus_infinity_is_a_logit_like_any_other():
    head, x = make_head(1200, final_bias=True), make_rows(1, 3)
    assert head.final_bias_V is not None
    head.final_bias_V[:1190] = float("-inf")  # whole tiles, and fewer than k above it
    targets = torch.tensor([[7, 1195]])
    ours = read(x, head, 12, targets)
    judge(ours, x, head, 12, targets)
    assert bool(ours.finite.all())


def test_one_huge_logit():
    head, x, targets = make_head(700), make_rows(1, 3), make_targets(1, 700, 2)
    head.weight_VE[600] *= 1000  # type: ignore[index]
    judge(read(x, head, 4, targets), x, head, 4, targets)


def test_what_a_head_cannot_have_is_refused():
    x, targets = make_rows(1, 2), make_targets(1, 500)
    with pytest.raises(ValueError, match="k of at most 256"):
        read(x, make_head(500), 257, targets)


@pytest.mark.parametrize(
    ("rows", "vocab"), [(4096, 128_256), (512, 50_257), (13, 128_256), (1, 9), (27, 262_144)]
)
def test_slabs_are_of_whole_tiles_and_repeat_little(rows, vocab):
    columns = slab_columns(rows, vocab, gpu.SLAB)
    assert columns == vocab or columns % gpu.STEP == 0
    assert rows * columns <= gpu.SLAB
    assert columns <= gpu.WIDEST  # as wide as `benchmarks/readout/gpu_kernels.py` compiles
    assert -(-vocab // columns) * columns - vocab < gpu.STEP * -(-vocab // columns)


@pytest.mark.parametrize("parts", [(False, False, False), (True, True, True)])
def test_the_proof_sees_the_kernels_right_and_any_fault(parts):
    given = proof.request(1, 3, 700, 64, torch.device("cpu"), torch.bfloat16, *parts)
    ours, theirs = read(*given, candidates=2), proof.Chunked().stats(*given, candidates=2)
    assert proof.agree(ours, theirs)
    for field in fields(ours):
        value = getattr(ours, field.name)
        if value.numel():
            other = ~value if value.dtype == torch.bool else value + 1
            assert not proof.agree(type(ours)(**vars(ours) | {field.name: other}), theirs)


def test_the_proof_sees_a_final_row_that_is_wrong():
    class Wrong(Slabs):
        def stats(self, *args, final=None, **options):
            found = super().stats(*args, final=final, **options)
            for z_V in (final or {}).values():
                z_V[690] += 0.01
            return found

    given = proof.request(2, 2, 700, 16, torch.device("cpu"), torch.bfloat16, *[True] * 3, k=5)
    assert proof.right(Slabs(**SMALL), given)
    assert not proof.right(Wrong(**SMALL), given)


def test_slabs_read_on_a_gpu_only_and_only_where_proven(monkeypatch):
    from logitlens.readout import engine

    assert not proof.slabs(make_head(10), 10)  # on the CPU
    elsewhere = Head(10, torch.empty(10, 4, device="meta"))
    assert engine.choose(elsewhere, engine.WORTH).name == "chunked (torch)"
    monkeypatch.setattr(proof, "slabs", lambda head, k: True)
    assert engine.choose(elsewhere, 1, 256).name == "slabs (triton)"
    assert engine.choose(elsewhere, 1, 257).name == "chunked (torch)"
    monkeypatch.undo()
    small = proof.request(1, 1, 100, 8, torch.device("cpu"), torch.float32, False, False, False)
    monkeypatch.setattr(proof, "request", lambda *_, k: small)
    proven = partial(
        proof._proven.__wrapped__, torch.device("cpu"), torch.float32, 16, *[False] * 3
    )
    times = iter([1.0, 2.0, 2.0, 2.0])
    monkeypatch.setattr(proof, "seconds", lambda read: next(times))
    assert proven()
    assert not proven()  # no faster
    monkeypatch.setattr(proof, "agree", lambda *_: False)
    assert not proven()
    monkeypatch.setattr(proof, "Slabs", None)  # does not even run
    assert not proven()
