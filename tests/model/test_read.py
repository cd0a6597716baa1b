"""read, read_batch, capture and readout on tiny models: the laws every reading obeys."""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import logitlens
from logitlens import PromptError, UnsupportedModel
from tests.models import VOCAB, tiny_gpt2, tiny_llama, tiny_tokenizer

PROMPT = "The Eiffel Tower is in the city of"


@pytest.fixture(scope="module", params=[tiny_gpt2, tiny_llama], ids=["gpt2", "llama"])
def model(request):
    return logitlens.load(request.param(), tokenizer=tiny_tokenizer())


@pytest.fixture(scope="module")
def reading(model):
    return model.read(PROMPT, top=7, track=[" Paris", 5])


def model_logprobs(model, ids) -> np.ndarray:
    with torch.no_grad():
        logits = model.hf(input_ids=torch.tensor([list(map(int, ids))])).logits[0]
    return logits.double().log_softmax(-1).numpy()


def test_the_last_row_is_the_models_own_output(model, reading):
    truth = model_logprobs(model, reading.ids)
    order = np.argsort(-truth, axis=-1, kind="stable")[:, :7]
    assert (reading.top_ids[-1] == order).all()
    np.testing.assert_allclose(
        reading.top_logprobs[-1], np.take_along_axis(truth, order, -1), atol=1e-4
    )
    entropy = -(np.exp(truth) * truth).sum(-1)
    np.testing.assert_allclose(reading.entropy[-1], entropy, atol=1e-4)


def test_every_row_is_the_residual_read_by_hand(model, reading):
    """Each depth against transformers' own modules, without any code of ours but the hooks'.

    The KL is from the final row to the depth, KL(final ‖ depth), in nats.
    """
    hf = model.hf
    final = torch.from_numpy(model_logprobs(model, reading.ids))
    ids = torch.tensor([reading.ids.tolist()])
    with torch.no_grad():
        states = hf(input_ids=ids, output_hidden_states=True).hidden_states
        norm = hf.transformer.ln_f if hasattr(hf, "transformer") else hf.model.norm
        # hidden_states[-1] is already normed, so the last row is left to the test above.
        for row, state in enumerate(states[:-1]):
            truth = hf.lm_head(norm(state))[0].double().log_softmax(-1)
            got = torch.tensor(reading.top_ids[row].astype(np.int64))
            likeliest = truth.topk(7, dim=-1).values
            torch.testing.assert_close(truth.gather(1, got), likeliest, atol=1e-4, rtol=0)
            entropy = -(truth.exp() * truth).sum(-1)
            np.testing.assert_allclose(reading.entropy[row], entropy, atol=1e-4)
            kl = (final.exp() * (final - truth)).sum(-1)
            np.testing.assert_allclose(reading.kl[row], kl, atol=1e-4)
            torch.testing.assert_close(
                torch.tensor(reading.top_logprobs[row]).double(),
                truth.gather(1, got),
                atol=1e-4,
                rtol=0,
            )


def test_shapes_labels_and_bounds(model, reading):
    L, T, K = reading.shape
    assert (L, K) == (model.n_blocks + 1, 7)
    assert reading.layers == ["embed", *map(str, range(model.n_blocks))]
    assert T == len(reading.ids) == len(reading.pieces)
    assert "".join(reading.pieces) == PROMPT == reading.prompt
    assert (reading.kl >= 0).all()
    assert (reading.kl[-1] == 0).all()
    assert ((reading.entropy >= 0) & (reading.entropy <= math.log(VOCAB) + 1e-5)).all()
    assert (np.diff(reading.top_logprobs, axis=-1) <= 0).all()
    assert reading.track_logprobs.shape == (L, T, 2)
    assert set(reading.vocab) >= set(np.unique(reading.top_ids).tolist())


