"""A model that has changed since a survey was planned is another: its weights, also of one token, and its
configuration."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch

import logitlens
from logitlens.errors import SurveyError
from logitlens.survey import plan as plans
from logitlens.survey.plan import Settings
from logitlens.survey.run import run
from tests.survey.conftest import records, write_lines


@pytest.fixture
def begun(saved, tmp_path):
    """A survey of a copy of the model, of which one of two shares is read."""
    shutil.copytree(saved, tmp_path / "model")
    write_lines(tmp_path / "p.jsonl", records(8))

    def go(share=None):
        source = str(tmp_path / "model")
        return run(
            tmp_path / "p.jsonl", tmp_path / "s", logitlens.load(source), source=source, loading={},
            lenses=("logit",), settings=Settings(shard_size=4, threads=1), share=share,
        )  # fmt: skip

    go((0, 2))
    return SimpleNamespace(go=go, folder=tmp_path)


@pytest.mark.parametrize(
    ("name", "value"), [("activation_function", "relu"), ("layer_norm_epsilon", 0.5)]
)
def test_another_configuration_is_refused(begun, name, value):
    path = begun.folder / "model" / "config.json"
    said = json.loads(path.read_text())
    assert said[name] != value
    path.write_text(json.dumps(said | {name: value}))
    with pytest.raises(SurveyError, match="model config"):
        begun.go((1, 2))


def test_where_a_model_came_from_and_how_it_is_loaded_changes_nothing(begun):
    path = begun.folder / "model" / "config.json"
    said = json.loads(path.read_text())
    told = {"transformers_version": "9.9", "_name_or_path": "elsewhere", "use_cache": False}
    path.write_text(json.dumps(said | told))
    assert begun.go((1, 2)).done


def test_a_worker_refuses_another_configuration(begun):
    from logitlens.survey.worker import model_of

    model = logitlens.load(str(begun.folder / "model"))
    plan = plans.load(begun.folder / "s")
    assert model_of(plan, model) is model
    model.hf.config.layer_norm_epsilon = 0.5
    with pytest.raises(SurveyError, match="another configuration"):
        model_of(plan, model)


def test_the_row_of_any_one_token_is_in_the_hash_of_the_weights(saved):
    model = logitlens.load(str(saved))
    before = plans.weights_hash(model)
    rows_VD = model.hf.get_input_embeddings().weight.data
    for token in range(len(rows_VD)):
        kept = rows_VD[token].clone()
        rows_VD[token] = 0
        assert plans.weights_hash(model) != before, token
        rows_VD[token] = kept
    assert plans.weights_hash(model) == before


def test_the_hash_of_a_configuration_does_not_depend_on_the_process_or_on_defaults():
    from transformers import LlamaConfig

    def of(config):
        return plans.config_hash(SimpleNamespace(hf=SimpleNamespace(config=config)))

    plain, grown = LlamaConfig(), LlamaConfig()
    assert of(plain) == of(LlamaConfig(rms_norm_eps=plain.rms_norm_eps, use_cache=False))
    assert of(plain) != of(LlamaConfig(rms_norm_eps=0.1))
    plain.odd, grown.odd = {"a": {*"abcdefgh"}}, {"a": {*"hgfedcba"}}
    assert of(plain) == of(grown) != of(LlamaConfig())
    assert of(SimpleNamespace(n_layers=2)) == "none"  # of another library


@pytest.mark.parametrize("shape", [(), (1,), (3, 1), (200, 7), (5, 3, 2)])
def test_weights_of_any_shape_are_sampled(shape):
    hf = torch.nn.ParameterDict({"w": torch.nn.Parameter(torch.ones(shape))})
    model = SimpleNamespace(hf=hf)
    before = plans.weights_hash(model)
    hf["w"].data[...] = 2
    assert plans.weights_hash(model) != before
