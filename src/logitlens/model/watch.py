"""Run a model as it is, watch which modules it calls on which tensors, and leave no trace.

Everything the package learns about a model it learns here: nothing is read from class names.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from logitlens.errors import LogitLensError, UnsupportedModel

# Where a tensor sits in a call's arguments or in its output: ("args", 0), ("kwargs", "x", 1), (0,).
Slot = tuple[Any, ...]


@dataclass(eq=False)
class Call:
    """One call of one module: its tensors are copies, so later in-place changes do not show.

    start, end count events of the whole forward pass: a call lies after another when its start is
    greater than the other's end.
    """

    path: str
    module: nn.Module
    start: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: list[tuple[Slot, Tensor]]
    end: int = -1
    outputs: list[tuple[Slot, Tensor]] = field(default_factory=list)


def leaves(value: Any, slot: Slot = ()) -> Iterator[tuple[Slot, Tensor]]:
    """Every floating-point tensor inside nested tuples, lists and mappings, with its place."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield slot, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, (*slot, key))
    elif isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            yield from leaves(item, (*slot, index))


def leaf(value: Any, slot: Slot) -> Any:
    """The tensor at `slot`; raises LookupError where the structure has changed."""
    for key in slot:
        if not isinstance(value, (tuple, list, Mapping)):
            raise LookupError(slot)
        value = value[key]
    if not isinstance(value, Tensor):
        raise LookupError(slot)
    return value


def replace_leaf(value: Any, slot: Slot, new: Tensor) -> Any:
    """The same structure with the tensor at `slot` replaced."""
    if not slot:
        return new
    key, rest = slot[0], slot[1:]
    if isinstance(value, Mapping):
        items = {**value, key: replace_leaf(value[key], rest, new)}
        # A ModelOutput must stay one: models read its attributes.
        return items if type(value) is dict else type(value)(**items)
    items = list(value)
    items[key] = replace_leaf(items[key], rest, new)
    if isinstance(value, list):
        return items
    make = getattr(type(value), "_make", None)
    return make(items) if make else tuple(items)


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


@contextmanager
def watching(modules: Iterable[tuple[str, nn.Module]]) -> Iterator[list[Call]]:
    """Record every call of the modules given, in order of their start."""
    calls: list[Call] = []
    open_calls: list[Call] = []
    clock = iter(range(1 << 62))

    def before(path: str):
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found = [*leaves(args, ("args",)), *leaves(kwargs, ("kwargs",))]
            call = Call(path, module, next(clock), args, kwargs, _copies(found))
            calls.append(call)
            open_calls.append(call)

        return hook

    def after(module: nn.Module, args: Any, output: Any) -> None:
        while open_calls:
            call = open_calls.pop()
            if call.module is module:
                call.end = next(clock)
                call.outputs = _copies(leaves(output))
                return

    handles = []
    try:
        for path, module in modules:
            handles.append(module.register_forward_pre_hook(before(path), with_kwargs=True))
            handles.append(module.register_forward_hook(after))
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _copies(found: Iterable[tuple[Slot, Tensor]]) -> list[tuple[Slot, Tensor]]:
    return [(slot, tensor.detach().clone()) for slot, tensor in found]
