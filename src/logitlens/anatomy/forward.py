"""How a model is called: as it is, in evaluation mode, and what its logits are."""

from __future__ import annotations

import inspect
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from logitlens.errors import LogitLensError, UnsupportedModel

# Hooks and evaluation mode are seen by every thread: passes of one model take turns.
_turns: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_turns_guard = threading.Lock()
_evaluating: WeakKeyDictionary[nn.Module, int] = (
    WeakKeyDictionary()
)  # how often `as_found` is inside


def turn(model: nn.Module) -> threading.RLock:
    """The lock under which a model runs, hooks are on it, or its evaluation mode is set."""
    with _turns_guard:
        return _turns.setdefault(getattr(model, "users", model), threading.RLock())


@contextmanager
def as_found(model: nn.Module) -> Iterator[None]:
    """Inside: this thread's turn, evaluation mode, no gradients, no compiled graphs.

    Afterwards all is as before, also after an exception: every module's own `training` flag comes
    back, and parameters' flags are never touched.
    """
    with turn(model), torch.no_grad(), _uncompiled:
        inside = _evaluating.get(model, 0)  # then it has been looked through
        training = [] if inside else [module for module in modules_of(model) if module.training]
        try:
            if training:
                model.eval()
            _evaluating[model] = inside + 1
            yield
        finally:
            _evaluating[model] = inside
            for module in training:
                module.training = True


def modules_of(model: nn.Module) -> list[nn.Module]:
    """Every module, each once; `model.modules()` composes their names first, five times slower."""
    found, seen = [model], {id(model)}
    for module in found:
        for child in module._modules.values():
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                found.append(child)
    return found


class _Uncompiled:
    """Inside, what `torch.compile` wraps runs as plain Python, in any thread.

    Compiled graphs ignore hooks set after compiling, or are compiled again with the hooks in them,
    which takes minutes; eager code runs the same numbers.
    """

    def __init__(self):
        self.guard, self.inside = threading.Lock(), 0

    def __enter__(self) -> None:
        with self.guard:
            # Nothing is compiled where this has not been imported, which takes a second.
            if self.inside == 0 and "torch._dynamo" in sys.modules:
                self.stance = torch.compiler.set_stance("force_eager")
                self.stance.__enter__()
            self.inside += 1

    def __exit__(self, *exc: object) -> None:
        with self.guard:
            self.inside -= 1
            stance, self.stance = (None, self.stance) if self.inside else (self.stance, None)
            if stance is not None:
                stance.__exit__(None, None, None)

    stance: Any = None


_uncompiled = _Uncompiled()


@contextmanager
def refusing(model: nn.Module, when: str) -> Iterator[None]:
    """Inside, what the model raises becomes UnsupportedModel: one line that says when it did.

    Errors of our own, and what does not come from the model, pass through as they are.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, LogitLensError) or interrupted(error):
            raise
        text = " ".join(str(error).split())[:300]
        raise UnsupportedModel(
            f"{type(model).__name__} raises {type(error).__name__} {when}: {text}"
        ) from error


def interrupted(error: BaseException | None) -> bool:
    """Whether an exception comes from a timeout or a signal's handler, not from what was running."""
    handlers = {_code(signal.getsignal(number)) for number in signal.valid_signals()} - {None}
    while error is not None:
        frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
        # Packages that stop a thread from outside raise a class of their own, wherever it is.
        named = re.search("time(d)?_?out", type(error).__name__, re.I)
        late = isinstance(error, TimeoutError) or named
        if late or any(f.f_code in handlers for f in frames):
            return True
        error = error.__cause__ or error.__context__
    return False


def _code(handler: Any) -> Any:
    """The code of a function, method, partial or callable object."""
    handler = getattr(handler, "func", handler)
    if callable(handler) and not hasattr(handler, "__code__"):
        handler = type(handler).__call__
    return getattr(handler, "__code__", None)


def accepts(model: nn.Module) -> set[str]:
    """Names the model's forward accepts; "**" among them where it takes any keyword."""
    declared = getattr(model, "accepted", None)
    if isinstance(declared, set):
        return declared
    names = set()
    for name, parameter in inspect.signature(model.forward).parameters.items():
        names.add("**" if parameter.kind is inspect.Parameter.VAR_KEYWORD else name)
    return names


def forward(model: nn.Module, ids_BT: Tensor, **options: Any) -> Any:
    """The model's output for a batch of ids (B, T); without a cache, unless `options` ask for one."""
    known = accepts(model)
    if "use_cache" in known:
        options.setdefault("use_cache", False)
    if "return_dict" in known:
        options.setdefault("return_dict", True)
    return model(input_ids=ids_BT, **options)


def logits(
    model: nn.Module,
    ids_BT: Tensor,
    *around: AbstractContextManager[Any],
    gradient: bool = False,
) -> Tensor:
    """The logits (B, T, V) of one pass as found, inside the contexts given: its hooks."""
    with as_found(model), torch.set_grad_enabled(gradient), ExitStack() as stack:
        for context in around:
            stack.enter_context(context)
        return logits_of(model, forward(model, ids_BT))


def embeddings(model: Any, which: str) -> Any:
    """The module the model declares as its "input" or "output" embedding, or None."""
    try:
        return getattr(model, f"get_{which}_embeddings")()
    except (AttributeError, NotImplementedError):
        return None


def input_device(model: Any) -> torch.device:
    """The device on which the model expects token ids."""
    embedding = embeddings(model, "input")
    weight = getattr(embedding, "weight", None)
    if isinstance(weight, Tensor) and weight.device.type != "meta":
        return weight.device
    real = (p.device for p in model.parameters() if p.device.type != "meta")
    return next(real, torch.device("cpu"))


def model_dtype(model: nn.Module) -> torch.dtype:
    """The dtype the model computes in: the coarsest of its floating-point parameters."""
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    for coarse in (torch.float16, torch.bfloat16):
        if coarse in dtypes:
            return coarse
    return torch.float32


def logits_of(model: nn.Module, output: Any) -> Tensor:
    """The logits in the output of a model. Raises UnsupportedModel when there are none."""
    logits = getattr(output, "logits", None)
    if logits is None and isinstance(output, (tuple, list)) and output:
        logits = output[0]
    if not isinstance(logits, Tensor) or not logits.is_floating_point() or logits.dim() != 3:
        found = f"tensor {tuple(logits.shape)}" if isinstance(logits, Tensor) else "none"
        raise UnsupportedModel(
            f"{type(model).__name__}: the model's output holds no logits (batch, positions, "
            f"vocabulary): found {found} in {type(output).__name__}. Load the class with a "
            "language-model head (…ForCausalLM)"
        )
    return logits
