"""Run a survey: plan it, or go on where it was left, and commit every shard once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from logitlens.errors import FormatError
from logitlens.model.lens_model import LensModel
from logitlens.model.request import depths_for
from logitlens.survey import plan as planning
from logitlens.survey import prompts as labelled
from logitlens.survey.commit import Folder
from logitlens.survey.engines import local
from logitlens.survey.measure import COLUMNS
from logitlens.survey.merge import merge
from logitlens.survey.plan import Plan, Settings
from logitlens.survey.worker import Worker


@dataclass(frozen=True)
class Status:
    """How far a survey is.

    records   of the committed shards      failed   shard → why, of those that failed when last tried
    merged    whether the one table is there
    """

    plan: Plan
    records: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)
    merged: bool = False

    @property
    def done(self) -> bool:
        return len(self.records) == len(self.plan.shards)

    @property
    def skipped(self) -> list[str]:
        """Lines and prompts that were left out, each with the reason."""
        return [*self.plan.facts["skipped"], *(s for r in self.records for s in r["skipped"])]

    def total(self, name: str) -> int:
        return sum(record[name] for record in self.records)


def status(folder: Path) -> Status:
    """What is committed in a folder. Raises ModelNotAvailable where there is no survey."""
    plan, files = planning.load(folder), Folder(folder)
    records = [r for s in range(len(plan.shards)) if (r := files.committed(s)) is not None]
    failed = {}
    for file in sorted((folder / "failed").glob("[0-9]*.txt")):
        failed[int(file.stem)] = file.read_text(encoding="utf-8").partition("\n")[0]
    return Status(plan, records, failed, files.merged.is_file())


def run(
    path: Path,
    folder: Path,
    model: LensModel,
    *,
    source: str,
    loading: dict[str, Any],
    lenses: Sequence[str] = ("logit",),
    settings: Settings | None = None,
    jobs: int = 1,
    share: tuple[int, int] | None = None,
    report: Callable[[Plan, dict[str, Any]], None] | None = None,
) -> Status:
    """Read the labelled prompts of `path` into `folder`; go on where it was left.

    model    the loaded model; `source` and `loading` say how other processes load the same
    jobs     processes on this machine             share   (i, n): every n-th shard from the i-th on
    report   called with the plan and the record of every shard as it ends

    Every shard that is not committed is tried once. When all are, they are merged. Raises SurveyError
    where the folder holds another survey, and what planning raises.
    """
    settings = settings or Settings()
    planning.needs_pyarrow()
    if settings.shard_size < 1 or settings.token_budget < 1 or settings.threads < 1:
        raise FormatError("shard_size, token_budget and threads are at least 1")
    given = labelled.read(path, skip_bad=settings.bad == "skip", reserved=COLUMNS)
    depths_for(model, settings.layers)  # refused before anything is written
    plan = planning.settle(
        folder,
        planning.make(
            model, given, source=source, loading=loading, lenses=lenses, settings=settings
        ),
    )
    files = Folder(folder)
    index, count = share or (0, 1)
    mine = range(len(plan.shards))[index::count]
    left = [shard for shard in mine if files.committed(shard) is None]
    if share is None:
        files.sweep()
    if left:
        try:
            for record in _engine(folder, model, left, jobs):
                if "error" in record:
                    files.fail(record["shard"], record["error"])
                if report is not None:
                    report(plan, record)
        finally:
            if share is None:
                files.sweep()
    found = status(folder)
    if found.done and not found.merged:
        merge(folder)
        found = status(folder)
    return found


def _engine(
    folder: Path, model: LensModel, shards: list[int], jobs: int
) -> Iterator[dict[str, Any]]:
    if jobs > 1 and len(shards) > 1:
        return local.run(folder, shards, jobs)
    return local.run_here(Worker(folder, model), shards)
