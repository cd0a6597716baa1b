"""Every trap of the field that lies on the model's side, by its letter and number.

A: the tail · B: what blocks return · C: numerics · D: batches · F: placement. Each test shows first,
where it can, that the trap is there: the shortcut others take gives other numbers on this model.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import logitlens
from logitlens.errors import UnsupportedModel
from logitlens.model.capture import capture
from tests.architectures.build import DROP, build
from tests.architectures.laws import ENCODER, plain_logprobs

IDS = [5, 60, 7, 82, 9, 10, 33]


def truth(hf, ids=IDS) -> torch.Tensor:
    return plain_logprobs(hf, ids).float()


def states(hf):
    with torch.no_grad():
        return hf(input_ids=torch.tensor([IDS]), output_hidden_states=True).hidden_states


def last_row(model) -> torch.Tensor:
    (residuals,) = capture(model, [IDS])
    return model.tail.logits(residuals.h[-1]).log_softmax(-1)


def equal(a, b) -> bool:
    return bool((a - b).abs().max() <= 1e-4)


# -- A. The tail ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "last_state_is"),
    [
        ("GPT2LMHeadModel", "normed"),
        ("LlamaForCausalLM", "normed"),
        ("MptForCausalLM", "normed"),
        ("OpenAIGPTLMHeadModel", "raw"),
        ("BertLMHeadModel", "raw"),
        ("DeepseekV4ForCausalLM", "normed"),  # after its four streams are made one
    ],
)
def test_a1_the_last_hidden_state_is_whatever_the_class_makes_it(name, last_state_is):
    hf = build(name)
    model = logitlens.load(hf)
    (residuals,) = capture(model, [IDS])
    last_state = states(hf)[-1][0]
    same = last_state.shape == residuals.h[-1].shape
    raw = same and equal(residuals.h[-1], last_state)
    normed = bool(model.tail.steps) and equal(model.tail.head_input(residuals.h[-1]), last_state)
    assert (raw, normed) == (last_state_is == "raw", last_state_is == "normed")
    if same:  # read again through the norm it is wrong, but where it is the stream itself
        assert equal(model.tail.logits(last_state).log_softmax(-1), truth(hf)) is raw
    assert equal(last_row(model), truth(hf))


def test_a1_a_configuration_decides_what_the_last_hidden_state_is_and_the_stream_stays():
    for tied in (True, False):
        hf = build("LlamaForCausalLM", tie_last_hidden_states=tied)
        model = logitlens.load(hf)
        (residuals,) = capture(model, [IDS])
        assert equal(residuals.h[-1], states(hf)[-1][0]) is not tied
        assert equal(last_row(model), truth(hf))


@pytest.mark.parametrize("name", ["BartForCausalLM", "MvpForCausalLM", "TrOCRForCausalLM"])
def test_a2_heads_fed_by_the_last_block_itself(name):
    model = logitlens.load(build(name))
    assert model.tail.steps == []
    assert equal(last_row(model), truth(model.hf))


@pytest.mark.parametrize(
    ("name", "options", "norm"),
    [
        ("OPTForCausalLM", {"word_embed_proj_dim": 16, "do_layer_norm_before": False}, None),
        ("OpenAIGPTLMHeadModel", {}, None),
        ("MarianForCausalLM", {}, None),
        ("BloomForCausalLM", {}, "transformer.ln_f"),  # not word_embeddings_layernorm
        ("Lfm2ForCausalLM", {}, "model.embedding_norm"),  # that is its final norm's name
        ("ModernBertDecoderForCausalLM", {}, "model.final_norm"),
    ],
)
def test_a3_norms_that_are_absent_or_called_something_else(name, options, norm):
    model = logitlens.load(build(name, **options))
    found = [step.path for step in model.tail.steps]
    if norm is None:
        assert not any("norm" in path for path in found)
    else:
        assert found[0] == norm
    assert equal(last_row(model), truth(model.hf))


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("ModernBertDecoderForCausalLM", ["model.final_norm", "lm_head"]),
        ("BertLMHeadModel", ["cls.predictions.transform"]),
    ],
)
def test_a3_dense_transforms_belong_to_the_tail(name, steps):
    model = logitlens.load(build(name))
    assert [step.path for step in model.tail.steps] == steps
    assert equal(last_row(model), truth(model.hf))


@pytest.mark.parametrize(
    ("name", "width"),
    [("DeepseekV4ForCausalLM", 128), ("Gemma3nForCausalLM", 128), ("Qwen4ExpForCausalLM", 128)],
)
def test_a4_several_streams_are_one_wide_row(name, width):
    model = logitlens.load(build(name))
    assert model.width == width
    assert model.anatomy.row_shape in {(4, 32), (128,)}
    assert equal(last_row(model), truth(model.hf))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("HrmTextForCausalLM", "its 4 modules run up to 6 times in one pass"),
        ("CpmAntForCausalLM", "is not causal: changing the last token changes earlier positions"),
        ("XLNetLMHeadModel", "is not causal: changing the last token changes earlier positions"),
        # Its last row mixes the streams of all blocks before it.
        ("Inkling2ForCausalLM", "Its logits need more than what the last of 4 blocks"),
    ],
)
def test_a4_what_has_no_one_stream_is_refused_by_name(name, reason):
    with pytest.raises(UnsupportedModel, match=reason) as refused:
        logitlens.load(build(name))
    assert name in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "scale", "softcap"),
    [
        ("Gemma2ForCausalLM", 1.0, 4.0),
        ("Gemma3ForCausalLM", 1.0, 4.0),
        ("VaultGemmaForCausalLM", 1.0, 4.0),
        ("NanoChatForCausalLM", 1.0, 4.0),
        ("RecurrentGemmaForCausalLM", 1.0, 4.0),  # logits_soft_cap
        ("xLSTMForCausalLM", 1.0, 4.0),  # output_logit_soft_cap
        ("CohereForCausalLM", 0.3, None),  # × logit_scale
        ("GraniteForCausalLM", 0.25, None),  # / logits_scaling
        ("HyperCLOVAXForCausalLM", 4.0, None),  # × logits_scaling
        ("FalconH1ForCausalLM", 0.4, None),  # × lm_head_multiplier
        ("MuseGlimmerForConditionalGeneration", 26**-0.5, 4.0),  # × output_multiplier, and capped
        ("MuseSparkForConditionalGeneration", 32**-0.5, 4.0),
    ],
)
def test_a5_scales_and_softcaps_under_any_name(name, scale, softcap):
    model = logitlens.load(build(name))
    assert model.tail.head.scale == pytest.approx(scale, rel=1e-6)
    assert model.tail.head.softcap == softcap
    assert equal(last_row(model), truth(model.hf))


@pytest.mark.parametrize(
    ("name", "scale"), [("InklingForCausalLM", 1 / 24), ("MiniCPM3ForCausalLM", 256 / 32)]
)
def test_a5_a_divide_before_the_head(name, scale):
    model = logitlens.load(build(name))
    assert model.tail.steps[0].scale == pytest.approx(scale, rel=1e-5)
    assert equal(last_row(model), truth(model.hf))


def test_a5_a_tied_t5_scales_what_its_head_receives():
    hf = build("T5ForConditionalGeneration", is_decoder=DROP, tie_word_embeddings=True)
    assert hf.lm_head.weight is hf.shared.weight
    model = logitlens.load(hf, inputs=ENCODER)
    assert model.tail.steps[0].scale == pytest.approx(32**-0.5, rel=1e-5)
    assert equal(last_row(model), truth(hf))


@pytest.mark.parametrize(
    "name", ["GPTJForCausalLM", "PhiForCausalLM", "CodeGenForCausalLM", "CTRLLMHeadModel"]
)
def test_a5_head_biases(name):
    model = logitlens.load(build(name))
    assert model.tail.head.bias_V is not None
    assert float(model.tail.head.bias_V.abs().max()) > 0.5


@pytest.mark.parametrize("family", ["MBart", "Bart", "Pegasus", "Blenderbot"])
def test_a5_a_final_bias_after_the_head(family):
    hf = build(f"{family}ForConditionalGeneration", is_decoder=DROP)
    model = logitlens.load(hf, inputs=ENCODER)
    assert model.tail.head.final_bias_V is not None
    assert torch.allclose(model.tail.head.final_bias_V, hf.final_logits_bias[0], atol=1e-5)
    assert equal(last_row(model), truth(hf))


# -- B. What blocks return ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "slot"),
    [
        ("BloomForCausalLM", (0,)),
        ("GPTJForCausalLM", (0,)),
        ("MptForCausalLM", (0,)),
        ("LlamaForCausalLM", ()),
        ("GPT2LMHeadModel", ()),
    ],
)
def test_b_tuples_and_tensors(name, slot):
    """A batch of three: taking [0] of a tensor would read the first prompt three times."""
    model = logitlens.load(build(name))
    assert set(model.anatomy.exits) == {slot}
    prompts = [IDS, IDS[::-1], [11] * 7]
    together = capture(model, prompts)
    for residuals, ids in zip(together, prompts):
        (alone,) = capture(model, [ids])
        assert all(equal(a, b) for a, b in zip(residuals.h, alone.h))
    assert not equal(together[0].h[-1], together[1].h[-1])


@pytest.mark.parametrize("name", ["MixtralForCausalLM", "GptOssForCausalLM", "GraniteForCausalLM"])
def test_b_blocks_with_routers_and_multipliers_pass_the_stream_on(name):
    hf = build(name)
    model = logitlens.load(hf)
    (residuals,) = capture(model, [IDS])
    for ours, theirs in zip(residuals.h[:-1], states(hf)[:-1]):
        assert equal(ours, theirs[0])


def test_b_a_cache_does_not_shorten_the_stream():
    """With a cache a step has one position: reading runs without one, whatever the model says."""
    hf = build("LlamaForCausalLM", use_cache=True)
    hf.generation_config.use_cache = True
    model = logitlens.load(hf)
    assert model.read(IDS).top_ids.shape[1] == len(IDS)
    with torch.no_grad():
        hf.generate(torch.tensor([IDS]), max_new_tokens=3, do_sample=False)
    assert model.read(IDS).top_ids.shape[1] == len(IDS)


# -- C. Numerics ----------------------------------------------------------------------------------


@torch.no_grad()
def test_c_statistics_of_a_bfloat16_model_are_float32():
    hf = build("LlamaForCausalLM", dtype=torch.bfloat16, vocab_size=4000)
    model = logitlens.load(hf)
    reading = model.read(IDS, top=50)
    (residuals,) = capture(model, [IDS])
    x_NE = model.tail.head_input(residuals.h[-1])
    exact = x_NE.double() @ hf.lm_head.weight.double().T
    coarse = (x_NE @ hf.lm_head.weight.T).log_softmax(-1)
    ids = torch.tensor(reading.top_ids[-1].astype(np.int64))
    want = exact.log_softmax(-1).gather(-1, ids)
    ours = float((torch.tensor(reading.top_logprobs[-1]) - want).abs().max())
    theirs = float((coarse.double().gather(-1, ids) - want).abs().max())
    assert ours < 1e-4
    assert theirs > 100 * ours


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_c_attention_implementations_agree_within_tolerance(attention):
    hf = build("LlamaForCausalLM")
    hf.set_attn_implementation(attention)
    model = logitlens.load(hf)
    assert equal(last_row(model), truth(build("LlamaForCausalLM")))
    assert model.read(IDS).meta["attn_implementation"] == attention


# -- D. Batches -----------------------------------------------------------------------------------


def test_d_gpt2_padded_on_the_left_without_positions_is_wrong_and_ours_is_not():
    hf = build("GPT2LMHeadModel")
    with torch.no_grad():
        hf.transformer.wpe.weight.mul_(20)  # trained positions are far from nothing
    mask = torch.tensor([[0] * 5 + [1] * 7])
    with torch.no_grad():
        left = hf(input_ids=torch.tensor([[0] * 5 + IDS]), attention_mask=mask).logits[0, -1]
    assert (left.log_softmax(-1) - truth(hf)[-1]).abs().max() > 0.1
    model = logitlens.load(hf)
    longer = [*range(20, 32)]
    reading = model.read_batch([longer, IDS])[1]
    assert len(reading.ids) == len(IDS)  # no pad column
    np.testing.assert_allclose(reading.top_logprobs[-1, -1, 0], truth(hf)[-1].max(), atol=1e-4)


def test_d_the_pad_is_a_token_like_any_other_and_changes_nothing():
    """RoBERTa counts positions from ids that are not the pad: the pad must not be that id."""
    model = logitlens.load(build("RobertaForCausalLM"))
    together = model.read_batch([[9] * 12, IDS])[1]
    np.testing.assert_allclose(
        together.top_logprobs, model.read(IDS).top_logprobs, rtol=0, atol=1e-4
    )


def sinking(sink: int):
    """A Llama with what training makes of a first token: a huge number in one channel of its stream."""
    hf = build("LlamaForCausalLM")
    with torch.no_grad():
        hf.model.embed_tokens.weight[:, 0] = 1.0
        hf.model.embed_tokens.weight[sink, 0] = 3000.0
    return hf


def test_d_the_first_token_is_an_attention_sink_and_stays_the_first():
    """Without it, or with it twice, a model says something else: nothing is put in front or taken
    away, neither in a batch nor in chunks."""
    hf = sinking(1)
    model = logitlens.load(hf)
    ids = [1, *IDS]
    (residuals,) = capture(model, [ids])
    sizes_T = residuals.h[-1].norm(dim=-1)
    assert sizes_T[0] > 100 * sizes_T[1:].max()  # the trap: a thousand times as large as all others
    for other in (IDS, [1, *ids]):
        assert not equal(truth(hf, other)[-1], truth(hf, ids)[-1])
    alone = model.read(ids)
    np.testing.assert_allclose(
        alone.top_logprobs[-1, :, 0], truth(hf, ids).amax(-1), rtol=0, atol=1e-4
    )
    for same in (model.read_batch([[*range(20, 40)], ids])[1], model.read(ids, chunk=3)):
        assert same.ids.tolist() == ids
        np.testing.assert_allclose(same.top_logprobs, alone.top_logprobs, rtol=0, atol=1e-4)


# -- F. Placement ---------------------------------------------------------------------------------


def test_f_weights_that_cannot_be_read_are_called():
    """On `meta` while offloaded, packed while quantised: `.weight` is not what the head computes."""
    hf = build("LlamaForCausalLM")

    class Packed(torch.nn.Module):
        def __init__(self, weight):
            super().__init__()
            self.packed = torch.nn.Parameter(weight)
            self.weight = torch.nn.Parameter(torch.empty(weight.shape, device="meta"))

        def forward(self, x):
            return x @ self.packed.T

    hf.lm_head = Packed(hf.lm_head.weight.detach())
    model = logitlens.load(hf)
    assert model.tail.kind == "module"
    assert equal(last_row(model), truth(hf))


def test_f_a_weight_that_lies_is_not_believed():
    """A wrapper whose `.weight` is the base's, while it computes something more (LoRA)."""
    hf = build("LlamaForCausalLM")

    class Adapted(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) + 0.1 * x.sum(-1, keepdim=True) * self.weight[:, 0]

    adapted = Adapted(32, 97, bias=False)
    adapted.weight = hf.lm_head.weight
    hf.lm_head = adapted
    model = logitlens.load(hf)
    assert model.tail.kind == "module"
    assert equal(last_row(model), truth(hf))


def test_f_inference_tensors():
    with torch.inference_mode():
        hf = build("LlamaForCausalLM")
        model = logitlens.load(hf)
    assert model.read(IDS).meta["check"]["ok"]
