"""The patch grid equals the plain loop, cell by cell, and runs only what a patch can change."""

from __future__ import annotations

import numpy as np
import pytest

import logitlens
from logitlens import PromptError, UnsupportedModel, edit
from logitlens.model import patching
from tests.anatomy.test_sublayers import loud
from tests.models import tiny_gpt2, tiny_tokenizer

CLEAN = [5, 1, 17, 33, 3, 42, 9]
CORRUPTED = [5, 2, 17, 30, 3, 42, 9]
FAMILIES = [
    "GPT2LMHeadModel",
    "GPTNeoXForCausalLM",  # parallel blocks
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in (
            "LlamaForCausalLM",
            "Gemma2ForCausalLM",
            "MixtralForCausalLM",
            "FalconMambaForCausalLM",  # no MLP
        )
    ),
]


def by_loop(model, grid, stream):
    """Every cell by a reading with an edit of its own."""
    values = np.empty((*grid.logits.shape, 2))
    for i, label in enumerate(grid.layers):
        layer, _, part = label.partition(".")
        head = int(part.removeprefix("head")) if stream == "head" else None
        for j, position in enumerate(grid.positions):
            e = edit.patch(CLEAN, layer, position, stream=stream, head=head)
            logits = model.capture(CORRUPTED, layers=-1, edits=e).final_logits[0].double()
            values[i, j] = float(logits[7] - logits[3]), float(logits.log_softmax(-1)[7])
    return values


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("stream", ["resid", "attn", "mlp", "head"])
def test_every_cell_equals_a_plain_patched_run(name, stream):
    model = logitlens.load(loud(name))
    if name == "FalconMambaForCausalLM" and stream in ("mlp", "head"):
        said = "no stream 'mlp'" if stream == "mlp" else "has no heads that can be told apart"
        with pytest.raises(UnsupportedModel, match=said):
            model.patch_grid(CLEAN, CORRUPTED, 7, 3, stream=stream)
        return
    grid = model.patch_grid(CLEAN, CORRUPTED, 7, 3, stream=stream, positions="1:")
    values = by_loop(model, grid, stream)
    np.testing.assert_allclose(grid.logits, values[..., 0], atol=1e-3)
    np.testing.assert_allclose(grid.logprobs, values[..., 1], atol=1e-3)
    assert np.abs(grid.logits - grid.corrupted["logit"]).max() > 0.05
    assert grid.meta["unpatched_nats"] < 1e-4


@pytest.fixture(scope="module")
def model():
    return logitlens.load(tiny_gpt2(), tokenizer=tiny_tokenizer())


def test_the_last_layer_brings_everything_back_at_the_answer_and_nothing_elsewhere(model):
    grid = model.patch_grid(CLEAN, CORRUPTED, 7, 3)
    np.testing.assert_allclose(grid.restored[-1, -1], 1, atol=1e-4)
    np.testing.assert_array_equal(grid.restored[:, 0], 0)  # the same token: equal in both runs
    np.testing.assert_allclose(grid.restored[-1, :-1], 0, atol=1e-4)
    assert grid.layers == ["embed", "0", "1", "2"]


def test_equal_prompts_run_nothing_and_restore_nothing(model, monkeypatch):
    monkeypatch.setattr(patching, "_run", None)
    grid = model.patch_grid(CLEAN, CLEAN, 7, 3)
    assert np.isnan(grid.restored).all()
    assert (grid.logits == grid.corrupted["logit"]).all()


def test_blocks_below_the_cell_are_not_run_again(model):
    ran = []
    handles = [
        block.ln_1.register_forward_hook(lambda *_, i=i: ran.append(i))
        for i, block in enumerate(model.hf.transformer.h)
    ]
    model = logitlens.load(model.hf, tokenizer=tiny_tokenizer())
    ran.clear()
    model.patch_grid(CLEAN, CORRUPTED, 7, 3, layers=1)
    for handle in handles:
        handle.remove()
    expected = [0, 1, 2, 0, 1, 2, 2]
    assert ran == expected, "the two runs together, the cache, then block 2 for the cells after 1"


