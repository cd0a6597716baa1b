"""load: where a model comes from, and every way it can fail to be one."""

from __future__ import annotations

import json
import os
import shutil
import time
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

import logitlens
from logitlens import hub
from logitlens.errors import LogitLensError, ModelNotAvailable, UnsupportedModel
from logitlens.model.load import _panics_raised as panics_raised
from logitlens.model.load import wrap
from tests.architectures.build import build, quiet
from tests.hub.server import COMMIT, serving, use
from tests.models import tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    with quiet():
        build("LlamaForCausalLM", vocab_size=320).save_pretrained(path)
        tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def refusal(*args, **kwargs) -> str:
    """The one line a user sees."""
    with pytest.raises(LogitLensError) as caught:
        logitlens.load(*args, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 700
    return text


def edit_config(path, **values):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **values}))


def test_a_directory_with_its_tokenizer(folder):
    model = logitlens.load(folder)
    assert (model.name, model.n_blocks, model.width) == (str(folder), 4, 32)
    assert model.tokenizer is not None
    assert model.check.ok
    assert model.check.positions == 22


def test_a_directory_given_as_text_reads_the_same(folder):
    a, b = logitlens.load(folder).read([5, 6, 7]), logitlens.load(str(folder)).read([5, 6, 7])
    assert (a.top_ids == b.top_ids).all()


def test_a_model_object_with_and_without_tokenizer():
    model = logitlens.load(build("GPT2LMHeadModel"))
    assert model.tokenizer is None
    assert model.read([5, 6]).pieces == ["⟨5⟩", "⟨6⟩"]
    named = logitlens.load(build("GPT2LMHeadModel"), tokenizer=tiny_tokenizer())
    assert named.tokenizer is not None


def test_a_tokenizer_from_a_directory(folder):
    assert logitlens.load(build("LlamaForCausalLM"), tokenizer=folder).tokenizer is not None


def test_options_of_loading_do_not_fit_a_model_object():
    text = refusal(build("GPT2LMHeadModel"), dtype="float32")
    assert "dtype" in text
    assert "model object is used as it is" in text


def test_something_else_entirely():
    assert "got int" in refusal(17)


# -- directories that are not a model -------------------------------------------------------------


def test_an_empty_directory(tmp_path):
    text = refusal(tmp_path)
    assert "expected config.json" in text
    assert "nothing" in text


