"""Whole answers of several tokens, scored at every layer: each token given those before it.

The answers to a prompt are read from as few passes as there are: an answer of one token needs the
prompt alone, one of several the prompt and all but its last token, and answers that begin alike share
what they share. Prompts of similar length run as one batch; only the rows asked for are read out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from logitlens.anatomy.check import Check, compare
from logitlens.anatomy.forward import as_found, input_device
from logitlens.errors import PromptError, UnsupportedModel
from logitlens.lenses import Lens
from logitlens.model.assemble import depths_of, readable
from logitlens.model.batches import batches_of
from logitlens.model.capture import Residuals, capture
from logitlens.model.provenance import provenance
from logitlens.model.tokens import whole
from logitlens.readout import read, transfer
from logitlens.readout.engine import Engine, choose
from logitlens.readout.stats import FinalRows
from logitlens.scores import Scores

if TYPE_CHECKING:
    from logitlens.model.edits import Prepared
    from logitlens.model.lens_model import LensModel

Answer = str | Sequence[int]


@dataclass(frozen=True, eq=False)
class Asked:
    """Where to look in one sequence of token ids, and for what.

    positions   (P,) where, in order            targets   (P, M) the ids looked for; −1: none
    prompt      how many of the ids are the prompt, of which edits choose positions; None: all
    """

    ids: list[int]
    positions: list[int]
    targets: np.ndarray
    prompt: int | None = None


@dataclass(frozen=True, eq=False)
class Rows:
    """What was read at the positions asked for, of one sequence by one lens.

    layers            L labels
    top_ids           (L, P, K) int32            top_logprobs     (L, P, K) float32
    entropy, kl       (L, P) float32
    target_logprobs   (L, P, M) float32          target_ranks     (L, P, M) int32
    finite            (L, P) bool                check            of the batch it was read in
    """

    layers: list[str]
    arrays: dict[str, np.ndarray]
    check: Check | None

    def target(self, p: int, m: int) -> np.ndarray:
        """(L,) the log-probability of a target."""
        return self.arrays["target_logprobs"][:, p, m]


@dataclass(frozen=True, eq=False)
class Question:
    """A prompt and its answers as sequences to be read.

    asked    the sequences           where   for each answer, for each token: sequence, position and
                                             target in them
    """

    asked: list[Asked]
    where: list[list[tuple[int, int, int]]]


def question(
    ids: list[int], answers: Sequence[Sequence[int]], extra: Sequence[int] = ()
) -> Question:
    """A prompt (T,) and answers, each (n,) ids; `extra` ids are looked for after the prompt as well."""
    wanted: dict[tuple[int, ...], dict[int, int]] = {(): {}}  # what went before → id → target
    for token in extra:
        wanted[()].setdefault(token, len(wanted[()]))
    for answer in answers:
        for n, token in enumerate(answer):
            here = wanted.setdefault(tuple(answer[:n]), {})
            here.setdefault(token, len(here))
    whole_ones = [
        a for a in wanted if not any(len(b) > len(a) and b[: len(a)] == a for b in wanted)
    ]
    asked: list[Asked] = []
    place: dict[tuple[int, ...], tuple[int, int]] = {}
    for s, prefix in enumerate(whole_ones):
        mine = [prefix[:n] for n in range(len(prefix) + 1)]
        mine = [part for part in mine if part in wanted and part not in place]
        place |= {part: (s, p) for p, part in enumerate(mine)}
        positions = [len(ids) - 1 + len(part) for part in mine]
        by_target = [*zip_longest(*(wanted[part] for part in mine), fillvalue=-1)]
        targets_PM = np.array(by_target, np.int64).reshape(-1, len(mine)).T
        asked.append(Asked([*ids, *prefix], positions, targets_PM, len(ids)))
    where = [
        [(*place[tuple(a[:n])], wanted[tuple(a[:n])][token]) for n, token in enumerate(a)]
        for a in answers
    ]
    return Question(asked, where)


def answer_ids(model: LensModel, prompt: Any, ids: list[int], answer: Answer) -> list[int]:
    """The tokens of an answer as they follow the prompt. Raises PromptError.

    Text is tokenised together with the prompt, and by itself where the two would be joined otherwise
    than the prompt was read.
    """
    tokens = model.tokens
    if not isinstance(answer, str):
        found = [whole(token) for token in answer] if isinstance(answer, Iterable) else []
        if not found or any(t is None or not 0 <= t < model.vocab_size for t in found):
            raise PromptError(
                f"the answer {answer!r} is neither text nor a list of token ids from 0 to "
                f"{model.vocab_size - 1}"
            )
        return [t for t in found if t is not None]
    if not answer:
        raise PromptError("an answer is empty: give its text")
    if isinstance(prompt, str):
        both = tokens.encode(prompt + answer)
        if both[: len(ids)] == ids and len(both) > len(ids):
            return both[len(ids) :]
    if tokens.tokenizer is None:
        raise PromptError(
            f"the answer {answer!r} is text, and the model has no tokenizer: give token ids"
        )
    exact = tokens.exact(answer)
    found = tokens.plain(answer) if exact is None else [exact]
    if not found:
        raise PromptError(f"the answer {answer!r} has no tokens")
    return found


def read_rows(
    model: LensModel,
    asked: Sequence[Asked],
    lenses: Sequence[Lens],
    batches: Sequence[Sequence[int]],
    *,
    depths: list[int] | None = None,
    top: int = 1,
    edits: Prepared | None = None,
    among: int = 0,
    behind: bool = True,
) -> Iterator[tuple[int, list[Rows]]]:
    """Yields (index of a sequence, its rows by every lens), in the order in which they are read.

    batches   which sequences run together, by number
    top       K of the rows             edits   made while the model runs, at positions of the prompts
    among     of how many positions these are a part; all are read by one kernel
    behind    on a GPU, begin a batch before the one before it is waited for

    Raises UnsupportedModel where a last row is not the model's own output. Rows whose logits are not
    finite are given as they are, and not compared.
    """
    layers = len(depths) if depths is not None else len(model.anatomy.blocks) + 1
    positions = sum(len(each.positions) for each in asked)
    engine = choose(model.tail.head, layers * max(positions, among), top)

    def begun() -> Iterator[Callable[[], list[Rows]]]:
        for batch in batches:
            mine = [asked[i] for i in batch]
            changes = edits
            if changes is not None:
                changes = changes.before_answers([a.prompt or len(a.ids) for a in mine])
            with as_found(model.hf):
                captured = capture(
                    model, [a.ids for a in mine], depths=depths,
                    check=[a.positions[-1] for a in mine], edits=changes,
                )  # fmt: skip
            own = [replace(part, h=[]) for part in captured]
            for lens in lenses:
                yield _begin(model, mine, captured, own, lens, top, engine)
            del captured  # before the next pass

    behind = behind and transfer.overlaps(input_device(model.hf))
    ended = transfer.in_turn(begun(), behind=behind)
    for batch in batches:
        by_lens = [next(ended) for _ in lenses]
        yield from [(i, list(rows)) for i, *rows in zip(batch, *by_lens)]  # all of a batch, or none


def _begin(
    model: LensModel,
    asked: list[Asked],
    captured: list[Residuals],
    own: list[Residuals],
    lens: Lens,
    top: int,
    engine: Engine,
) -> Callable[[], list[Rows]]:
    """One batch by one lens, begun. Of what is captured, its end needs `own` only."""
    depths = depths_of(captured[0].layers)
    kept = readable(lens, depths)
    device = captured[0].h[-1].device
    places = [_places(each.positions, device) for each in asked]
    h_LND = [
        torch.cat([_at(part.h[i], place) for part, place in zip(captured, places)]) for i in kept
    ]
    M = max(1, *(each.targets.shape[1] for each in asked))
    targets = [
        np.pad(t, ((0, 0), (0, M - t.shape[1])), constant_values=-1)
        for t in (a.targets for a in asked)
    ]
    targets_NM = torch.from_numpy(np.concatenate(targets))
    last_S = np.cumsum([len(each.positions) for each in asked]) - 1
    final: FinalRows = {
        int(n): torch.empty(model.vocab_size, dtype=torch.float32, device=h_LND[-1].device)
        for n in last_S
    }
    with as_found(model.hf):
        end = read.begin(
            h_LND,
            [depths[i] for i in kept],
            model.tail,
            lens,
            k=top,
            targets_TM=targets_NM,
            engine=engine,
            final=final,
        )
    h_SD = h_LND[-1][transfer.sent(torch.from_numpy(last_S), device)]
    labels = [captured[0].layers[i] for i in kept]
    stops = (last_S + 1).tolist()
    aside = transfer.aside(device, own[0].final_logits.device)

    def rows() -> list[Rows]:
        # The check must not wait for the batch that was begun meanwhile.
        with aside, as_found(model.hf):
            arrays = end()
            check = _checked(model, own, h_SD, final, last_S, arrays)
        return [
            Rows(labels, {name: array[:, a:b] for name, array in arrays.items()}, check)
            for a, b in zip([0, *stops[:-1]], stops)
        ]

    return rows


def _places(positions: list[int], device: torch.device) -> slice | torch.Tensor:
    """Positions as what indexes rows: neighbours as a slice, which copies nothing."""
    first, last = positions[0], positions[-1]
    if last - first == len(positions) - 1:
        return slice(first, last + 1)
    return transfer.sent(torch.tensor(positions, dtype=torch.long, device="cpu"), device)


def _at(h_TD: torch.Tensor, place: slice | torch.Tensor) -> torch.Tensor:
    return h_TD[place if isinstance(place, slice) else place.to(h_TD.device)]


def _checked(
    model: LensModel,
    own: list[Residuals],
    h_SD: torch.Tensor,
    final: FinalRows,
    last_S: np.ndarray,
    arrays: dict[str, np.ndarray],
) -> Check | None:
    """Compare the last position of every sequence with the model's own logits; refuse a difference.

    None: no row of the batch was finite.
    """
    good = [s for s, n in enumerate(last_S) if arrays["finite"][-1, n]]
    if not good:
        return None
    own_PV = torch.cat([own[s].final_logits for s in good])
    sums_P = torch.cat([own[s].final_sums for s in good])
    rows = [int(last_S[s]) for s in good]
    ours_PV = torch.stack([final[n] for n in rows])
    check = compare(own_PV, ours_PV, model.tail, h_SD[good], sums_P)
    shown = (arrays[name][-1, rows, :1] for name in ("top_ids", "top_logprobs"))
    return check.over_shown(own_PV, sums_P, *shown).require(model.name)


def token_values(
    rows: Sequence[Rows], where: Sequence[tuple[int, int, int]], name: str
) -> np.ndarray:
    """(L, n) `target_logprobs` or `target_ranks` of an answer's n tokens."""
    return np.stack([rows[s].arrays[name][:, p, m] for s, p, m in where], axis=-1)


