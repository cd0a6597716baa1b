"""attn, mlp and mid: contributions that sum to what each block does, found without names."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch

import logitlens
from logitlens import LensMismatch, PromptError, UnsupportedModel
from logitlens.anatomy import sublayers
from logitlens.model import capture
from tests.architectures.build import build
from tests.models import tiny_gpt2, tiny_llama, tiny_tokenizer

IDS = [5, 1, 17, 33, 3, 42, 9, 8, 7]
SEQUENTIAL = [
    "GPT2LMHeadModel",
    "LlamaForCausalLM",
    "OPTForCausalLM",
    "BloomForCausalLM",
    "MptForCausalLM",
    "Gemma2ForCausalLM",  # norms after the sublayers too
    "Olmo2ForCausalLM",  # norms after the sublayers only
    "GraniteForCausalLM",  # residual_multiplier
    "MiniCPM3ForCausalLM",  # scale_depth
    "MixtralForCausalLM",  # experts
    "GPTNeoXJapaneseForCausalLM",  # a bias added on its own
    "FalconH1ForCausalLM",  # attention and Mamba at once
    "JambaForCausalLM",
]
PARALLEL = [
    "GPTNeoXForCausalLM",
    "GPTJForCausalLM",
    "PhiForCausalLM",
    "FalconForCausalLM",
    "CohereForCausalLM",
]


def loud(name):
    """A tiny model whose blocks do much: at initial size a contribution could be lost unseen."""
    hf = build(name)
    with torch.no_grad():
        for path, p in hf.named_parameters():
            if p.dim() >= 2 and "embed" not in path and "lm_head" not in path:
                p.mul_(4)
    return hf


def streams(model, ids=IDS):
    """Residuals of every stream the model has, by name."""
    out = {}
    for stream in sublayers.STREAMS:
        with contextlib.suppress(UnsupportedModel):
            (out[stream],) = capture.capture(model, [ids], stream=stream)
    return out


@pytest.mark.parametrize("name", SEQUENTIAL + PARALLEL)
def test_contributions_sum_to_what_each_block_did(name):
    found = streams(logitlens.load(loud(name)))
    resid = found["resid"]
    blocks = len(resid.h) - 1
    for stream in ("attn", "mlp"):
        assert found[stream].layers == [f"{i}.{stream}" for i in range(blocks)] + [str(blocks - 1)]
    assert ("mid" in found) == (name in SEQUENTIAL)
    for d in range(blocks):
        attn, mlp = found["attn"].h[d], found["mlp"].h[d]
        torch.testing.assert_close(resid.h[d] + attn + mlp, resid.h[d + 1], atol=1e-4, rtol=0)
        assert min(attn.abs().max(), mlp.abs().max()) > 0.01
        if "mid" in found:
            torch.testing.assert_close(resid.h[d] + attn, found["mid"].h[d], atol=1e-4, rtol=0)
    for other in found.values():  # every stream ends with the model's own final row
        torch.testing.assert_close(other.h[-1], resid.h[-1])


def hooked(module, pick=lambda out: out):
    kept = []
    handle = module.register_forward_hook(lambda m, a, out: kept.append(pick(out).detach().clone()))
    return kept, handle


@pytest.mark.parametrize(
    ("name", "attn", "mlp", "factor"),
    [
        ("GPT2LMHeadModel", "transformer.h.1.attn", "transformer.h.1.mlp", 1.0),
        ("LlamaForCausalLM", "model.layers.1.self_attn", "model.layers.1.mlp", 1.0),
        (
            "Gemma2ForCausalLM",
            "model.layers.1.post_attention_layernorm",
            "model.layers.1.post_feedforward_layernorm",
            1.0,
        ),
        ("GraniteForCausalLM", "model.layers.1.self_attn", "model.layers.1.mlp", 0.6),
        ("GPTNeoXForCausalLM", "gpt_neox.layers.1.attention", "gpt_neox.layers.1.mlp", 1.0),
        ("FalconForCausalLM", "transformer.h.1.self_attention", "transformer.h.1.mlp", 1.0),
        ("CohereForCausalLM", "model.layers.1.self_attn", "model.layers.1.mlp", 1.0),
    ],
)
def test_they_are_what_the_models_own_modules_return(name, attn, mlp, factor):
    """Against hooks placed by name: attention is attention and the MLP the MLP."""
    hf = build(name)
    model = logitlens.load(hf)

    def first(out):
        return out[0] if isinstance(out, tuple) else out

    seen = [hooked(hf.get_submodule(path), first) for path in (attn, mlp)]
    with torch.no_grad():
        hf(torch.tensor([IDS]))
    for _, handle in seen:
        handle.remove()
    found = streams(model)
    for stream, (kept, _) in zip(("attn", "mlp"), seen):
        torch.testing.assert_close(found[stream].h[1], kept[0][0] * factor, atol=1e-5, rtol=0)


def test_blocks_of_one_sublayer_have_no_other():
    """Mamba: a mixer and nothing else. Nemotron-H: mixers and MLPs are blocks of their own."""
    mamba = logitlens.load(build("MambaForCausalLM"))
    found = streams(mamba)
    assert set(found) == {"resid", "attn"}
    for d in range(4):
        torch.testing.assert_close(
            found["resid"].h[d] + found["attn"].h[d], found["resid"].h[d + 1], atol=1e-4, rtol=0
        )
    with pytest.raises(UnsupportedModel, match="no stream 'mlp'"):
        mamba.read(IDS, stream="mlp")
    mixed = streams(logitlens.load(build("NemotronHForCausalLM")))
    assert mixed["attn"].layers == ["0.attn", "2.attn", "3"]
    assert mixed["mlp"].layers == ["1.mlp", "3.mlp", "3"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("GPTNeoXForCausalLM", "parallel blocks"),
        ("CohereForCausalLM", "parallel blocks"),
        ("MambaForCausalLM", "no block has a sublayer"),
        ("OpenAIGPTLMHeadModel", "does more than add to its stream"),
        ("MiniMaxForCausalLM", "does more than add to its stream"),
        ("Gemma3nForCausalLM", "carries 4 streams"),
        ("BltForCausalLM", "spread over several modules"),
        ("XLMWithLMHeadModel", "spread over several modules"),
    ],
)
def test_models_without_a_middle_say_why(name, says):
    hf = build(name)
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in hf.modules())
    model = logitlens.load(hf)
    with pytest.raises(UnsupportedModel, match=says) as caught:
        model.read(IDS, stream="mid")
    assert "\n" not in str(caught.value)
    assert model.read(IDS).meta["check"]["ok"], "the residual stream is still read"
    assert hooks == sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in hf.modules())


@pytest.fixture(scope="module")
def model():
    return logitlens.load(tiny_llama(), tokenizer=tiny_tokenizer())


@pytest.mark.parametrize("stream", ["attn", "mlp", "mid"])
def test_reading_a_sublayer(model, stream):
    """The rows are the contributions through the model's own norm and head; the last its output."""
    reading = model.read("In the city of Paris", stream=stream, top=3)
    plain = model.read("In the city of Paris", top=3)
    assert reading.meta["stream"] == stream
    assert (reading.top_ids[-1] == plain.top_ids[-1]).all()
    assert (reading.kl[-1] == 0).all()
    (residuals,) = capture.capture(model, [reading.ids.tolist()], stream=stream)
    with torch.no_grad():
        truth = model.hf.lm_head(model.hf.model.norm(residuals.h[1])).double().log_softmax(-1)
    got = torch.tensor(reading.top_ids[1]).long()
    np.testing.assert_allclose(reading.top_logprobs[1], truth.gather(1, got), atol=1e-4)
    assert "1." + stream in str(reading)


