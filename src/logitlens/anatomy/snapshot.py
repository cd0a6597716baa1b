"""A snapshot of the model's structure, compared before every reading.

Anatomy and tail hold for the modules on which they were found. Blocks in another order, another
dtype, resized embeddings, a hook: each of them shows here, without a forward pass.
"""

from __future__ import annotations

from typing import Any
from weakref import ref

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from logitlens.anatomy.blocks import Anatomy
from logitlens.anatomy.forward import modules_of, turn
from logitlens.anatomy.tail import Tail
from logitlens.anatomy.unembedding import numbers


class Snapshot:
    """The state of a model on which its anatomy and tail were found."""

    def __init__(self, anatomy: Anatomy, tail: Tail):
        self.model, head = tail.model, tail.head
        held = {t.data_ptr() for t in (head.weight_VE, head.bias_V) if t is not None}
        self.held = [
            (module, name)
            for module in modules_of(self.model)
            for name, p in module._parameters.items()
            if p is not None and held and _address(p) in held
        ]
        # A scale or bias that was measured may be a parameter, which training changes in place.
        factors = (tail.before, head.scale, *(step.scale for step in tail.steps))
        measured = head.softcap is not None or head.final_bias_V is not None
        measured = measured or any(factor != 1.0 for factor in factors)
        run = [*anatomy.blocks, *(step.module for step in tail.steps)]
        live = {id(t) for module in run for t in (*module.parameters(), *module.buffers())}
        self.constants = [
            t
            for t in (*self.model.parameters(), *self.model.buffers())
            if measured and id(t) not in live and _address(t) not in held
        ]
        self.state = self._state()

    def change(self) -> str | None:
        """What is not as it was, in words; None where nothing has changed.

        Waits for a pass that another thread makes, during which hooks of ours are on the model.
        """
        with turn(self.model):
            now = self._state()
        changed = [what for what in now if now[what] != self.state[what]]
        return ", ".join(changed) or None

    def _state(self) -> dict[str, list[Any]]:
        modules = modules_of(self.model)
        return {
            "modules": [ref(module) for module in modules],
            "hooks": [
                *torch_module._global_forward_hooks,
                *torch_module._global_forward_pre_hooks,
                *((*m._forward_hooks, *m._forward_pre_hooks) for m in modules),
            ],
            "forward methods": [m.__dict__.get("forward") for m in modules],
            "dtypes or shapes": [
                (p.dtype, p.shape) for m in modules for p in m._parameters.values() if p is not None
            ],
            "the head's weights": [_address(m._parameters.get(name)) for m, name in self.held],
            "constants beside them": [_version(p) for p in self.constants],
            "the configuration": numbers(self.model),
        }


def _address(parameter: Tensor | None) -> int | None:
    """Where a plain tensor's numbers are; None for other kinds of tensors."""
    plain = type(parameter) in (Tensor, nn.Parameter)
    return parameter.data_ptr() if parameter is not None and plain else None


def _version(parameter: Tensor) -> int | None:
    return None if parameter.is_inference() else parameter._version
