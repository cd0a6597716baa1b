"""The final row's likeliest tokens are followed through every layer, by every engine."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch

from logitlens.errors import PromptError
from logitlens.lenses import LogitLens
from logitlens.readout import chunked, reference
from logitlens.readout.chunked import Chunked
from logitlens.readout.head import Head
from logitlens.readout.read import Table, statistics
from tests.readout.heads import called, make_head, make_rows, make_targets
from tests.readout.truth import judge

KERNELS = ["torch", "numba"] if find_spec("numba") else ["torch"]


@pytest.fixture(params=KERNELS)
def kernel(request):
    return request.param


@pytest.mark.parametrize("layers", [1, 5])
@pytest.mark.parametrize("columns", [None, 512], ids=["few rows", "tiles"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_by_the_heads_weights(kernel, layers, columns, dtype):
    head = make_head(4099, dtype=dtype, bias=True, final_bias=True, softcap=30.0, scale=2.0)
    x, targets = make_rows(7, layers).to(dtype), make_targets(7, 4099, 2)
    ours = Chunked(kernel, columns=columns).stats(x, head, 3, targets, candidates=6)
    judge(ours, x, head, 3, targets, candidates=6)
    assert torch.equal(ours.target_ranks[:, -1, 2:], torch.arange(1, 7).expand(7, 6))
    assert torch.equal(ours.top_ids[:, -1], ours.candidate_ids[:, :3])


@pytest.mark.parametrize("asked", [4099, 3 * 4099, 1 << 22])
def test_by_a_head_that_may_only_be_called(kernel, asked, monkeypatch):
    monkeypatch.setattr(chunked, "CALLED", asked)
    head, x, targets = make_head(4099, final_bias=True), make_rows(), make_targets(7, 4099, 1)
    ours = Chunked(kernel).stats(x, called(head), 3, targets, candidates=5)
    judge(ours, x, head, 3, targets, candidates=5)


def test_final_rows_that_do_not_fit_are_held_a_few_at_a_time(kernel, monkeypatch):
    monkeypatch.setattr(chunked, "HELD", 2 * 4099)
    monkeypatch.setattr(chunked, "WHOLE", 0)
    head, x, targets = make_head(4099), make_rows(7, 4), make_targets(7, 4099, 1)
    final = {p: torch.empty(4099) for p in (0, 3, 6)}
    ours = Chunked(kernel).stats(x, head, 3, targets, candidates=5, final=final)
    judge(ours, x, head, 3, targets, candidates=5)
    for p, z_V in final.items():
        torch.testing.assert_close(z_V, head.logits(x[p, -1:])[0], atol=1e-4, rtol=1e-5)


def test_nothing_else_changes(kernel):
    head, x, targets = make_head(4099), make_rows(7, 4), make_targets(7, 4099)
    without = Chunked(kernel, columns=512).stats(x, head, 3, targets)
    ours = Chunked(kernel, columns=512).stats(x, head, 3, targets, candidates=5)
    for name in ("top_logprobs", "entropy", "kl", "target_logprobs"):
        mine = getattr(ours, name)[..., :3] if name == "target_logprobs" else getattr(ours, name)
        torch.testing.assert_close(mine, getattr(without, name), atol=1e-5, rtol=0, equal_nan=True)
    assert torch.equal(ours.top_ids, without.top_ids)
    assert torch.equal(ours.target_ranks[..., :3], without.target_ranks)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_final_row_that_is_no_number_has_none(kernel, bad):
    head, x, targets = make_head(300), make_rows(3, 3), make_targets(3, 300, 1)

    def spoilt(x_NE):
        z = called(head).raw(x_NE)
        z[(x_NE == x[1, -1]).all(-1), 17] = bad
        return z

    broken = Head(300, call=spoilt)
    ours = Chunked(kernel).stats(x, broken, 3, targets, candidates=4)
    judge(ours, x, broken, 3, targets, candidates=4)
    assert ours.candidate_ids[1].tolist() == [-1] * 4
    assert bool((ours.target_ranks[1, :, 1:] == 0).all())
    assert bool((ours.candidate_ids[[0, 2]] >= 0).all())


def test_targets_go_where_a_called_head_gives_its_logits(monkeypatch):
    """On a GPU of its own, say; here on no device at all."""
    seen = []

    def look(self, tile, shape, k, targets_PM, final):
        seen.append((tile.z_NV.device.type, targets_PM.device.type))
        raise NotImplementedError

    monkeypatch.setattr(Chunked, "_look", look)
    far = Head(50, call=lambda x_NE: x_NE.new_empty(len(x_NE), 50, device="meta"))
    with pytest.raises(NotImplementedError):
        Chunked().stats(make_rows(2, 3), far, 3, make_targets(2, 50))
    assert seen == [("meta", "meta")]


def test_torch_is_named_where_it_looks_though_numba_was_asked_for(monkeypatch):
    """At a called head's logits on a GPU; here on no device at all, where nothing can be added up."""
    pytest.importorskip("numba")

    def stream(tile, vocab, columns, online, final):
        seen.append(type(online).__name__)
        raise NotImplementedError

    monkeypatch.setattr(chunked, "stream", stream)
    far = Head(50, call=lambda x_NE: x_NE.new_empty(len(x_NE), 50, device="meta"))
    seen, names = [], []
    for head in (called(make_head(50)), far):
        engine = Chunked("numba")
        with pytest.raises(NotImplementedError):
            engine.stats(make_rows(2, 3), head, 3, make_targets(2, 50))
        names.append(engine.name)
    assert seen == ["Fused", "Online"]
    assert names == ["chunked (numba)", "chunked (torch)"]
    assert engine == Chunked("numba")


