"""Tensor parallelism: two processes read like one, and exchange no logits."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import logitlens
from tests.models import tiny_llama
from tests.placement.tp_worker import FIELDS, IDS
from tests.readout.heads import eighths

pytest.importorskip("torch.distributed")
VOCAB = 321  # odd: the last process holds a column less


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Llama with an odd vocabulary, some columns of which are equal across the border."""
    hf = tiny_llama()
    hf.resize_token_embeddings(VOCAB)
    with torch.no_grad():
        weight = hf.lm_head.weight
        weight.normal_(std=0.6, generator=torch.Generator().manual_seed(3))
        weight[210] = weight[10]  # ties: one in each shard
        weight[161] = weight[160]
    path = tmp_path_factory.mktemp("tp")
    hf.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def parallel(folder, tmp_path_factory):
    """What each of two gloo processes read."""
    out = tmp_path_factory.mktemp("out") / "read"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    root = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    processes = []
    for rank in range(2):
        environment = {
            **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": root,
        }  # fmt: skip
        command = [sys.executable, str(Path(__file__).with_name("tp_worker.py")), folder, out]
        processes.append(
            subprocess.Popen(
                [str(part) for part in command],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        said = [process.communicate(timeout=180)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, text in zip(processes, said):
        assert process.returncode == 0, text[-3000:]
    return [json.loads(Path(f"{out}.{rank}").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def alone(folder):
    return logitlens.load(folder)


@pytest.mark.slow
def test_two_processes_read_like_one(parallel, alone):
    reading = alone.read(IDS, top=4, track=[301, 320, 7])
    for found in parallel:
        for name in FIELDS:
            mine, theirs = getattr(reading, name), np.array(found["fields"][name])
            if mine.dtype.kind == "i":
                assert (theirs == mine).all(), name
            else:
                np.testing.assert_allclose(theirs.astype(float), mine, atol=1e-4, err_msg=name)
        assert found["check"]["ok"]
        assert found["check"]["max_abs_diff"] <= 1e-4
        assert found["kernel"] == "sharded"
    assert parallel[0]["fields"] == parallel[1]["fields"]


@pytest.mark.slow
def test_batches_too(parallel, alone):
    truth = [r.top_ids.tolist() for r in alone.read_batch([IDS, IDS[:3]], top=2)]
    assert parallel[0]["batch"] == parallel[1]["batch"] == truth


@pytest.mark.slow
def test_sublayers_too(parallel, alone):
    """What attention adds is the sum over the processes, not one process's part."""
    truth = alone.read(IDS, stream="attn", top=2).top_logprobs
    for found in parallel:
        np.testing.assert_allclose(np.array(found["attn"]), truth, atol=1e-4)


@pytest.mark.slow
def test_the_last_shard_is_shorter(parallel):
    assert [(found["offset"], found["local"]) for found in parallel] == [(0, 161), (161, 160)]
    assert any("over 2 processes" in text for _, text in parallel[0]["description"])


@pytest.mark.slow
def test_what_is_exchanged_does_not_grow_with_the_vocabulary(parallel):
    """Bytes of all collectives of a readout, counted: O(rows · k), and the check's one row of logits."""
    L, T, K, C = 5, len(IDS), 4, 5
    M = 4 + C  # targets: the next token, three tracked and the candidates
    rows = L * T
    summed = 4 + 8 * (3 + 2 * M) + 4 * M  # the maximum, sums and counts, the targets' logits
    listed = 2 * K * (4 + 8)  # top-k values and ids of both processes
    offsets = 2 * 8
    leading = T * 2 * C * (4 + 8) + offsets  # candidates of both processes, of the final rows
    for found in parallel:
        readout, gathered = found["bytes"]["readout"], found["bytes"]["gathered"]
        checked = 4 * VOCAB  # one row of logits
        assert readout == rows * (summed + listed) + offsets + leading + checked
        assert gathered == rows * 2 * 161 * 4, "the model itself gathers every logit"


@pytest.mark.parametrize(
    ("V", "cuts"),
    [
        (50, [25]), (50, [49]), (50, [1, 2]), (50, [50]), (50, [7, 20, 33]),
        (300, [150]), (300, [100, 200]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("k", [1, 5, 50])
def test_merging_any_split_equals_the_whole(V, cuts, k):
    """The merge alone, on ragged shards in one process: the collectives are played by hand."""
    from logitlens.readout import reference
    from logitlens.readout.chunked import Chunked
    from logitlens.readout.head import Head

    generator = torch.Generator().manual_seed(1)
    weight = eighths(torch.randn(V, 8, generator=generator) * 3)
    x = eighths(torch.randn(3, 4, 8, generator=generator))
    targets = torch.tensor([[4, -1], [49, 20], [21, 0]])
    if V == 300:  # equal rows in several shards: the lower id comes first, and ranks are equal
        weight[4] *= 3
        weight[170], weight[270] = weight[4], weight[4]
        targets[1] = torch.tensor([170, 270])
    head = Head(V, weight, softcap=20.0)
    candidates = 6 if k == 5 else 0
    merged = play(x, weight, k, targets, cuts, softcap=20.0, candidates=candidates)
    truth = reference.stats(x, head, k, targets, candidates=candidates)
    whole = Chunked().stats(x, head, k, targets, candidates=candidates)
    for name in ("top_ids", "target_ranks", "candidate_ids"):
        assert torch.equal(getattr(merged, name), getattr(whole, name)), name
    for name in ("top_logprobs", "entropy", "kl", "target_logprobs"):
        torch.testing.assert_close(
            getattr(merged, name).double(), getattr(truth, name), atol=2e-5, rtol=0, equal_nan=True
        )


def test_a_token_whose_logit_is_minus_infinity_stays_so_in_parts():
    from logitlens.readout.chunked import Chunked
    from logitlens.readout.head import Head

    generator = torch.Generator().manual_seed(1)
    weight, x = (
        eighths(torch.randn(*shape, generator=generator)) for shape in ((50, 8), (3, 4, 8))
    )
    bias, targets = torch.zeros(50), torch.tensor([[20], [4], [30]])
    bias[[20, 30]] = float("-inf")
    head = Head(50, weight, softcap=20.0, final_bias_V=bias)
    merged = play(x, weight, 3, targets, [25], softcap=20.0, candidates=0, final_bias=bias)
    whole = Chunked().stats(x, head, 3, targets)
    assert bool((whole.target_logprobs[[0, 2]] == float("-inf")).all())
    torch.testing.assert_close(merged.target_logprobs, whole.target_logprobs)
    assert torch.equal(merged.target_ranks, whole.target_ranks)


def play(x, weight, k, targets, cuts, softcap, candidates, final_bias=None):
    """`Sharded.stats` of every shard at once, in threads that meet at each collective."""
    import threading
    from unittest import mock

    from logitlens.readout import sharded
    from logitlens.readout.head import Head, Shard

    edges = [0, *cuts, len(weight)]
    n = len(edges) - 1
    meet = threading.Barrier(n)
    held: list = [None] * n
    rank = threading.local()

    def exchange(tensor):
        held[rank.i] = tensor.clone()
        meet.wait()
        seen = [t.clone() for t in held]
        meet.wait()
        return seen

    def all_reduce(tensor, op=torch.distributed.ReduceOp.SUM, group=None):
        seen = torch.stack(exchange(tensor))
        tensor.copy_(seen.amax(0) if op == torch.distributed.ReduceOp.MAX else seen.sum(0))

    def all_gather(parts, tensor, group=None):
        for part, seen in zip(parts, exchange(tensor)):
            part.copy_(seen)

    out: list = [None] * n

    def one(i):
        rank.i = i
        mine = slice(edges[i], edges[i + 1])
        bias = None if final_bias is None else final_bias[mine]
        local = Head(len(weight[mine]), weight[mine], softcap=softcap, final_bias_V=bias)
        head = Head(len(weight), call=lambda x: x, shard=Shard(local, edges[i]))
        out[i] = sharded.Sharded().stats(x, head, k, targets, candidates=candidates)

    with (
        mock.patch.object(sharded.dist, "all_reduce", all_reduce),
        mock.patch.object(sharded.dist, "all_gather", all_gather),
        mock.patch.object(sharded.dist, "get_world_size", return_value=n),
    ):
        threads = [threading.Thread(target=one, args=(i,)) for i in range(n)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=30)
    for other in out[1:]:
        assert torch.equal(other.top_ids, out[0].top_ids)
    return out[0]
