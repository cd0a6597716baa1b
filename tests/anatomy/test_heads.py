"""Heads are found without names: their number, and what each adds, equal the product by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import logitlens
from logitlens import UnsupportedModel
from logitlens.anatomy.heads import BlockHeads
from tests.anatomy.test_sublayers import loud
from tests.architectures.build import build

IDS = [5, 1, 17, 33, 3, 42, 9, 8, 7]
FAMILIES = {  # the output projection of block 1's attention, and a norm after it
    "GPT2LMHeadModel": ("transformer.h.1.attn.c_proj", None),  # kept transposed
    "LlamaForCausalLM": ("model.layers.1.self_attn.o_proj", None),  # grouped queries
    "OPTForCausalLM": ("model.decoder.layers.1.self_attn.out_proj", None),  # a bias
    "GPTNeoXForCausalLM": ("gpt_neox.layers.1.attention.dense", None),  # parallel blocks
    "Gemma2ForCausalLM": (
        "model.layers.1.self_attn.o_proj",
        "model.layers.1.post_attention_layernorm",
    ),
}


def heads_by_hand(hf, path, norm, count):
    """(H, D) at the last position, from a plain hook on the projection, by its weight's columns."""
    module, seen = hf.get_submodule(path), {}
    handles = [module.register_forward_pre_hook(lambda m, args: seen.update(z=args[0]))]
    if norm:
        after = hf.get_submodule(norm)
        handles.append(after.register_forward_hook(lambda m, a, out: seen.update(x=a[0], y=out)))
    with torch.no_grad():
        hf(input_ids=torch.tensor([IDS]))
    for handle in handles:
        handle.remove()
    weight = module.weight.detach().double()
    if type(module).__name__ == "Conv1D":
        weight = weight.T
    z, size = seen["z"][0, -1].double(), weight.shape[1] // count
    out = torch.stack(
        [weight[:, h * size : (h + 1) * size] @ z[h * size : (h + 1) * size] for h in range(count)]
    )
    if norm:  # y / x is what the norm multiplies each number by, in this row
        out = out * (seen["y"][0, -1].double() / seen["x"][0, -1].double())
    return out


@pytest.mark.parametrize("name", FAMILIES)
def test_heads_are_the_columns_of_the_projection(name):
    hf = loud(name)
    model = logitlens.load(hf)
    config = hf.config.get_text_config(decoder=True)
    count = config.num_attention_heads
    assert [h.count for h in model.heads.blocks] == [count] * model.n_blocks
    by_hand_HD = heads_by_hand(hf, *FAMILIES[name], count)
    with model.heads.inputs() as inputs:
        attn_TD = model.capture(IDS, stream="attn").h[1].double()
    out_HTD, bias_TD = model.heads.blocks[1].rows(inputs[1][0])
    torch.testing.assert_close(out_HTD[:, -1], by_hand_HD, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(out_HTD.sum(0) + bias_TD, attn_TD, atol=1e-4, rtol=1e-4)
    captured = model.capture(IDS, stream="head", layers=1)
    assert captured.layers == [*(f"1.head{h}" for h in range(count)), str(model.n_blocks - 1)]
    torch.testing.assert_close(torch.stack(captured.h[:-1]), out_HTD.float(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", [*FAMILIES, "DeepseekV3ForCausalLM", "Qwen3NextForCausalLM"])
def test_attribution_by_head_sums_and_heads_sum_to_their_attention(name):
    model = logitlens.load(loud(name))
    coarse, fine = model.attribute(IDS, 7, versus=3), model.attribute(IDS, 7, versus=3, by="head")
    assert abs(fine.difference) <= fine.meta["bound"]
    for block, heads in enumerate(model.heads.blocks):
        if not isinstance(heads, BlockHeads):
            assert f"{block}.attn" in fine.components
            continue
        names = [f"{block}.head{h}" for h in range(heads.count)]
        names += [n for n in (f"{block}.attn bias",) if n in fine.components]
        total = sum(fine.part(n) for n in names)
        assert total == pytest.approx(coarse.part(f"{block}.attn"), abs=2e-3)


def test_what_each_head_adds_is_read_as_a_row_of_the_stream():
    model = logitlens.load(loud("LlamaForCausalLM"))
    reading = model.read(IDS, stream="head", layers="1:3", top=3)
    assert reading.layers == [f"{b}.head{h}" for b in (1, 2) for h in range(4)] + ["3"]
    assert reading.check_text()[0]
    captured = model.capture(IDS, stream="head", layers="1:3")
    best = model.tail.logits(captured.h[reading.row("2.head3")]).topk(3)
    torch.testing.assert_close(torch.from_numpy(reading.top_ids[7].astype("int64")), best.indices)
    written = model.generate(IDS, max_new_tokens=2, temperature=0, stream="head", layers=2)
    assert written.layers == reading.layers[4:]
    again = model.read(IDS + written.meta["generation"]["ids"][:1], stream="head", layers=2)
    np.testing.assert_allclose(written.entropy, again.entropy, atol=1e-3)


def test_where_there_are_none_the_reason_is_given():
    model = logitlens.load(build("FalconMambaForCausalLM"))
    with pytest.raises(UnsupportedModel, match=r"no heads that can be told apart: of block 0"):
        model.attribute(IDS, 7, by="head")
    with pytest.raises(UnsupportedModel, match=r"no heads that can be told apart: of block 0"):
        model.read(IDS, stream="head")


def test_heads_that_do_not_sum_are_refused(monkeypatch):
    model = logitlens.load(loud("LlamaForCausalLM"))
    real = BlockHeads.rows
    monkeypatch.setattr(
        BlockHeads, "rows", lambda self, z: (real(self, z)[0] * 1.01, real(self, z)[1])
    )
    with pytest.raises(UnsupportedModel, match="the heads of block 0 and their bias do not sum"):
        model.attribute(IDS, 7, by="head")
