"""A sample of families in the quick tests; `make sweep` judges every class."""

from __future__ import annotations

import re
from functools import cache

import pytest

from tests.architectures import laws
from tests.architectures.build import CLASSES, VOCAB, build, quiet
from tests.architectures.laws import Verdict
from tests.architectures.sweep import PAGE, main, structure, with_rows

judge = cache(laws.judge)

FAMILIES = [
    "GPT2LMHeadModel",
    "GPTNeoForCausalLM",
    "GPTJForCausalLM",
    "GPTNeoXForCausalLM",
    "OPTForCausalLM",
    "BloomForCausalLM",
    "FalconForCausalLM",
    "MptForCausalLM",
    "LlamaForCausalLM",
    "MixtralForCausalLM",
    "Qwen3ForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "Phi3ForCausalLM",
    "Olmo2ForCausalLM",
    "CohereForCausalLM",
    "GraniteForCausalLM",
    "HyperCLOVAXForCausalLM",
]
# One of each odder tail or stream: what each shows is in docs/architectures.md.
ODD = [
    "BartForCausalLM",
    "BltForCausalLM",
    "MegatronBertForCausalLM",
    "ModernBertDecoderForCausalLM",
    "DeepseekV4ForCausalLM",
    "Gemma3nForCausalLM",
    "InklingForCausalLM",
    "MambaForCausalLM",
    "NemotronHForCausalLM",
    "MllamaForCausalLM",
    "Qwen4ExpForCausalLM",
    "ProphetNetForCausalLM",
    "XLMWithLMHeadModel",
]


@pytest.mark.parametrize("name", FAMILIES + ODD)
def test_family_is_read_exactly(name):
    verdict = judge(name)
    assert verdict.verdict == "correct", verdict


@pytest.mark.parametrize(
    "options",
    [
        {"word_embed_proj_dim": 16},
        {"word_embed_proj_dim": 16, "do_layer_norm_before": False},
        {"_remove_final_layer_norm": True},
    ],
    ids=["projected", "projected, post-norm", "no final norm"],
)
def test_opt_in_its_three_shapes(options):
    verdict = judge("OPTForCausalLM", **options)
    assert verdict.verdict == "correct", verdict


def test_visible_scales_are_found():
    tails = {name: judge(name).tail for name in ("GraniteForCausalLM", "HyperCLOVAXForCausalLM")}
    assert "scale: × 0.25" in tails["GraniteForCausalLM"]  # logits_scaling=4 divides here …
    assert "scale: × 4" in tails["HyperCLOVAXForCausalLM"]  # … and multiplies here
    assert "softcap: 4" in judge("Gemma2ForCausalLM").tail
    assert "then × 0.0416667" in judge("InklingForCausalLM").tail


def test_fixtures_are_tiny_and_of_the_size_their_configuration_says():
    with quiet():
        for name in FAMILIES:
            model = build(name)
            config = model.config.get_text_config(decoder=True)
            assert config.num_hidden_layers == 4, name
            assert model.get_input_embeddings().weight.shape == (VOCAB, 32), name
            assert sum(p.numel() for p in model.parameters()) < 300_000, name


def test_the_page_lists_every_class_and_nothing_wrong():
    text = PAGE.read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in text for name in CLASSES)
    assert "| wrong" not in text
    assert " 0 wrong." in text


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_page_is_up_to_date():
    """Every class judged again (minutes)."""
    assert main(["--check"]) == 0


def test_staleness_ignores_what_differs_between_machines_and_nothing_else():
    row = "| `A` | `m.layers (4)` | head: x | correct | < 1e-06 |"
    assert structure(row) == structure(row.replace("1e-06", "1e-05"))
    assert structure(row) != structure(row.replace("correct", "refused"))
    assert structure(f"{row} by 0.022 nats |") == structure(f"{row} by 2.3e-02 nats |")
    experts = row.replace("correct", "they differ by {} (tolerance {})")
    assert structure(experts.format("0.7", "2e-07")) == structure(experts.format("1e-3", "0.2"))
    assert structure(row) != structure(row.replace("m.layers", "n.layers"))


def test_rows_written_again_leave_the_others_and_are_counted():
    text = PAGE.read_text(encoding="utf-8")
    assert with_rows(text, []) == text  # the totals on the page are those of its rows
    changed = with_rows(text, [Verdict("GPT2LMHeadModel", "refused", reason="a | b")])
    pairs = [(a, b) for a, b in zip(text.splitlines(), changed.splitlines()) if a != b]
    (_, total), (_, row) = pairs
    assert row == r"| `GPT2LMHeadModel` |  |  | refused: a \| b |  |  |"
    assert "by head in 124" in pairs[0][0]
    assert "by head in 123" in total
    correct, refused = (
        int(re.search(rf"(\d+) {word}", pairs[0][0])[1]) for word in ("correct", "refused")
    )
    assert f"{correct - 1} correct, {refused + 1} refused" in total
    with pytest.raises(ValueError, match="no row for GPT5LMHeadModel"):
        with_rows(text, [Verdict("GPT5LMHeadModel", "correct")])
    with pytest.raises(ValueError, match="another transformers"):
        with_rows(text.replace("(transformers ", "(transformers 1."), [])


def test_a_wrong_verdict_is_possible(monkeypatch):
    """The judge must fail a tail that forgets the softcap, also where the package's own checks are
    blind: else the sweep proves nothing that loading has not."""
    from logitlens.anatomy.check import Check
    from logitlens.readout.head import Head

    honest = Head.finish

    def forgetful(self, z_NV, columns=slice(None)):
        return honest(Head(self.vocab, scale=self.scale), z_NV, columns)

    monkeypatch.setattr(Check, "ok", property(lambda self: True))
    monkeypatch.setattr(Head, "finish", forgetful)
    verdict = laws.judge("Gemma2ForCausalLM")
    assert verdict.verdict == "wrong", verdict
    assert verdict.error > 0.01  # wrong numbers, not an exception
    assert "last row off by" in verdict.reason
