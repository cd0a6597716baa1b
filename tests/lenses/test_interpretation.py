"""What a lens file means: every look-alike of really fitted lenses is found out from its numbers."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import logitlens
from logitlens.errors import PromptError
from logitlens.lenses import JacobianLens, TunedLens, interpretation, open_lens, resolve
from logitlens.lenses.interpretation import first_use, interpret
from tests.lenses import tiny
from tests.lenses.test_published import jacobian_file, tuned_directory


@pytest.fixture(scope="module")
def model():
    return logitlens.load()


@pytest.fixture(scope="module")
def maps(model):
    """Depth → the matrices of the bundled lenses, float32."""
    tuned, jacobian = resolve("tuned", model), resolve("jacobian", model)
    return {
        "A": {d: tuned.tensors[f"{d}.weight"].float() for d in tuned.depths()},
        "b": {d: tuned.tensors[f"{d}.bias"].float() for d in tuned.depths()},
        "J": {d: jacobian.tensors[f"{d}.jacobian"].float() for d in jacobian.depths()},
        "tuned": tuned.header,
        "jacobian": jacobian.header,
    }


def tuned_of(maps, A, shift=0) -> TunedLens:
    """Translators under the numbers of a file that counts `shift` layers less."""
    tensors = {}
    for d, weight in A.items():
        if d - shift >= 0:
            tensors |= {f"{d - shift}.weight": weight, f"{d - shift}.bias": maps["b"][d]}
    depths = tuple(sorted({int(name.partition(".")[0]) for name in tensors}))
    return TunedLens(tensors, replace(maps["tuned"], depths=depths, losses={}))


def jacobian_of(maps, J) -> JacobianLens:
    tensors = {f"{d}.jacobian": J_DD.contiguous() for d, J_DD in J.items()}
    return JacobianLens(
        tensors, replace(maps["jacobian"], depths=tuple(sorted(J)), losses={}, source="elsewhere")
    )


USUAL = {
    "tuned": "h + A h + b, h entering block i",
    "jacobian": "J h, h leaving block i, to the last block's output",
}


def final_norm(model) -> torch.Tensor:
    """The mean derivative of the final norm over a text, (D, D): row = output dimension."""
    h_ND = model.capture(interpretation.TEXT).h[-1][16:-1:8]
    with torch.enable_grad():
        norm = model.hf.transformer.ln_f
        return torch.stack([torch.autograd.functional.jacobian(norm, h_D) for h_D in h_ND]).mean(0)


def look_alikes(model, maps):
    """(a lens, what it holds): of every kind of file that looks like a published one."""
    A, J, N = maps["A"], maps["J"], model.n_blocks
    eye = torch.eye(model.width)
    yield tuned_of(maps, A), USUAL["tuned"]
    yield tuned_of(maps, {d: w + eye for d, w in A.items()}), "A h + b, h entering block i"
    yield tuned_of(maps, A, shift=1), "h + A h + b, h leaving block i"
    yield (
        tuned_of(maps, {d: w + eye for d, w in A.items()}, shift=1),
        "A h + b, h leaving block i",
    )
    yield jacobian_of(maps, {d: J[d] for d in range(1, N)}), USUAL["jacobian"]
    yield (
        jacobian_of(maps, {d: J[d].T for d in range(1, N)}),
        "J transposed h, h leaving block i, to the last block's output",
    )
    yield (
        jacobian_of(maps, {d + 1: J[d] for d in range(N - 1)}),
        "J h, h entering block i, to the last block's output",
    )
    yield (
        jacobian_of(maps, {d - 1: J[d] for d in range(2, N)}),
        "J h, h leaving the block after block i, to the last block's output",
    )
    yield (
        jacobian_of(maps, {d: final_norm(model) @ J[d] for d in range(1, N)}),
        "J h, h leaving block i, to the final norm's output",
    )
    for target in (N - 1, N - 2):  # by the chain rule, up to the spread of Jacobians
        to_target = {d: torch.linalg.solve(J[target], J[d]) for d in range(1, target)}
        yield (
            jacobian_of(maps, to_target),
            f"J h, h leaving block i, to the output of block {target - 1}",
        )


@pytest.mark.slow
def test_every_look_alike_is_found_out(model, maps):
    for lens, truth in look_alikes(model, maps):
        verdict = interpret(lens, model)
        assert verdict.found == truth, verdict.line()
        as_read = verdict.to_meta()["as_read"]
        assert as_read is (truth == USUAL[lens.kind])
        assert ("not what it is read as" in verdict.line()) is not as_read


def test_few_tokens_find_out_the_same(model, maps):
    """What is tried on first use: a published file is not taken for what it is not."""
    for lens, truth in look_alikes(model, maps):
        assert first_use(lens, model).found == truth, first_use(lens, model).line()


def test_maps_that_mean_nothing_fit_no_interpretation(model, maps):
    generator = torch.Generator().manual_seed(0)
    noise = {d: torch.randn(w.shape, generator=generator) * 0.1 for d, w in maps["A"].items()}
    biases = {d: w[0] for d, w in noise.items()}
    for lens in (tuned_of({**maps, "b": biases}, noise), jacobian_of(maps, noise)):
        verdict = interpret(lens, model)
        assert verdict.found is None
        assert verdict.to_meta()["as_read"] is None
        assert "no interpretation fits" in verdict.line()


def test_what_cannot_be_told_is_ambiguous(model, maps):
    same = {d: torch.eye(model.width) for d in range(1, model.n_blocks)}  # its own transpose
    verdict = interpret(jacobian_of(maps, same), model)
    assert verdict.found is None
    assert verdict.line().startswith("ambiguous: ")


@pytest.mark.slow
def test_other_precisions_find_out_the_same(maps):
    half = logitlens.load(dtype="bfloat16")
    for lens, truth in look_alikes(logitlens.load(), maps):
        assert first_use(lens, half).found == truth


@pytest.mark.slow
def test_a_lens_fitted_to_another_target_is_found_out(model):
    """Fitted on the model without its last block, whose end is the output of the last but one."""
    import copy

    from logitlens.fit import jacobian

    ids = model.tokenizer(BOOK)["input_ids"]
    prompts = [torch.tensor(ids[i : i + 64]) for i in range(0, len(ids) - 63, 64)]
    assert len(prompts) >= 3
    shorter = copy.deepcopy(model.hf)
    del shorter.transformer.h[-1]
    shorter.config.n_layer -= 1
    sums = jacobian.estimate(
        logitlens.load(shorter, tokenizer=model.tokenizer), prompts, jacobian.Settings()
    )
    J = {d: J_DD / len(prompts) for d, J_DD in sums.items() if d > 0}
    header = replace(resolve("jacobian", model).header, depths=tuple(J), source="elsewhere")
    lens = JacobianLens({f"{d}.jacobian": J_DD for d, J_DD in J.items()}, header)
    for verdict in (interpret(lens, model), first_use(lens, model)):
        assert verdict.found == "J h, h leaving block i, to the output of block 6", verdict.line()


BOOK = """Alice was beginning to get very tired of sitting by her sister on the bank, and of having \
nothing to do: once or twice she had peeped into the book her sister was reading, but it had no \
pictures or conversations in it, and what is the use of a book, thought Alice, without pictures or \
conversations? So she was considering in her own mind, as well as she could, for the hot day made \
her feel very sleepy and stupid, whether the pleasure of making a daisy chain would be worth the \
trouble of getting up and picking the daisies, when suddenly a White Rabbit with pink eyes ran close \
by her. There was nothing so very remarkable in that; nor did Alice think it so very much out of the \
way to hear the Rabbit say to itself, Oh dear! Oh dear! I shall be late!"""


# -- in use ---------------------------------------------------------------------------------------


def published_jacobian(path, model, maps, transposed=False):
    layers = list(range(model.n_blocks - 1))
    J = {i: maps["J"][i + 1].T if transposed else maps["J"][i + 1] for i in layers}
    return jacobian_file(path, model, layers=layers, J={i: w.half() for i, w in J.items()})


def test_the_verdict_is_in_the_meta_of_a_reading(tmp_path, model, maps, monkeypatch):
    right = published_jacobian(tmp_path / "right.pt", model, maps)
    wrong = published_jacobian(tmp_path / "wrong.pt", model, maps, transposed=True)
    found = {}
    for path in (right, wrong):
        reading = model.read("Paris is the capital of", lens=f"jacobian:{path}")
        json.dumps(reading.meta["lens"], allow_nan=False)
        found[path] = reading.meta["lens"]["interpretation"]
        # And under every picture, where another interpretation is right.
        said = " ".join(str(reading).split())
        assert ("NOT the map that it is read as" in said) == (path == wrong)
    assert (found[right]["as_read"], found[wrong]["as_read"]) == (True, False)
    assert found[wrong]["verdict"].startswith("not what it is read as, but J transposed h")
    # It is tried once for each file and model.
    monkeypatch.setattr(interpretation, "interpret", lambda *a, **k: pytest.fail("tried again"))
    model.read("Paris", lens=f"jacobian:{right}")


def test_lenses_of_ours_are_known_by_their_fingerprint_and_not_tried(model):
    assert "interpretation" not in model.read("Paris", lens="tuned").meta["lens"]


def test_a_model_without_a_tokenizer_is_read_untested(tmp_path):
    untold = tiny.gpt2()
    folder = tuned_directory(tmp_path / "lens", untold)
    found = untold.read([1, 2, 3], lens=f"tuned:{folder}").meta["lens"]["interpretation"]
    assert (found["as_read"], found["tokens"]) == (None, 0)
    assert found["verdict"] == "not tested: there is no tokenizer"


@pytest.mark.parametrize(
    ("ids", "message"), [([1] * 5, "5 tokens are too few"), (None, "tokenizer")]
)
def test_texts_from_which_nothing_can_be_told(tmp_path, ids, message):
    small = tiny.gpt2()
    lens = open_lens(jacobian_file(tmp_path / "lens.pt", small))
    with pytest.raises(PromptError, match=message):
        interpret(lens, small, ids=ids)


def test_small_models_have_fewer_interpretations_and_their_hooks_go(tmp_path):
    small = tiny.gpt2()
    lens = open_lens(jacobian_file(tmp_path / "lens.pt", small))
    verdict = interpret(lens, small, ids=list(range(40)))
    assert verdict.tokens == 40
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in small.hf.modules())


def test_a_verdict_is_of_the_model_as_it_is():
    """What has changed since is looked at again."""
    model = logitlens.load()
    lens = resolve("tuned", model)
    before = first_use(lens, model)
    assert first_use(lens, model) is before
    model._found(model.anatomy, model.tail, model.check)  # as after a change
    assert first_use(lens, model) is not before
