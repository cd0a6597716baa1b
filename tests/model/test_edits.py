"""Edits: what they do equals hand-written hooks, is checked, and leaves nothing behind."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import logitlens
from logitlens import LogitLensError, PromptError, edit
from logitlens.view.page.words import code
from tests.anatomy.test_sublayers import loud
from tests.architectures.build import build
from tests.models import tiny_gpt2, tiny_llama, tiny_tokenizer

IDS = [5, 1, 17, 33, 3, 42, 9, 8, 7]
OTHER = [6, 2, 18, 30, 3, 41, 9, 4, 12]
VECTOR = np.linspace(-1, 2, 32, dtype=np.float32)


@pytest.fixture(scope="module")
def model():
    return logitlens.load(tiny_llama(), tokenizer=tiny_tokenizer())


def arrays(reading):
    return {n: v for n, v in reading.fields().items() if isinstance(v, np.ndarray)}


def equal(a, b, exact=True):
    for name, value in arrays(a).items():
        if exact:
            np.testing.assert_array_equal(value, getattr(b, name), name)
        elif value.dtype.kind == "f":
            np.testing.assert_allclose(value, getattr(b, name), atol=1e-4, err_msg=name)


def by_hand(hf, block, change, ids=IDS):
    """The model's own logits (T, V) with a plain hook on a block's output."""

    def hook(module, args, output):
        h = output[0] if isinstance(output, tuple) else output
        new = change(h.clone())
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = hf.get_submodule(block).register_forward_hook(hook)
    try:
        with torch.no_grad():
            return hf(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    finally:
        handle.remove()


def same_as(reading, logprobs_TV):
    top = torch.from_numpy(reading.top_ids[-1].astype(np.int64))
    np.testing.assert_allclose(
        reading.top_logprobs[-1], logprobs_TV.gather(-1, top).numpy(), atol=1e-4
    )
    assert reading.check_text()[0]


def added(h):
    h[:, [2, 8]] += 3 * torch.from_numpy(VECTOR)
    return h


def projected(h):
    unit = torch.from_numpy(VECTOR) / np.linalg.norm(VECTOR)
    return h - (h @ unit)[..., None] * unit


def test_adding_and_projecting_equal_hand_written_hooks(model):
    same_as(
        model.read(IDS, edits=edit.add(VECTOR, 1, positions=[2, -1], scale=3.0)),
        by_hand(model.hf, "model.layers.1", added),
    )
    same_as(
        model.read(IDS, edits=[edit.project_out(VECTOR, 2)]),
        by_hand(model.hf, "model.layers.2", projected),
    )


def test_a_swap_exchanges_coordinates_and_undoes_itself(model):
    a, b = VECTOR, VECTOR[::-1] * np.cos(np.arange(32, dtype=np.float32))
    plain = model.capture(IDS).h[2]
    once = model.capture(IDS, edits=edit.swap(a, b, 1)).h[2]
    twice = model.capture(IDS, edits=[edit.swap(a, b, 1), edit.swap(a, b, 1)]).h[2]
    torch.testing.assert_close(twice, plain, atol=1e-5, rtol=0)
    units = torch.stack([torch.from_numpy(v / np.linalg.norm(v)) for v in (a, b)], 1)
    before, after = (h @ torch.linalg.pinv(units).T for h in (plain, once))
    torch.testing.assert_close(after, before.flip(-1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("stream", ["attn", "mlp"])
@pytest.mark.parametrize("how", ["zero", "mean"])
def test_ablation_equals_a_hook_on_the_models_own_module(stream, how):
    hf = tiny_gpt2()
    found = logitlens.load(hf)

    def ablated(h):
        return torch.zeros_like(h) if how == "zero" else h.mean(1, keepdim=True).expand_as(h)

    reading = found.read(IDS, edits=edit.ablate(1, stream, how))
    same_as(reading, by_hand(hf, f"transformer.h.1.{stream}", ablated))
    streams = found.read(IDS, stream=stream, edits=edit.ablate(1, stream, how))
    assert streams.check_text()[0]
    if how == "zero":
        residuals = found.capture(IDS, stream=stream, edits=edit.ablate(1, stream))
        assert not residuals.h[1].any()


def by_head(hf, path, change, ids=IDS):
    """The model's own log-probabilities with a plain hook on what the projection receives."""
    handle = hf.get_submodule(path).register_forward_pre_hook(
        lambda module, args: (change(args[0].clone()), *args[1:])
    )
    try:
        with torch.no_grad():
            return hf(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    finally:
        handle.remove()


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("GPT2LMHeadModel", "transformer.h.1.attn.c_proj"),
        ("LlamaForCausalLM", "model.layers.1.self_attn.o_proj"),  # grouped queries
        ("Gemma2ForCausalLM", "model.layers.1.self_attn.o_proj"),  # a norm after it
    ],
)
def test_a_head_is_ablated_and_patched_as_a_hook_on_the_projection_does(name, path):
    hf = loud(name)
    found = logitlens.load(hf)
    columns = found.heads.of(1).columns(2)
    rows = {}
    by_head(hf, path, lambda z: rows.setdefault("z", z), OTHER)

    def zero(z):
        z[..., columns] = 0
        return z

    def mean(z):
        z[..., columns] = z[..., columns].mean(1, keepdim=True)
        return z

    def patched(z):
        z[:, -1, columns] = rows["z"][:, -1, columns]
        return z

    for e, change in (
        (edit.ablate(1, head=2), zero),
        (edit.ablate(1, head=2, how="mean"), mean),
        (edit.patch(OTHER, 1, positions=-1, head=2), patched),
    ):
        same_as(found.read(IDS, edits=e), by_head(hf, path, change))
    read = found.capture(IDS, stream="head", layers=1, edits=edit.ablate(1, head=2))
    assert not read.h[2].any()
    assert read.h[1].any()
    assert found.attribute(IDS, 7, by="head", edits=edit.ablate(1, head=2)).part("1.head2") == 0
    equal(found.read(IDS, edits=edit.patch(IDS, 1, head=2)), found.read(IDS), exact=False)
    e = edit.parse("ablate:block=1,head=2,positions=-1")
    alone = [found.read(ids, edits=e) for ids in (IDS, OTHER[:6])]
    for a, b in zip(alone, found.read_batch([IDS, OTHER[:6]], edits=e)):
        equal(a, b, exact=False)