def test_a_directory_of_something_else(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    assert "notes.txt" in refusal(tmp_path)


def test_a_file(folder):
    assert "is a file" in refusal(folder / "config.json")


def test_a_path_that_does_not_exist():
    assert "no such directory" in refusal("./nowhere/at all")


def test_a_configuration_without_weights(copy):
    (copy / "model.safetensors").unlink()
    assert "no weights" in refusal(copy)


def test_an_index_with_a_missing_shard(copy):
    (copy / "model.safetensors").unlink()
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "every shard" in refusal(copy)


def test_a_configuration_that_is_not_json(copy):
    (copy / "config.json").write_text("{")
    assert "cannot be read as JSON" in refusal(copy)


def test_an_unknown_kind_of_model(copy):
    edit_config(copy, model_type="never_heard_of", architectures=["NeverForCausalLM"])
    assert "configuration cannot be read" in refusal(copy)


def test_truncated_weights(copy):
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "weights cannot be read" in refusal(copy)


def test_weights_of_the_wrong_shape(copy):
    edit_config(copy, intermediate_size=64)
    text = refusal(copy)
    assert "do not fit the configuration" in text
    assert "48" in text
    assert "64" in text


def test_missing_weights_are_not_made_up(copy):
    weights = load_file(copy / "model.safetensors")
    weights.pop("model.norm.weight")
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    text = refusal(copy)
    assert "lack model.norm.weight" in text
    assert "random" in text


def with_weights(path, **more):
    weights = load_file(path / "model.safetensors")
    weights |= {name: tensor.clone() for name, tensor in more.items()}
    save_file(weights, path / "model.safetensors", {"format": "pt"})


def test_blocks_that_the_configuration_leaves_out_are_not_dropped_in_silence(copy):
    edit_config(copy, num_hidden_layers=3)
    text = refusal(copy)
    assert "hold model.layers.3." in text
    assert "(and 8 more)" in text
    assert "ignore_unexpected=True" in text
    assert len(logitlens.load(copy, ignore_unexpected=True).anatomy.blocks) == 3


def test_a_bias_that_the_class_has_no_place_for_is_not_dropped_in_silence(copy):
    with_weights(copy, **{"lm_head.bias": torch.ones(320)})
    assert "hold lm_head.bias, for which" in refusal(copy)
    assert logitlens.load(copy, ignore_unexpected=True).check.ok


MASK = torch.ones(1, 1, 8, 8).tril()


@pytest.mark.parametrize(
    ("name", "constants"),
    [
        ("GPT2LMHeadModel", {"h.0.attn.bias": MASK, "h.0.attn.masked_bias": torch.tensor(-1e4)}),
        ("GPTJForCausalLM", {"h.0.attn.bias": MASK.byte(), "h.0.attn.masked_bias": torch.ones(1)}),
        ("GPTNeoForCausalLM", {"h.0.attn.attention.bias": MASK.bool()}),
        ("CodeGenForCausalLM", {"h.0.attn.causal_mask": MASK.bool()}),
        ("FalconForCausalLM", {"h.0.self_attention.maybe_rotary.inv_freq": torch.rand(4)}),
        ("XGLMForCausalLM", {"embed_positions.weights": torch.rand(4, 4)}),
        ("OPTForCausalLM", {"decoder.version": torch.tensor([3.0])}),
    ],
)
def test_constants_that_old_versions_saved_are_no_weights(tmp_path, name, constants):
    """What published checkpoints of these families hold beside their weights."""
    with quiet():
        model = build(name)
        model.save_pretrained(tmp_path)
    prefix = model.base_model_prefix
    with_weights(tmp_path, **{f"{prefix}.{key}": value for key, value in constants.items()})
    assert logitlens.load(tmp_path).check.ok
    with_weights(tmp_path, **{f"{prefix}.learned": torch.rand(1, 1, 8, 8)})
    assert "learned" in refusal(tmp_path)


def test_constants_in_a_pickled_checkpoint(copy):
    weights = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    weights["model.layers.0.self_attn.bias"] = MASK
    torch.save(weights, copy / "pytorch_model.bin")
    assert logitlens.load(copy).check.ok
    torch.save({**weights, "v_head.weight": torch.ones(1, 32)}, copy / "pytorch_model.bin")
    assert "hold v_head.weight" in refusal(copy)


@pytest.mark.parametrize(
    "values",
    [
        {"num_hidden_layers": 10**7},
        {"text_config": {"n_layer": 10**7}},
        {"num_experts": 10**7, "n_routed_experts": 10**7},
    ],
)
def test_more_layers_than_weights_are_refused_before_any_is_built(copy, values):
    edit_config(copy, **values)
    began = time.perf_counter()
    assert "there are only 39 tensors" in refusal(copy)
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize(
    "index",
    [
        [],
        {"weight_map": []},
        {"weight_map": {"a": 5}},
        {"weight_map": {"a": ["b"]}},
        {"weight_map": {"a": None}},
        {"weight_map": "abc"},
        {"metadata": {}},
        {"weight_map": {"a": "x" * 5000}},
    ],
)
def test_an_index_of_another_shape(copy, index):
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "no weights" in refusal(copy)


def test_a_configuration_nested_beyond_reason(copy):
    (copy / "config.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    assert "cannot be read as JSON" in refusal(copy)


def test_a_tokenizer_that_panics_is_one_line(copy, capfd):
    """The tokenizers library is Rust: a panic is no Exception, and prints its stack."""
    file = copy / "tokenizer.json"
    data = json.loads(file.read_text())
    data["model"]["continuing_subword_prefix"] = "a prefix longer than any token"
    file.write_text(json.dumps(data))
    assert "its tokenizer cannot be read" in refusal(copy)
    assert "panicked" not in capfd.readouterr().err


def test_what_others_say_meanwhile_is_heard(capfd):
    with panics_raised():
        os.write(2, b"someone else")
    assert capfd.readouterr().err == "someone else"


def test_a_revision_of_what_is_not_on_the_hub_is_refused(folder):
    assert "is not on the hub" in refusal(folder, revision="v1")
    assert "is not on the hub" in refusal("demo", revision="v1")
    assert "is not on the hub" in refusal(None, revision="v1")


def test_nan_in_a_weight(copy):
    weights = load_file(copy / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 3] = float("nan")
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    text = refusal(copy)
    assert "model.layers.1.mlp.up_proj.weight holds nan" in text


def test_infinite_logits(copy):
    weights = load_file(copy / "model.safetensors")
    weights["lm_head.weight"][3] = float("inf")
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    assert "not finite" in refusal(copy)


def test_an_encoder_saved_without_a_head(tmp_path):
    import transformers

    with quiet():
        config = transformers.BertConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            vocab_size=99,
        )
        transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    text = refusal(tmp_path)
    assert "BertForSequenceClassification" in text


@pytest.mark.parametrize("name", ["BertForMaskedLM", "RobertaForMaskedLM", "ModernBertForMaskedLM"])
def test_masked_models_are_refused_in_one_line(name):
    from tests.architectures import build as builder

    with quiet():
        model = builder.build(name, is_decoder=builder.DROP)
    text = refusal(model)
    assert "not causal" in text


@pytest.mark.parametrize("name", ["BertForMaskedLM", "BertLMHeadModel"])
def test_an_untrained_encoder_is_refused_too(name):
    """Fresh weights give logits so alike that looking ahead changes them by 1e-4 only."""
    import transformers

    config = transformers.BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        vocab_size=99,
    )
    with quiet():
        torch.manual_seed(0)
        model = getattr(transformers, name)(config).eval()
    assert "not causal" in refusal(model)


