"""How a model is called: as it is, in evaluation mode, and what its logits are."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from logitlens.errors import LogitLensError, UnsupportedModel


def unwrap(model: Any) -> Any:
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


@contextmanager
def as_found(model: nn.Module) -> Iterator[None]:
    """Inside: evaluation mode, no gradients, no compiled graphs. Afterwards: all as before.

    Every module's own `training` flag comes back, also after an exception; parameters' flags are
    never touched. Gradient mode is a property of the thread and returns by itself.
    """
    modules = list(model.modules())
    training = [module for module in modules if module.training]
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if any(getattr(m, "_compiled_call_impl", None) is not None for m in modules):
            # Compiled graphs ignore hooks set after compiling; eager code runs the same numbers.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            if training:
                model.eval()
            yield
        finally:
            for module in training:
                module.training = True


@contextmanager
def refusing(model: nn.Module, when: str) -> Iterator[None]:
    """Inside, what the model raises becomes UnsupportedModel: one line that says when it did.

    Errors of our own pass through as they are.
    """
    try:
        yield
    except LogitLensError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise UnsupportedModel(
            f"{type(model).__name__} raises {type(error).__name__} {when}: {text}"
        ) from error


def accepts(model: nn.Module) -> set[str]:
    """Names the model's forward accepts; "**" among them where it takes any keyword."""
    told = getattr(model, "accepted", None)
    if isinstance(told, set):
        return told
    names = set()
    for name, parameter in inspect.signature(model.forward).parameters.items():
        names.add("**" if parameter.kind is inspect.Parameter.VAR_KEYWORD else name)
    return names


def forward(model: nn.Module, ids_BT: Tensor, **extra: Any) -> Any:
    """The model's output for a batch of ids (B, T); without a cache, unless `extra` asks for one."""
    known = accepts(model)
    if "use_cache" in known:
        extra.setdefault("use_cache", False)
    if "return_dict" in known:
        extra.setdefault("return_dict", True)
    return model(input_ids=ids_BT, **extra)


def embeddings(model: Any, which: str) -> Any:
    """The module the model declares as its "input" or "output" embedding, or None."""
    try:
        return getattr(model, f"get_{which}_embeddings")()
    except (AttributeError, NotImplementedError):
        return None


def input_device(model: Any) -> torch.device:
    """Where token ids must lie."""
    embedding = embeddings(model, "input")
    weight = getattr(embedding, "weight", None)
    if isinstance(weight, Tensor) and weight.device.type != "meta":
        return weight.device
    real = (p.device for p in model.parameters() if p.device.type != "meta")
    return next(real, torch.device("cpu"))


def logits_of(output: Any) -> Tensor:
    """The logits in a model's output. Raises UnsupportedModel when there are none."""
    logits = getattr(output, "logits", None)
    if logits is None and isinstance(output, (tuple, list)) and output:
        logits = output[0]
    if not isinstance(logits, Tensor) or not logits.is_floating_point() or logits.dim() != 3:
        found = f"tensor {tuple(logits.shape)}" if isinstance(logits, Tensor) else "none"
        raise UnsupportedModel(
            f"the model's output holds no logits (batch, positions, vocabulary): found {found} in "
            f"{type(output).__name__}. Load the class with a language-model head (…ForCausalLM)"
        )
    return logits
