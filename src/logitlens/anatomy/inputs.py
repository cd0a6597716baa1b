"""Models whose forward needs more than the prompt: an encoder's input, an image, token types.

The prompt goes where the decoder reads it; the other inputs are given again in every pass, repeated
over the batch. The user's model stays as it is: only the call is wrapped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from logitlens.anatomy.forward import accepts, embeddings, input_device
from logitlens.errors import UnsupportedModel

Input = Tensor | Callable[[Tensor], Tensor] | Any


class WithInputs(nn.Module):
    """A model called with the same further inputs in every pass; `model` is the user's own.

    Tensors with a first dimension of 1 are repeated for every prompt of a batch; a callable is
    given the prompt's ids (B, T) and returns the input.

    known   the names that the model's own forward accepts
    prefix  of the names by which it gets the prompt: "decoder_" where an encoder reads the inputs
    """

    def __init__(self, model: nn.Module, inputs: Mapping[str, Input], known: set[str], prefix: str):
        super().__init__()
        self.model = model
        self.inputs = dict(inputs)
        self.training = model.training
        self.config = getattr(model, "config", None)
        self.known, self.prefix = known, prefix
        own = {"input_ids", "attention_mask"} - (set() if prefix else set(inputs))
        self.accepted = own | (known & {"logits_to_keep"})

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any
    ) -> Any:
        """Ids (B, T) of the prompts → the model's output."""
        given = {name: _repeated(value, input_ids) for name, value in self.inputs.items()}
        given[self.prefix + "input_ids"] = input_ids
        if attention_mask is not None and self.prefix + "attention_mask" in self.known:
            given[self.prefix + "attention_mask"] = attention_mask
        if "use_cache" in self.known:
            given["use_cache"] = False
        return self.model(**given, **options)

    # Paths, modules and turns are those of the user's model: the wrapper does not show.

    @property
    def users(self) -> nn.Module:
        return self.model

    def named_modules(self, *args: Any, **kwargs: Any) -> Any:
        return self.model.named_modules(*args, **kwargs)

    def get_submodule(self, target: str) -> nn.Module:
        return self.model.get_submodule(target)

    def get_input_embeddings(self) -> Any:
        return embeddings(self.model, "input")

    def get_output_embeddings(self) -> Any:
        return embeddings(self.model, "output")


def with_inputs(model: nn.Module, inputs: Mapping[str, Input] | None) -> nn.Module:
    """The model, wrapped where it needs or is given more than the prompt.

    Raises UnsupportedModel for an encoder–decoder without anything for its encoder, and for a name
    the model's forward does not know.
    """
    name, known = type(model).__name__, accepts(model)
    has_encoder = "decoder_input_ids" in known and bool(
        getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    )
    if not inputs:
        if has_encoder:
            raise UnsupportedModel(
                f"{name} is an encoder–decoder: its decoder is read for one input of the encoder; "
                "expected inputs={'input_ids': ids} (or whatever the encoder reads)"
            )
        return model
    if "input_ids" in inputs and not has_encoder:
        raise UnsupportedModel(
            f"{name} has no encoder: 'input_ids' is the prompt that is read, so it cannot be in "
            "inputs"
        )
    unknown = [k for k in inputs if k not in known and "**" not in known]
    if unknown:
        raise UnsupportedModel(
            f"{name}: inputs={unknown[0]!r} is not an argument of its forward; expected some of "
            f"{', '.join(sorted(known - {'**'})[:12])}"
        )
    device = input_device(model)
    prepared = {k: _tensor(v, device) for k, v in inputs.items()}
    # The class keeps the model's name: it is what messages and provenance should say.
    wrapped = type(name, (WithInputs,), {})
    return wrapped(model, prepared, known, "decoder_" if has_encoder else "")


def _tensor(value: Any, device: torch.device) -> Any:
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], (int, list, tuple)):
        value = torch.as_tensor(value)
        value = value[None] if value.dim() == 1 else value
    return value.to(device) if isinstance(value, Tensor) else value


def _repeated(value: Input, ids_BT: Tensor) -> Any:
    if isinstance(value, Tensor) and value.dim() and value.shape[0] == 1:
        return value.expand(len(ids_BT), *value.shape[1:])
    if callable(value) and not isinstance(value, nn.Module):
        return value(ids_BT)
    return value