@pytest.mark.parametrize("stream", ["attn", "mlp", "mid"])
def test_batches_change_nothing(model, stream):
    prompts = [IDS, IDS[:3], IDS[2:]]
    for ids, reading in zip(prompts, model.read_batch(prompts, stream=stream, top=3)):
        alone = model.read(ids, stream=stream, top=3)
        assert reading.layers == alone.layers
        np.testing.assert_allclose(reading.top_logprobs, alone.top_logprobs, atol=1e-4)


def test_layers_choose_blocks(model):
    assert model.read(IDS, stream="attn", layers="0:2").layers == ["0.attn", "1.attn", "3"]
    with pytest.raises(PromptError, match="none of the layers chosen"):
        model.read(IDS, stream="mlp", layers="embed")


def test_bad_requests_are_one_line(model):
    with pytest.raises(PromptError, match=r"stream='mind': expected resid, mid, attn, mlp"):
        model.read(IDS, stream="mind")
    with pytest.raises(LensMismatch, match="fitted to the residual stream"):
        model.readout(model.capture(IDS, stream="mlp"), lens=fake_lens())


def fake_lens():
    from logitlens.lenses.base import LogitLens

    class Tuned(LogitLens):
        name = "tuned"

    return Tuned()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    found = streams(logitlens.load(tiny_llama().to(dtype)))
    assert set(found) == set(sublayers.STREAMS)
    total = found["resid"].h[1].float() + found["attn"].h[1].float() + found["mlp"].h[1].float()
    error = (total - found["resid"].h[2].float()).abs().max()
    assert error <= 4 * torch.finfo(dtype).eps * found["resid"].h[2].float().abs().max()