def test_positions_before_the_cell_come_from_the_cache(model, monkeypatch):
    real, passes = patching.forward, []

    def watched(hf, ids_BT, **options):
        passes.append(ids_BT.shape)
        return real(hf, ids_BT, **options)

    monkeypatch.setattr(patching, "forward", watched)
    grid = model.patch_grid(CLEAN, CORRUPTED, 7, 3, layers=1)
    assert {T for _, T in passes} == {len(CLEAN) - 1}, "position 0 is the same in both runs"
    monkeypatch.setattr(patching, "cache_argument", lambda hf: None)
    passes.clear()
    plain = model.patch_grid(CLEAN, CORRUPTED, 7, 3, layers=1)
    assert {T for _, T in passes} == {len(CLEAN)}
    np.testing.assert_allclose(grid.logits, plain.logits, atol=1e-4)


@pytest.mark.parametrize("stream", ["resid", "attn", "head"])
def test_the_answer_may_be_read_before_the_cells(model, stream):
    grid = model.patch_grid(CLEAN, CORRUPTED, 7, 3, position=2, stream=stream, layers="0:2")
    np.testing.assert_allclose(grid.logits[:, 3:], grid.corrupted["logit"], atol=1e-4)
    assert np.abs(grid.logits[:, 1] - grid.corrupted["logit"]).max() > 1e-3


def test_a_skip_that_changes_something_is_noticed_and_not_used(model, monkeypatch):
    real = patching.skipping
    wrong = []

    def lossy(blocks, slot):
        wrong.append(len(blocks))
        return real([*blocks, model.anatomy.blocks[-1]], slot)

    plain = model.patch_grid(CLEAN, CORRUPTED, 7, 3)
    monkeypatch.setattr(patching, "skipping", lossy)
    grid = model.patch_grid(CLEAN, CORRUPTED, 7, 3)
    assert wrong == [0, 0], "tried with the cache and without"
    np.testing.assert_allclose(grid.logits, plain.logits, atol=1e-3)


def test_a_run_that_is_not_the_models_own_is_refused(model, monkeypatch):
    real = patching._run
    monkeypatch.setattr(patching, "_run", lambda *args: real(*args).roll(1, -1))
    with pytest.raises(UnsupportedModel, match="unpatched, its log-probabilities differ"):
        model.patch_grid(CLEAN, CORRUPTED, 7, 3)


@pytest.mark.parametrize(
    ("corrupted", "options", "said"),
    [
        (CORRUPTED[1:], {}, "the clean prompt has 7 tokens and the corrupted one 6"),
        (CORRUPTED, {"versus": 7}, "is the token itself"),
        (CORRUPTED, {"token": None}, "token=None: expected the answer"),
        (CORRUPTED, {"stream": "mid"}, "expected one of resid, attn, mlp, head"),
        (CORRUPTED, {"layers": 9}, "no layer 9"),
        (CORRUPTED, {"positions": 9}, "no position 9"),
        (CORRUPTED, {"position": "0:2"}, "expected one position"),
        (CORRUPTED, {"layers": "embed", "stream": "mlp"}, "no layer 'embed'"),
    ],
)
def test_mistakes_are_one_line(model, corrupted, options, said):
    with pytest.raises(PromptError, match=said) as caught:
        model.patch_grid(CLEAN, corrupted, **{"token": 7, **options})
    assert "\n" not in str(caught.value)


def test_nothing_remains_on_the_model(model):
    def state():
        return [
            (len(m._forward_hooks) + len(m._forward_pre_hooks), "forward" in vars(m))
            for m in model.hf.modules()
        ]

    before = state()
    for stream in patching.STREAMS:
        model.patch_grid(CLEAN, CORRUPTED, 7, stream=stream)
    assert state() == before
