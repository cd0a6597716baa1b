"""Several prompts → a reading each: batches of similar length, whose rows share products.

On a GPU each batch is waited for, checked and made into readings only once the next has been begun.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad

from logitlens.anatomy.forward import as_found, input_device
from logitlens.model.assemble import ReadingBuilder, Rows, begin_rows
from logitlens.model.batches import batches_of
from logitlens.model.capture import Residuals, capture
from logitlens.model.chat import Messages
from logitlens.model.request import Request
from logitlens.reading import Reading
from logitlens.readout import transfer
from logitlens.readout.engine import Engine, choose
from logitlens.readout.read import Table, positions_per_block

if TYPE_CHECKING:
    from logitlens.model.lens_model import LensModel


def read(
    model: LensModel,
    cut: Sequence[tuple[list[int], int]],
    requests: Sequence[Request],
    token_budget: int,
    words: Sequence[str | Messages | None],
) -> dict[int, Reading]:
    """Prompts, as ids and how many of theirs were dropped → their readings, by number.

    requests   one each, which differ in positions and tracks only          words   text or messages
    """
    lengths = [len(ids) for ids, _ in cut]
    layers = model.n_blocks + 1 if requests and requests[0].depths is None else 0
    rows = sum(len(r.positions) * (len(r.depths or ()) or layers) for r in requests)
    most = max((max(r.top, r.candidates) for r in requests), default=1)
    engine = choose(model.tail.head, rows, most)  # for all of them

    def begin(batch: Sequence[int]) -> Callable[[], dict[int, Reading]]:
        asked = requests[batch[0]]  # all run alike
        with as_found(model.hf):
            captured = capture(
                model, [cut[i][0] for i in batch], depths=asked.depths, stream=asked.stream,
                check=[requests[i].positions[-1] for i in batch], edits=asked.edits,
            )  # fmt: skip
            builders = {i: ReadingBuilder(model, cut[i][0], requests[i]) for i in batch}
            rows = begin_together([*builders.values()], captured, engine)
            devices = captured[0].h[-1].device, captured[0].final_logits.device
            return partial(end, builders, rows, transfer.aside(*devices))

    def end(
        builders: Mapping[int, ReadingBuilder],
        rows: Callable[[], None],
        aside: AbstractContextManager[None],
    ) -> dict[int, Reading]:
        # The check asks the GPU once more: it must not wait for the batch that was begun meanwhile.
        with aside, as_found(model.hf):
            rows()
            return {
                i: builder.reading(prompt=words[i], dropped=cut[i][1])
                for i, builder in builders.items()
            }

    readings: dict[int, Reading] = {}
    begun = map(begin, batches_of(model, lengths, token_budget))
    for found in transfer.in_turn(begun, behind=transfer.overlaps(input_device(model.hf))):
        readings |= found
    return readings


def begin_together(
    builders: Sequence[ReadingBuilder], parts: Sequence[Residuals], engine: Engine
) -> Callable[[], None]:
    """Begin to read a whole prompt each, of requests that differ in positions and tracks only; what is
    returned ends them.

    Rows of short prompts share products, which read the unembedding once for all of them.
    """
    ends: list[Callable[[], None]] = []
    start = 0
    while start < len(builders):
        h = parts[start].h
        most = positions_per_block(len(h), h[-1].shape[-1], gpu=h[-1].is_cuda)
        stop, count = start, 0
        while stop < len(builders):
            count += len(builders[stop].positions)
            if stop > start and count > most:
                break
            stop += 1
        ends.append(_begin_group(builders[start:stop], parts[start:stop], engine))
        if not transfer.overlaps(h[-1].device):
            ends.pop()()
        start = stop

    def end() -> None:
        for each in ends:
            each()

    return end


def _begin_group(
    builders: Sequence[ReadingBuilder], parts: Sequence[Residuals], engine: Engine
) -> Callable[[], None]:
    for builder in builders:
        builder.engine = engine
    if len(builders) == 1:
        return builders[0].begin(0, parts[0])
    began = time.perf_counter()
    found = [builder._rows(0, part) for builder, part in zip(builders, parts)]
    asked = [(builder, rows) for builder, rows in zip(builders, found) if rows is not None]
    if not asked:
        return lambda: None
    M = max(rows.targets_TM.shape[1] for _, rows in asked)
    counts = [len(rows.targets_TM) for _, rows in asked]
    starts = [sum(counts[:i]) for i in range(len(counts))]
    joined = Rows(
        [torch.cat(h) for h in zip(*(rows.h_LTD for _, rows in asked))],
        asked[0][1].depths,
        torch.cat([pad(r.targets_TM, (0, M - r.targets_TM.shape[1]), value=-1) for _, r in asked]),
        {
            start + p: z_V
            for start, (_, rows) in zip(starts, asked)
            for p, z_V in rows.final.items()
        },
    )
    table = Table(sum(counts))
    end = begin_rows(asked[0][0], joined, engine, table)
    widths = [(builder, rows.targets_TM.shape[1]) for builder, rows in asked]
    del found, asked, joined  # copies of residuals, where some positions only are read
    seconds = time.perf_counter() - began

    def ended() -> None:
        waits = time.perf_counter()
        end()
        each = (seconds + time.perf_counter() - waits) / len(widths)
        for start, count, (builder, width) in zip(starts, counts, widths):
            own = table.part(slice(start, start + count))
            for name in ("target_logprobs", "target_ranks"):
                own[name] = own[name][..., :width]
            builder.table.add(own)
            builder.seconds += each

    return ended