def test_compiled_and_in_training_mode():
    hf = tiny_gpt2()
    plain = streams(logitlens.load(hf))
    hf.compile(backend="eager")
    hf.train()
    compiled = streams(logitlens.load(hf))
    assert hf.training
    for name, residuals in plain.items():
        for a, b in zip(residuals.h, compiled[name].h):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_a_block_that_stops_adding_is_noticed():
    """The law is checked in every pass, not only when the sublayers were found."""
    hf = tiny_llama()
    factor: list[float] = []
    block = hf.model.layers[2]
    block.register_forward_hook(lambda m, a, out: out * factor[0] if factor else None)
    model = logitlens.load(hf)
    assert model.sublayers
    factor.append(1.5)
    with pytest.raises(UnsupportedModel, match=r"block 2 .* added 0 times") as caught:
        model.capture(IDS, stream="attn")
    factor.clear()
    assert "\n" not in str(caught.value)
    model.capture(IDS, stream="attn")


@pytest.mark.parametrize(("dtype", "off"), [(torch.float32, 1e-3), (torch.bfloat16, 0.1)])
def test_contributions_that_do_not_sum_to_what_a_block_did_are_refused(model, dtype, off):
    h, a, b = torch.rand(3, 1, 4, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    leaving = h + a + b
    sublayers._check_law(model.anatomy, 1, h, [a, b], leaving)
    leaving[0, 2, 5] += off * float(leaving.abs().max())
    with pytest.raises(UnsupportedModel, match=r"block 1 .* do not sum to what it did") as caught:
        sublayers._check_law(model.anatomy, 1, h, [a, b], leaving)
    assert "\n" not in str(caught.value)


def test_on_the_command_line(tmp_path):
    from click.testing import CliRunner

    from logitlens.cli import main

    tiny_llama().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    done = CliRunner().invoke(main, ["read", "In Paris", "-m", str(tmp_path), "--stream", "mlp"])
    assert done.exit_code == 0, done.output
    assert "0.mlp" in done.output
    assert "3.mlp" in done.output


def offloaded(hf, folder):
    from accelerate import disk_offload

    disk_offload(hf, folder, execution_device=torch.device("cpu"))
    return hf


def quantised(hf, folder):
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(hf, Int8WeightOnlyConfig())
    return hf


def adapted(hf, folder):
    from peft import LoraConfig, get_peft_model

    targets = ["q_proj", "o_proj", "down_proj"]
    return get_peft_model(hf, LoraConfig(r=4, target_modules=targets, init_lora_weights=False))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("place", [offloaded, quantised, adapted])
def test_wherever_the_weights_are(place, tmp_path):
    found = streams(logitlens.load(place(tiny_llama(), tmp_path)))
    assert set(found) == {*sublayers.STREAMS} - {"head"}
    for d in range(4):
        total = found["resid"].h[d] + found["attn"].h[d] + found["mlp"].h[d]
        torch.testing.assert_close(total, found["resid"].h[d + 1], atol=1e-4, rtol=0)
        assert found["attn"].h[d].abs().max() > 1e-3
