import json
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")


class FakeCheck:
    ok = True

    def line(self):
        return "last row checked against the model's own logits at 22 positions: max |Δ log-prob| 1.0e-06"

    def to_meta(self):
        return {"ok": True, "max_abs_diff": 1e-6, "tolerance": 1e-4, "positions": 22}


@pytest.fixture
def checked(cli):
    cli.model = SimpleNamespace(
        name="some/\x1b[31mmodel", revision="abc", n_blocks=5, width=64, vocab_size=512, context=None,
        dtype=torch.bfloat16, hf=torch.nn.Linear(2, 2), check=FakeCheck(),
        anatomy=SimpleNamespace(blocks_path="model.layers"),
        tail=SimpleNamespace(kind="weights", description=[("final norm", "model.norm (LlamaRMSNorm)")]),
    )  # fmt: skip
    return cli


def test_anatomy_and_figures_are_printed(checked):
    result = checked("check", "some/model", "--dtype", "bfloat16")
    assert checked.loaded == [(("some/model",), {"dtype": "bfloat16"})]
    assert [line.rstrip() for line in result.stdout.splitlines()] == [
        "some/␛[31mmodel: Linear",
        "blocks      5 at model.layers",
        "layers      embed, 0 … 4",
        "width       64",
        "vocabulary  512",
        "context     not stated",
        "final norm  model.norm (LlamaRMSNorm)",
        "tail        read from its weights",
        "dtype       bfloat16 on cpu",
        "✓ last row checked against the model's own logits at 22 positions: max |Δ log-prob| 1.0e-06",
    ]


def test_json(checked):
    facts = json.loads(checked("check", "some/model", "--json").stdout)
    assert facts["blocks"] == "model.layers"
    assert facts["n_blocks"] == 5
    assert facts["tail"] == {
        "kind": "weights",
        "steps": [["final norm", "model.norm (LlamaRMSNorm)"]],
    }
    assert facts["check"]["max_abs_diff"] == 1e-6


def test_the_bundled_model_by_default(checked):
    assert checked("check").exit_code == 0
    assert checked.loaded == [((None,), {})]


def test_the_real_thing(shared_data):
    """No fake: the program checks and reads a trained model from a directory."""
    from click.testing import CliRunner

    from logitlens.cli import main

    model = str(shared_data / "stories260k")
    result = CliRunner().invoke(main, ["check", model])
    assert result.exit_code == 0, result.stderr
    assert "5 at model.layers" in result.stdout
    assert "✓ last row checked against the model's own logits" in result.stdout
    result = CliRunner().invoke(main, ["read", "Once upon a", "-m", model, "-k", "3"])
    assert (result.exit_code, result.stderr) == (0, "")
    assert "✓ last row checked against the model's own logits: within" in result.stdout
    assert "\x1b" not in result.stdout
