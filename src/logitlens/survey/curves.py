"""What a report shows: curves, histograms and a sample of prompts, and what the measures are called."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from logitlens.reading import Reading

RANKS = (1, 5, 10)
QUANTILES = (0.1, 0.5, 0.9)
SETTLED = "settled layer"
MEASURES = {  # name: (what it is, its unit or "")
    "logprob": ("log-probability of the answer", "nats"),
    "first_logprob": ("log-probability of the answer's first token", "nats"),
    "rank": ("best rank of an answer's first token", ""),
    "margin": ("right − wrong", "nats"),
    "correct": ("prompts answered correctly", ""),
    **{f"top{k}": (f"answer's first token at rank ≤ {k}" if k > 1 else "answer's first token is on top", "")
       for k in RANKS},
    "kl": ("KL(final ‖ layer)", "nats"),
    "entropy": ("entropy", "nats"),
    "agree": ("same top token as the final layer", ""),
}  # fmt: skip


def ordered(measures: Iterable[str]) -> list[str]:
    """Those of MEASURES in their order, then the others."""
    given = list(measures)
    return [*(m for m in MEASURES if m in given), *(m for m in given if m not in MEASURES)]


@dataclass(frozen=True)
class Curve:
    """One measure of one group of prompts over layers: mean, low, high, each (L,); n prompts that have it.

    share   of the prompts that are no higher, where it is a quantile that `mean` holds; else None
    """

    survey: str
    lens: str
    group: str
    measure: str
    layers: list[str]
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n: int
    share: float | None = None


@dataclass(frozen=True)
class Histogram:
    """Where something first happens: counts for each layer and, last, for never.

    low, high   ends of the intervals of their shares, as many; nan where there are none
    spread   "mean" and quantiles of the layer's number (embed −1), of the prompts to which it happens:
             value, low, high
    """

    survey: str
    lens: str
    group: str
    what: str
    layers: list[str]
    counts: np.ndarray
    low: np.ndarray
    high: np.ndarray
    spread: dict[str, tuple[float, float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class KeptPrompt:
    """A prompt and the numbers of its last position, a mapping for each layer.

    found     what `survey find` gives of it: its number and id, or of a corpus its document and position
    again     the command that reads it again, for a page
    reading   of its last positions, where it was read again for this one
    """

    prompt: str
    answer: str
    rows: list[dict[str, Any]]
    found: dict[str, Any]
    again: str = ""
    reading: Reading | None = None


@dataclass(frozen=True)
class Kept:
    """A sample of the prompts of one survey, lens and group, `of` how many."""

    survey: str
    lens: str
    group: str
    of: int
    prompts: list[KeptPrompt]


@dataclass(frozen=True)
class Summary:
    """What a report shows.

    curves      a measure for each lens and group          contrasts   paired differences of two groups
    quantiles   of both, QUANTILES of each
    histograms  of the settled layer, and of the first layer with rank 1, ≤ 5 and ≤ 10
    shifts      contrasts of these layers, over the pairs to which it happens; each has one place
    exits       of a corpus: what an early exit gives, over thresholds
    kept        prompts behind the curves of each lens and group, for a page
    together    of all groups as one, where they are many; of a corpus it is also one of the groups
    by          the condition that groups the prompts, or ""          unit   what is counted
    """

    by: str
    curves: list[Curve] = field(default_factory=list)
    quantiles: list[Curve] = field(default_factory=list)
    contrasts: list[Curve] = field(default_factory=list)
    histograms: list[Histogram] = field(default_factory=list)
    shifts: list[Curve] = field(default_factory=list)
    exits: list[Curve] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    together: Summary | None = None
    unit: str = "prompts"
    meta: dict[str, Any] = field(default_factory=dict)
