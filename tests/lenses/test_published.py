"""Published lens files, built here in the originals' formats and read against the papers' formulas."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from logitlens.errors import FormatError, LensMismatch, LensNotAvailable
from logitlens.lenses import find, open_lens, published
from tests.lenses import tiny


def tuned_directory(folder: Path, model, *, seed: int = 3, dtype=torch.float32, **config) -> Path:
    """A lens as tuned-lens's `TunedLens.save` writes it: a ModuleList's state and a config."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    translators = torch.nn.ModuleList(
        [torch.nn.Linear(model.width, model.width, dtype=dtype) for _ in range(model.n_blocks)]
    )
    torch.save(translators.state_dict(), folder / "params.pt")
    weight = model.tail.head.weight_VE.detach().float().numpy()
    data = {
        "base_model_name_or_path": model.name,
        "d_model": model.width,
        "num_hidden_layers": model.n_blocks,
        "bias": True,
        "base_model_revision": None,
        "unembed_hash": hashlib.sha256(str.encode(np.array_str(weight, precision=1))).hexdigest(),
        "lens_type": "linear_tuned_lens",
        **config,
    }
    (folder / "config.json").write_text(json.dumps(data))
    return folder


def jacobian_file(path: Path, model, *, seed: int = 4, layers=None, **more) -> Path:
    """A lens as jacobian-lens's `JacobianLens.save` writes it."""
    generator = torch.Generator().manual_seed(seed)
    D = model.width
    layers = list(range(model.n_blocks - 1)) if layers is None else layers
    data = {
        "J": {i: torch.randn(D, D, generator=generator).half() for i in layers},
        "n_prompts": 12,
        "source_layers": layers,
        "d_model": D,
        **more,
    }
    torch.save(data, path)
    return path


def final_norm_and_head(model, y_ND):
    """The tail by hand: a GPT-2's own modules, called one after the other."""
    return model.hf.lm_head(model.hf.transformer.ln_f(y_ND)).log_softmax(-1)


def test_tuned_lens_directory_reads_as_the_paper_says(tmp_path):
    model = tiny.gpt2()
    folder = tuned_directory(tmp_path / "lens", model)
    lens = find.resolve(f"tuned:{folder}", model)
    state = torch.load(folder / "params.pt", weights_only=True)
    reading = model.read(list(range(1, 9)), lens=lens, top=tiny.VOCAB)
    residuals = model.capture(list(range(1, 9)))
    assert reading.layers == ["embed", "0", "1", "2"]
    for depth in range(model.n_blocks):
        h_TD = residuals.h[depth]
        with torch.no_grad():  # Belrose et al. 2023: LayerNorm[h + A h + b] W_U
            y_TD = h_TD + h_TD @ state[f"{depth}.weight"].T + state[f"{depth}.bias"]
            truth = final_norm_and_head(model, y_TD)
        got = torch.full_like(truth, torch.nan)
        got.scatter_(
            1,
            torch.from_numpy(reading.top_ids[depth].astype(np.int64)),
            torch.tensor(reading.top_logprobs[depth]),
        )
        torch.testing.assert_close(got, truth, atol=2e-5, rtol=2e-5)
    np.testing.assert_array_equal(reading.kl[-1], 0)
    assert reading.meta["lens"]["name"] == "tuned"


def test_jacobian_file_reads_as_the_paper_says(tmp_path):
    model = tiny.gpt2()
    path = jacobian_file(tmp_path / "Tiny_jacobian_lens.pt", model)
    reading = model.read(list(range(1, 9)), lens=f"jacobian:{path}", top=tiny.VOCAB)
    assert reading.layers == [
        "0",
        "1",
        "2",
    ]  # no map for the embedding; the last is the model's own
    J = torch.load(path, weights_only=True)["J"]
    residuals = model.capture(list(range(1, 9)))
    for row, layer in enumerate([0, 1]):
        with torch.no_grad():  # the output of block `layer`, that is depth layer + 1
            truth = final_norm_and_head(model, residuals.h[layer + 1] @ J[layer].float().T)
        got = torch.full_like(truth, torch.nan)
        got.scatter_(
            1,
            torch.from_numpy(reading.top_ids[row].astype(np.int64)),
            torch.tensor(reading.top_logprobs[row]),
        )
        torch.testing.assert_close(got, truth, atol=2e-5, rtol=2e-5)


