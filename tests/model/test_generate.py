"""The lens while a model writes: transformers' own tokens, and every column as it is read again."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

import logitlens
from logitlens import PromptError, Reading, UnsupportedModel
from logitlens.model.assemble import ReadingBuilder
from logitlens.model.generate import TOGETHER
from logitlens.view.page.words import code
from tests.architectures.build import DROP, ENCODER_DECODERS, build, quiet
from tests.architectures.laws import ENCODER
from tests.model.test_capture import state
from tests.model.test_chunks import FAMILIES, LINEAR, equal
from tests.models import tiny_gpt2, tiny_llama, tiny_tokenizer

IDS = torch.randint(3, 90, (11,), generator=torch.Generator().manual_seed(3)).tolist()
SAMPLE = {
    "GPT2LMHeadModel": {},
    "MistralForCausalLM": {"sliding_window": 8},
    "Gemma3nForCausalLM": {},  # a tail that is replayed, which runs the blocks once more
    "RecurrentGemmaForCausalLM": {"attention_window_size": 8},  # a state kept in the model
    "Qwen3NextForCausalLM": {"layer_types": LINEAR},  # a state and a cache
    "OpenAIGPTLMHeadModel": {},  # no cache: every pass reads the whole text
}
# transformers' own generate raises; its cache drops what the model attends to.
OTHERWISE = {"WhisperForCausalLM", "MoshiForCausalLM"}
MORE = {n: options for n, options in FAMILIES.items() if n not in {*SAMPLE, *OTHERWISE}}


def settings(n: int, temperature: float = 0, **more) -> GenerationConfig:
    """Exactly n tokens."""
    drawn = {"temperature": temperature, "top_k": 20} if temperature else {}
    return GenerationConfig(
        max_new_tokens=n, min_new_tokens=n, do_sample=temperature > 0, num_beams=1, **drawn, **more
    )


def theirs(hf, ids: list[int], config: GenerationConfig, seed: int = 0) -> list[int]:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return hf.generate(torch.tensor([ids]), generation_config=config)[0, len(ids) :].tolist()


def written(reading: Reading) -> dict:
    return reading.meta["generation"]


def agrees(name: str, options: dict) -> None:
    with quiet():
        model = logitlens.load(build(name, **options))
        before = state(model.hf)
        for config in (settings(7), settings(5, 0.9)):
            reading = model.generate(IDS, generation_config=config, seed=4, top=5)
            ids = written(reading)["ids"]
            assert ids == theirs(model.hf, IDS, config, 4)
            again = model.read([*IDS, *ids], positions=":-1", top=5)
            equal(reading, again)
            assert written(reading)["reread"]["ok"]
            assert reading.generated.tolist() == [False] * 11 + [True] * (len(ids) - 1)
            assert reading.next_ids[10:].tolist() == ids
            assert reading.meta["check"]["positions"] == len(ids)
            np.testing.assert_allclose(
                reading.next_logprobs[-1, 10:], written(reading)["logprobs"], atol=2e-4
            )
    assert state(model.hf) == before


@pytest.mark.parametrize("name", SAMPLE)
def test_tokens_are_those_of_transformers_and_columns_those_of_reading_them_again(name):
    agrees(name, SAMPLE[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_the_same_of_every_kind_of_cache(name):
    agrees(name, MORE[name])


@pytest.fixture(scope="module")
def model():
    return logitlens.load(tiny_gpt2(), tokenizer=tiny_tokenizer())


def test_a_cache_that_changes_what_a_model_computes_is_told():
    """transformers drops what is outside the window that the configuration names, and this model
    attends to all of it."""
    with quiet():
        hf = build("LlamaForCausalLM", sliding_window=4)
        model = logitlens.load(hf)
        reading = model.generate(IDS, generation_config=settings(6))
        assert written(reading)["ids"] == theirs(hf, IDS, settings(6))
    found = written(reading)["reread"]
    assert found["ok"] is False
    assert found["nats"] > 0.01
    assert reading.meta["check"]["ok"]  # of the very passes


def test_a_seed_repeats_and_without_one_torch_draws_it(model):
    free = model.generate(IDS, max_new_tokens=6, temperature=1.5)
    again = model.generate(IDS, max_new_tokens=6, temperature=1.5, seed=written(free)["seed"])
    assert written(again)["ids"] == written(free)["ids"]
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    model.generate(IDS, max_new_tokens=6, temperature=1.5, seed=3)
    assert torch.rand(1) == expected  # the user's own numbers go on as before
    assert written(model.generate(IDS, max_new_tokens=2))["seed"] is None


def test_log_probabilities_are_those_of_sampling_beside_the_models_own(model):
    config = settings(5, 0.7, repetition_penalty=1.3)
    found = written(model.generate(IDS, generation_config=config, seed=2))
    config.return_dict_in_generate = config.output_scores = config.output_logits = True
    torch.manual_seed(2)
    out = model.hf.generate(torch.tensor([IDS]), generation_config=config)
    for field, rows in (("sampled_logprobs", out.scores), ("logprobs", out.logits)):
        expected = [float(z[0].log_softmax(-1)[t]) for z, t in zip(rows, found["ids"])]
        np.testing.assert_allclose(found[field], expected, atol=1e-4)
    assert found["settings"]["repetition_penalty"] == 1.3
    assert found["settings"]["temperature"] == 0.7
    assert written(model.generate(IDS, max_new_tokens=2))["sampled_logprobs"] == [0.0, 0.0]


def test_each_column_is_that_of_the_whole_reading(model):
    columns = []
    options = {"max_new_tokens": 5, "track": [7], "top": 3, "temperature": 1.0, "seed": 1}
    whole = model.generate(IDS, each=columns.append, **options)
    assert [c.positions for c in columns] == [[p] for p in range(10, 15)]
    assert [int(c.next_ids[0]) for c in columns] == written(whole)["ids"]
    for column in columns:
        t = column.positions[0]
        assert column.generated[0] == whole.generated[t] == (t > 10)
        for name in ("top_ids", "kl", "next_ranks", "track_logprobs", "candidate_ranks"):
            assert np.array_equal(getattr(column, name)[:, 0], getattr(whole, name)[:, t]), name
        assert np.array_equal(column.candidate_ids[0], whole.candidate_ids[t])
    *first, last = model.stream(IDS, **options)
    equal(last, columns[-1])  # run in a thread of its own, whose libraries may sum otherwise
    assert len(first) == 4


def test_passes_read_together_give_the_columns_of_those_read_one_by_one(model):
    options = {"max_new_tokens": 20, "track": [7], "temperature": 1.0, "seed": 2}
    together = model.generate(IDS, **options)
    equal(together, model.generate(IDS, each=lambda column: None, **options))
    assert together.meta["check"]["positions"] == len(written(together)["ids"]) == 20


@pytest.mark.parametrize("tokens", [TOGETHER - 3, TOGETHER + 4], ids=["at the end", "before"])
def test_ctrl_c_while_passes_are_read_together_loses_none_of_them(model, monkeypatch, tokens):
    whole, add = model.generate("The Eiffel Tower", max_new_tokens=tokens), ReadingBuilder.add
    interrupts = [KeyboardInterrupt()]

    def interrupted(self, start, part):
        add(self, start, part)
        if interrupts:
            raise interrupts.pop()

    monkeypatch.setattr(ReadingBuilder, "add", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        model.generate("The Eiffel Tower", max_new_tokens=tokens)
    kept = caught.value.reading
    assert written(kept)["stopped"] == "interrupted"
    assert written(kept)["ids"] == written(whole)["ids"][:TOGETHER]
    assert kept.meta["check"]["ok"]
    np.testing.assert_allclose(kept.kl, whole.kl[:, : kept.shape[1]], atol=1e-4)


def test_each_may_end_the_generation_or_read_with_the_same_model(model):
    seen = []

    def each(column):
        seen.append(model.read(IDS, top=2))
        if len(seen) == 3:
            raise StopIteration

    reading = model.generate(IDS, max_new_tokens=9, each=each)
    assert written(reading)["stopped"] == "each"
    assert len(written(reading)["ids"]) == 3
    equal(reading, model.read([*IDS, *written(reading)["ids"]], positions=":-1"))


@pytest.mark.parametrize(
    "error", [RuntimeError("mine"), KeyboardInterrupt()], ids=["error", "ctrl-c"]
)
@pytest.mark.parametrize("how", ["each", "progress"])
def test_what_a_callers_function_raises_reaches_the_caller_with_what_there_is(model, error, how):
    calls = []

    def function(*args):
        calls.append(args)
        if len(calls) == (2 if how == "each" else 7):
            raise error

    before = state(model.hf)
    with pytest.raises(type(error)) as caught:
        model.generate(IDS, max_new_tokens=9, **{how: function})
    assert caught.value is error
    assert caught.value.reading.meta["check"]["ok"]
    assert 1 <= len(written(caught.value.reading)["ids"]) < 9
    assert state(model.hf) == before


def test_progress_counts_the_blocks_of_the_prompt_and_then_positions(model):
    calls = []
    model.generate(IDS, max_new_tokens=3, progress=lambda *call: calls.append(call))
    assert calls[:3] == [("blocks", i, 3) for i in (1, 2, 3)]
    assert {what for what, _, _ in calls[3:]} == {"positions"}
    assert calls[-1] == ("positions", 13, 13)


def test_a_stream_returns_the_reading_and_ends_where_it_is_left(model):
    def last():
        return (yield from model.stream(IDS, max_new_tokens=3))

    columns = last()
    assert len([next(columns) for _ in range(3)]) == 3
    with pytest.raises(StopIteration) as end:
        next(columns)
    assert written(end.value.value)["stopped"] == "max_new_tokens"
    for _ in model.stream(IDS, max_new_tokens=40):
        break
    assert not [t for t in threading.enumerate() if t.name == "logitlens-generate"]
    with pytest.raises(PromptError, match="max_new_tokens=0"):
        list(model.stream(IDS, max_new_tokens=0))
    for column in model.stream(IDS, max_new_tokens=2):  # whoever takes them may read
        model.read(column.ids, top=1)


def test_what_ended_it_is_said(model):
    free = model.generate(IDS, max_new_tokens=6)
    ids, pieces = written(free)["ids"], [model.tokens.piece(i) for i in written(free)["ids"]]
    assert written(free)["stopped"] == "max_new_tokens"
    assert written(free)["text"] == model.tokens.text(ids)
    by_text = written(model.generate(IDS, max_new_tokens=6, stop=pieces[2]))
    assert by_text["stopped"] == "stop"
    assert len(by_text["ids"]) == 1 + pieces.index(pieces[2])
    config = GenerationConfig(eos_token_id=ids[3], max_new_tokens=6)
    by_eos = written(model.generate(IDS, generation_config=config))
    assert by_eos["stopped"] == "eos"
    assert by_eos["ids"] == ids[: 1 + ids.index(ids[3])]
    config = GenerationConfig(stop_strings=[pieces[2]], max_new_tokens=6)
    assert written(model.generate(IDS, generation_config=config))["stopped"] == "stop"
    config = GenerationConfig(stop_strings=[], max_new_tokens=6)
    assert written(model.generate(IDS, generation_config=config))["ids"] == ids
    never = written(model.generate(IDS, max_new_tokens=6, stop=["Zürich"]))
    assert never["ids"] == ids
    assert never["stopped"] == "max_new_tokens"


def test_positions_are_those_of_the_prompt_and_all_that_is_written(model):
    reading = model.generate(IDS, max_new_tokens=3, positions=[0, 4], layers=[1], stream="mlp")
    assert reading.positions == [0, 4, 10, 11, 12]
    assert reading.layers == ["1.mlp", "2"]
    assert reading.columns("-2:") == [3, 4]


def test_the_prompts_length_decides_how_much_can_be_written():
    model = logitlens.load(tiny_gpt2(), tokenizer=tiny_tokenizer())
    long = (IDS * 6)[:60]
    assert len(written(model.generate(long))["ids"]) <= 4  # what fits
    with pytest.raises(
        PromptError, match="60 tokens and the model's context holds 64: .* at most 4, got 5"
    ):
        model.generate(long, max_new_tokens=5)
    cut = model.generate(long, max_new_tokens=5, truncate=True)
    assert cut.meta["truncated"] == 1
    with pytest.raises(PromptError, match="at most 0"):
        model.generate((IDS * 6)[:64])


def changed(**settings):
    """A config that transformers itself would refuse to make."""
    config = GenerationConfig()
    for name, value in settings.items():
        setattr(config, name, value)
    return config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0: expected at least 1"),
        ({"max_new_tokens": 2.5}, "max_new_tokens=2.5: expected at least 1"),
        ({"temperature": -1}, "temperature=-1: expected 0 (the likeliest token) or more"),
        ({"temperature": "hot"}, "temperature='hot': expected 0"),
        ({"temperature": 1, "top_p": 2}, "top_p=2: expected a probability"),
        ({"temperature": 1, "top_k": 0}, "top_k=0: expected 1 or more"),
        ({"top_p": 0.9}, "top_p=0.9 changes nothing where the likeliest token is taken"),
        ({"seed": "x"}, "seed='x': expected a whole number"),
        ({"seed": 1 << 70}, "expected a whole number of 64 bits"),
        ({"stop": 5}, "stop=5: expected texts"),
        ({"stop": "\ud800"}, "expected texts"),
        ({"stop": [""]}, "stop=['']: expected texts"),
        ({"temperature": 10**400}, "expected 0 (the likeliest token) or more"),
        ({"temperature": 1e-300}, "the settings leave no token to choose after 0 tokens"),
        ({"generation_config": changed(stop_strings=["\ud800"])}, "expected texts"),
        ({"generation_config": changed(stop_strings=5)}, "stop=5: expected texts"),
        (
            {"generation_config": changed(max_new_tokens=0), "max_new_tokens": None},
            "max_new_tokens=0: expected at least 1",
        ),
        (
            {"generation_config": changed(max_length="x"), "max_new_tokens": None},
            "max_length='x': expected at least 1",
        ),
        (
            {"generation_config": changed(sequence_bias={(1,): math.nan})},
            "the settings leave no token to choose after 0 tokens",
        ),
        ({"generation_config": {"num_beams": 2}}, "expected a transformers GenerationConfig, got dict"),
        ({"generation_config": GenerationConfig(num_beams=3)}, "num_beams=3: expected one sequence"),
        (
            {"generation_config": GenerationConfig(do_sample=True, num_return_sequences=2)},
            "num_return_sequences=2: expected one sequence",
        ),
        (
            {"generation_config": GenerationConfig(prompt_lookup_num_tokens=3)},
            "prompt_lookup_num_tokens=3: expected one sequence",
        ),
        ({"generation_config": GenerationConfig(guidance_scale=2.0)}, "guidance_scale=2.0: expected"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:24],
)  # fmt: skip
def test_mistakes_are_one_line(model, options, message):
    with quiet(), pytest.raises(PromptError) as caught:
        model.generate(IDS, **{"max_new_tokens": 3} | options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__dict__.get("reading") is None


@pytest.mark.parametrize("how", ["nan", "raises", "differs"])
def test_what_goes_wrong_half_way_keeps_what_was_written(how, monkeypatch):
    model = logitlens.load(tiny_llama(), tokenizer=tiny_tokenizer())
    whole = model.generate(IDS, max_new_tokens=3)
    passes = []

    def spoil(module, args, output):
        passes.append(1)
        if len(passes) == 4 and how == "nan":
            output.logits[:] = torch.nan
        if len(passes) == 4 and how == "raises":
            raise RuntimeError("out of luck")
        if len(passes) == 4 and how == "differs":
            output.logits[..., 5] += 0.1
        return output

    handle = model.hf.register_forward_hook(spoil)
    monkeypatch.setattr(model, "_look_again", lambda: None)
    message = {
        "nan": "logits at position 13 are not finite (nan or inf) after 3 tokens",
        "raises": "raises RuntimeError while it generates: out of luck",
        "differs": "the last row is not the model's own output",
    }[how]
    with pytest.raises(UnsupportedModel) as caught:
        model.generate(IDS, max_new_tokens=9)
    handle.remove()
    assert message in str(caught.value)
    kept = caught.value.__dict__["reading"]
    assert written(kept)["ids"] == written(whole)["ids"]
    assert written(kept)["stopped"].startswith("UnsupportedModel: ")
    equal(kept, whole)


def test_a_model_without_transformers_generate_is_refused_by_name():
    with quiet():
        model = logitlens.load(build(ENCODER_DECODERS[0], is_decoder=DROP), inputs=ENCODER)
    with pytest.raises(UnsupportedModel, match="has no generate of transformers"):
        model.generate(IDS, max_new_tokens=2)


def test_what_is_written_is_in_files(model, tmp_path):
    reading = model.generate("The Eiffel Tower", max_new_tokens=3, temperature=1.0, seed=5)
    for suffix in ("json", "parquet"):
        path = reading.save(tmp_path / f"r.{suffix}")
        assert Reading.load(path).equals(reading)
    fields = reading.fields()
    del fields["generated"]
    assert not Reading(**fields).generated.any()  # an older file


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 3, "positions": "2:5", "track": [7], "layers": "0:2"},
        {"max_new_tokens": 9, "temperature": 0.8, "top_k": 20, "seed": 7, "stop": ["never"]},
        {"generation_config": settings(4, 0.7, repetition_penalty=1.3), "seed": 3},
        {"max_new_tokens": 9, "each": lambda column: next(iter(()))},
    ],
    ids=["greedy", "drawn", "config", "ended"],
)
def test_the_code_of_a_generation_generates_it_again(model, options, monkeypatch):
    reading = model.generate("The Eiffel Tower", **options)
    monkeypatch.setattr(logitlens, "load", lambda *args, **kwargs: model)
    names: dict = {}
    exec(code(reading), names)
    equal(names["reading"], reading)
    assert written(names["reading"])["ids"] == written(reading)["ids"]
