"""Models whose forward needs more than the prompt."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import logitlens
from logitlens.errors import UnsupportedModel
from tests.architectures.build import DROP, build
from tests.architectures.laws import judge

ENCODED, IDS = [5, 60, 7, 82], [9, 10, 33, 41, 8]


def t5(**options):
    return build("T5ForConditionalGeneration", is_decoder=DROP, **options)


@pytest.mark.parametrize(
    "name",
    [
        "T5ForConditionalGeneration",
        "BartForConditionalGeneration",
        "LlavaForConditionalGeneration",
        "Qwen2_5_VLForConditionalGeneration",
        "Mistral3ForConditionalGeneration",
        "PaliGemmaForConditionalGeneration",
    ],
)
def test_decoders_that_attend_to_something_else_are_read_exactly(name):
    verdict = judge(name)
    assert verdict.verdict == "correct", verdict


def test_the_encoders_input_matters_and_may_be_a_list():
    hf = t5()
    one = logitlens.load(hf, inputs={"input_ids": ENCODED})
    two = logitlens.load(hf, inputs={"input_ids": torch.tensor([ENCODED[::-1]])})
    assert one.anatomy.blocks_path == "decoder.block"
    assert not np.allclose(one.read(IDS).kl[:-1], two.read(IDS).kl[:-1], atol=1e-3)


def test_batches_repeat_the_encoders_input():
    model = logitlens.load(t5(), inputs={"input_ids": ENCODED})
    together = model.read_batch([IDS, IDS[:2]])
    for reading, ids in zip(together, [IDS, IDS[:2]]):
        np.testing.assert_allclose(
            reading.top_logprobs, model.read(ids).top_logprobs, rtol=0, atol=1e-4
        )


def test_an_encoder_without_input_is_refused_in_one_line():
    with pytest.raises(UnsupportedModel, match="is an encoder–decoder") as refused:
        logitlens.load(t5())
    assert "inputs={'input_ids'" in str(refused.value)


def test_inputs_the_model_does_not_know():
    with pytest.raises(UnsupportedModel, match="inputs='pixels' is not an argument"):
        logitlens.load(Plain(), inputs={"pixels": 1})
    with pytest.raises(UnsupportedModel, match="'input_ids' is the prompt that is read"):
        logitlens.load(build("LlamaForCausalLM"), inputs={"input_ids": [1, 2]})


class Plain(torch.nn.Module):
    def forward(self, input_ids):
        return input_ids


def test_the_users_model_is_left_as_found():
    hf = t5().train()
    before = [sorted(m.__dict__) for m in hf.modules()]
    model = logitlens.load(hf, inputs={"input_ids": ENCODED})
    model.read(IDS)
    assert [sorted(m.__dict__) for m in hf.modules()] == before
    assert all(m.training for m in hf.modules())
    assert model.read(IDS).meta["class"] == "T5ForConditionalGeneration"


def test_bidirectional_models_are_not_made_causal_by_token_types():
    with pytest.raises(UnsupportedModel, match="is not causal"):
        logitlens.load(build("BertLMHeadModel", is_decoder=False))
