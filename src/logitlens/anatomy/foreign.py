"""Wrapped models, and those of other libraries: the torch module inside, read as it computes there.

nnsight and nnterp wrap a transformers model, TransformerLens 4 rebuilds one from bridged parts, and
TransformerLens up to 3 has a model class of its own. None of them is imported here: a wrapper is
recognised by the package that defines its class.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from logitlens.errors import ModelNotAvailable, UnsupportedModel


def unwrapped(source: Any) -> tuple[nn.Module, Any]:
    """Any library's model → (the module to read, the tokenizer it carries or None).

    A module that is no known wrapper comes back as it is. Raises ModelNotAvailable for what is no
    module, UnsupportedModel for a wrapper whose weights are not in memory, and for adapters that
    change the prompt itself.
    """
    packages = {cls.__module__.partition(".")[0] for cls in type(source).__mro__}
    tokenizer = getattr(source, "tokenizer", None) if packages & LIBRARIES else None
    if packages & {"nnsight", "nnterp"}:
        return _inside(_traced(source)), tokenizer
    if "transformer_lens" in packages and isinstance(source, nn.Module):
        bridged = getattr(source, "original_model", None)
        return (bridged if isinstance(bridged, nn.Module) else Hooked(source)), tokenizer
    if not isinstance(source, nn.Module):
        raise ModelNotAvailable(
            f"expected a hub name, a directory or a transformers model, got {type(source).__name__}"
        )
    _refuse_prompt_adapters(source)
    return _inside(source), None


LIBRARIES = {"nnsight", "nnterp", "transformer_lens"}


def _inside(model: Any) -> nn.Module:
    """The transformers model inside `torch.compile`, PEFT and data-parallel wrappers.

    A LoRA adapter lives in the inner model's layers and stays active.
    """
    for _ in range(8):
        inner = getattr(model, "_orig_mod", None)
        if inner is None and hasattr(model, "get_base_model"):
            inner = model.get_base_model()
        if inner is None and isinstance(
            model, (nn.DataParallel, nn.parallel.DistributedDataParallel)
        ):
            inner = model.module
        if not isinstance(inner, nn.Module) or inner is model:
            return model
        model = inner
    return model


def _traced(source: Any) -> nn.Module:
    """The transformers model inside nnsight's `LanguageModel` (and nnterp's, which derives from it)."""
    inner = getattr(source, "_module", None)
    if not isinstance(inner, nn.Module):
        raise UnsupportedModel(
            f"{type(source).__name__} holds no model: expected nnsight's LanguageModel or a class "
            "derived from it"
        )
    if getattr(source, "dispatched", True) is False:
        raise UnsupportedModel(
            f"{type(source).__name__}: its weights are not loaded yet; call dispatch() on it first, "
            "or make it with dispatch=True. A remote model is read inside its trace: see "
            "logitlens.model.nnsight"
        )
    return inner


def _refuse_prompt_adapters(source: Any) -> None:
    """Raise UnsupportedModel for PEFT methods whose base model alone does not know the adapter."""
    configs = getattr(source, "peft_config", None)
    if not isinstance(configs, dict) or not hasattr(source, "get_base_model"):
        return
    for name in getattr(source, "active_adapters", None) or configs:
        config: Any = configs.get(name)
        if getattr(config, "is_prompt_learning", False):
            kind = getattr(config.peft_type, "value", config.peft_type)
            raise UnsupportedModel(
                f"the adapter {name!r} ({kind}) puts vectors before the prompt, so positions are "
                "not the prompt's tokens: expected an adapter of the weights (LoRA and its kin)"
            )


class Hooked(nn.Module):
    """TransformerLens's `HookedTransformer` called the way transformers' models are.

    Right padding needs no mask in a causal model, so a mask is accepted and dropped: this class
    takes a mask as a request to shift positions.
    """

    def __init__(self, model: Any):
        super().__init__()
        self.model = model
        cfg = model.cfg
        self.config = SimpleNamespace(
            vocab_size=min(cfg.d_vocab, cfg.d_vocab_out),
            num_hidden_layers=cfg.n_layers,
            max_position_embeddings=cfg.n_ctx,
            _name_or_path=cfg.model_name or type(model).__name__,
        )
        self.config.get_text_config = lambda decoder=True: self.config
        self.training = model.training

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        """ids (B, T) → an object with `logits` (B, T, V)."""
        return SimpleNamespace(logits=self.model(input_ids, return_type="logits"))

    def get_input_embeddings(self) -> Any:
        """The device of the ids and the size of the vocabulary come from it."""
        weight: Tensor = self.model.embed.W_E
        return SimpleNamespace(weight=weight, num_embeddings=weight.shape[0])

    def get_output_embeddings(self) -> nn.Module | None:
        return getattr(self.model, "unembed", None)

    @property
    def device(self) -> torch.device:
        return self.model.embed.W_E.device