def test_an_unknown_dtype(folder):
    assert "expected float32" in refusal(folder, dtype="float31")


# -- dtype ----------------------------------------------------------------------------------------


def saved_as(dtype, tmp_path):
    with quiet():
        build("LlamaForCausalLM", dtype=dtype).save_pretrained(tmp_path)
    return tmp_path


def test_float16_checkpoints_are_read_as_float32_on_the_cpu(tmp_path):
    path = saved_as(torch.float16, tmp_path)
    assert logitlens.load(path).dtype == torch.float32
    assert logitlens.load(path, dtype="float16").dtype == torch.float16


def test_other_dtypes_are_the_checkpoints_own(tmp_path):
    path = saved_as(torch.bfloat16, tmp_path)
    assert logitlens.load(path).dtype == torch.bfloat16
    assert logitlens.load(path, dtype=torch.float32).dtype == torch.float32


# -- the hub --------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty hub cache; what is in it is all there is."""
    from huggingface_hub import constants, file_download

    for module in (constants, file_download):
        monkeypatch.setattr(
            module.constants if module is file_download else module,
            "HF_HUB_CACHE",
            str(tmp_path / "hub"),
        )
    return tmp_path / "hub"


def put_in_cache(cache, folder, name="some/model", commit="a" * 40):
    repo = cache / ("models--" + name.replace("/", "--"))
    shutil.copytree(folder, repo / "snapshots" / commit)
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    return repo


def test_offline_and_absent_says_what_to_do(cache):
    began = time.perf_counter()
    with pytest.raises(ModelNotAvailable) as caught:
        logitlens.load("some/model")
    assert time.perf_counter() - began < 2
    text = str(caught.value)
    assert str(cache) in text
    assert "-m demo" in text
    assert "hf download some/model" in text
    assert isinstance(caught.value, OSError)


