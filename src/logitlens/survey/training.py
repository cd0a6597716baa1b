"""A tuned lens trained by a group of processes, which the engines of a survey start.

An engine's shard r is process r of the group, and all of them share each step. Nobody can go on without
the others: when one is lost the whole group is ended, and another begins at the last checkpoint. A group
meets in a folder of its own inside the fit's, so that none meets what is left of another.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from logitlens.anatomy.forward import input_device
from logitlens.errors import FitError
from logitlens.files import replacing
from logitlens.fit import checkpoint, data_parallel, tuned
from logitlens.fit.corpus import Corpus
from logitlens.fit.sequences import split
from logitlens.fit.settings import plain
from logitlens.fit.tuned import FILE, Progress, Settings
from logitlens.lenses import TunedLens, store
from logitlens.model.lens_model import LensModel
from logitlens.survey import fitting
from logitlens.survey import plan as plans
from logitlens.survey.engines import Engine, failure, local

TRIES = 3  # of groups that get no further than the checkpoint they began at
JOB, MEETING, PROGRESS, STOP = "job.pt", "meeting", "progress.json", "stop"
LOOK = 0.2  # seconds between two looks at the progress, and between two notes of it

Report = Callable[[Progress], None]


def holds_group(folder: str) -> bool:
    """Whether a folder is one that a group of processes meets in."""
    return (Path(folder) / JOB).is_file()


def fit(
    model: LensModel,
    corpus: Corpus,
    settings: Settings,
    folder: Path,
    *,
    source: str,
    loading: dict[str, Any],
    threads: int,
    jobs: int,
    engine: Engine | None = None,
    report: Report | None = None,
    fresh: bool = False,
) -> TunedLens:
    """Train the lens by `jobs` processes that share each step; goes on where it was left.

    source, loading   how workers load the model     threads   of torch in each of them
    engine            (folder, ranks) → records, in place of processes of this machine

    Equal to `tuned.fit` up to the rounding of sums, with the same checkpoints: either goes on where the
    other was left. With as many processes and threads, on machines of one kind, always the same bytes,
    whatever was killed. Raises what `tuned.fit` raises, and FitError where one process after another dies.
    """
    settings.check(model)
    split(model, corpus, settings)  # refused before anything is started
    place = tuned.place(model, corpus, settings, folder)
    job = fitting.described(model, source, loading, threads) | {
        "folder": str(folder.absolute()), "settings": plain(settings), "size": jobs,
        "name": corpus.name, "ids": torch.from_numpy(np.concatenate(corpus.documents)),
        "lengths": [len(document) for document in corpus.documents],
    }  # fmt: skip
    engine = engine or partial(local.run, jobs=jobs, together=True)
    with place.locked():
        if not fresh:
            place.load(FILE)
        first = began = _version(place)
        failed = 0
        while isinstance(
            lens := _try(folder, job | {"fresh": fresh and began == first}, engine, report), str
        ):
            failed = failed + 1 if _version(place) == began else 0
            began = _version(place)
            if failed == TRIES:
                kept = ": the last checkpoint is kept" if began else ""
                raise FitError(
                    f"the fit lost a process {TRIES} times without getting any further ({lens}){kept}"
                )
        place.finish(lens, FILE, settings.dtype)
    return lens


def _version(place: checkpoint.Folder) -> tuple[int, int] | None:
    """Which checkpoint is there: every one that is written is another file."""
    path = place.checkpoint
    return None if path is None else (path.stat().st_ino, path.stat().st_mtime_ns)


def _try(
    folder: Path, job: dict[str, Any], engine: Engine, report: Report | None
) -> TunedLens | str:
    """Train by one group. Returns the lens, or how a process was lost.

    Raises FitError, and KeyboardInterrupt after Ctrl-C, when the checkpoint is written.
    """
    here = Path(tempfile.mkdtemp(prefix=checkpoint.PROCESSES, dir=folder)).absolute()
    try:
        with replacing(here / JOB) as temporary:
            torch.save(job, temporary)
        lost = ""
        with (
            checkpoint.interruptible((here / PROGRESS).exists) as asked,
            _watched(here, asked, report),
            closing(engine(str(here), list(range(job["size"])))) as records,
        ):
            for record in records:
                if "interrupted" in record:
                    raise KeyboardInterrupt
                if "error" in record:
                    if "traceback" in record and not record["lost"]:
                        raise FitError(record["error"])
                    lost = record["error"]
                    if "traceback" not in record:  # from the engine: it is this one that died
                        break
                elif record["shard"] == 0:
                    return cast(TunedLens, store.load(here / FILE))
        if asked.is_set():
            raise KeyboardInterrupt
        return lost
    finally:
        shutil.rmtree(here, ignore_errors=True)


@contextmanager
def _watched(here: Path, asked: threading.Event, report: Report | None) -> Iterator[None]:
    """Inside, a thread reports how far the group is, and hands on that it was asked to stop.

    An error of `report` stops the group as well, and is raised at the end.
    """
    seen, ended = 0, threading.Event()
    errors: list[Exception] = []

    def look() -> None:
        nonlocal seen
        progress = _progress(here)
        if report is None or progress is None or progress.step == seen or errors:
            return
        seen = progress.step
        try:
            report(progress)
        except Exception as error:
            errors.append(error)
            asked.set()

    def watch() -> None:
        while not ended.wait(LOOK):
            look()
            if asked.is_set():
                with contextlib.suppress(OSError):
                    (here / STOP).touch()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        look()
        if errors:
            raise errors[0]


def _progress(here: Path) -> Progress | None:
    try:
        said = json.loads((here / PROGRESS).read_text())
    except OSError:  # no step is done yet
        return None
    by_depth = {
        name: {int(depth): loss for depth, loss in said[name].items()}
        for name in ("losses", "heldout")
    }
    return Progress(**{**said, **by_depth})


class _Notes:
    """Writes down how far the group is, not more often than is looked at."""

    def __init__(self, here: Path, steps: int):
        self.here, self.steps, self.next = here, steps, 0.0
        self.heldout: dict[int, float] = {}

    def __call__(self, progress: Progress) -> None:
        self.heldout = progress.heldout or self.heldout  # nobody looks at every step
        if time.monotonic() < self.next and progress.step < self.steps:
            return
        self.next = time.monotonic() + LOOK
        part = self.here / f".{PROGRESS}"
        part.write_text(json.dumps(asdict(progress) | {"heldout": self.heldout}))
        os.replace(part, self.here / PROGRESS)


class Worker:
    """The model and the corpus of a group's process; `try_shard` as of a survey's worker."""

    def __init__(self, folder: str, model: LensModel | None = None):
        self.parent = os.getppid()
        self.here = Path(folder)
        self.job = torch.load(self.here / JOB, map_location="cpu", weights_only=True)
        self.model = fitting.loaded(self.job, model)
        documents = self.job["ids"].split(self.job["lengths"])
        self.corpus = Corpus(self.job["name"], [ids.numpy() for ids in documents])
        self.settings = Settings(**self.job["settings"])

    def train(self, rank: int) -> None:
        """Share every step with the others; the first leaves the lens where the group meets."""
        data_parallel.join(self.here / MEETING, rank, self.job["size"], input_device(self.model.hf))
        first = rank == 0
        with plans.threads(self.job["threads"]):
            job = tuned.TunedFit(
                self.model, self.corpus, self.settings, folder=Path(self.job["folder"]),
                report=_Notes(self.here, self.settings.steps) if first else None,
                fresh=self.job["fresh"],
                stop=(self.here / STOP).exists if first else lambda: False,
            )  # fmt: skip
            lens = job.run()
        if first:
            store.save(lens, self.here / FILE, dtype="float32")

    def try_shard(self, shard: int) -> dict[str, Any]:
        """{"shard": …}, with "interrupted" where it was asked to stop; or {"shard": …, "error": …,
        "traceback": …, "lost": whether another process is the reason}."""
        _end_with(self.parent)
        try:
            self.train(shard)
        except KeyboardInterrupt:
            return {"shard": shard, "interrupted": True}
        except data_parallel.PeerLost as error:
            data_parallel.end()  # lets go of the others, who may be waiting for this one
            return failure(shard, error) | {"lost": True}
        except Exception as error:
            # Those who wait for this one go on doing so: they are ended when its reason is known.
            return failure(shard, error) | {"lost": False}
        data_parallel.end()
        return {"shard": shard}


def _end_with(parent: int) -> None:
    """End this process when the one that started it is gone: nobody else would."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
