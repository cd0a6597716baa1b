"""Run a survey: plan it, or go on where it was left, and commit every shard once."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from logitlens.edit import Edit
from logitlens.errors import SettingError, SurveyError
from logitlens.model.edits import Prepared, prepare
from logitlens.model.lens_model import LensModel
from logitlens.model.request import depths_for
from logitlens.survey import plan as plans
from logitlens.survey import planning
from logitlens.survey import prompts as labelled
from logitlens.survey.commit import Folder
from logitlens.survey.engines import Engine, Records, local
from logitlens.survey.measure import COLUMNS, require_readable
from logitlens.survey.merge import merge
from logitlens.survey.plan import Plan, Settings
from logitlens.survey.settle import settle
from logitlens.survey.worker import Worker

Watch = Callable[[Plan, list[int]], Callable[[dict[str, Any]], None]]
DROPPED = "interrupted: dropped, to be read again"  # in a shard's log


@dataclass(frozen=True)
class Status:
    """How far a survey is.

    records   of the committed shards      failed   shard → why, of those that failed when last tried
    underway  shard → last line of its log, of those begun and neither committed nor failed
    merged    whether the one table is there
    """

    plan: Plan
    records: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)
    underway: dict[int, str] = field(default_factory=dict)
    merged: bool = False

    @property
    def done(self) -> bool:
        return len(self.records) == len(self.plan.shards)

    @property
    def skipped(self) -> list[str]:
        """Lines and prompts that were left out, each with the reason."""
        return [*self.plan.facts["skipped"], *(s for r in self.records for s in r["skipped"])]

    @property
    def bad(self) -> int:
        """How many were left out; of a corpus, not all are named."""
        return self.plan.facts.get("corpus", {}).get("bad", len(self.skipped))

    def total(self, name: str) -> int:
        return sum(record[name] for record in self.records)


def status(folder: str | os.PathLike[str], *, verify: bool = False) -> Status:
    """What is committed in a folder. Raises SurveyError where there is no survey.

    verify   read every committed part, and its cells, and compare them with their SHA-256: those that differ
             count as failed
    """
    plan, files = plans.load(folder), Folder(folder)
    listed = files.numbers("commits")  # before they are read: others commit meanwhile
    records = [r for s in range(len(plan.shards)) if (r := files.committed(s)) is not None]
    spoilt = _spoilt(files, records) if verify else {}
    records = [record for record in records if record["shard"] not in spoilt]
    ended = {record["shard"] for record in records}
    damaged = "its part is missing, or not whole: run the survey again"
    failed = dict.fromkeys((s for s in listed if s not in ended), damaged) | spoilt
    failed |= {shard: why for shard, why in files.failures().items() if shard not in ended}
    underway = {
        shard: line
        for shard in files.numbers("logs")
        if shard not in ended
        and shard not in failed
        and (line := files.last_line(shard))
        and not line.endswith(DROPPED)
    }
    return Status(plan, records, failed, underway, files.merged)


def _spoilt(files: Folder, records: Sequence[dict[str, Any]]) -> dict[int, str]:
    """Shard → which of its files is not what was committed."""
    found = {}
    for record in records:
        try:
            for cells in (False, True) if "cells" in record else (False,):
                files.checked(record["shard"], cells)
        except SurveyError as error:
            found[record["shard"]] = str(error)
    return found


def run(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    model: LensModel,
    *,
    source: str,
    loading: dict[str, Any],
    lenses: Sequence[str] = ("logit",),
    settings: Settings | None = None,
    edits: Sequence[Edit] = (),
    jobs: int = 1,
    engine: Engine | None = None,
    share: tuple[int, int] | None = None,
    watch: Watch | None = None,
) -> Status:
    """Read the labelled prompts of `path`, or its text in windows, into `folder`; go on where it was left.

    model    the loaded model; `source` and `loading` say how other processes load the same
    settings one with a `length` reads a corpus
    edits    changes made to the stream while the model reads, see `logitlens.edit`; positions are those
             of each prompt, or of each window
    jobs     processes on this machine             share   (i, n): every n-th shard from the i-th on
    engine   (folder, shards) → records, in place of processes of this machine
    watch    called with the plan and the shards to be read; what it returns, with each one's record
             as it ends

    Every shard that is not committed is tried once. When all are, they are merged. Raises SurveyError
    where the folder holds another survey, SettingError, InputError for a prompt that cannot be read unless
    such are skipped, and what planning raises.
    """
    settings = settings or Settings()
    plans.needs_pyarrow()
    _require(settings, model)
    ready = prepare(model, edits)
    files = Folder(folder)
    given = _given(path, files, model, settings, ready)
    plan = planning.make(
        model, given, source=source, loading=loading, lenses=lenses, settings=settings,
        edits=_as_given(edits, ready),
    )  # fmt: skip
    plan = settle(files, plan)
    index, count = share or (0, 1)
    mine = range(len(plan.shards))[index::count]
    left = [shard for shard in mine if files.committed(shard) is None]
    files.sweep()
    failed: dict[int, str] = {}
    try:
        if left:
            ended = watch and watch(plan, left)
            with contextlib.closing(_records(files, plan, model, left, jobs, engine)) as records:
                failed = _read(files, records, ended)
    except KeyboardInterrupt:  # no worker is left to say so
        for shard in status(folder).underway.keys() & set(left):
            files.log(shard, DROPPED)
        raise
    finally:
        files.sweep()
    found = status(folder)
    if found.done and not found.merged:
        _merge(folder)
        found = status(folder)
    return _with_failures(found, failed)


def _require(settings: Settings, model: LensModel) -> None:
    """Refuse settings without a meaning before anything is written."""
    if min(settings.shard_size, settings.token_budget, settings.threads, settings.top) < 1:
        raise SettingError("shard_size, token_budget, threads and top are at least 1")
    if settings.cells and settings.top > model.vocab_size:
        raise SettingError(
            f"top is at most the vocabulary's {model.vocab_size:,}; got {settings.top:,}"
        )
    depths_for(model, settings.layers)


def _with_failures(found: Status, failed: dict[int, str]) -> Status:
    """The status, with what failed here too: a full disk may hold no record of it."""
    done = {record["shard"] for record in found.records}
    failed = {k: v for k, v in (failed | found.failed).items() if k not in done}
    underway = {k: v for k, v in found.underway.items() if k not in failed}
    return replace(found, failed=failed, underway=underway)


def _as_given(edits: Sequence[Edit], ready: Prepared | None) -> list[Edit]:
    """Edits as a plan keeps them: tokens by name, since their directions are not the same to the last
    bit on every machine."""
    found = ready.edits if ready is not None else []
    return [replace(given, layer=e.layer) for given, e in zip(edits, found, strict=True)]


def _read(
    files: Folder,
    records: Iterator[dict[str, Any]],
    ended: Callable[[dict[str, Any]], None] | None,
) -> dict[int, str]:
    """Take the records as shards end. Returns shard → why, of those that failed."""
    failed: dict[int, str] = {}
    for record in records:
        if "error" in record:
            failed[record["shard"]] = record["error"]
            with contextlib.suppress(OSError):  # the disk may be full
                files.fail(record["shard"], f"{record['error']}\n\n{record.get('traceback', '')}")
        if ended is not None:
            ended(record)
    return failed


def _merge(folder: str | os.PathLike[str]) -> None:
    try:
        merge(folder)
    except OSError as error:
        raise SurveyError(
            f"every shard is committed, but {error}: make room, then run `logitlens survey merge`"
        ) from error


def _given(
    path: str | os.PathLike[str],
    files: Folder,
    model: LensModel,
    settings: Settings,
    edits: Prepared | None,
) -> dict[str, Any]:
    if settings.length:
        return planning.of_corpus(files, str(path), model, settings, edits)
    skip_bad = settings.bad == "skip"
    given = labelled.read(path, skip_bad=skip_bad, reserved=COLUMNS)
    if plans.find(files) is None:  # whoever goes on need not look again
        require_readable(model, given.items, edits, skip_bad=skip_bad)
    return planning.of_prompts(given, settings)


def _records(
    files: Folder,
    plan: Plan,
    model: LensModel,
    shards: list[int],
    jobs: int,
    engine: Engine | None,
) -> Records:
    if engine is not None:
        return engine(files.place.address, shards)
    if jobs > 1:
        return local.run(files.place.address, shards, jobs)
    return local.run_here(Worker(files.place.address, model, plan), shards)
