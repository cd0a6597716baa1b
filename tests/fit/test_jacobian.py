"""The mean Jacobian: exact against brute force, batched, resumed, sharded, estimated."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from logitlens.errors import FitError, PromptError
from logitlens.fit import checkpoint, jacobian
from logitlens.fit.corpus import from_ids
from logitlens.fit.jacobian import JacobianFit, Settings
from logitlens.lenses import merge, open_lens, resolve
from tests.fit.corpora import repeating
from tests.fit.processes import run_two
from tests.lenses import tiny

LENGTHS = [18, 23, 23, 31, 40, 27]


def corpus(lengths=LENGTHS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return from_ids(
        [torch.randint(tiny.VOCAB, (n,), generator=generator).tolist() for n in lengths], "random"
    )


def brute_force(model, ids, depth, skip=16):
    """∂h_final / ∂h_depth in full by autograd, (T, D, T, D), then the published reduction."""
    blocks, T = model.anatomy.blocks, len(ids)
    entry = {}

    def grab(module, args, kwargs):
        entry["args"], entry["kwargs"] = args, kwargs

    def rest(h_TD):
        """The blocks from `depth` on, as the model calls them."""

        def replace(module, args, kwargs):
            return (h_TD[None], *args[1:]), kwargs

        last = {}

        def keep(module, args, output):
            last["h"] = output[0] if isinstance(output, tuple) else output

        hooks = [
            blocks[depth].register_forward_pre_hook(replace, with_kwargs=True),
            blocks[-1].register_forward_hook(keep),
        ]
        model.hf(torch.tensor([list(ids)]), use_cache=False)
        for hook in hooks:
            hook.remove()
        return last["h"][0]

    h_TD = model.capture(list(ids)).h[depth]
    full = torch.autograd.functional.jacobian(rest, h_TD)  # (T target, D, T source, D)
    valid = slice(skip, T - 1)
    return full[valid].sum(0)[:, valid].mean(1)


@pytest.mark.slow
@pytest.mark.parametrize("make", [tiny.gpt2, tiny.llama])
def test_exact_against_brute_force(make):
    model, text = make(), corpus([18, 23, 20])
    lens = jacobian.fit(model, text, Settings(tokens_per_pass=300))
    assert lens.header.depths == (0, 1, 2)
    for depth in range(model.n_blocks):
        truth = torch.stack([brute_force(model, d.tolist(), depth) for d in text.documents]).mean(0)
        got = lens.tensors[f"{depth}.jacobian"]
        assert float((got - truth).norm() / truth.norm()) < 1e-4
        torch.testing.assert_close(got, truth, atol=1e-4 * float(truth.abs().max()), rtol=1e-4)


@pytest.mark.parametrize("tokens", [1, 40, 100, 400, 3000, 100_000])
def test_batching_changes_nothing(tokens):
    """One prompt a pass, several, several copies of each: the same mean."""
    model, text = tiny.gpt2(), corpus()
    whole = jacobian.fit(model, text, Settings(tokens_per_pass=500))
    other = jacobian.fit(model, text, Settings(tokens_per_pass=tokens))
    for name, J in whole.tensors.items():
        torch.testing.assert_close(other.tensors[name], J, atol=2e-5, rtol=1e-4)


def test_the_model_is_left_as_it_was():
    model = tiny.gpt2()
    model.hf.train()
    model.hf.lm_head.weight.requires_grad_(False)
    flags = {n: p.requires_grad for n, p in model.hf.named_parameters()}
    hooks = [(m._forward_hooks.copy(), m._forward_pre_hooks.copy()) for m in model.hf.modules()]
    jacobian.fit(model, corpus([20]), Settings())
    assert {n: p.requires_grad for n, p in model.hf.named_parameters()} == flags
    assert all(p.grad is None for p in model.hf.parameters())
    assert model.hf.training
    assert [
        (m._forward_hooks.copy(), m._forward_pre_hooks.copy()) for m in model.hf.modules()
    ] == hooks


def test_identity_through_no_blocks():
    """With the last block's weights at zero, the step over it is the identity."""
    model = tiny.gpt2()
    with torch.no_grad():
        for part in (model.hf.transformer.h[-1].attn.c_proj, model.hf.transformer.h[-1].mlp.c_proj):
            part.weight.zero_()
    model = tiny.wrap(model.hf, "tiny/identity")
    lens = jacobian.fit(model, corpus([20, 25]), Settings(depths=(2,)))
    torch.testing.assert_close(lens.tensors["2.jacobian"], torch.eye(model.width))


def test_shards_merge_into_the_whole(tmp_path):
    model, text = tiny.gpt2(), corpus([20, 30, 40, 25, 22, 19, 35])
    whole = jacobian.fit(model, text, Settings())
    for i in range(3):
        folder = tmp_path / str(i)
        settings = Settings(dtype="float32", tokens_per_pass=100 * (i + 1))
        jacobian.fit(model, text.shard(i, 3), settings, folder=folder)
    parts = [open_lens(tmp_path / str(i)) for i in range(3)]
    together = merge(parts)
    assert together.header.weight == whole.header.weight == 7
    assert together.header.corpus["tokens"] == whole.header.corpus["tokens"]
    for name, J in whole.tensors.items():
        torch.testing.assert_close(together.tensors[name], J, atol=2e-5, rtol=1e-4)