def test_a_head_patch_is_kept_with_its_rows(model, tmp_path):
    first = model.read(IDS, edits=edit.patch(OTHER, 1, positions=-1, head=3))
    assert first.meta["edits"][0]["text"].startswith("1.head3 patched from")
    again = model.read(IDS, edits=edit.load(first.save(tmp_path / "edited.json")))
    equal(first, again)


@pytest.mark.parametrize("name", ["GPTNeoXForCausalLM", "CohereForCausalLM", "Gemma2ForCausalLM"])
def test_parallel_and_sandwiched_sublayers_are_ablated_too(name):
    found = logitlens.load(build(name))
    for stream in ("attn", "mlp"):
        residuals = found.capture(IDS, stream=stream, edits=edit.ablate(1, stream))
        assert not residuals.h[1].any()
        assert found.read(IDS, edits=edit.ablate(1, stream)).check_text()[0]
    plain, both = found.capture(IDS), [edit.ablate(1, "attn"), edit.ablate(1, "mlp")]
    edited = found.capture(IDS, edits=both)
    torch.testing.assert_close(edited.h[2], plain.h[1], atol=1e-5, rtol=0)


def test_an_edit_of_strength_0_is_the_unedited_reading_bit_for_bit(model):
    plain = model.read(IDS)
    for e in (
        edit.add(VECTOR, 1, scale=0),
        edit.project_out(VECTOR, 1, scale=0),
        edit.swap(VECTOR, VECTOR[::-1], 1, scale=0),
    ):
        equal(model.read(IDS, edits=e), plain)


@pytest.mark.parametrize("stream", ["resid", "attn", "mlp"])
def test_patching_a_run_with_itself_changes_nothing(model, stream):
    equal(model.read(IDS, edits=edit.patch(IDS, 1, stream=stream)), model.read(IDS))


