"""A worker: one process that holds the model and reads one shard after another.

`python -m logitlens.survey.worker DIR` takes shard numbers on stdin, a line each, and answers on stdout
with a line of JSON each: the commit record, or {"shard": …, "error": …}.
"""

from __future__ import annotations

import json
import os
import sys
import time
from functools import cache
from importlib.metadata import version
from typing import Any

import logitlens
from logitlens.errors import SurveyError
from logitlens.lenses import resolve
from logitlens.model.edits import prepare
from logitlens.model.lens_model import LensModel
from logitlens.model.load import load
from logitlens.model.request import depths_for
from logitlens.survey import corpora, documents, fitting, training
from logitlens.survey import plan as plans
from logitlens.survey.commit import Folder
from logitlens.survey.engines import failure, refusal
from logitlens.survey.measure import Part, measure, prompts_of
from logitlens.survey.plan import Plan

_version = cache(version)  # looks for a package on the disk


class Worker:
    """The model, the lenses and the input of a survey, loaded once.

    model   the survey's model where it is loaded already; else it is loaded as the plan says
    plan    the folder's, where it is known: of workers that see the input at several paths each keeps its own

    Raises what loading raises, and SurveyError where model or input are not those of the plan.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        model: LensModel | None = None,
        plan: Plan | None = None,
    ):
        self.folder = Folder(folder)
        self.plan = plan or plans.load(folder)
        self.model = model = model_of(self.plan, model)
        self.skip_bad = self.plan.settings.bad == "skip"
        self.input = self._windows() if self.plan.is_corpus else prompts_of(self.plan)
        self.lenses = {name: resolve(said, model) for name, said in self.plan.lenses.items()}
        self.depths = depths_for(model, self.plan.settings.layers)
        with plans.threads(self.plan.settings.threads):  # a patch runs its source prompt
            self.edits = prepare(model, self.plan.edits)

    def _windows(self) -> documents.Windows:
        """A corpus is read from the ids that planning wrote, whatever became of its files."""
        settings, facts = self.plan.settings, self.plan.facts["corpus"]
        if not documents.are_those_of(self.folder.place, facts):
            raise SurveyError(
                f"{self.folder.place.address}/{documents.TOKENS} does not hold the {facts['tokens']:,} "
                "tokens of the plan: begin the survey again in another folder"
            )
        return documents.windows(self.folder.place, settings.length, settings.overlap)

    def _measure(self, shard: int) -> Part:
        settings, (start, stop) = self.plan.settings, self.plan.shards[shard]
        if isinstance(self.input, documents.Windows):
            return corpora.measure(
                self.model, self.folder.place, self.input, (start, stop), self.lenses,
                depths=self.depths, token_budget=settings.token_budget, cells=settings.cells,
                top=settings.top, conditions=self.plan.facts["conditions"], edits=self.edits,
                among=self.plan.facts["corpus"]["tokens"],
            )  # fmt: skip
        return measure(
            self.model, self.input.items[start:stop], self.lenses, depths=self.depths,
            token_budget=settings.token_budget, conditions=self.plan.facts["conditions"],
            sets=self.plan.facts["sets"], skip_bad=self.skip_bad, edits=self.edits,
            among=self.plan.facts["prompts"],
        )  # fmt: skip

    def read(self, shard: int) -> dict[str, Any]:
        """Read a shard and commit it; returns the record. Raises what reading raises, and OSError."""
        if (there := self.folder.committed(shard)) is not None:
            return there
        began = time.perf_counter()
        self.folder.log(shard, "began")
        with plans.threads(self.plan.settings.threads):
            part = self._measure(shard)
        record = self.folder.commit(
            shard,
            part.table,
            {
                "prompts": part.prompts,
                "tokens": part.tokens,
                "skipped": part.skipped,
                "nonfinite": part.nonfinite,
                "remarks": part.remarks,
                "seconds": round(time.perf_counter() - began, 3),
                "versions": {
                    "logitlens": logitlens.__version__,
                    **{name: _version(name) for name in ("torch", "transformers", "pyarrow")},
                },
            },
            part.cells,
        )
        for line in (*part.remarks, f"committed {part.tokens} tokens in {record['seconds']} s"):
            self.folder.log(shard, line)
        return record

    def try_shard(self, shard: int) -> dict[str, Any]:
        """The record of a shard, or {"shard": …, "error": …, "traceback": …}."""
        try:
            return self.read(shard)
        except Exception as error:
            record = failure(shard, error)
            self.folder.log(shard, f"failed: {record['error']}")
            return record


def model_of(plan: Plan, model: LensModel | None = None) -> LensModel:
    """The model of a survey, loaded as the plan says unless it is given.

    Raises what loading raises, and SurveyError where it is another than the plan's.
    """
    facts = plan.facts["model"]
    if model is None:
        source = facts["source"]
        model = load(None if source == "demo" else source, **facts["loading"])
    if (found := plans.weights_hash(model)) != facts["weights"]:
        raise SurveyError(
            f"{model.name} has other weights ({found}) than when the survey was planned "
            f"({facts['weights']})"
        )
    if plans.config_hash(model) != facts["config"]:
        raise SurveyError(
            f"{model.name} has another configuration (config.json, as this version of transformers reads "
            "it) than when the survey was planned"
        )
    if documents.tokenizer_hash(model) != facts["tokenizer"]:
        raise SurveyError(f"{model.name} has another tokenizer than when the survey was planned")
    return model


def opened(folder: str) -> Worker | fitting.Worker | training.Worker:
    """The worker for what a folder holds: a survey, a fit in shards, or what a group of processes trains.
    Raises what loading raises."""
    if training.holds_group(folder):
        return training.Worker(folder)
    return fitting.Worker(folder) if fitting.holds_fit(folder) else Worker(folder)


def main() -> None:
    """Serve shard numbers until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever else prints goes to stderr

    def say(answer: dict[str, Any]) -> None:
        try:
            print(json.dumps(answer), file=answers, flush=True)
        except BrokenPipeError:
            os._exit(1)  # whoever asked has gone, say by Ctrl-C while this one started

    try:
        worker = opened(sys.argv[1])
    except Exception as error:
        say(refusal(error))
        raise SystemExit(1) from error
    say({"ready": os.getpid()})
    for line in sys.stdin:
        say(worker.try_shard(int(line)))


if __name__ == "__main__":
    main()