@pytest.mark.parametrize("wanted", [-1, 51])
def test_more_than_the_vocabulary_are_refused(wanted):
    head, x, targets = make_head(50), make_rows(2, 3), make_targets(2, 50)
    for engine in (Chunked(), reference):
        with pytest.raises(PromptError, match=f"between 0 and the vocabulary's 50; got {wanted}"):
            engine.stats(x, head, 3, targets, candidates=wanted)
    assert Chunked().stats(x, head, 3, targets, candidates=50).candidate_ids.shape == (2, 50)


def test_no_positions(kernel):
    none = Chunked(kernel, columns=64).stats(
        make_rows(0, 3), make_head(50), 4, make_targets(0, 50, 2), candidates=3
    )
    assert none.candidate_ids.shape == (0, 3)
    assert none.target_ranks.shape == (0, 3, 5)


class Tail:
    def __init__(self, head):
        self.head = head

    def head_input(self, h_ND):
        return h_ND


@pytest.mark.parametrize("into", [False, True], ids=["alone", "in parts"])
def test_the_statistics_of_a_reading(into, monkeypatch):
    monkeypatch.setattr(chunked, "ROWS", 12)  # 3 positions a block
    head, x, targets = make_head(300), make_rows(7, 4), make_targets(7, 300, 2)
    h_LTD = list(x.transpose(0, 1))
    table = Table(7) if into else None
    for part in (slice(0, 5), slice(5, 7)) if into else (slice(0, 7),):
        found = statistics(
            [h[part] for h in h_LTD], range(4), Tail(head), LogitLens(), k=3,
            targets_TM=targets[part], candidates=5, into=table,
        )  # fmt: skip
    truth = reference.stats(x, head, 3, targets, candidates=5)
    assert {name: a.shape for name, a in found.items() if name.startswith("candidate")} == {
        "candidate_ids": (7, 5), "candidate_logprobs": (4, 7, 5), "candidate_ranks": (4, 7, 5),
    }  # fmt: skip
    np.testing.assert_array_equal(found["candidate_ids"], truth.candidate_ids)
    np.testing.assert_array_equal(
        found["candidate_ranks"], truth.target_ranks[..., 2:].transpose(0, 1)
    )
    np.testing.assert_allclose(
        found["candidate_logprobs"], truth.target_logprobs[..., 2:].transpose(0, 1), atol=1e-4
    )
    assert found["target_ranks"].shape == (4, 7, 2)
    plain = statistics(h_LTD, range(4), Tail(head), LogitLens(), k=3, targets_TM=targets)
    assert not any(name.startswith("candidate") for name in plain)
