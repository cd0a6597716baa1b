"""Tiny random models for lens tests: untied enlarged heads and perturbed norms, built offline."""

from __future__ import annotations

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from logitlens.anatomy import tail
from logitlens.model.lens_model import LensModel

VOCAB, WIDTH, BLOCKS = 97, 32, 3


def wrap(hf: torch.nn.Module, name: str) -> LensModel:
    anatomy, found, check = tail.look_at(hf)
    return LensModel(hf, tokenizer=None, anatomy=anatomy, tail=found, check=check, name=name)


def perturb(hf: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Heads and norms far from their start, so that a missing step shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if "lm_head" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
            elif parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return hf.eval()


def gpt2(seed: int = 0, *, width: int = WIDTH, blocks: int = BLOCKS, name="tiny/gpt2") -> LensModel:
    config = GPT2Config(
        vocab_size=VOCAB,
        n_embd=width,
        n_layer=blocks,
        n_head=4,
        n_positions=128,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    hf = perturb(GPT2LMHeadModel(config), seed)
    expected = 12 * blocks * width * width + VOCAB * width * 2 + 128 * width
    assert abs(sum(p.numel() for p in hf.parameters()) / expected - 1) < 0.1, "not the tiny model"
    return wrap(hf, name)


def llama(seed: int = 0, name: str = "tiny/llama") -> LensModel:
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
    )
    return wrap(perturb(LlamaForCausalLM(config), seed), name)


def rows(model: LensModel, n: int = 7, seed: int = 1) -> torch.Tensor:
    """(n, D) residual-like rows."""
    return torch.randn(n, model.width, generator=torch.Generator().manual_seed(seed)) * 2