def test_following_and_tracked_tokens(model, reading):
    truth = model_logprobs(model, reading.ids)
    T = len(reading.ids)
    for t in range(T - 1):
        token = reading.ids[t + 1]
        assert reading.next_ids[t] == token
        assert math.isclose(reading.next_logprobs[-1, t], truth[t, token], abs_tol=1e-4)
        assert reading.next_ranks[-1, t] == 1 + (truth[t] > truth[t, token]).sum()
    assert reading.next_ids[-1] == -1
    assert np.isnan(reading.next_logprobs[:, -1]).all()
    assert (reading.next_ranks[:, -1] == 0).all()
    paris = reading.track_ids[0]
    assert reading.vocab[int(paris)] == " Paris"
    np.testing.assert_allclose(reading.track_logprobs[-1, :, 0], truth[:, paris], atol=1e-4)


def test_every_reading_carries_its_check(reading):
    check = reading.meta["check"]
    assert check["ok"]
    assert 0 <= check["max_abs_diff"] <= 1e-4


@pytest.mark.parametrize("kind", ["list", "array", "tensor", "batch of one"])
def test_ids_in_any_form_give_the_same_reading(model, reading, kind):
    ids = reading.ids.tolist()
    given = {
        "list": ids,
        "array": np.array(ids),
        "tensor": torch.tensor(ids),
        "batch of one": torch.tensor([ids]),
    }[kind]
    again = model.read(given, top=7, track=[" Paris", 5])
    assert (again.top_ids == reading.top_ids).all()
    np.testing.assert_allclose(again.top_logprobs, reading.top_logprobs, atol=1e-6)


def test_layers_and_positions_choose_rows_of_the_whole(model, reading):
    part = model.read(PROMPT, top=7, layers="embed,0", positions="-3:")
    assert part.layers == [*reading.layers[:2], reading.layers[-1]]
    assert part.pieces == reading.pieces[-3:]
    np.testing.assert_allclose(part.kl, reading.kl[[0, 1, -1], -3:], atol=1e-5)
    assert (part.next_ids == reading.next_ids[-3:]).all()
    first = model.read(PROMPT, positions=[0])
    assert first.next_ids.tolist() == [reading.ids[1]]


def test_capture_and_readout_are_the_two_halves(model, reading):
    residuals = model.capture(PROMPT)
    assert [tuple(h.shape) for h in residuals.h] == [(len(reading.ids), model.width)] * (
        model.n_blocks + 1
    )
    again = model.readout(residuals, top=7, track=[" Paris", 5])
    assert (again.top_ids == reading.top_ids).all()


def test_a_batch_equals_its_prompts_alone(model):
    prompts = [PROMPT, "In Paris", [5, 6, 7, 8, 9], "of the city of Paris there is a tower", "T"]
    together = model.read_batch(prompts, top=3, token_budget=48)
    assert len(together) == len(prompts)
    for prompt, reading in zip(prompts, together):
        alone = model.read(prompt, top=3)
        assert reading.pieces == alone.pieces
        assert (reading.top_ids == alone.top_ids).all()
        np.testing.assert_allclose(reading.top_logprobs, alone.top_logprobs, atol=1e-4)
        np.testing.assert_allclose(reading.kl, alone.kl, atol=1e-4)
    assert model.read_batch([]) == []