def score(
    model: LensModel,
    prompt: Any,
    ids: list[int],
    answers: Sequence[Answer],
    found: list[list[int]],
    *,
    lens: Lens,
    depths: list[int] | None,
    token_budget: int,
    edits: Prepared | None = None,
) -> Scores:
    """The scores of answers to one prompt, found as these ids; see `LensModel.score`."""
    longest = len(ids) + max(len(a) for a in found) - 1
    if model.context is not None and longest > model.context:
        raise PromptError(
            f"prompt and answer have {longest + 1} tokens and the model's context holds "
            f"{model.context}: shorten them"
        )
    asking = question(ids, found)
    batches = batches_of(model, [len(each.ids) for each in asking.asked], token_budget)
    read = dict(read_rows(model, asking.asked, [lens], batches, depths=depths, edits=edits))
    rows = [read[s][0] for s in range(len(asking.asked))]
    if not all(r.arrays["finite"][-1].all() for r in rows):
        raise UnsupportedModel(
            f"{model.name}: the model's own logits are not finite (nan or inf); check the weights, or "
            "load with dtype='float32'"
        )
    worst = max((r.check for r in rows if r.check), key=lambda check: check.worst)
    pieces = model.tokens.pieces
    return Scores(
        answers=[a if isinstance(a, str) else "".join(pieces(i)) for a, i in zip(answers, found)],
        pieces=[pieces(i) for i in found],
        layers=rows[0].layers,
        token_logprobs=[token_values(rows, w, "target_logprobs") for w in asking.where],
        token_ranks=[token_values(rows, w, "target_ranks") for w in asking.where],
        meta={
            **provenance(model, lens, worst, edits),
            "prompt": prompt if isinstance(prompt, str) else None,
            "prompt_tokens": len(ids),
        },
    )
