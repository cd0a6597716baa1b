"""Turn residuals into a Reading: statistics, check, provenance."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from logitlens.anatomy.check import Check, compare
from logitlens.errors import PromptError, UnsupportedModel
from logitlens.lenses import Lens
from logitlens.model.capture import Progress, Residuals
from logitlens.model.chat import Messages
from logitlens.model.provenance import provenance
from logitlens.model.turns import Turns
from logitlens.reading import Reading
from logitlens.readout import read
from logitlens.readout.engine import Engine, choose
from logitlens.readout.read import Table
from logitlens.readout.stats import FinalRows
from logitlens.readout.transfer import sent
from logitlens.select import layer_number

if TYPE_CHECKING:
    from logitlens.model.lens_model import LensModel
    from logitlens.model.request import Request


class Rows(NamedTuple):
    """Residual rows to be read out: L of (T, D) at depths, targets (T, M), final rows to be filled."""

    h_LTD: list[Tensor]
    depths: list[int]
    targets_TM: Tensor
    final: FinalRows


class ReadingBuilder:
    """The cells of one prompt (T,) of token ids, added a chunk of its positions at a time.

    A model that writes makes the prompt longer: `follow` adds each token that it has chosen, and
    `room` is how many positions there may be beyond those of the prompt.
    """

    def __init__(
        self,
        model: LensModel,
        ids: Sequence[int],
        request: Request,
        progress: Progress | None = None,
        *,
        room: int = 0,
    ):
        self.model, self.request, self.progress = model, request, progress
        self.given = len(ids)
        self.ids_T = torch.as_tensor(ids, dtype=torch.long)
        self.next_T = torch.cat([self.ids_T[1:], self.ids_T.new_tensor([-1])])
        self.positions = list(request.positions)  # in order
        self.table = Table(len(self.positions) + room)
        self.part: Residuals | None = None  # the last one that shows a position
        self.verdict: Check | None = None  # of all parts that were checked …
        self.checked = 0  # … and the positions up to there
        self.start = 0
        self.final: FinalRows = {}
        self.engine: Engine | None = None  # chosen for all positions, with the first chunk
        self.seconds = 0.0
        self.turns: Turns | None = None  # of a chat

    def follow(self, token: int) -> None:
        """A token that the model has written: what follows the last position, and the next one."""
        self.next_T[-1] = token
        self.positions.append(len(self.ids_T))
        self.ids_T = torch.cat([self.ids_T, self.ids_T.new_tensor([token])])
        self.next_T = torch.cat([self.next_T, self.next_T.new_tensor([-1])])
        if self.turns is not None:
            self.turns.follow(token)

    def add(self, start: int, part: Residuals) -> None:
        """Read out the residuals of the positions from `start` on; chunks come in order.

        Raises PromptError where they have another width than the model.
        """
        self.begin(start, part)()

    def begin(self, start: int, part: Residuals) -> Callable[[], None]:
        """`add`, begun: what is returned ends it. A GPU may still be reading until then."""
        began = time.perf_counter()
        rows = self._rows(start, part)
        if rows is None:
            return lambda: None
        if self.engine is None:
            T, L = len(self.request.positions), len(rows.depths)
            single = (self.table.T - T) * L  # rows of what the model is to write
            most = max(self.request.top, self.request.candidates)
            self.engine = choose(self.model.tail.head, T * L, most, single=single)
        progress = partial(self.progress, "positions") if self.progress else None
        end = begin_rows(self, rows, self.engine, self.table, progress)
        self.seconds += time.perf_counter() - began

        def ended() -> None:
            waits = time.perf_counter()
            end()
            self.seconds += time.perf_counter() - waits

        return ended

    def _rows(self, start: int, part: Residuals) -> Rows | None:
        """What is to be read out of the positions from `start` on; None where none is shown."""
        model, request = self.model, self.request
        if part.h[-1].shape[-1] != model.width:
            raise PromptError(
                f"the residuals are {part.h[-1].shape[-1]} wide and the model {model.width}: "
                "read them out with the model they were captured from"
            )
        stop = start + len(part.ids)
        first, end = (bisect_left(self.positions, p) for p in (start, stop))
        where = torch.tensor(self.positions[first:end], dtype=torch.long, device="cpu")
        if not len(where):
            return None
        self.part, self.start, self.final = part, start, {}  # the last part that shows a position
        depths = depths_of(part.layers)
        kept = readable(request.lens, depths)
        h_LTD = [part.h[i] for i in kept]
        if len(where) < len(part.ids):
            rows = sent(where - start, h_LTD[-1].device)
            h_LTD = [h_TD[rows.to(h_TD.device)] for h_TD in h_LTD]
        final, place = {}, {p: i for i, p in enumerate((where - start).tolist())}
        for p in set(part.final_positions) & set(place):
            final[place[p]] = self.final[p] = torch.empty(
                model.vocab_size, dtype=torch.float32, device=h_LTD[-1].device
            )
        tracked_TF = where.new_tensor(request.track.flat).expand(len(where), -1)
        targets_TM = torch.cat([self.next_T[where, None], tracked_TF], dim=1)
        return Rows(h_LTD, [depths[i] for i in kept], targets_TM, final)

    def check(self) -> Check:
        """Compare the last row of the part added last with the model's own logits; see `_checked`.

        Returns what was found of all parts so far that were compared.
        """
        assert self.part is not None, "no residuals were added"
        found = self._checked(self.part)
        self.verdict = found if self.verdict is None else self.verdict.joined(found)
        self.checked = self.table.filled
        return self.verdict

    def reading(
        self,
        *,
        prompt: str | Messages | None,
        dropped: int,
        last: int | None = None,
        **facts: Any,
    ) -> Reading:
        """All chunks, or the `last` so many positions of them, as one Reading.

        prompt   its text or messages; None: ids        facts   further entries of its meta

        Raises UnsupportedModel where the last row is not the model's own output, or not finite.
        """
        began = time.perf_counter()
        model, request, part = self.model, self.request, self.part
        assert part is not None, "no residuals were added"
        stop = self.checked or self.table.filled
        read = slice(stop - last if last else 0, stop)
        arrays = self.table.part(read)
        positions = self.positions[read]
        finite = arrays.pop("finite")
        if not finite[-1].all():
            raise self._not_finite(positions[int(np.argmin(finite[-1]))], part)
        check = self.verdict or self.check()
        targets, ranks = arrays.pop("target_logprobs"), arrays.pop("target_ranks")
        where = torch.tensor(positions, dtype=torch.long, device="cpu")
        next_T, tokens = self.next_T[where], model.tokens
        shown = [int(i) for i in self.ids_T[where]]
        occurring = self._occurring(arrays, shown, next_T)
        meta = self._meta(part, check, self.seconds + time.perf_counter() - began)
        meta |= {"positions": positions, "truncated": dropped, **facts}
        meta["prompt"] = prompt if isinstance(prompt, str) else None
        if prompt is not None and not isinstance(prompt, str):
            meta["messages"] = [dict(message) for message in prompt]
            arrays |= self._speakers(prompt, dropped, positions)
        meta["vocab_bytes"] = {str(i): b for i, b in tokens.fragments(occurring).items()}
        meta["special_ids"] = sorted(i for i in occurring if tokens.is_special(i))
        meta["nonfinite_cells"] = int((~finite).sum())
        if request.track.names:
            members = dict(zip(request.track.ids, request.track.members))
            meta["track_sets"] = {str(i): members[i] for i in request.track.names}
        track_logprobs, track_ranks = request.track.joined(targets[:, :, 1:], ranks[:, :, 1:])
        all_pieces = tokens.pieces(self.ids_T.tolist())
        return Reading(
            ids=np.array(shown),
            pieces=[all_pieces[i] for i in positions],
            generated=where.numpy() >= self.given,
            layers=[part.layers[i] for i in readable(request.lens, depths_of(part.layers))],
            **arrays,
            next_ids=next_T.numpy(),
            next_logprobs=targets[:, :, 0],
            next_ranks=ranks[:, :, 0],
            track_ids=np.array(request.track.ids, np.int32),
            track_logprobs=track_logprobs,
            track_ranks=track_ranks,
            vocab=request.track.names | {i: tokens.piece(i) for i in sorted(occurring)},
            meta=meta,
        )

    def _occurring(
        self, arrays: dict[str, np.ndarray], shown: list[int], next_T: Tensor
    ) -> set[int]:
        """Every id that the reading names."""
        occurring = {
            *shown,
            *next_T.tolist(),
            *self.request.track.flat,
            *arrays.get("candidate_ids", np.empty(0)).ravel().tolist(),
            # A depth at a time: of all at once, a table several times as large would be made.
            *(i for ids in arrays["top_ids"] for i in torch.from_numpy(ids).unique().tolist()),
        }
        return occurring - {-1}

    def _speakers(
        self, messages: Messages, dropped: int, positions: list[int]
    ) -> dict[str, np.ndarray]:
        """Who speaks at each position of a chat, and in which section of it."""
        if self.turns is None:
            self.turns = Turns(messages, self.model.tokens, dropped)
            for token in self.ids_T[self.given :].tolist():
                self.turns.follow(token)
        return {
            "role": np.array([self.turns.role[p] for p in positions]),
            "section": np.array([self.turns.section[p] for p in positions]),
        }

    def _not_finite(self, position: int, part: Residuals) -> UnsupportedModel:
        return UnsupportedModel(
            f"{self.model.name}: the model's own logits at position {position} are not finite (nan or "
            "inf); "
            + ("its edits may be too strong, or " if part.edits is not None else "")
            + "check the weights, or load with dtype='float32'"
        )

    def _ran(self) -> int:
        """How many tokens the model was given: all but the last that it has written itself."""
        return max(self.given, len(self.ids_T) - 1)

    def _checked(self, part: Residuals) -> Check:
        """Compare the last row with the logits the model itself computed; refuse a difference.

        Two comparisons: every logit that the readout made of the final row, and the numbers that
        will be shown, against the model's own. Where the position is not among those shown, the
        tail computes the row for the check alone.
        """
        model, arrays = self.model, self.table.arrays
        h_PD = part.h[-1][part.final_positions]
        missing = [p for p in part.final_positions if p not in self.final]
        if missing:
            self.final |= dict(zip(missing, model.tail.logits(part.h[-1][missing])))
        ours_PV = torch.stack([self.final[p].float().cpu() for p in part.final_positions])
        check = compare(part.final_logits, ours_PV, model.tail, h_PD, part.final_sums)
        shown = {
            row: t
            for row, position in enumerate(part.final_positions)
            if (t := bisect_left(self.positions, self.start + position)) < self.table.filled
            and self.positions[t] == self.start + position
        }
        if shown:
            numbers = (arrays[name][-1, [*shown.values()]] for name in ("top_ids", "top_logprobs"))
            own_PV, sums_P = part.final_logits[[*shown]], part.final_sums[[*shown]]
            check = check.over_shown(own_PV, sums_P, *numbers)
        return check.require(model.name)

    def _meta(self, part: Residuals, check: Check, seconds: float) -> dict[str, Any]:
        return {
            "prompt_tokens": self._ran(),
            **provenance(self.model, self.request.lens, check, part.edits),
            "stream": part.stream,
            "kernel": self.engine.name if self.engine else "",
            "readout_seconds": round(seconds, 4),
        }


def begin_rows(
    builder: ReadingBuilder,
    rows: Rows,
    engine: Engine,
    table: Table,
    progress: Callable[[int, int], None] | None = None,
) -> Callable[[], dict[str, np.ndarray]]:
    """`read.begin` of rows as a builder's request asks for them."""
    request = builder.request
    return read.begin(
        rows.h_LTD,
        rows.depths,
        builder.model.tail,
        request.lens,
        k=request.top,
        targets_TM=rows.targets_TM,
        candidates=request.candidates,
        engine=engine,
        into=table,
        final=rows.final,
        progress=progress,
    )


def depths_of(layers: Sequence[str]) -> list[int]:
    """Labels → depths: "embed" → 0, "5" and "5.attn" → 6."""
    return [0 if (block := layer_number(label)) is None else block + 1 for label in layers]


def readable(lens: Lens, captured: Sequence[int]) -> list[int]:
    """Indices into the captured depths that the lens can read, and the last."""
    has = lens.depths()
    last = len(captured) - 1
    return [i for i, d in enumerate(captured) if has is None or d in has or i == last]
