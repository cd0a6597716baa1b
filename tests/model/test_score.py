"""`model.score`: whole answers, each token given those before it, at every layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import logitlens
from logitlens import PromptError, UnsupportedModel, edit
from logitlens.model.score import question
from tests.models import tiny_gpt2, tiny_llama, tiny_tokenizer

PROMPT = "The Eiffel Tower is in the city of"
ANSWERS = [" Paris", " the tower", " the city of Paris", [5, 6], [5], [5, 7, 8]]


@pytest.fixture(scope="module", params=[tiny_gpt2, tiny_llama], ids=["gpt2", "llama"])
def model(request):
    return logitlens.load(request.param(), tokenizer=tiny_tokenizer())


@pytest.fixture(scope="module")
def scores(model):
    return model.score(PROMPT, ANSWERS)


def test_every_token_of_an_answer_is_the_following_token_of_a_reading(model, scores):
    ids = model.read(PROMPT, top=1).ids.tolist()
    for a, answer in enumerate(ANSWERS):
        tokens = (
            answer if isinstance(answer, list) else model.tokens.encode(PROMPT + answer)[len(ids) :]
        )
        whole = model.read([*ids, *tokens], top=1)
        n = len(tokens)
        here = slice(len(ids) - 1, len(ids) - 1 + n)
        np.testing.assert_allclose(
            scores.token_logprobs[a], whole.next_logprobs[:, here], atol=1e-4, rtol=1e-5
        )
        assert (scores.token_ranks[a] == whole.next_ranks[:, here]).mean() > 0.95  # ties round
        assert len(scores.pieces[a]) == n


def test_the_last_row_is_what_the_model_itself_gives_to_the_answer(model, scores):
    ids = model.tokens.encode(PROMPT)
    tokens = [5, 7, 8]
    with torch.no_grad():
        logits = model.hf(torch.tensor([[*ids, *tokens]])).logits[0].double().log_softmax(-1)
    truth = sum(float(logits[len(ids) - 1 + n, token]) for n, token in enumerate(tokens))
    assert scores.logprobs[-1, 5] == pytest.approx(truth, abs=1e-3)


def test_all_answers_of_two_tokens_have_probability_one_together(model):
    """Of a model of V tokens, the V answers that begin alike add up to their beginning."""
    V = model.vocab_size
    scores = model.score([1, 2, 3], [[4], *([4, v] for v in range(V))])
    beginning, rest = scores.logprobs[:, 0], np.exp(scores.logprobs[:, 1:]).sum(-1)
    np.testing.assert_allclose(rest, np.exp(beginning), rtol=1e-4)


def test_answers_that_begin_alike_share_their_sequences():
    found = question([1, 2], [[5], [5, 6], [5, 6, 7], [8, 9], [9]])
    assert [each.ids for each in found.asked] == [[1, 2, 5, 6], [1, 2, 8]]
    assert found.asked[0].positions == [1, 2, 3]
    assert found.asked[0].targets.tolist() == [[5, 8, 9], [6, -1, -1], [7, -1, -1]]
    assert found.asked[1].positions == [2]
    assert found.where[2] == [(0, 0, 0), (0, 1, 0), (0, 2, 0)]
    assert found.where[3] == [(0, 0, 1), (1, 0, 0)]


def test_batches_of_any_size_give_the_same_scores(model, scores):
    alone = model.score(PROMPT, ANSWERS, token_budget=1)
    np.testing.assert_allclose(alone.logprobs, scores.logprobs, atol=1e-4, rtol=1e-5)


def test_layers_are_chosen_as_in_read_and_the_check_is_carried(model, scores):
    some = model.score(PROMPT, " Paris", layers=[0])
    assert some.layers == ["0", str(model.n_blocks - 1)]
    assert some.meta["check"]["ok"]
    assert " Paris" in str(scores)
    assert len(scores.best()) == len(scores.layers)


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([], "no answers"),
        ([""], "empty"),
        ([[]], "token ids"),
        ([[10**6]], "token ids"),
        ([[1] * 64], "context"),
    ],
    ids=["none", "empty", "no ids", "outside", "long"],
)
def test_answers_that_cannot_be_scored_are_refused_in_one_line(model, answers, said):
    with pytest.raises(PromptError, match=said) as refused:
        model.score(PROMPT, answers)
    assert "\n" not in str(refused.value)


def test_a_prompt_is_cut_to_leave_room_for_its_longest_answer():
    model = logitlens.load(tiny_gpt2(), tokenizer=tiny_tokenizer())
    prompt, answers = PROMPT * 20, [" Paris", " the tower of the city"]
    with pytest.raises(PromptError, match="context holds"):
        model.score(prompt, answers)
    found = model.score(prompt, answers, truncate=True)
    longest = max(map(len, found.pieces))
    assert longest > 3
    assert found.meta["prompt_tokens"] == model.context - longest + 1
    whole = model.tokens.encode(prompt)[-found.meta["prompt_tokens"] :]
    ids = [model.tokens.plain(answer) for answer in answers]
    same = model.score(whole, ids)
    for a, b in zip(found.token_logprobs, same.token_logprobs):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_text_as_answer_needs_a_tokenizer():
    model = logitlens.load(tiny_gpt2())
    assert len(model.score([1, 2], [[3]]).logprobs[-1]) == 1
    with pytest.raises(PromptError, match="' Paris' is text, and the model has no tokenizer"):
        model.score([1, 2], [" Paris"])


def test_an_answer_without_tokens_is_refused(model, monkeypatch):
    monkeypatch.setattr(model.tokens, "exact", lambda text: None)
    monkeypatch.setattr(model.tokens, "plain", lambda text: [])
    with pytest.raises(PromptError, match="has no tokens"):
        model.score([1, 2], [" Paris"])


def test_a_model_that_gives_nan_is_refused():
    broken = logitlens.load(tiny_gpt2(), tokenizer=tiny_tokenizer())
    with torch.no_grad():
        broken.hf.transformer.wte.weight[9].fill_(float("nan"))
    with pytest.raises(UnsupportedModel):
        broken.score([1, 9, 3], [[4]])


@pytest.mark.parametrize("generated", [False, True])
def test_an_edit_chooses_positions_of_the_prompt_and_reaches_answers_where_they_are_generated(
    model, generated
):
    """Against readings of prompt and answer with the edit's positions spelt out."""
    prompt, answer = model.tokens.encode("The Eiffel Tower is"), model.tokens.encode(" in the city")
    T = len(prompt)
    last = edit.add(" Paris", layer=0, positions=-1, scale=3.0, generated=generated)
    scores = model.score(prompt, [answer, answer[:1]], edits=[last])
    assert scores.meta["edits"][0]["text"] == str(last)
    for n, token in enumerate(answer):
        ids = prompt + answer[:n]
        at = list(range(T - 1, len(ids))) if generated else [T - 1]
        spelt = edit.add(" Paris", layer=0, positions=at, scale=3.0)
        reading = model.read(ids, track=[token], edits=[spelt])
        np.testing.assert_allclose(
            scores.token_logprobs[0][:, n], reading.track_logprobs[:, -1, 0], atol=1e-4
        )
    mean = edit.ablate(0, "mlp", "mean")  # over the prompt alone
    scores = model.score(prompt, [answer], edits=[mean])
    reading = model.read(prompt, track=[answer[0]], edits=[mean])
    np.testing.assert_allclose(
        scores.token_logprobs[0][:, 0], reading.track_logprobs[:, -1, 0], atol=1e-4
    )
