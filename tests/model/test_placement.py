"""Where weights lie and how they are stored changes nothing: offloaded, quantised, adapted, compiled."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

import logitlens
from logitlens.errors import UnsupportedModel
from logitlens.survey.plan import weights_hash
from tests.architectures.build import build, quiet

IDS = [5, 60, 7, 82, 9, 11]

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    with quiet():
        build("LlamaForCausalLM").save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def plain(folder):
    return logitlens.load(folder).read(IDS)


def same_reading(a, b, tolerance=1e-4):
    assert a.meta["check"]["ok"]
    assert (a.top_ids[..., 0] == b.top_ids[..., 0]).all()
    for field in ("top_logprobs", "entropy", "kl"):
        np.testing.assert_allclose(getattr(a, field), getattr(b, field), atol=tolerance)


def checked(hf):
    """The reading of `hf` holds the numbers that calling `hf` gives."""
    with torch.no_grad():
        truth = hf(input_ids=torch.tensor([IDS])).logits[0].double().log_softmax(-1)
    model = logitlens.load(hf)
    reading = model.read(IDS, top=97)
    ids = torch.tensor(reading.top_ids[-1].astype(np.int64))
    shown = torch.tensor(reading.top_logprobs[-1]).double()
    assert (shown - truth.gather(-1, ids)).abs().max() <= 1e-4
    return model


# -- offload --------------------------------------------------------------------------------------


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}])
def test_a_device_map(folder, plain, device_map):
    pytest.importorskip("accelerate")
    same_reading(logitlens.load(folder, device_map=device_map).read(IDS), plain)


def test_weights_offloaded_to_cpu_and_disk(folder, plain, tmp_path):
    pytest.importorskip("accelerate")
    from transformers import AutoModelForCausalLM

    places = {f"model.layers.{i}": "disk" if i else "cpu" for i in range(4)}
    places |= {"model.embed_tokens": "cpu", "model.norm": "disk", "lm_head": "disk"}
    with quiet():
        hf = AutoModelForCausalLM.from_pretrained(
            folder, device_map={**places, "model.rotary_emb": "cpu"}, offload_folder=tmp_path
        )
    assert hf.lm_head.weight.device.type == "meta"
    model = logitlens.load(hf)
    assert model.tail.kind == "module"
    same_reading(model.read(IDS), plain)
    assert hf.lm_head.weight.device.type == "meta"


@pytest.mark.parametrize("how", ["cpu_offload", "disk_offload"])
def test_everything_offloaded(plain, tmp_path, how):
    accelerate = pytest.importorskip("accelerate")
    hf = build("LlamaForCausalLM")
    where = (str(tmp_path),) if how == "disk_offload" else ()
    getattr(accelerate, how)(hf, *where, execution_device=torch.device("cpu"))
    assert {p.device.type for p in hf.parameters()} == {"meta"}
    model = logitlens.load(hf)
    same_reading(model.read(IDS), plain)
    # Wherever its weights lie, it is the same model to a survey.
    assert weights_hash(model) == weights_hash(logitlens.load(build("LlamaForCausalLM")))


# -- quantised ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"]
)
def test_torchao_int8_body_and_head(config):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantization = pytest.importorskip("torchao.quantization")
        hf = build("LlamaForCausalLM")
        quantization.quantize_(hf, getattr(quantization, config)())
        model = checked(hf)
    assert model.tail.kind == "module"  # int8 rows cannot be read as weights: the head is called


def test_torchao_int8_body_alone():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantization = pytest.importorskip("torchao.quantization")
        hf = build("LlamaForCausalLM")
        quantization.quantize_(hf.model, quantization.Int8WeightOnlyConfig())
        assert checked(hf).tail.kind == "weights"


def test_a_head_whose_rounding_depends_on_the_other_rows_is_refused():
    """Dynamic quantisation scales all rows of a call by their common maximum."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hf = torch.ao.quantization.quantize_dynamic(
            build("LlamaForCausalLM"), {torch.nn.Linear}, dtype=torch.qint8
        )
    with pytest.raises(UnsupportedModel, match="cannot be read"):
        logitlens.load(hf)


# -- adapters -------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["q_proj", "lm_head"]])
@pytest.mark.parametrize("state", ["active", "merged", "unloaded"])
def test_lora_before_and_after_merging(plain, targets, state):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=targets, r=2, init_lora_weights=False)
    torch.manual_seed(0)
    hf = peft.get_peft_model(build("LlamaForCausalLM"), config).eval()
    if state == "merged":
        hf.merge_adapter()
    if state == "unloaded":
        hf = hf.merge_and_unload()
    model = checked(hf)
    assert not np.allclose(model.read(IDS).top_logprobs, plain.top_logprobs, atol=1e-2)
    adapted = targets[1] == "lm_head" and state != "unloaded"  # it may be taken out again
    assert model.tail.kind == ("module" if adapted else "weights")


def test_a_disabled_adapter_is_not_read(plain):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False)
    hf = peft.get_peft_model(build("LlamaForCausalLM"), config).eval()
    with hf.disable_adapter():
        same_reading(logitlens.load(hf).read(IDS), plain)


# -- compiled -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["wrapped", "in place", "in place and used", "layers and head"])
def test_compiled_models(plain, how):
    hf = build("LlamaForCausalLM")
    if how == "wrapped":
        hf = torch.compile(hf, backend="eager")
    elif how == "layers and head":
        for layer in hf.model.layers:
            layer.compile(backend="eager")
        hf.lm_head = torch.compile(hf.lm_head, backend="eager")
    else:
        hf.compile(backend="eager")
    if how == "in place and used":
        with torch.no_grad():
            hf(input_ids=torch.tensor([IDS]))
    same_reading(logitlens.load(hf).read(IDS), plain)
    if how != "wrapped":
        checked(hf)


def test_gradient_checkpointing_and_training_are_left_on(plain):
    hf = build("LlamaForCausalLM")
    hf.gradient_checkpointing_enable()
    hf.train()
    same_reading(logitlens.load(hf).read(IDS), plain)
    assert hf.training
    assert hf.is_gradient_checkpointing
    assert all(p.requires_grad for p in hf.parameters())