def test_the_last_layers_last_position_patched_is_the_other_prompts_last_column(model):
    for source in (OTHER, model.capture(OTHER)):
        patched = model.read(IDS, edits=edit.patch(source, -1, positions=-1))
        other = model.read(OTHER)
        np.testing.assert_array_equal(patched.top_ids[-1, -1], other.top_ids[-1, -1])
        np.testing.assert_allclose(
            patched.top_logprobs[-1, -1], other.top_logprobs[-1, -1], atol=1e-5
        )
        np.testing.assert_array_equal(patched.top_ids[-1, :-1], model.read(IDS).top_ids[-1, :-1])


EDITS = [
    edit.add(VECTOR, 1, positions=[0, -1], scale=3.0),
    edit.ablate(2, "mlp", positions=-1),
    edit.patch(OTHER, 0, positions="2:4"),
]


def test_batches_and_chunks_read_the_same(model):
    alone = [model.read(ids, edits=EDITS) for ids in (IDS, OTHER[:6])]
    for a, b in zip(alone, model.read_batch([IDS, OTHER[:6]], edits=EDITS)):
        equal(a, b, exact=False)
    equal(alone[0], model.read(IDS, edits=EDITS, chunk=3), exact=False)
    with pytest.raises(PromptError, match="needs it whole: not in chunks"):
        model.read(IDS, edits=edit.ablate(1, "mlp", "mean"), chunk=3)


def test_readout_checks_positions_against_the_edited_model(model):
    residuals = model.capture(IDS, edits=EDITS)
    equal(model.readout(residuals, positions=[3]), model.read(IDS, edits=EDITS, positions=[3]))


def test_a_generation_is_edited_in_its_prompt_and_where_asked_in_what_is_written(model):
    """Against a plain hook that does the same in every pass of transformers' own generation."""
    prompt, new = IDS, 4
    plain = model.generate(prompt, max_new_tokens=new, temperature=0)
    for generated in (False, True):
        e = edit.add(VECTOR, 1, positions=-1, scale=9.0, generated=generated)
        reading = model.generate(prompt, max_new_tokens=new, temperature=0, edits=e)
        passes = []

        def hook(module, args, output, generated=generated, passes=passes):
            if not passes or generated:
                output[:, -1] += 9 * torch.from_numpy(VECTOR)
            passes.append(1)
            return output

        handle = model.hf.model.layers[1].register_forward_hook(hook)
        ids = model.hf.generate(torch.tensor([prompt]), max_new_tokens=new, do_sample=False)
        handle.remove()
        assert reading.meta["generation"]["ids"] == ids[0, len(prompt) :].tolist()
        assert reading.meta["generation"]["ids"] != plain.meta["generation"]["ids"]
        assert reading.meta["generation"]["reread"]["ok"]
        assert reading.meta["edits"][0]["generated"] is generated
    with pytest.raises(PromptError, match="needs it whole"):
        model.generate(prompt, max_new_tokens=2, edits=edit.ablate(1, "mlp", "mean"))


def test_what_each_reads_while_a_generation_is_edited_is_not(model):
    plain, seen = model.read(OTHER), []
    model.generate(
        IDS, max_new_tokens=2, temperature=0, edits=[*EDITS, edit.add(VECTOR, 1, generated=True)],
        each=lambda column: seen.append(model.read(OTHER)),
    )  # fmt: skip
    for reading in seen:
        equal(reading, plain)


