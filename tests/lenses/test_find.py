"""Where a bare lens name is looked for, and in which order."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from logitlens.errors import FormatError, LensMismatch, LensNotAvailable, PromptError
from logitlens.lenses import LogitLens, find, online, resolve, save
from tests.lenses import tiny
from tests.lenses.test_published import jacobian_file, tuned_directory
from tests.lenses.test_store import tuned


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LOGITLENS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(find, "BUNDLED", tmp_path / "bundle")
    (tmp_path / "home" / "lenses").mkdir(parents=True)
    (tmp_path / "bundle").mkdir()
    return tmp_path


def test_names_and_objects(home):
    model = tiny.gpt2()
    assert isinstance(resolve("logit", model), LogitLens)
    own = LogitLens()
    assert resolve(own, model) is own
    for wrong in ("logits", "tuned:", "logit:x", ""):
        with pytest.raises(PromptError, match="no lens called"):
            resolve(wrong, model)
    with pytest.raises(PromptError, match="got int"):
        resolve(3, model)


def test_order_beside_then_folder_then_bundle(home):
    model = tiny.gpt2()
    directory = home / "model"
    directory.mkdir()
    model.name = str(directory)
    places = [
        directory / "lenses" / "tuned.safetensors",
        find.lens_folder() / "model" / "tuned.safetensors",
        find.lens_folder() / "anything" / "tuned.safetensors",
        home / "bundle" / "tuned.safetensors",
    ]
    for seed, place in enumerate(places):
        place.parent.mkdir(parents=True, exist_ok=True)
        save(tuned(model, seed), place)
    for place in places:
        assert resolve("tuned", model).path == str(place)
        place.unlink()
    with pytest.raises(LensNotAvailable, match="fit one with `logitlens fit tuned CORPUS -m"):
        resolve("tuned", model)


def test_a_lens_of_another_model_is_passed_by_and_the_reason_given(home):
    model, other = tiny.gpt2(), tiny.gpt2(seed=1, name="tiny/gpt2")
    named = find.lens_folder() / find.slug(model.name) / "tuned.safetensors"
    named.parent.mkdir(parents=True)
    save(tuned(other), named)
    with pytest.raises(LensMismatch, match="another unembedding"):
        resolve("tuned", model)
    second = find.lens_folder() / "x" / "tuned.safetensors"
    second.parent.mkdir()
    save(tuned(model), second)
    assert resolve("tuned", model).path == str(second)


def test_published_lenses_in_the_lens_folder(home):
    model = tiny.gpt2()
    folder = find.lens_folder() / find.slug(model.name)
    tuned_directory(folder, model)
    jacobian_file(folder / "gpt2_jacobian_lens.pt", model)
    assert resolve("tuned", model).describe()["source"] == "tuned-lens"
    assert resolve("jacobian", model).describe()["source"] == "jacobian-lens"


def test_offline_says_what_to_do(home):
    with pytest.raises(LensNotAvailable, match="HF_HUB_OFFLINE") as error:
        resolve("jacobian", tiny.gpt2())
    assert "\n" not in str(error.value)


def test_paths(home):
    model = tiny.gpt2()
    file = save(tuned(model), home / "tuned.safetensors")
    assert resolve(f"tuned:{file}", model).path == str(file)
    assert resolve(f"tuned:{home}", model).path == str(file)
    with pytest.raises(LensMismatch, match="say tuned:"):
        resolve(f"jacobian:{file}", model)
    with pytest.raises(LensNotAvailable, match="no lens at"):
        resolve(f"tuned:{home / 'nothing'}", model)
    with pytest.raises(LensNotAvailable, match=r"no jacobian lens in"):
        resolve(f"jacobian:{home}", model)
    with pytest.raises(LensNotAvailable, match="hub repository someone/lenses"):
        resolve("tuned:someone/lenses", model)
    jacobian_file(home / "a_jacobian_lens.pt", model)
    jacobian_file(home / "b_jacobian_lens.pt", model)
    with pytest.raises(LensMismatch, match="several lenses"):
        resolve(f"jacobian:{home}", model)


def test_a_broken_lens_beside_the_model_is_named(home):
    model = tiny.gpt2()
    place = find.lens_folder() / find.slug(model.name) / "tuned.safetensors"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"broken")
    with pytest.raises(FormatError, match="not a lens file"):
        resolve("tuned", model)


def test_the_jacobian_lens_of_most_prompts_is_taken():
    files = [
        "qwen3-4b/jlens/Salesforce-wikitext/Qwen3-4B_jacobian_lens.pt",
        "qwen3-4b/jlens/Salesforce-wikitext/Qwen3-4B_jacobian_lens_n100.pt",
        "qwen3-4b/jlens/Salesforce-wikitext/Qwen3-4B_jacobian_lens_n1000.pt",
        "qwen3-4b-base/jlens/x/Qwen3-4B-Base_jacobian_lens_n9999.pt",
        "README.md",
    ]
    assert online.best_jacobian(files, "Qwen3-4B") == files[2]
    assert online.best_jacobian(files[:1], "qwen3-4b") == files[0]
    assert online.best_jacobian(files, "gpt2") is None


def test_a_published_lens_in_the_hub_cache_is_found_offline(home, monkeypatch):
    from huggingface_hub import constants

    model = tiny.gpt2(name="someone/Tiny-Model")
    cache = home / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    commit = "a" * 40
    for repo in ("spaces--AlignmentResearch--tuned-lens", "models--neuronpedia--jacobian-lens"):
        (cache / repo / "refs").mkdir(parents=True)
        (cache / repo / "refs" / "main").write_text(commit)
    space = cache / "spaces--AlignmentResearch--tuned-lens" / "snapshots" / commit
    tuned_directory(space / "lens" / "Tiny-Model", model)
    repo = cache / "models--neuronpedia--jacobian-lens" / "snapshots" / commit
    (repo / "tiny-model" / "jlens").mkdir(parents=True)
    jacobian_file(repo / "tiny-model" / "jlens" / "Tiny-Model_jacobian_lens_n100.pt", model)
    assert resolve("tuned", model).header.source == "tuned-lens"
    assert resolve("jacobian", model).header.source == "jacobian-lens"


def test_lenses_import_nothing_above_them():
    code = (
        "import sys, logitlens.lenses; "
        "print([m for m in sys.modules if m.startswith(('logitlens.model', 'transformers'))])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_apply_keeps_rows_independent(home):
    model = tiny.gpt2()
    lens = tuned(model)
    h_ND = tiny.rows(model, 9)
    parts = torch.cat([lens.apply(h_ND[:4], 2), lens.apply(h_ND[4:], 2)])
    torch.testing.assert_close(lens.apply(h_ND, 2), parts, atol=1e-6, rtol=1e-6)
