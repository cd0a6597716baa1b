"""Judging lenses: how near each depth comes to the final row, and whether the answer is there.

All lenses read the same residuals of the same held-out text. Per lens and depth:

    kl            KL(final ‖ depth), nats                    next    −log p(next token), nats
    top1          the likeliest token is the final row's
    top10         share of the final row's ten likeliest tokens among the depth's ten likeliest
    fact1/5/10    share of facts whose answer has rank ≤ 1/5/10 at the end of the prompt

with 95 % intervals: of the measures of text from a bootstrap over sequences; of shares of facts
Wilson's (1927), which is inside [0, 1] and has a width even where no fact, or every fact, was a hit.
The row of layer "any" takes the best rank over layers, as the published lens evaluations do (pass@k).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from logitlens.anatomy.readable import Readable
from logitlens.errors import MissingExtra, PromptError
from logitlens.files import replacing
from logitlens.fit.facts import Facts
from logitlens.lenses import Lens, resolve
from logitlens.model import capture
from logitlens.model.batches import batches
from logitlens.readout.read import statistics
from logitlens.select import layer_label

TEXT = ("kl", "next", "top1", "top10")
FACTS = ("fact1", "fact5", "fact10")
RANKS = (1, 5, 10)

Measures = dict[str, np.ndarray]  # measure → its value for every sequence or fact, at every depth


@dataclass(frozen=True)
class Evaluation:
    """`rows`: one dict per lens and layer; the columns are `columns`. `meta`: what was judged on what.

    Every measure m comes as m, m_low and m_high; nan where it was not measured.
    """

    rows: list[dict[str, Any]]
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def columns(self) -> list[str]:
        measures = [f"{m}{end}" for m in (*TEXT, *FACTS) for end in ("", "_low", "_high")]
        return ["lens", "layer", *measures]

    def column(self, lens: str, measure: str) -> list[float]:
        """A measure over the layers of a lens, without the row "any"."""
        rows = [row for row in self.rows if row["lens"] == lens and row["layer"] != "any"]
        return [row[measure] for row in rows]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table as Parquet. Raises MissingExtra, OSError."""
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError:
            raise MissingExtra("pyarrow", "data", "writing Parquet") from None
        import json

        table = pa.table({name: [row[name] for row in self.rows] for name in self.columns})
        table = table.replace_schema_metadata({"logitlens": json.dumps(self.meta)})
        with replacing(Path(path)) as temporary:
            pq.write_table(table, temporary)