@pytest.mark.parametrize("suffix", [".json", ".parquet"])
def test_a_reading_keeps_its_edits_and_they_can_be_applied_again(model, tmp_path, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    first = model.read(IDS, edits=[*EDITS, edit.add(3, 2)])
    saved = first.save(tmp_path / f"edited{suffix}")
    again = model.read(IDS, edits=edit.load(saved))
    equal(first, again)
    assert again.meta["edits"] == first.meta["edits"]
    assert first.meta["edits"][0]["text"] == "added 3 × a vector after layer 1 at position 0, -1"
    assert "edited: added 3 × a vector" in " ".join(str(first).split())
    other = logitlens.load(tiny_gpt2())
    with pytest.raises(PromptError, match=r"saved with the model .*, and this is"):
        other.read(IDS, edits=edit.load(saved))


def test_attribution_sums_under_edits_and_shows_what_they_added(model):
    found = model.attribute(IDS, 7, versus=3, edits=EDITS)
    assert "1.edit" in found.components
    assert found.part("2.mlp") == 0
    own = model.read(IDS, edits=EDITS, track=[7, 3]).track_logprobs[-1, -1]
    assert found.logit == pytest.approx(float(own[0] - own[1]), abs=1e-4)
    at_the_end = model.attribute(IDS, 7, edits=edit.add(VECTOR, -1))
    assert "3.edit" in at_the_end.components


def test_a_direction_raises_its_token_and_goes_through_a_lens(model):
    u_D = model.direction(7, layer=3)
    assert u_D.dtype == np.float32
    assert np.linalg.norm(u_D) == pytest.approx(1, abs=1e-5)
    gain_D = model.hf.model.norm.weight.detach().double()
    by_hand = gain_D * model.hf.lm_head.weight[7].detach().double()
    np.testing.assert_allclose(u_D, (by_hand / by_hand.norm()).numpy(), atol=1e-6)
    ranks = [
        model.read(IDS, track=7, edits=edit.add(7, 3, scale=s)).track_ranks[-1, -1, 0]
        for s in (-5.0, 0.0, 5.0)
    ]
    assert ranks[0] > ranks[1] >= ranks[2]
    against = model.direction(7, 3, layer=3)
    assert abs(float(against @ u_D)) < 1 - 1e-3


@pytest.mark.parametrize(
    ("e", "said"),
    [
        (edit.add(VECTOR, 9), "no layer 9: expected 0 to 3 or embed"),
        (edit.add(VECTOR, 1, positions=44), "no position 44: expected 0 to 8"),
        (edit.add(VECTOR[:5], 1), "its vector is 5 wide and the model 32"),
        (edit.add("tower of", 1), "tokens"),
        (edit.add(" Paris", "x"), "no layer 'x'"),
        (edit.ablate(9, "mlp"), "no layer 9"),
        (edit.swap(VECTOR, 2 * VECTOR, 1), "the two directions are the same"),
        (edit.patch([3, 4], 1), "2 rows for 9 positions"),
        (
            edit.patch([3, 4], 1, positions=-1, from_positions=7),
            "in the prompt it is taken from, no",
        ),
        (edit.ablate(1, head=4), "no head 4: block 1 has heads 0 to 3"),
        (edit.patch(OTHER, "embed", head=1), "expected a block, 0 to 3"),
        (edit.add(VECTOR, "0:2"), "layer='0:2': expected one layer, got 2"),
        (edit.add(VECTOR, 1, scale=3e38), "its edits may be too strong"),
        ("add:layer=5", "edits hold str"),
        (VECTOR, "edits hold float32"),
    ],
)
def test_mistakes_are_one_line(model, e, said):
    with pytest.raises(LogitLensError, match=said) as caught:
        model.read(IDS, edits=e)
    assert "\n" not in str(caught.value)


def test_nothing_remains_on_the_model(model):
    def hooks():
        return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.hf.modules()]

    plain, before = model.read(IDS), hooks()
    model.read(IDS, edits=EDITS)
    with pytest.raises(PromptError):
        model.read(IDS, edits=edit.patch([3, 4], 1))
    assert hooks() == before
    equal(model.read(IDS), plain)


def test_the_code_of_an_edited_reading_makes_it_again_from_its_file(model, tmp_path, monkeypatch):
    reading = model.read(IDS, edits=[edit.add(VECTOR, 1, -1, scale=9.0), edit.ablate(0, "mlp")])
    reading.save(tmp_path / "edited.json")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logitlens, "load", lambda *args, **kwargs: model)
    names: dict = {}
    exec(code(reading), names)
    equal(names["reading"], reading)