def test_a_tampered_tail_is_caught_at_read_time():
    """Every reading is checked: what is done to the logits later is not read as it was before."""
    hf, factor = tiny_gpt2(), [1.0]
    hf.register_forward_hook(lambda module, inputs, out: type(out)(logits=out.logits * factor[0]))
    model = logitlens.load(hf, tokenizer=tiny_tokenizer())
    factor[0] = 1.01
    with pytest.raises(UnsupportedModel, match="not the model's own output"):
        model.read(PROMPT)
    factor[0] = 1.0
    model.read(PROMPT)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m: m.read(""), "empty"),
        (lambda m: m.read([]), "empty"),
        (lambda m: m.read("<|endoftext|>"), "special tokens only"),
        (lambda m: m.read([VOCAB]), "outside the vocabulary"),
        (lambda m: m.read([[1, 2], [3, 4]]), "read_batch"),
        (lambda m: m.read([1.5]), "integer ids"),
        (lambda m: m.read(PROMPT * 20), r"context holds 64.*truncate"),
        (lambda m: m.read(PROMPT, top=VOCAB + 1), "size of the vocabulary"),
        (lambda m: m.read(PROMPT, top=0), "expected 1 to"),
        (lambda m: m.read(PROMPT, track=["Eiffel Tower"]), "is 3 tokens"),
        (lambda m: m.read(PROMPT, layers="9:"), "no layer selected"),
        (lambda m: m.read(PROMPT, positions="x"), "no position 'x'"),
        (lambda m: m.read(PROMPT, lens="magic"), "no lens called 'magic'"),
        (lambda m: m.read(PROMPT, top=2.5), "top=2.5: expected 1 to"),
        (lambda m: m.read(PROMPT, track=[""]), "token to track is empty"),
        (lambda m: m.read(PROMPT, depths=[3]), r"read\(depths=…\) is now layers="),
        (lambda m: m.read(PROMPT, layers=[1.5]), "no layer 1.5: expected numbers"),
        (lambda m: m.read("a\udcffb"), "half a character at position 1"),
        (lambda m: m.read_batch(PROMPT), "got one text: use read"),
    ],
)
def test_bad_input_is_one_line(model, call, says):
    with pytest.raises(PromptError, match=says) as caught:
        call(model)
    assert "\n" not in str(caught.value)


def test_numbers_and_masks_of_any_library_mean_what_they_say(model, reading):
    ids = reading.ids.tolist()
    L, T, _ = reading.shape
    keep_T, keep_L = np.arange(T) % 3 == 1, np.arange(L) == 2
    for mask, rows in (
        (keep_T, keep_L),
        (torch.from_numpy(keep_T), torch.from_numpy(keep_L)),
        (keep_T.tolist(), keep_L.tolist()),
        (np.flatnonzero(keep_T), torch.tensor(1)),  # the row labelled 1 is the third
        (list(torch.from_numpy(np.flatnonzero(keep_T))), np.int64(1)),
    ):
        part = model.read(ids, top=np.int64(4), positions=mask, layers=rows, chunk=torch.tensor(4))
        assert part.ids.tolist() == reading.ids[keep_T].tolist()
        assert part.layers == [reading.layers[2], reading.layers[-1]]
        assert part.top_ids.shape[-1] == 4
        np.testing.assert_allclose(part.kl, reading.kl[[2, -1]][:, keep_T], atol=1e-4)
    one = model.read(ids, positions=np.int64(-1), track=torch.tensor(5), truncate=np.bool_(False))
    assert one.ids.tolist() == ids[-1:]
    assert one.track_ids.tolist() == [5]
    several = model.read(ids, track=torch.tensor([5, 7]))
    assert several.track_ids.tolist() == [5, 7]


@pytest.mark.parametrize(
    "options",
    [
        {"top": True}, {"top": 3.0}, {"top": "3"}, {"top": None},
        {"chunk": True}, {"chunk": 3.0}, {"chunk": "3"},
        {"truncate": "no"}, {"truncate": 1}, {"truncate": None},
        {"track": [None]}, {"track": 5.5}, {"track": [3.7]}, {"track": True},
        {"track": torch.tensor(3.0)}, {"track": {"Paris": 1}}, {"track": b"Paris"},
        {"layers": 3.0}, {"layers": [3.0]}, {"layers": [True, False]},
        {"layers": torch.tensor([1.0])}, {"positions": 5.5}, {"positions": [True, None]},
        {"positions": np.ones(3, bool)}, {"positions": True}, {"positions": np.bool_(True)},
    ],
    ids=str,
)  # fmt: skip
def test_what_can_be_misread_is_refused_in_one_line(model, reading, options):
    with pytest.raises(PromptError, match=next(iter(options)).rstrip("s")) as caught:
        model.read(reading.ids, **options)
    assert "\n" not in str(caught.value)
    if "chunk" not in options:
        with pytest.raises(PromptError):
            model.read_batch([reading.ids.tolist()], **options)


