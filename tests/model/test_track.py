"""Sets of tokens in `track`: the log of the summed probability, and the best rank."""

from __future__ import annotations

import numpy as np
import pytest

import logitlens
from logitlens import PromptError, Reading
from logitlens.view.page.data import decode, encode
from logitlens.view.page.words import code
from tests.models import VOCAB, tiny_gpt2, tiny_tokenizer

PROMPT = "The Eiffel Tower is in the city of"


@pytest.fixture(scope="module")
def model():
    return logitlens.load(tiny_gpt2(), tokenizer=tiny_tokenizer())


@pytest.fixture(scope="module")
def reading(model):
    return model.read(PROMPT, track=[" Paris", {"few": [5, 7, 9], "other": [" Paris", 3]}, 11])


def test_a_set_is_the_log_of_its_summed_probability_and_has_its_best_rank(model, reading):
    members = model.read(PROMPT, track=[5, 7, 9])
    truth = np.log(np.exp(members.track_logprobs.astype(np.float64)).sum(-1))
    np.testing.assert_allclose(reading.track_logprobs[..., 1], truth, rtol=1e-5, atol=1e-6)
    assert (reading.track_ranks[..., 1] == members.track_ranks.min(-1)).all()


def test_the_set_of_all_tokens_has_probability_one_and_rank_one(model):
    reading = model.read(PROMPT, track={"all": list(range(VOCAB))})
    np.testing.assert_allclose(reading.track_logprobs, 0.0, atol=1e-5)
    assert (reading.track_ranks == 1).all()


def test_a_set_of_one_token_is_that_token_and_a_token_counts_once(model):
    reading = model.read(PROMPT, track=[7, {"one": [7], "twice": [7, 7]}])
    for m in (1, 2):
        assert (reading.track_logprobs[..., m] == reading.track_logprobs[..., 0]).all()
        assert (reading.track_ranks[..., m] == reading.track_ranks[..., 0]).all()


def test_tokens_and_sets_keep_their_order_and_are_found_by_name(reading):
    assert reading.track == [" Paris", "few", "other", reading.piece(11)]
    assert reading.track_ids.tolist()[1:3] == [-2, -3]
    assert (reading.rank("few") == reading.track_ranks[..., 1]).all()
    assert reading.meta["track_sets"]["-2"] == [5, 7, 9]


@pytest.mark.parametrize("suffix", [".json", ".parquet"])
def test_sets_survive_a_file(reading, tmp_path, suffix):
    assert Reading.load(reading.save(tmp_path / f"a{suffix}")).equals(reading)


def test_sets_are_in_the_page_in_the_terminal_and_in_the_code_that_reads_again(reading):
    again = decode(*encode(reading))
    assert again.track == reading.track
    assert "few" in str(reading)
    assert "{'few': [5, 7, 9]}" in code(reading)


@pytest.mark.parametrize(
    ("track", "said"),
    [
        ({"few": []}, "empty"),
        ({"few": ["no such token at all"]}, "tokens"),
        ({3: [5]}, "name"),
        ([{"few": [5]}, {"few": [7]}], "two sets"),
        (b"x", "expected tokens"),
    ],
    ids=str,
)
def test_a_set_that_makes_no_sense_is_refused_in_one_line(model, track, said):
    with pytest.raises(PromptError, match=said) as refused:
        model.read(PROMPT, track=track)
    assert "\n" not in str(refused.value)


def test_each_prompt_of_a_batch_may_track_sets_of_its_own(model):
    one, two = model.read_batch([PROMPT, "Paris"], track=[[{"a": [5, 6]}], [7]])
    assert one.track == ["a"]
    assert two.track_ids.tolist() == [7]
