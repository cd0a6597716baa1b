"""Count what reading in chunks gives: every causal class × chunk sizes, beside the whole prompt.

python -m tests.model.chunked [NAME …]     prints one line of JSON

A prompt of 61 tokens is read in chunks of 5, 20 and 40. *Wrong* is a log-probability of any layer and
position that differs from the whole reading by more than float32 rounding, with the check's consent.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import torch

import logitlens
from logitlens.errors import LogitLensError
from tests.architectures.build import CLASSES, build, quiet

CHUNKS = (5, 20, 40)
IDS = torch.randint(3, 90, (61,), generator=torch.Generator().manual_seed(4)).tolist()
FIELDS = ("entropy", "kl", "next_logprobs", "track_logprobs", "top_logprobs")


def outcomes(name: str) -> list[tuple[str, str]]:
    """(outcome, class) of every chunk size: right, refused, wrong, or not read whole either."""
    try:
        with quiet():
            model = logitlens.load(build(name))
            whole = model.read(IDS, top=4, track=[7])
    except Exception:  # refused whole, or not built here: nothing to compare with
        return [("not read whole", name)] * len(CHUNKS)
    found = []
    for chunk in CHUNKS:
        try:
            with quiet():
                reading = model.read(IDS, top=4, track=[7], chunk=chunk)
        except LogitLensError:
            found.append(("refused", name))
            continue
        same = all(
            np.allclose(
                getattr(reading, f), getattr(whole, f), atol=2e-4, rtol=1e-4, equal_nan=True
            )
            for f in FIELDS
        )
        found.append(("right" if same else "wrong", name))
    return found


def _worker() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")


def main(names: list[str]) -> None:
    with ProcessPoolExecutor(2, get_context("spawn"), initializer=_worker) as pool:
        found = [outcome for part in pool.map(outcomes, names) for outcome in part]
    counts = Counter(what for what, _ in found)
    wrong = sorted({name for what, name in found if what == "wrong"})
    print(json.dumps({"tried": len(found), **counts, "classes wrong": wrong}))


if __name__ == "__main__":
    main(sys.argv[1:] or list(CLASSES))