def test_truncate_reads_the_last_positions_that_fit(model):
    reading = model.read(PROMPT * 20, truncate=True, top=1)
    assert len(reading.ids) == 64
    assert "".join(reading.pieces).endswith("the city of")
    whole = len(model.tokens.encode(PROMPT * 20))
    assert reading.meta["truncated"] == whole - 64 > 0
    (batched, short) = model.read_batch([PROMPT * 20, PROMPT], truncate=True, top=1)
    assert batched.meta["truncated"] == whole - 64
    assert short.meta["truncated"] == 0
    ids = [i % VOCAB for i in range(100)]
    assert model.read(ids, truncate=True, top=1).ids.tolist() == ids[-64:]


def test_the_numbers_that_are_shown_are_checked(model, monkeypatch):
    """Right logits whose log-probabilities come out a little wrong are refused as well."""
    from logitlens.readout import online

    result = online.Online.result

    def wrong(self, *candidates):
        stats = result(self, *candidates)
        return dataclasses.replace(stats, top_logprobs=stats.top_logprobs + 1e-3)

    monkeypatch.setattr(online.Online, "result", wrong)
    with pytest.raises(UnsupportedModel, match="the last row is not the model's own output"):
        model.read(PROMPT)


def test_the_logits_that_the_readout_made_are_checked(model, monkeypatch):
    """A product that is wrong in one token of the vocabulary is found out."""
    from logitlens.readout.product import Product

    right, wrong = Product.raw, 5

    def raw(self, v, *out):
        z_NC = right(self, v, *out)
        if isinstance(v, slice) and v.start <= wrong < v.stop:
            z_NC[:, wrong - v.start] += 3.0
        return z_NC

    monkeypatch.setattr(Product, "raw", raw)
    with pytest.raises(UnsupportedModel, match="not the model's own output"):
        model.read(PROMPT)


def test_a_long_prompt_is_refused_without_a_warning_beside(model, caplog):
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.model_max_length = 64
    hf_logger = logging.getLogger("transformers")
    hf_logger.addHandler(caplog.handler)
    try:
        with pytest.raises(PromptError, match="context holds 64"):
            logitlens.load(model.hf, tokenizer=tokenizer).read(PROMPT * 20)
    finally:
        hf_logger.removeHandler(caplog.handler)
    assert not caplog.records


def test_one_token_to_track_needs_no_list(model):
    wanted = model.read(PROMPT, track=[" Paris"]).track_ids
    assert model.read(PROMPT, track=" Paris").track_ids.tolist() == wanted.tolist()
    assert model.read(PROMPT, track=int(wanted[0])).track_ids.tolist() == wanted.tolist()
    assert model.read_batch([PROMPT], track=" Paris")[0].track_ids.tolist() == wanted.tolist()


def test_a_tokenizer_of_another_model_is_named():
    narrow = GPT2LMHeadModel(
        GPT2Config(vocab_size=100, n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0)
    )
    model = logitlens.load(narrow.eval(), tokenizer=tiny_tokenizer())
    with pytest.raises(PromptError, match="outside the vocabulary.*own tokenizer"):
        model.read("The Eiffel Tower is in the city of Paris")


def test_residuals_of_another_model_are_refused(model):
    residuals = model.capture(PROMPT)
    residuals.h = [h[:, :8] for h in residuals.h]
    with pytest.raises(PromptError, match="8 wide and the model 32"):
        model.readout(residuals)


def test_threads_take_turns(model):
    """Hooks of one read must not see the pass of another."""
    prompts = [PROMPT, "Paris", "a tower in Paris", "The city"]

    def hooks():
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.hf.modules())

    before = hooks()  # transformers leaves its own where output_hidden_states was asked for
    alone = [model.read(prompt, top=3) for prompt in prompts]
    with ThreadPoolExecutor(4) as pool:
        many = list(pool.map(lambda i: model.read(prompts[i % 4], top=3), range(24)))
    for i, reading in enumerate(many):
        assert reading.ids.tolist() == alone[i % 4].ids.tolist()
        assert reading.top_ids.tolist() == alone[i % 4].top_ids.tolist()
    assert hooks() == before


