"""A report of one survey or several: `.html`, `.png`, `.svg`, `.pdf` or `.md`, by the suffix."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from logitlens.errors import SettingError
from logitlens.files import write_text
from logitlens.storage import is_remote
from logitlens.survey import corpus_summary
from logitlens.survey import plan as plans
from logitlens.survey.curves import MEASURES, KeptPrompt, Summary
from logitlens.survey.find import read_again
from logitlens.survey.measure import is_json
from logitlens.survey.plan import Plan
from logitlens.survey.run import status
from logitlens.survey.summary import summarise, table
from logitlens.view import survey as view
from logitlens.view.figure import write
from logitlens.view.survey_figure import figure

SUFFIXES = (".html", ".png", ".svg", ".pdf", ".md")
SHOWN = 200  # prompts that a page lists
POSITIONS = 24  # of a reading in a page
NAMES = ("prompt_index", "document", "position")  # by which `survey find` finds what was kept


def report(
    folders: Sequence[str | os.PathLike[str]],
    out: Path,
    *,
    by: str | None = None,
    contrast: tuple[str, str] | None = None,
    title: str = "",
    seed: int = 0,
    readings: bool = False,
) -> Summary:
    """Write the report of one survey, or of several side by side. Returns its numbers.

    readings   of a page: load the model and read the prompts behind its points again, by the survey's
               lenses and edits, for their last positions at every layer

    Raises SettingError, FormatError, InputError where nothing is read yet, MissingExtra, OSError; SurveyError
    where a part is damaged, or the model has changed; with `readings` what loading and reading raise.
    """
    if out.suffix not in SUFFIXES:
        raise SettingError(f"{out}: expected {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    if readings and out.suffix != ".html":
        raise SettingError(f"{out} has no room for readings: write a page (.html)")
    folders = list(dict.fromkeys(folders))
    every = [plans.load(folder) for folder in folders]
    if len({plan.is_corpus for plan in every}) > 1:
        raise SettingError("a survey of prompts and one of a corpus share no numbers: report each")
    words, listed = MEASURES, []
    if every[0].is_corpus:
        if by or contrast:
            raise SettingError("a corpus is grouped by position: leave out --by and --contrast")
        frames = {_name(folder, folders): corpus_summary.table(folder) for folder in folders}
        summary = corpus_summary.summarise(frames)
        if out.suffix == ".html":
            for folder, (survey, frame) in zip(folders, frames.items()):
                summary.kept.extend(corpus_summary.examples(folder, survey, frame))
        words = corpus_summary.MEASURES
    else:
        frames = {_name(folder, folders): table(folder) for folder in folders}
        summary = summarise(frames, by=by, contrast=contrast, seed=seed)
        listed = _prompts(frames, by) if out.suffix == ".html" else []
    for survey, folder, plan in zip(frames, folders, every):
        _complete(summary, survey, folder, plan, readings)
    models = dict.fromkeys(plan.facts["model"]["name"] for plan in every)
    summary.meta["model"] = ", ".join(models)
    for survey, folder in zip(frames, folders):
        several = len(every) > 1
        found = status(folder)
        if edits := found.plan.edits:
            what = survey if several else "The model"
            summary.meta["about"] += f" {what} is edited: {'; '.join(map(str, edits))}."
        whose = f" of {survey}" if several else ""
        if not found.done:
            said = f"{len(found.records)} of {len(found.plan.shards)} shards{whose}"
            summary.meta["about"] += f" Not all is read: {said}."
        if found.bad:
            summary.meta["about"] += f" Left out{whose}, as they could not be read: {found.bad:,}."
    title = title or f"Survey of {', '.join(_name(folder, folders) for folder in folders)}"
    if out.suffix == ".md":
        write_text(out, view.markdown(summary, words, title=title))
    elif out.suffix == ".html":
        write_text(out, view.page(summary, words, title=title, prompts=listed))
    else:
        write(figure(summary, words, title=title), out, dpi=150)
    return summary


def _complete(
    summary: Summary,
    survey: str,
    folder: str | os.PathLike[str],
    plan: Plan,
    readings: bool,
) -> None:
    """Give the kept prompts of a survey the commands that read them again, and their readings."""
    mine = [(n, kept) for n, kept in enumerate(summary.kept) if kept.survey == survey]
    if readings and not mine:
        raise SettingError(
            f"{folder} keeps no positions to read again: run the survey with --keep cells"
        )
    found = [{**p.found, "lens": kept.lens} for _, kept in mine for p in kept.prompts]
    read = iter(read_again(folder, found, last=POSITIONS) if readings else [None] * len(found))
    for n, kept in mine:
        prompts = [
            replace(p, again=_again(folder, plan, kept.lens, p), reading=next(read))
            for p in kept.prompts
        ]
        summary.kept[n] = replace(kept, prompts=prompts)


def _again(folder: str | os.PathLike[str], plan: Plan, lens: str, kept: KeptPrompt) -> str:
    """The command that reads a prompt again, all of its positions, into a page: what is no text, or edited
    by a plan that is far away, is found in the survey."""
    facts, edited = plan.facts, plan.edits
    if plan.is_corpus or is_json(kept.prompt) or (edited and is_remote(folder)):
        where = " and ".join(f"{name} = {kept.found[name]}" for name in NAMES if name in kept.found)
        words = ["logitlens", "survey", "find", str(folder), "--lens", lens, "--where", where]
        return shlex.join([*words, "--open", "reading.html"])
    words = ["logitlens", "read", "-m", facts["model"]["source"], "--lens", plan.lenses[lens]]
    for name, value in facts["model"]["loading"].items():
        words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    if edited:
        words += ["--edit", os.path.join(folder, plans.PLAN)]
    return shlex.join([*words, "-o", "reading.html", "--", kept.prompt])


def _name(folder: str | os.PathLike[str], folders: Sequence[str | os.PathLike[str]]) -> str:
    names = [_last(f) for f in folders]
    return _last(folder) if len(set(names)) == len(names) else str(folder)


def _last(folder: str | os.PathLike[str]) -> str:
    return (
        str(folder).rstrip("/").rpartition("/")[2]
        if is_remote(folder)
        else Path(folder).resolve().name
    )


def _prompts(frames: dict[str, Any], by: str | None) -> list[dict[str, Any]]:
    """Prompts with the layer at which they settle by the first lens: the last first."""
    out: list[dict[str, Any]] = []
    for survey, frame in frames.items():
        mine = frame[frame["lens"] == frame["lens"].iloc[0]]
        off = mine[~mine["agree"].astype("boolean").fillna(False).astype(bool)]
        last_off = off.groupby("prompt_index")["block"].max()
        blocks = sorted(set(mine["block"]))
        for row in mine[mine["block"] == blocks[-1]].to_dict("records"):
            after = [b for b in blocks if b > last_off.get(row["prompt_index"], -2)]
            out.append(
                {
                    "settled": after[0] if after else None,
                    **({"survey": survey} if len(frames) > 1 else {}),
                    **({by: row[by]} if by else {}),
                    "prompt": row["prompt"],
                    "answer": row["answer"],
                    "top token": row["top"],
                    "log-probability": row["logprob"],
                }
            )
    out.sort(
        key=lambda row: (-1 if row["settled"] is None else -int(row["settled"]), str(row["prompt"]))
    )
    return [{k: "" if v is None or v != v else v for k, v in row.items()} for row in out[:SHOWN]]
