"""What an order makes of a model: readings, a text that grows, attributions, patch grids.

Everything here runs in the worker's thread, with the model for itself.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from logitlens import edit
from logitlens.errors import PromptError
from logitlens.reading import Reading
from logitlens.server.order import Limits, Order, Patch, Question, given_of
from logitlens.view import page

Tell = Callable[[dict[str, Any]], object]
Progress = Callable[[str, int, int], None]


def tokens_of(model: Any, prompt: Any, limits: Limits) -> int:
    """How many tokens a prompt has. Raises PromptError beyond what is read here."""
    if isinstance(prompt, str):
        tokens = len(model.tokens.encode(prompt))
    elif isinstance(prompt[0], int):
        tokens = len(prompt)
    else:
        from logitlens.model.chat import chat_ids

        tokens = len(chat_ids(prompt, model.tokenizer))
    limit = min(limits.tokens, model.context or limits.tokens)
    if tokens > limit:
        raise PromptError(f"the prompt has {tokens:,} tokens, at most {limit:,} are read here")
    return tokens


def read(
    order: Order, model: Any, *, progress: Progress, tell: Tell, stopped: Callable[[], bool]
) -> Iterable[tuple[Order, Reading]]:
    """The readings of an order, each with the order that makes it alone."""
    prompt = _prompt(order)
    shown: dict[str, Any] = {"top": order.top, "track": order.track}
    edits = _edits(order.edits)
    if order.write is not None:
        run = shown | ({"edits": edits} if edits else {})
        written = _write(order, model, prompt, run, progress, tell, stopped)
        first, *others = (replace(order, lenses=(lens,)) for lens in order.lenses)
        yield first, written
        for other in others if not stopped() else ():
            yield other, follow(other, written, model, progress)
        return
    # what an edit changes is seen beside what was before it
    for changed in [(), order.edits] if edits else [()]:
        alone = [replace(order, lenses=(lens,), edits=changed) for lens in order.lenses]
        run = {"edits": edits} if changed else {}
        if len(alone) == 1:
            yield (
                alone[0],
                model.read(prompt, lens=order.lenses[0], progress=progress, **shown, **run),
            )
            continue
        residuals = model.capture(prompt, progress=progress, **run)
        for one, lens in zip(alone, order.lenses):
            yield one, model.readout(residuals, lens=lens, progress=progress, **shown)


def _prompt(order: Order) -> Any:
    return list(order.prompt) if isinstance(order.prompt, tuple) else order.prompt


def _edits(texts: Iterable[str], model: Any = None, given: int | None = None) -> Any:
    """Edits from their texts; given: tokens of the prompt that a written text began with, at whose
    positions they acted while it was written."""
    edits = [e for text in texts for e in edit.parse(text)]
    if not edits or given is None:
        return edits
    from logitlens.model.edits import prepare

    ready = prepare(model, edits)
    return ready and ready.chunk(0, given)


def _write(
    order: Order, model: Any, prompt: Any, run: dict[str, Any],
    progress: Progress, tell: Tell, stopped: Callable[[], bool],
) -> Reading:  # fmt: skip
    """Let the model write; every column is told as soon as its token is chosen."""
    from logitlens.model.sampling import settings_of

    settings = dict(order.write or {})
    settings["stop"] = settings.get("stop") or ()
    given = {
        name: settings.get(name) for name in ("max_new_tokens", "temperature", "top_p", "top_k")
    }
    # what means nothing is refused before anything is read
    settings_of(model, None, stop=settings["stop"], **given)
    run["lens"] = order.lenses[0]
    # the prompt's columns are there before the first word
    tell(column_event(model.read(prompt, progress=progress, **run)))

    columns: list[int] = []

    def each(column: Reading) -> None:
        columns.extend(column.positions)
        tell(column_event(column))
        if stopped():
            raise StopIteration

    def begins(*done: Any) -> None:
        if not columns:  # later, a progress that raises would lose what is written
            progress(*done)

    return model.generate(prompt, each=each, progress=begins, **settings, **run)


def column_event(part: Reading) -> dict[str, Any]:
    """A part of a reading as page data, blocks in base64."""
    manifest, blocks = page.manifest([part])
    packed = {name: base64.b64encode(block).decode() for name, block in blocks.items()}
    return {"state": "column", "manifest": manifest, "blocks": packed}


def follow(order: Order, old: Reading, model: Any, progress: Progress) -> Reading:
    """A reading again, with the order's tokens tracked; of a generation the text stays as it is."""
    given = given_of(old)
    edits = _edits(order.edits, model, given)
    shown: dict[str, Any] = {"top": order.top, "track": order.track, "lens": order.lenses[0]}
    shown |= {"progress": progress} | ({"edits": edits} if edits else {})
    if given is None:
        return model.read(_prompt(order), **shown)
    ids = [*old.ids.tolist(), int(old.next_ids[-1])]
    if old.positions != list(range(len(old.ids))):
        raise PromptError("this reading has only a part of its prompt: track tokens before writing")
    new = model.read(ids, positions=range(len(old.ids)), **shown)
    kept = {
        k: old.meta[k]
        for k in ("generation", "prompt", "prompt_tokens", "messages")
        if k in old.meta
    }
    return new.replace(
        generated=old.generated, role=old.role, section=old.section, meta=new.meta | kept
    )


def attribute(question: Question, model: Any) -> dict[str, Any]:
    """The largest components of a token's logit, and what they all sum to."""
    edits = _edits(question.edits, model, question.given)
    found = model.attribute(
        list(question.ids), question.token, position=question.position, edits=edits
    )
    return found.summary()


def patch(patched: Patch, model: Any, progress: Progress) -> dict[str, Any]:
    """A grid of patches, with the share of the answer that each brings back."""
    grid = model.patch_grid(
        patched.clean, patched.corrupted, patched.token, patched.versus, progress=progress
    )
    return {
        "layers": grid.layers,
        "pieces": grid.pieces,
        "clean_pieces": grid.clean_pieces,
        "restored": [[None if x != x else x for x in row] for row in grid.restored.tolist()],
        "token": grid.piece(grid.token),
        "versus": None if grid.versus is None else grid.piece(grid.versus),
        "clean": grid.clean,
        "corrupted": grid.corrupted,
    }
