"""Who reads a prompt: the names, the environment each lives in, and what it gives.

A contender prepares a `read(ids, last)` from a loaded model; `read` says what every depth would
predict at every position, or at the last one alone, as the alternative's own documentation does it.
Where an alternative does not install or run, its row says why and its arithmetic is timed too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, NamedTuple

from torch import Tensor


class Result(NamedTuple):
    """What a reading leaves: `top()` is the last depth's likeliest token at each position read (for
    the check, not timed), `held` all that stays in memory, `said` what else the row records."""

    top: Callable[[], Tensor] | None
    held: object
    said: dict[str, Any] = {}


Read = Callable[[Tensor, bool], Result]


@dataclass(frozen=True)
class Contender:
    """environment   a file of benchmarks/environments
    prepare       module:function of benchmarks/readout, imported in that environment only
    gives         what a cell of the result holds
    held          how often the logits of all layers, in float32, are in memory at its peak
    stand_in      the contender timed in its place where it does not install or run
    """

    environment: str
    prepare: str
    gives: str
    held: float = 0.0
    stand_in: str = ""
    packages: tuple[str, ...] = field(default=("torch", "transformers"))

    def read(self, model) -> Read:
        module, function = self.prepare.split(":")
        return getattr(import_module(f"benchmarks.readout.{module}"), function)(model)


_OURS = ("torch", "transformers", "numba")
_ALL = "top 10, entropy, KL, rank of the next token"
_FIVE = f"{_ALL} and of five candidates, checked"

CONTENDERS: dict[str, Contender] = {
    "floor": Contender("transformers", "floor:Floor", "nothing: product and forward pass alone"),
    "logitlens": Contender("logitlens", "ours:torch_kernel", _FIVE, packages=_OURS[:2]),
    "logitlens (numba)": Contender("logitlens", "ours:numba_kernel", _FIVE, packages=_OURS),
    "nnsight": Contender(
        "nnsight", "libraries:nnsight", "likeliest token, its probability", 2.0, "softmax arithmetic",
        ("torch", "transformers", "nnsight"),
    ),
    "nnterp": Contender(
        "nnterp", "libraries:nnterp", "all probabilities", 2.0, "softmax arithmetic",
        ("torch", "transformers", "nnsight", "nnterp"),
    ),
    "tuned-lens": Contender(
        "tuned-lens", "libraries:tuned_lens", "all log-probabilities", 2.0,
        "tuned-lens arithmetic", ("torch", "transformers", "tuned-lens"),
    ),
    "TransformerLens recipe": Contender(
        "transformer-lens", "libraries:transformer_lens", "all log-probabilities", 3.0,
        "TransformerLens arithmetic", ("torch", "transformers", "transformer-lens"),
    ),
    "TransformerLens logit_lens": Contender(
        "transformer-lens", "libraries:transformer_lens_call", "top 10, entropy",
        packages=("torch", "transformers", "transformer-lens"),
    ),
    "logitlenskit arithmetic": Contender(
        "transformers", "plain:logitlenskit", "top 10, entropy; no release on PyPI", 1.1
    ),
    "naive": Contender("transformers", "plain:naive", "top 10", 3.0),
    "naive, all statistics": Contender("transformers", "plain:naive_all", _ALL, 5.5),
    "layer by layer": Contender("transformers", "plain:layer_by_layer", "top 10"),
    "layer by layer, all statistics": Contender("transformers", "plain:layer_by_layer_all", _ALL),
}  # fmt: skip

# Of our own writing, for where the library itself does not install or run: what it computes, on the
# same residuals, without its loading, caching and tracing, which is in its favour.
STAND_INS: dict[str, Contender] = {
    "softmax arithmetic": Contender("transformers", "plain:softmax", "all probabilities", 2.0),
    "tuned-lens arithmetic": Contender(
        "transformers", "plain:tuned_lens", "all log-probabilities", 2.0
    ),
    "TransformerLens arithmetic": Contender(
        "transformers", "plain:transformer_lens", "all log-probabilities", 3.0
    ),
}


def named(name: str) -> Contender:
    return CONTENDERS.get(name) or STAND_INS[name]