def evaluate(
    model: Readable,
    lenses: Sequence[str | Lens],
    *,
    sequences: Tensor | None = None,
    facts: Facts | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    token_budget: int = 4096,
    report: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Judge `lenses` (names or objects) of `model` (a LensModel).

    sequences   (C, T) int64 token ids of held-out text          facts   see `logitlens.fit.facts`
    report      called with (sequences and facts done, all of them)

    Raises PromptError where there is nothing to judge on, and what `resolve` raises.
    """
    if sequences is None and facts is None:
        raise PromptError("nothing to judge on: give held-out text (--corpus) or --facts")
    named = _names(model, lenses)
    total = (0 if sequences is None else len(sequences)) + (len(facts.facts) if facts else 0)
    done = 0

    def progress(more: int) -> None:
        nonlocal done
        done += more
        if report is not None:
            report(done, total)

    parts: list[dict[str, Measures]] = []
    if sequences is not None:
        parts.append(_on_text(model, named, sequences, token_budget, progress))
    if facts is not None:
        parts.append(_on_facts(model, named, facts, token_budget, progress))
    measured = {name: {m: v for part in parts for m, v in part[name].items()} for name in named}
    rows = _table(model, named, measured, np.random.default_rng(seed), bootstrap)
    meta = {
        "model": model.name,
        "revision": model.revision,
        "lenses": {name: lens.describe() for name, lens in named.items()},
        "sequences": 0 if sequences is None else len(sequences),
        "tokens": 0 if sequences is None else int(sequences.numel()),
        "facts": len(facts.facts) if facts else 0,
        "facts_unsupported": facts.unsupported if facts else 0,
        "bootstrap": bootstrap,
    }
    return Evaluation(rows, meta)


def _table(
    model: Readable,
    named: dict[str, Lens],
    measured: dict[str, Measures],
    generator: np.random.Generator,
    bootstrap: int,
) -> list[dict[str, Any]]:
    """A row per lens and layer, and one ("any") of the best rank over layers."""
    rows = []
    for name, lens in named.items():
        values, depths = measured[name], _depths(model, lens)
        table = {
            m: _wilson(values_NL) if m in FACTS else _interval(values_NL, generator, bootstrap)
            for m, values_NL in values.items()
        }
        for i, depth in enumerate(depths):
            rows.append(_row(name, layer_label(depth), table, i))
        if FACTS[0] in values:
            before = max(1, len(depths) - 1)  # the last is the model's own answer
            best = {m: values[m][:, :before].max(1, keepdims=True) for m in FACTS}
            table = {m: _wilson(best_F1) for m, best_F1 in best.items()}
            rows.append(_row(name, "any", table, 0))
    return rows


def _names(model: Readable, lenses: Sequence[str | Lens]) -> dict[str, Lens]:
    """Lenses by a name each: their own, or what was said where that is taken."""
    named: dict[str, Lens] = {}
    for said in lenses:
        lens = resolve(said, model)
        name = lens.name if lens.name not in named else str(said)
        named[name if name not in named else f"{name} {len(named)}"] = lens
    return named


def _depths(model: Readable, lens: Lens) -> list[int]:
    """Depths a lens has a row for: its own, and the last."""
    has = lens.depths()
    return [d for d in range(model.n_blocks + 1) if has is None or d in has or d == model.n_blocks]


def _row(lens: str, layer: str, table: dict[str, np.ndarray], i: int) -> dict[str, Any]:
    row: dict[str, Any] = {"lens": lens, "layer": layer}
    for m in (*TEXT, *FACTS):
        values = table[m][:, i] if m in table else (float("nan"),) * 3
        row.update(
            {m: float(values[0]), f"{m}_low": float(values[1]), f"{m}_high": float(values[2])}
        )
    return row


def _interval(values_NL: np.ndarray, generator: np.random.Generator, draws: int) -> np.ndarray:
    """(3, L): mean over N units, and the 2.5 and 97.5 percentiles of its bootstrap."""
    N = len(values_NL)
    mean_L = values_NL.mean(0)
    if draws < 2 or N < 2:
        return np.stack([mean_L, mean_L * np.nan, mean_L * np.nan])
    counts_BN = generator.multinomial(N, np.full(N, 1 / N), size=draws)
    means_BL = counts_BN.astype(np.float64) @ values_NL.astype(np.float64) / N
    low_L, high_L = np.percentile(means_BL, [2.5, 97.5], axis=0)
    return np.stack([mean_L, low_L, high_L])


def _wilson(hits_NL: np.ndarray) -> np.ndarray:
    """(3, L): the share of N facts that are hits, and its 95 % score interval (Wilson 1927)."""
    N, z = len(hits_NL), 1.959964
    share_L = hits_NL.mean(0)
    middle_L = (share_L + z**2 / (2 * N)) / (1 + z**2 / N)
    half_L = z * np.sqrt(share_L * (1 - share_L) / N + z**2 / (4 * N**2)) / (1 + z**2 / N)
    return np.stack([share_L, (middle_L - half_L).clip(0), (middle_L + half_L).clip(max=1)])


def _on_text(
    model: Readable,
    named: dict[str, Lens],
    ids_CT: Tensor,
    token_budget: int,
    progress: Callable[[int], None],
) -> dict[str, Measures]:
    """Lens → TEXT, (sequences, depths): means over the positions of a sequence."""
    T = ids_CT.shape[1]
    if T < 2:
        raise PromptError(f"sequences of {T} token have no next token: expected at least 2")
    found = {name: {m: [] for m in TEXT} for name in named}
    for part in ids_CT.split(max(1, token_budget // T)):
        residuals = capture.capture(model, part.tolist())
        next_CT = torch.cat([part[:, 1:], part.new_full((len(part), 1), -1)], 1)
        for name, lens in named.items():
            depths = _depths(model, lens)
            h_LND = [torch.cat([r.h[d] for r in residuals]) for d in depths]
            stats = statistics(
                h_LND, depths, model.tail, lens, k=min(10, model.vocab_size),
                targets_TM=next_CT.reshape(-1, 1),
            )  # fmt: skip
            top_LNK, final_NK = stats["top_ids"], stats["top_ids"][-1]
            shared_LN = (top_LNK[..., :, None] == final_NK[None, :, None, :]).any(-1).mean(-1)
            measures = {
                "kl": stats["kl"],
                "top1": top_LNK[..., 0] == final_NK[None, :, 0],
                "top10": shared_LN,
            }
            for m, values_LN in measures.items():
                found[name][m].append(values_LN.reshape(len(depths), -1, T).mean(-1).T)
            loss_LCT = -stats["target_logprobs"][..., 0].reshape(len(depths), -1, T)
            found[name]["next"].append(loss_LCT[..., :-1].mean(-1).T)
        progress(len(part))
    return {n: {m: np.concatenate(v) for m, v in measures.items()} for n, measures in found.items()}


def _on_facts(
    model: Readable,
    named: dict[str, Lens],
    facts: Facts,
    token_budget: int,
    progress: Callable[[int], None],
) -> dict[str, Measures]:
    """Lens → FACTS, (facts, depths): share of a fact's targets with rank ≤ 1, 5, 10."""
    order: list[int] = []
    found = {name: [] for name in named}
    for group in batches([len(f.ids) for f in facts.facts], token_budget):
        chosen = [facts.facts[i] for i in group]
        residuals = capture.capture(model, [f.ids for f in chosen])
        M = max(sum(len(t) for t in f.targets) for f in chosen)
        targets_FM = torch.full((len(chosen), M), -1, dtype=torch.long, device="cpu")
        owner_FM = np.full((len(chosen), M), -1)
        for i, fact in enumerate(chosen):
            flat = [(t, n) for n, target in enumerate(fact.targets) for t in target]
            targets_FM[i, : len(flat)] = targets_FM.new_tensor([t for t, _ in flat])
            owner_FM[i, : len(flat)] = [n for _, n in flat]
        for name, lens in named.items():
            depths = _depths(model, lens)
            h_LFD = [
                torch.stack([r.h[d][f.position] for r, f in zip(residuals, chosen)]) for d in depths
            ]
            stats = statistics(h_LFD, depths, model.tail, lens, k=1, targets_TM=targets_FM)
            found[name].append(_hits(stats["target_ranks"], owner_FM))
        order += group
        progress(len(group))
    back = np.argsort(order)
    hits = {name: np.concatenate(parts)[back] for name, parts in found.items()}
    return {n: {m: hit_FLK[:, :, k] for k, m in enumerate(FACTS)} for n, hit_FLK in hits.items()}


def _hits(ranks_LFM: np.ndarray, owner_FM: np.ndarray) -> np.ndarray:
    """(F, L, K): per fact the share of targets whose best spelling has rank ≤ k; 0: a row without ranks."""
    L, F, _ = ranks_LFM.shape
    hits_FLK = np.zeros((F, L, len(RANKS)))
    for target in range(int(owner_FM.max()) + 1):
        mine_FM = owner_FM == target
        there_LFM = mine_FM[None] & (ranks_LFM > 0)
        best_LF = np.where(there_LFM, ranks_LFM.astype(float), np.inf).min(-1)
        for k, limit in enumerate(RANKS):
            hits_FLK[:, :, k] += (best_LF <= limit).T
    count_F = owner_FM.max(1) + 1
    return hits_FLK / count_F[:, None, None]