def test_text_without_a_tokenizer_is_refused_and_ids_are_read():
    model = logitlens.load(tiny_gpt2())
    with pytest.raises(PromptError, match="without a tokenizer"):
        model.read(PROMPT)
    reading = model.read([1, 2, 3], top=2)
    assert reading.pieces == ["⟨1⟩", "⟨2⟩", "⟨3⟩"]


def test_nan_weights_are_refused():
    hf = tiny_gpt2()
    with torch.no_grad():
        hf.transformer.h[1].mlp.c_fc.weight[0, 0] = math.nan
    with pytest.raises(UnsupportedModel, match=r"(?i)nan|finite") as caught:
        logitlens.load(hf)
    assert "\n" not in str(caught.value)


def test_a_batch_may_follow_tokens_of_its_own_in_every_prompt(model):
    prompts = [PROMPT, "In Paris"]
    each = model.read_batch(prompts, track=[[" Paris", 5], (7,)])
    assert [r.track_ids.tolist()[1:] for r in each] == [[5], []]
    for prompt, reading, track in zip(prompts, each, [[" Paris", 5], [7]]):
        alone = model.read(prompt, track=track)
        assert reading.track_ids.tolist() == alone.track_ids.tolist()
        np.testing.assert_allclose(reading.track_logprobs, alone.track_logprobs, atol=1e-4)
    for wrong in ([[5]], [[5], [7], [9]], [[5], 7]):
        with pytest.raises(PromptError, match="one list of tokens for each of the 2 prompts"):
            model.read_batch(prompts, track=wrong)


def test_candidates_are_the_models_own_top_tokens_tracked_in_every_layer(model, reading):
    assert (reading.candidate_ids == reading.top_ids[-1, :, :5]).all()
    np.testing.assert_allclose(reading.candidate_logprobs[-1], reading.top_logprobs[-1, :, :5])
    assert (reading.candidate_ranks[-1] == np.arange(1, 6)).all()
    for t in (0, len(reading.ids) - 1):
        asked = model.read(PROMPT, track=reading.candidate_ids[t].tolist(), candidates=0)
        np.testing.assert_allclose(
            reading.candidate_logprobs[:, t], asked.track_logprobs[:, t], atol=1e-4
        )
        assert (reading.candidate_ranks[:, t] == asked.track_ranks[:, t]).all()
        assert {int(i) for i in reading.candidate_ids[t]} <= set(reading.vocab)
        assert asked.candidate_ids.shape == (len(asked.ids), 0)
    paris = reading.piece(int(reading.candidate_ids[-1, 0]))
    assert not np.isnan(reading.prob(paris)[:, -1]).any(), "the answer is known in every layer"


def test_candidates_are_the_same_in_chunks_in_batches_and_from_residuals(model):
    whole = model.read(PROMPT, candidates=3)
    (batched, _) = model.read_batch([PROMPT, "x"], candidates=3)
    again = model.readout(model.capture(PROMPT), candidates=3)
    chunked = model.read(PROMPT, candidates=3, chunk=4)
    for other in (batched, again, chunked):
        assert (other.candidate_ids == whole.candidate_ids).all()
        np.testing.assert_allclose(other.candidate_logprobs, whole.candidate_logprobs, atol=1e-4)
        assert (other.candidate_ranks == whole.candidate_ranks).all()
    for wrong in (-1, VOCAB + 1, True, 2.5, None):
        with pytest.raises(PromptError, match="candidates="):
            model.read(PROMPT, candidates=wrong)


def test_a_model_shows_what_its_users_need(model):
    """`vars` and not `dir`: nnsight hangs names on every object."""
    names = {*vars(model), *vars(type(model))}
    assert {name for name in names if not name.startswith("_")} == {
        "hf", "tokenizer", "anatomy", "tail", "check", "name", "revision", "tokens",
        "n_blocks", "width", "vocab_size", "dtype", "context", "sublayers", "heads",
        "read", "read_batch", "generate", "stream", "score", "capture", "readout", "attribute",
        "direction", "patch_grid", "read_vectors", "weights",
    }  # fmt: skip
