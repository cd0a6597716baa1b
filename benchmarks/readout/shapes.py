"""Random models of real shapes, written once and mapped into every process: the same weights.

Beside the weights lies the plain model's own word: its logits for 16 tokens. Every contender must
come to the same likeliest tokens before it is timed, so that nobody is timed on another model.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

DEMO = Path(__file__).resolve().parents[2] / "src/logitlens/demo/model/config.json"
LONG = 32_768  # positions of the bundled model's shape with its context extended

SHAPES = {
    "gpt2": (GPT2Config(), torch.float32),
    "128k": (
        LlamaConfig(
            vocab_size=128_256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16,
            num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=8192,
            tie_word_embeddings=True,
        ),
        torch.bfloat16,
    ),
    "small": (GPT2Config(n_layer=3, n_embd=64, n_head=4, vocab_size=5000), torch.float32),
    "long": (
        GPT2Config(**json.loads(DEMO.read_text()) | {"n_positions": LONG, "dtype": "float32"}),
        torch.float32,
    ),
}  # fmt: skip
CHECKED = 16  # tokens
# How far below the model's largest logit, as a share of it, the logit of a contender's likeliest
# token may lie: rounding makes ties in bfloat16. Of another model it would lie near zero.
SLACK = {torch.float32: 1e-3, torch.bfloat16: 0.05}


class WrongModel(Exception):
    """A contender whose last depth is not the model's own output."""


def write(shape: str, folder: Path) -> Path:
    """Weights of a shape, with norms and spread as a trained model has them; kept if there."""
    path = folder / f"{shape}.safetensors"
    if not path.exists():
        config, dtype = SHAPES[shape]
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        state = {n: p.detach() for n, p in model.state_dict().items() if n != "lm_head.weight"}
        _save({n: p.contiguous() for n, p in state.items()}, path)
    if not _truth(path).exists():
        ids = tokens(shape, CHECKED)
        with torch.inference_mode():
            logits_TV = load(shape, path)(ids[None]).logits[0].float()
        _save({"logits": logits_TV}, _truth(path))
    return path


def load(shape: str, path: Path):
    """The model, its weights mapped from the file."""
    config, dtype = SHAPES[shape]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.load_state_dict(load_file(path), assign=True, strict=False)
    model.tie_weights()
    _fill_buffers(model, config)
    return model.eval().requires_grad_(False)


def check(shape: str, path: Path, top_T: Tensor) -> None:
    """Raise WrongModel unless these are the model's likeliest tokens at the last depth."""
    logits_TV = load_file(_truth(path))["logits"][-len(top_T) :]
    best_T = logits_TV.amax(-1)
    said_T = logits_TV.gather(-1, top_T.long()[:, None])[:, 0]
    wrong = int((said_T < best_T - SLACK[SHAPES[shape][1]] * best_T.abs()).sum())
    if wrong:
        raise WrongModel(
            f"{wrong} of {len(top_T)} likeliest tokens at the last depth are not the model's"
        )


def tokens(shape: str, count: int) -> Tensor:
    """The prompt: made-up ids, the same in every process."""
    generator = torch.Generator().manual_seed(7)
    return torch.randint(0, SHAPES[shape][0].vocab_size, (count,), generator=generator)


def dtype_name(shape: str) -> str:
    return str(SHAPES[shape][1]).removeprefix("torch.")


def parts(model):
    """(blocks, final norm, head) of the shapes above."""
    if hasattr(model, "transformer"):
        return model.transformer.h, model.transformer.ln_f, model.lm_head
    return model.model.layers, model.model.norm, model.lm_head


def _truth(path: Path) -> Path:
    return path.with_suffix(".truth")


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    partial = path.with_suffix(".part")
    save_file(tensors, partial)
    partial.replace(path)


def _fill_buffers(model, config) -> None:
    """Buffers no file holds (rotary frequencies) are computed again by their own module."""
    for module in model.modules():
        if any(b.is_meta for b in module.buffers(recurse=False)):
            fresh = type(module)(config)
            for name, _ in module.named_buffers(recurse=False):
                setattr(module, name, getattr(fresh, name))
            if hasattr(module, "original_inv_freq"):
                module.original_inv_freq = fresh.original_inv_freq
