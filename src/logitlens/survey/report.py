"""A report of one survey or several: `.html`, `.png`, `.svg`, `.pdf` or `.md`, by the suffix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from logitlens.errors import FormatError
from logitlens.files import replacing, write_text
from logitlens.survey import plan as planning
from logitlens.survey.summary import MEASURES, Summary, summarise, table
from logitlens.view import survey as view

SUFFIXES = (".html", ".png", ".svg", ".pdf", ".md")
SHOWN = 200  # prompts that a page lists


def report(
    folders: Sequence[Path],
    out: Path,
    *,
    by: str | None = None,
    contrast: tuple[str, str] | None = None,
    title: str = "",
    seed: int = 0,
) -> Summary:
    """Write the report of one survey, or of several side by side. Returns its numbers.

    Raises FormatError, MissingExtra, OSError, and SurveyError where a part is damaged.
    """
    if out.suffix not in SUFFIXES:
        raise FormatError(f"{out}: expected {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    frames = {_name(folder, folders): table(folder) for folder in folders}
    summary = summarise(frames, by=by, contrast=contrast, seed=seed)
    models = dict.fromkeys(planning.load(folder).facts["model"]["name"] for folder in folders)
    summary.meta["model"] = ", ".join(models)
    title = title or f"Survey of {', '.join(frames)}"
    if out.suffix == ".md":
        write_text(out, view.markdown(summary, MEASURES, title=title))
    elif out.suffix == ".html":
        write_text(out, view.page(summary, MEASURES, title=title, prompts=_prompts(frames, by)))
    else:
        with replacing(out) as temporary:
            figure = view.figure(summary, MEASURES, title=title)
            figure.savefig(temporary, format=out.suffix[1:], dpi=150)
    return summary


def _name(folder: Path, folders: Sequence[Path]) -> str:
    names = [f.resolve().name for f in folders]
    return folder.resolve().name if len(set(names)) == len(names) else str(folder)


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
    return [{k: "" if v is None else v for k, v in row.items()} for row in out[:SHOWN]]
