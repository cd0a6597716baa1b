"""A Jacobian lens averaged in shards, by the engines of a survey.

The batches of the whole fit, each one forward pass, are divided into contiguous shards. A shard's sums
are one file, which appears whole or not at all, and the files are added up in the order of shards: each
prompt counts once, whoever read it and however often a worker was killed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from logitlens import files
from logitlens.errors import FitError
from logitlens.files import replacing
from logitlens.fit import checkpoint
from logitlens.fit.corpus import Corpus
from logitlens.fit.jacobian import FILE, JacobianFit, Progress, Settings
from logitlens.fit.settings import plain
from logitlens.lenses import JacobianLens
from logitlens.model.batches import batches
from logitlens.model.lens_model import LensModel
from logitlens.model.load import load
from logitlens.survey import plan as plans
from logitlens.survey.engines import Engine, Records, failure, local

SHARDS = 32  # at most: each keeps a file of D × D float32 numbers for every layer until the end


def holds_fit(folder: str) -> bool:
    """Whether a folder is one of a fit that was begun."""
    return (Path(folder) / checkpoint.NAME).is_file()


def planned_threads(folder: Path) -> int | None:
    """Those of a fit in shards that was begun in a folder."""
    with contextlib.suppress(
        Exception
    ):  # none, or not one of a fit in shards, which is refused later
        return int(_begun(folder)["threads"])
    return None


def fit(
    model: LensModel,
    corpus: Corpus,
    settings: Settings,
    folder: Path,
    *,
    source: str,
    loading: dict[str, Any],
    threads: int,
    jobs: int = 1,
    engine: Engine | None = None,
    report: Callable[[Progress], None] | None = None,
    fresh: bool = False,
) -> JacobianLens:
    """Average the lens by `jobs` processes or an engine; goes on where it was left.

    source, loading   how workers load the model     threads   of torch in each of them
    engine            (folder, shards) → records, in place of processes of this machine

    Equal to `jacobian.fit` up to the rounding of sums, and always the same bytes with the same threads
    on machines of one kind. Raises what `jacobian.fit` raises, and FitError where shards failed: those
    that were read are kept, and the fit can be run again.
    """
    settings = replace(settings, tokens_per_pass=_per_pass(model, settings, loading))
    job = JacobianFit(model, corpus, settings)
    made_of = plain(settings, without=("checkpoint_seconds", "dtype")) | {"threads": threads}
    identity = checkpoint.identity("jacobian", model, corpus, made_of)
    needed = described(model, source, loading, threads)
    identity |= {"weights": needed["weights"], "in shards": True}
    place = checkpoint.Folder(folder, identity)
    with place.locked():
        state = None if fresh else place.load(FILE)
        if state is None:
            _forget(folder)
            rounds = list(batches([len(ids) for ids in job.prompts], settings.per_pass(model)))
            place.save(
                needed
                | {
                    "settings": plain(settings),
                    "prompts": job.prompts,
                    "shards": _divided(rounds),
                }
            )
        shards = range(len(_begun(folder)["shards"]))
        left = [shard for shard in shards if not _part(folder, shard).is_file()]
        here, began = str(folder), time.perf_counter()
        if engine is not None:
            records = engine(here, left)
        elif jobs > 1:  # the model here may only be planned with, in main memory
            records = local.run(here, left, jobs)
        else:
            records = local.run_here(Worker(here, model), left)
        for shard in set(shards) - set(left):
            _add(job, folder, shard, sums=False)
        if left:
            try:
                _watch(records, job, began, report)
            finally:
                records.close()  # no worker goes on
                files.sweep(folder)
        job.count = job.tokens = 0
        for shard in shards:
            _add(job, folder, shard)
        lens = job.lens()
        place.finish(lens, FILE, settings.dtype)
        _forget(folder)
    return lens


def _watch(
    records: Records,
    job: JacobianFit,
    began: float,
    report: Callable[[Progress], None] | None,
) -> None:
    """Take the records as shards end. Raises FitError at the end where some failed."""
    failed = {}
    for record in records:
        if "error" in record:
            failed[record["shard"]] = record["error"]
            continue
        job.count, job.tokens = job.count + record["prompts"], job.tokens + record["tokens"]
        if report is not None:
            seconds = time.perf_counter() - began
            report(Progress(job.count, len(job.prompts), job.tokens, seconds, {}))
    if failed:
        shard, why = next(iter(failed.items()))
        raise FitError(
            f"{len(failed)} shards of the fit failed; shard {shard}: {why}. The others are kept: run the "
            "same command again"
        )


def _per_pass(model: LensModel, settings: Settings, loading: dict[str, Any]) -> int:
    """Positions of one backward pass on the devices of those who fit: the model may be in main memory
    here, only to be planned with."""
    device = loading.get("device_map") or "cpu"
    on_gpu = "cuda" in device or (device != "cpu" and torch.cuda.is_available())
    return settings.per_pass(model, "cuda" if on_gpu else None)


def _divided(rounds: list[list[int]]) -> list[list[list[int]]]:
    """Batches of prompts → shards of neighbouring batches."""
    size = -(-len(rounds) // SHARDS)
    return [rounds[a : a + size] for a in range(0, len(rounds), size)]


def _begun(folder: Path) -> dict[str, Any]:
    return torch.load(folder / checkpoint.NAME, map_location="cpu", weights_only=True)["state"]


def _part(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05}.pt"


def _add(job: JacobianFit, folder: Path, shard: int, sums: bool = True) -> None:
    """Add a shard's sums, or its counts only, to those of the fit."""
    part = torch.load(_part(folder, shard), map_location="cpu", weights_only=True, mmap=True)
    job.count, job.tokens = job.count + part["count"], job.tokens + part["tokens"]
    if sums:
        job.rounds += part["rounds"]
        for depth in job.depths:
            job.sums[depth] += part["sums"][depth]
            job.squares[depth] += part["squares"][depth]