def test_the_cache_comes_first(cache, folder, monkeypatch):
    put_in_cache(cache, folder)
    monkeypatch.setattr(hub, "offline", lambda: pytest.fail("the cache was enough"))
    model = logitlens.load("some/model")
    assert (model.name, model.revision) == ("some/model", "a" * 40)
    assert logitlens.load("some/model", revision="a" * 40).revision == "a" * 40


def test_a_cache_without_weights_is_not_a_model(cache, folder):
    repo = put_in_cache(cache, folder)
    (repo / "snapshots" / ("a" * 40) / "model.safetensors").unlink()
    assert "hf download" in refusal("some/model")


def test_a_revision_is_asked_for_and_noted(cache, folder, monkeypatch):
    with serving(folder) as server:
        use(monkeypatch, server.address, cache)
        assert logitlens.load("some/model", revision="v1").revision == COMMIT
        assert any("/resolve/v1/" in path for path in server.asked)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        ("GatedRepoError", "is gated: accept its terms"),
        ("RepositoryNotFoundError", "has no repository 'some/model'"),
        ("RevisionNotFoundError", "has no revision"),
    ],
)
def test_what_the_hub_may_refuse(cache, monkeypatch, error, says):
    kind = getattr(huggingface_hub.errors, error)
    refused = kind.__new__(kind)

    def refuse(*args, **kwargs):
        raise refused

    with serving() as server:
        use(monkeypatch, server.address, cache)
        monkeypatch.setattr("huggingface_hub.HfApi.repo_info", refuse)
        assert says in refusal("some/model", revision="v9")


def test_a_name_that_cannot_be_one():
    assert "no such directory" in refusal("openai community/gpt2")
    assert "no such directory" in refusal("../gpt2/model")


@pytest.mark.parametrize("name", ["a--b", "x.git", "x.", "a" * 200, "gptü/x", "x" * 5000, "a\0b"])
def test_names_that_no_hub_could_have(name):
    text = refusal(name)
    assert "not a valid hub name" in text
    assert len(text) < 160
    with pytest.raises(ModelNotAvailable):
        logitlens.load(name)


def test_a_tokenizer_by_its_hub_name_comes_without_weights(cache, folder, monkeypatch):
    with serving(folder) as server:
        use(monkeypatch, server.address, cache)
        model = logitlens.load(build("LlamaForCausalLM"), tokenizer="some/tokenizer")
        assert model.tokenizer is not None
        assert not any("safetensors" in path for path in server.asked)
        server.asked.clear()
        logitlens.load(build("LlamaForCausalLM"), tokenizer="some/tokenizer")
        assert server.asked == []
    assert "no such directory" in refusal(build("LlamaForCausalLM"), tokenizer="no such place")


def test_a_configuration_that_is_no_object(copy):
    (copy / "config.json").write_text("[]")
    assert "expected a JSON object" in refusal(copy)


def test_loading_leaves_the_users_settings_alone(folder):
    from transformers.utils import logging

    before = (logging.get_verbosity(), logging.is_progress_bar_enabled(), dict(os.environ))
    logitlens.load(folder)
    with pytest.raises(UnsupportedModel):
        logitlens.load(build("XLNetLMHeadModel"))
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled(), dict(os.environ)) == before


def test_an_empty_name_a_number_for_a_tokenizer_and_a_gpu_that_is_not_there(folder, monkeypatch):
    import torch

    assert "name is empty" in refusal("")
    assert "got int" in refusal(folder, tokenizer=5)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no GPU" in refusal(folder, device_map="cuda")


def test_a_model_on_an_apple_gpu_is_refused_in_one_line():
    there = SimpleNamespace(device=SimpleNamespace(type="mps"))
    with pytest.raises(
        UnsupportedModel, match="tiny is on an Apple GPU .mps., which has no float64"
    ):
        wrap(SimpleNamespace(parameters=lambda: iter([there])), None, "tiny")
