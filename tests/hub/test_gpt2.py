"""Real GPT-2 against the published figures of the tutorial; needs the hub, or GPT-2 in the cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from logitlens import Reading

GOLDEN = Path(__file__).parents[1] / "golden" / "eiffel_gpt2.json"


def escaped(word: str) -> str:
    return word.encode("unicode_escape").decode()


def compare_with_golden(reading: Reading) -> None:
    """All 120 words equal, and every probability within 0.005."""
    golden = json.loads(GOLDEN.read_text())
    assert reading.pieces == golden["input_tokens"]
    # The tutorial's first row is the output of block 0; ours is the embedding.
    assert reading.layers[1:] == [str(i) for i in range(12)]
    words = [[escaped(word) for word in row] for row in reading.words[1:]]
    assert words == golden["words"]
    np.testing.assert_allclose(reading.probs[1:, :, 0], golden["probs"], atol=0.005)


@pytest.mark.hub
def test_gpt2_small_gives_the_published_table(tmp_path):
    """In a process of its own, because the other tests run with the hub switched off."""
    out = tmp_path / "gpt2.json"
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    prompt = json.loads(GOLDEN.read_text())["prompt"]
    command = [sys.executable, "-m", "logitlens", "read", prompt, "-m", "openai-community/gpt2"]
    done = subprocess.run(
        [*command, "-q", "-o", str(out)], env=environment, capture_output=True, text=True
    )
    if done.returncode == 4:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    compare_with_golden(Reading.load(out))


def test_the_comparison_notices_one_wrong_word():
    """The golden test cannot be run everywhere, so what it asserts is itself tested."""
    golden = json.loads(GOLDEN.read_text())
    vocab: dict[int, str] = {}

    def id_of(word: str) -> int:
        text = (
            word.encode()
            .decode("unicode_escape")
            .encode("latin-1", "ignore")
            .decode("utf-8", "ignore")
        )
        number = next((i for i, known in vocab.items() if known == text), len(vocab))
        vocab[number] = text
        return number

    ids = np.array([[id_of(word) for word in row] for row in golden["words"]])
    L, T = ids.shape
    logprobs = np.log(np.array(golden["probs"]))

    def reading(top_ids):
        zero = np.zeros((L + 1, T))
        return Reading(
            ids=np.array([id_of(word) for word in golden["input_tokens"]]),
            pieces=golden["input_tokens"],
            layers=["embed", *map(str, range(L))],
            top_ids=np.concatenate([top_ids[:1], top_ids])[:, :, None],
            top_logprobs=np.concatenate([logprobs[:1], logprobs])[:, :, None],
            entropy=zero,
            kl=zero,
            next_ids=np.full(T, -1),
            next_logprobs=zero,
            next_ranks=zero,
            track_ids=np.zeros(0),
            track_logprobs=np.zeros((L + 1, T, 0)),
            track_ranks=np.zeros((L + 1, T, 0)),
            vocab=vocab,
        )

    compare_with_golden(reading(ids))
    wrong = ids.copy()
    wrong[7, 3] += 1
    with pytest.raises(AssertionError):
        compare_with_golden(reading(wrong))