WORKER = """
from logitlens.fit import jacobian
settings = jacobian.Settings(tokens_per_pass=100, checkpoint_seconds=0, dtype="float32")
jacobian.fit(tiny.gpt2(), repeating(5), settings, folder=Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    """Two batches for one, one for the other; each keeps a checkpoint and forgets it at the end."""
    settings = Settings(tokens_per_pass=100)
    alone = jacobian.fit(tiny.gpt2(), repeating(5), settings)
    run_two(WORKER, tmp_path / "two")
    assert os.listdir(tmp_path / "two") == [jacobian.FILE]
    together = open_lens(tmp_path / "two")
    assert together.header.weight == alone.header.weight == 5
    assert together.header.corpus == alone.header.corpus
    for name, J in alone.tensors.items():
        torch.testing.assert_close(together.tensors[name], J, atol=2e-5, rtol=1e-4)


def test_going_on_equals_never_having_stopped(tmp_path):
    model, text = tiny.gpt2(), corpus()
    settings = Settings(tokens_per_pass=40)
    whole = jacobian.fit(model, text, settings)

    def press(progress):
        if progress.prompts == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        jacobian.fit(model, text, settings, folder=tmp_path, report=press)
    assert os.listdir(tmp_path) == [checkpoint.NAME]
    counts = []
    rest = jacobian.fit(
        model, text, settings, folder=tmp_path, report=lambda p: counts.append(p.prompts)
    )
    assert counts == [4, 5, 6]  # the interrupted batch was finished and kept
    for name, J in whole.tensors.items():
        torch.testing.assert_close(rest.tensors[name], J)
    assert rest.header == whole.header
    assert os.listdir(tmp_path) == [jacobian.FILE]


def test_a_checkpoint_of_another_fit_is_refused(tmp_path):
    model, text = tiny.gpt2(), corpus()
    settings = Settings(tokens_per_pass=40, checkpoint_seconds=0)

    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jacobian.fit(model, text, settings, folder=tmp_path, report=stop)
    with pytest.raises(FitError, match="corpus"):
        jacobian.fit(model, corpus(seed=1), settings, folder=tmp_path)
    with pytest.raises(FitError, match="skip_first"):
        jacobian.fit(model, text, Settings(skip_first=8, tokens_per_pass=40), folder=tmp_path)


def test_random_cotangents_estimate_the_mean():
    """Unbiased: the error falls as more prompts of the same text are taken, as its estimate says."""
    model, documents = tiny.gpt2(), corpus([24]).documents
    exact = jacobian.fit(model, from_ids(documents), Settings())
    errors, estimates = [], []
    for n in (8, 128):
        settings = Settings(cotangents=8, tokens_per_pass=24)
        # Prompts differ in their last token, which no valid position sees: one J, many draws.
        copies = from_ids([[*documents[0][:-1], i % tiny.VOCAB] for i in range(n)])
        job = JacobianFit(model, copies, settings)
        got = job.run().tensors["0.jacobian"]
        truth = exact.tensors["0.jacobian"]
        errors.append(float((got - truth).norm() / truth.norm()))
        estimates.append(job.error()[0])
    assert errors[1] < errors[0] / 2.5  # √16 = 4 expected
    for error, estimate in zip(errors, estimates):
        assert 0.6 < estimate / error < 1.6
    all_of_them = jacobian.fit(model, from_ids(documents), Settings(cotangents=model.width))
    torch.testing.assert_close(
        all_of_them.tensors["1.jacobian"], exact.tensors["1.jacobian"], atol=1e-4, rtol=1e-3
    )


def test_the_lens_reads(tmp_path):
    model = tiny.llama()
    jacobian.fit(model, repeating(4), Settings(), folder=tmp_path)
    lens = resolve(f"jacobian:{tmp_path}", model)
    assert lens.header.weight == 4
    reading = model.read([1, 2, 3], lens=lens)
    assert reading.layers == ["embed", "0", "1", "2"]


@pytest.mark.parametrize(
    ("change", "lengths", "message"),
    [
        ({}, [17, 5, 12], "none of 3 documents has the 18 tokens"),
        ({"length": 17}, [30], "at least 18 tokens"),
        ({"cotangents": 33}, [30], "1 to the width 32"),
        ({"depths": (3,)}, [30], "depth 3: expected 0 to 2"),
        ({"skip_first": -1}, [30], "skip_first=-1"),
        ({"prompts": 0}, [30], "prompts=0"),
        ({"tokens_per_pass": 0}, [30], "tokens_per_pass=0"),
    ],
)
def test_bad_input_is_one_line(change, lengths, message):
    with pytest.raises(PromptError, match=message) as error:
        jacobian.fit(tiny.gpt2(), corpus(lengths), Settings(**change))
    assert "\n" not in str(error.value)


def test_short_documents_are_passed_over():
    text = corpus([5, 20, 17, 18])
    job = JacobianFit(tiny.gpt2(), text, Settings())
    assert [len(p) for p in job.prompts] == [20, 18]
