"""One model read by several threads at a time: the same readings, and a model as it was found."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2LMHeadModel

import logitlens
from tests.model.test_capture import state
from tests.models import tiny_gpt2, tiny_tokenizer

PROMPTS = ["The Eiffel Tower is in the city of", "In Paris", "a tower in Paris there is"]
THREADS = 3
WAYS = {
    "read": lambda m, prompt: m.read(prompt),
    "in chunks": lambda m, prompt: m.read(prompt, chunk=3),
    "sublayers": lambda m, prompt: m.read(prompt, stream="mlp"),
    "batch": lambda m, prompt: m.read_batch([prompt, PROMPTS[0]])[0],
    "two halves": lambda m, prompt: m.readout(m.capture(prompt)),
}


def dropping() -> GPT2LMHeadModel:
    """In training mode every pass drops half of what is embedded and of what a block adds."""
    hf = tiny_gpt2()
    for module in hf.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    return hf.train()


def dropping_head() -> torch.nn.Module:
    """An adapter on the head that drops half of its input in training mode."""
    config = LoraConfig(r=4, target_modules=["lm_head"], lora_dropout=0.5, task_type="CAUSAL_LM")
    hf = get_peft_model(dropping(), config)
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    return hf.train()


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft, about transformers
@pytest.mark.parametrize("make", [dropping, dropping_head])
def test_threads_read_what_one_alone_reads(make):
    hf = make()
    model = logitlens.load(hf, tokenizer=tiny_tokenizer())
    jobs = [(way, prompt) for prompt in PROMPTS for way in WAYS] * 2
    hf.eval()
    alone = {(way, prompt): WAYS[way](model, prompt) for way, prompt in jobs}
    hf.train()
    before, start = state(hf), Barrier(THREADS)

    def run(thread: int) -> None:
        start.wait()
        order = np.random.default_rng(thread).permutation(len(jobs))
        for way, prompt in (jobs[i] for i in order):
            reading, expected = WAYS[way](model, prompt), alone[way, prompt]
            assert reading.meta["check"]["ok"]
            for name in ("top_logprobs", "entropy", "kl", "next_logprobs"):
                np.testing.assert_allclose(
                    getattr(reading, name), getattr(expected, name), atol=1e-4, err_msg=way
                )

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(run, range(THREADS)))
    finally:
        sys.setswitchinterval(interval)
    assert state(hf) == before
    assert all(module.training for module in hf.modules())
