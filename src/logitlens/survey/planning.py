"""Making the plan of a survey: of labelled prompts, or of a corpus, whose token ids are kept beside it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from logitlens import edit
from logitlens.edit import Edit
from logitlens.errors import PromptError, SettingError
from logitlens.lenses import resolve
from logitlens.model.edits import Prepared
from logitlens.model.lens_model import LensModel
from logitlens.model.provenance import display_name
from logitlens.storage import is_remote
from logitlens.survey import documents, settle
from logitlens.survey import plan as plans
from logitlens.survey.cells import CELLS
from logitlens.survey.commit import Folder
from logitlens.survey.documents import ORIGIN
from logitlens.survey.plan import FORMAT, VERSION, Plan, Settings
from logitlens.survey.prompts import Prompts

BYTES = 400_000  # of several labelled prompts in one shard, some 100,000 tokens


def make(
    model: LensModel,
    given: dict[str, Any],
    *,
    source: str,
    loading: Mapping[str, Any],
    lenses: Sequence[str],
    settings: Settings,
    edits: Sequence[Edit] = (),
) -> Plan:
    """The plan for an input (`of_prompts`, `of_corpus`). `source` and `loading` are how a worker loads
    the model.

    Raises what `resolve` raises.
    """
    if edits:
        given = {**given, "edits": {"model": display_name(model.name), **edit.to_data(edits)}}
    return Plan(
        {
            "format": FORMAT,
            "version": VERSION,
            "model": {
                "source": source if source == "demo" else _located(source),
                "loading": {k: v for k, v in loading.items() if v not in (None, False)},
                "name": model.name,
                "revision": model.revision,
                "class": type(model.hf).__name__,
                "config": plans.config_hash(model),
                "weights": plans.weights_hash(model),
                "tokenizer": documents.tokenizer_hash(model),
            },
            "lenses": [_lens(said, model) for said in lenses],
            "settings": asdict(settings),
            **given,
        }
    )


def _lens(said: str, model: LensModel) -> dict[str, Any]:
    """What a plan says of a lens, with its path from wherever the survey is gone on with."""
    kind, _, path = said.partition(":")
    at = f"{kind}:{_located(path)}" if path else said
    return {"said": said, **({"at": at} if at != said else {}), **resolve(said, model).describe()}


def of_prompts(prompts: Prompts, settings: Settings) -> dict[str, Any]:
    """What a plan says of labelled prompts."""
    sets = dict.fromkeys(name for item in prompts.items for name in item.sets)
    joined = sum(item.joined for item in prompts.items)
    return {
        "input": {
            "path": _absolute(prompts.path),
            "size": prompts.size,
            "sha256": prompts.sha256,
        },
        "conditions": prompts.types,
        "sets": list(sets),
        "prompts": len(prompts.items),
        "answers": sum(bool(item.answers) for item in prompts.items),
        **({"joined": joined} if joined else {}),
        "skipped": prompts.skipped,
        "shards": _shards([item.size for item in prompts.items], settings.shard_size),
    }


def _shards(sizes: Sequence[int], most: int) -> list[list[int]]:
    """Ranges of up to `most` prompts, and up to BYTES where they are several."""
    cuts, held = [0], 0
    for n, size in enumerate(sizes):
        if n > cuts[-1] and (n - cuts[-1] == most or held + size > BYTES):
            cuts.append(n)
            held = 0
        held += size
    return [list(pair) for pair in itertools.pairwise([*cuts, len(sizes)])]


def of_corpus(
    folder: Folder,
    source: str,
    model: LensModel,
    settings: Settings,
    edits: Prepared | None = None,
) -> dict[str, Any]:
    """What a plan says of a corpus, whose token ids are written into the survey's folder.

    Raises what reading a corpus raises, SettingError for windows that cannot be, PromptError where one lacks
    a position that is edited, and SurveyError where the folder is not a survey's.
    """
    if not settings.overlap < settings.length:
        raise SettingError(
            f"an overlap of {settings.overlap} in windows of {settings.length} tokens: expected less"
        )
    if model.context is not None and settings.length > model.context:
        raise SettingError(
            f"windows of {settings.length} tokens; the model's context holds {model.context}"
        )
    made, size, sha256 = documents.made_of(source, model, settings.field, settings.bad == "skip")

    # Once more when all is tokenised, which takes a while: another survey may have been begun meanwhile.
    same = partial(settle.same_text, folder, made, size, sha256)
    same()
    facts = documents.tokenise(
        folder.place, source, model, made, (*CELLS, ORIGIN, "prompt", "answer"), same
    )
    windows = documents.windows(folder.place, settings.length, settings.overlap)
    if edits is not None:
        try:
            edits.require(windows.shortest)
        except PromptError as error:
            raise PromptError(f"{error} (the shortest window)") from None
    shards = windows.shards(settings.shard_size)
    return {
        "input": {"path": _absolute(source), "size": size, "sha256": sha256},
        "conditions": facts["conditions"], "sets": [], "prompts": len(windows),
        "skipped": facts["skipped"], "shards": [list(shard) for shard in shards],
        "corpus": {k: v for k, v in facts.items() if k not in ("skipped", "conditions")},
    }  # fmt: skip


def _absolute(path: str | os.PathLike[str]) -> str:
    return str(path) if is_remote(path) else os.path.abspath(os.path.expanduser(path))


def _located(name: str) -> str:
    """The absolute path of what is on this disk; else the name, as of the hub."""
    path = os.path.expanduser(name)
    return os.path.abspath(path) if os.path.exists(path) else name