def _forget(folder: Path) -> None:
    """Remove the shards' files, and what killed workers left of them."""
    for path in [*folder.glob("shard-*.pt"), *folder.glob(".shard-*")]:
        path.unlink(missing_ok=True)


def described(
    model: LensModel, source: str, loading: dict[str, Any], threads: int
) -> dict[str, Any]:
    """What workers need to know of the model."""
    return {
        "source": source,
        "loading": {name: value for name, value in loading.items() if value not in (None, False)},
        "weights": plans.weights_hash(model),
        "threads": threads,
    }


def loaded(said: dict[str, Any], model: LensModel | None = None) -> LensModel:
    """The model that was `described`, unless it is here already. Raises what loading raises, and FitError
    where its weights are others."""
    source = said["source"]
    model = model or load(None if source == "demo" else source, **said["loading"])
    if (found := plans.weights_hash(model)) != said["weights"]:
        raise FitError(f"{model.name} has other weights ({found}) than when the fit was begun")
    return model


class Worker:
    """The model and the prompts of a fit, loaded once; `try_shard` as of a survey's worker."""

    def __init__(self, folder: str, model: LensModel | None = None):
        self.folder = Path(folder)
        self.state = _begun(self.folder)
        self.model = loaded(self.state, model)
        settings = self.state["settings"]
        depths = settings["depths"] and tuple(settings["depths"])
        self.settings = Settings(**{**settings, "depths": depths})

    def read(self, shard: int) -> dict[str, Any]:
        """Add up the Jacobians of a shard and keep them. Raises FitError, OSError."""
        prompts, rounds = self.state["prompts"], self.state["shards"][shard]
        job = JacobianFit(self.model, Corpus("", [ids.numpy() for ids in prompts]), self.settings)
        with plans.threads(self.state["threads"]):
            for indices in rounds:
                job.add([prompts[i] for i in indices])
        names = ("sums", "squares", "count", "tokens", "rounds")
        with replacing(_part(self.folder, shard)) as temporary:
            torch.save({name: getattr(job, name) for name in names}, temporary)
        return {"shard": shard, "prompts": job.count, "tokens": job.tokens}

    def try_shard(self, shard: int) -> dict[str, Any]:
        """The record of a shard, or {"shard": …, "error": …, "traceback": …}."""
        try:
            return self.read(shard)
        except Exception as error:
            return failure(shard, error)