def test_an_identity_jacobian_and_a_zero_tuned_lens_are_the_logit_lens(tmp_path):
    model = tiny.llama()
    D = model.width
    torch.save(
        {
            "J": {i: torch.eye(D) for i in range(2)},
            "n_prompts": 1,
            "source_layers": [0, 1],
            "d_model": D,
        },
        tmp_path / "lens.pt",
    )
    folder = tuned_directory(tmp_path / "zero", model)
    state = torch.load(folder / "params.pt", weights_only=True)
    torch.save({name: torch.zeros_like(t) for name, t in state.items()}, folder / "params.pt")
    plain = model.read([5, 6, 7, 8])
    tuned = model.read([5, 6, 7, 8], lens=f"tuned:{folder}")
    jacobian = model.read([5, 6, 7, 8], lens=f"jacobian:{tmp_path / 'lens.pt'}")
    np.testing.assert_array_equal(tuned.top_ids, plain.top_ids)
    np.testing.assert_allclose(tuned.top_logprobs, plain.top_logprobs, atol=1e-6)
    np.testing.assert_array_equal(jacobian.top_ids, plain.top_ids[1:])
    np.testing.assert_allclose(jacobian.kl, plain.kl[1:], atol=1e-6)


def test_a_lens_trained_in_parallel_keeps_its_prefix_to_itself(tmp_path):
    model = tiny.gpt2()
    folder = tuned_directory(tmp_path / "lens", model)
    state = torch.load(folder / "params.pt", weights_only=True)
    torch.save({f"module.{name}": t for name, t in state.items()}, folder / "params.pt")
    assert open_lens(folder).depths() == {0, 1, 2}


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def test_pickles_with_code_are_never_run(tmp_path, capsys):
    path = tmp_path / "lens.pt"
    torch.save({"J": {0: Evil()}, "n_prompts": 1, "d_model": 32}, path)
    with pytest.raises(FormatError, match="can run code"):
        published.load_jacobian_pt(path)
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": 48}, "has shape"),
        ({"num_hidden_layers": 5}, "config.json says 5 layers"),
        ({"d_model": "wide"}, "as the config of a tuned lens"),
    ],
)
def test_a_tuned_directory_that_contradicts_itself(tmp_path, change, message):
    folder = tuned_directory(tmp_path / "lens", tiny.gpt2(), **change)
    with pytest.raises((LensMismatch, FormatError), match=message) as error:
        open_lens(folder)
    assert "\n" not in str(error.value)


def test_wrong_model_is_refused_in_one_line(tmp_path):
    model = tiny.gpt2()
    folder = tuned_directory(tmp_path / "lens", model)
    for other, message in [
        (tiny.gpt2(width=48), "has width 48"),
        (tiny.gpt2(blocks=4), "has 4"),
        (tiny.gpt2(seed=9, name="tiny/other"), "another unembedding than tiny/other"),
    ]:
        with pytest.raises(LensMismatch, match=message) as error:
            find.resolve(f"tuned:{folder}", other)
        assert "\n" not in str(error.value)


def test_a_jacobian_lens_of_another_shape_is_refused(tmp_path):
    path = jacobian_file(tmp_path / "lens.pt", tiny.gpt2(blocks=5))
    with pytest.raises(LensMismatch, match="a map for layer 2, but the last"):
        find.resolve(f"jacobian:{path}", tiny.gpt2())
    wrong = jacobian_file(tmp_path / "width.pt", tiny.gpt2(), d_model=64)
    with pytest.raises(LensMismatch, match=r"expected"):
        open_lens(wrong)
    torn = jacobian_file(tmp_path / "torn.pt", tiny.gpt2(), source_layers=[0, 1, 2, 3])
    with pytest.raises(LensMismatch, match="not whole"):
        open_lens(torn)


@pytest.mark.parametrize("content", [b"", b"torn", b"not a torch file", b"PK\x03\x04half a zip"])
def test_a_file_that_is_no_lens(tmp_path, content):
    path = tmp_path / "lens.pt"
    path.write_bytes(content)
    with pytest.raises(FormatError) as error:
        open_lens(path)
    assert "\n" not in str(error.value)
    with pytest.raises(LensNotAvailable, match="no lens at"):
        open_lens(tmp_path / "missing.pt")
    torch.save({"weights": torch.zeros(2)}, path)
    with pytest.raises(FormatError, match="J and d_model"):
        open_lens(path)


def test_the_tuned_lens_package_agrees(tmp_path):
    """Their loader, their unembedding, their formula, on a directory of theirs; where it installs."""
    lenses = pytest.importorskip("tuned_lens.nn.lenses", exc_type=ImportError)
    model = tiny.gpt2()
    folder = tuned_directory(tmp_path / "lens", model)
    theirs = lenses.TunedLens.from_model_and_pretrained(model.hf, str(folder), map_location="cpu")
    ours = find.resolve(f"tuned:{folder}", model)
    assert ours.describe()["unembedding_confirmed"] is True
    h_ND = tiny.rows(model)
    for depth in range(model.n_blocks):
        with torch.no_grad():
            truth = theirs(h_ND, depth).log_softmax(-1)
        got = model.tail.logits(ours.apply(h_ND, depth)).log_softmax(-1)
        torch.testing.assert_close(got, truth, atol=2e-5, rtol=2e-5)
    saved = tmp_path / "saved"
    theirs.save(saved)
    assert open_lens(saved).hash == open_lens(folder).hash
