"""The numbers of a report: means and quantiles per lens, condition and layer, each with a 95 % interval.

Intervals are percentiles of a bootstrap over prompts (Efron 1979), seeded; those of shares are
Wilson's (1927), those of their paired differences Bonett and Price's (2012).
Prompts that share an `id` are one unit: they are drawn together, and a contrast of two conditions is the mean
of their paired differences.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from logitlens.errors import FormatError, InputError, MissingExtra, SettingError
from logitlens.survey.commit import Folder
from logitlens.survey.curves import Curve, Kept, KeptPrompt, Summary
from logitlens.survey.groups import Group, contrasts, group, without_repeats
from logitlens.survey.measure import COLUMNS
from logitlens.survey.prompts import WITHOUT
from logitlens.view.survey_panels import MOST

if TYPE_CHECKING:
    import pandas

DRAWS = 1000
SHOWN = ("layer", "top", "logprob", "rank", "margin", "kl", "entropy")
SAMPLE = 12  # prompts kept behind the points of a page
FEWER = 6  # of each group, where these are more than a panel has lines
TOGETHER = "all prompts"


def table(folder: str | os.PathLike[str]) -> pandas.DataFrame:
    """The committed rows of a survey. Raises SurveyError, MissingExtra, FormatError,
    and InputError where there are none."""
    try:
        import pandas  # noqa: F401
        import pyarrow
    except ImportError:
        raise MissingExtra("pandas and pyarrow", "survey", "a report") from None
    from logitlens.survey import plan as plans

    plan, files = plans.load(folder), Folder(folder)
    shards = [s for s in range(len(plan.shards)) if files.committed(s) is not None]
    if not shards:
        raise InputError(f"nothing is committed in {folder} yet: run the survey first")
    rows = pyarrow.concat_tables([files.read(s) for s in shards])
    frame = rows.to_pandas()
    for name, kind in plan.facts["conditions"].items():
        if kind == "int":  # pandas alone would give those that some prompts lack a decimal point
            frame[name] = rows[name].to_pandas(integer_object_nulls=True)
    if frame.empty:
        raise InputError(f"{folder} has no rows: none of its prompts could be read (survey status)")
    return frame


def summarise(
    frames: dict[str, pandas.DataFrame],
    *,
    by: str | None = None,
    contrast: tuple[str, str] | None = None,
    seed: int = 0,
    draws: int = DRAWS,
) -> Summary:
    """Tables of surveys by name → what a report shows.

    by         the condition that groups prompts
    contrast   (a, b): b − a, paired by id, of two groups; without `by`, of two surveys

    Raises SettingError for a condition or a value that is not there, FormatError where groups have no pairs.
    """
    about = (
        f"Means and quantiles over prompts with 95 % intervals of a bootstrap ({draws} draws, seed {seed}); "
        "those of shares are Wilson's."
    )
    if contrast is not None:
        about = about.removesuffix(".") + ", those of their differences Bonett and Price's."
    found = Summary(by or "", meta={"seed": seed, "draws": draws, "about": about})
    groups: list[Group] = []
    parts: list[tuple[tuple[str, str, str], pandas.DataFrame]] = []
    for survey, frame in frames.items():
        if by is not None and by not in (known := _conditions(frame)):
            raise SettingError(f"{survey} has no condition {by!r}: it has {', '.join(known)}")
        for lens in dict.fromkeys(frame["lens"]):
            mine = frame.loc[frame["lens"] == lens]
            for name, rows in ({"": mine} if by is None else _groups(mine, by)).items():
                parts.append(((survey, lens, name), rows))
                groups.append(group(*parts[-1]))
    most = SAMPLE if len(groups) <= MOST else FEWER
    found.kept.extend(_kept(*part, most) for part in parts)
    groups = without_repeats(groups)
    _add(found, groups, seed, draws)
    lenses = {each.key[:2] for each in groups}
    if len(groups) > max(MOST, len(lenses)):  # else every group has its line
        together = _together(frames, seed, draws)
        found = replace(found, together=together, kept=[*found.kept, *together.kept])
    if contrast is not None and by is None:
        _require_pairs(frames, contrast)
        _contrast_surveys(found, groups, contrast, seed, draws)
    elif contrast is not None:
        by_lens: dict[tuple[str, str], dict[str, Group]] = {}
        for each in groups:
            survey, lens, name = each.key
            by_lens.setdefault((survey, lens), {})[name] = each
        for (survey, lens), mine in by_lens.items():
            _contrast(found, contrasts(survey, lens, mine, contrast, seed, draws))
    return found


def _add(found: Summary, groups: Iterable[Group], seed: int, draws: int) -> None:
    """Add what is shown of each group."""
    for each in groups:
        found.curves.extend(each.curves(seed, draws))
        found.quantiles.extend(each.quantiles(seed, draws))
        found.histograms.extend(each.histograms(seed, draws))


def _together(frames: dict[str, pandas.DataFrame], seed: int, draws: int) -> Summary:
    """All prompts of each survey and lens, whatever their group."""
    found, groups = Summary(""), []
    for survey, frame in frames.items():
        for lens in dict.fromkeys(frame["lens"]):
            key, rows = (survey, lens, TOGETHER), frame.loc[frame["lens"] == lens]
            groups.append(group(key, rows))
            found.kept.append(_kept(key, rows, SAMPLE))
    _add(found, without_repeats(groups), seed, draws)
    return found


def _contrast_surveys(
    found: Summary, groups: list[Group], contrast: tuple[str, str], seed: int, draws: int
) -> None:
    """Contrasts of two surveys, by each lens that both have."""
    surveys: dict[str, dict[str, Group]] = {}  # lens → survey → all of its prompts
    for each in groups:
        surveys.setdefault(each.key[1], {})[each.key[0]] = each
    both = {n: of for n, of in surveys.items() if all(name in of for name in contrast)}
    if not both:
        raise FormatError(f"{' and '.join(contrast)} have no lens in common")
    for lens, mine in both.items():
        several = contrasts("", lens, mine, contrast, seed, draws)
        named = [[replace(c, survey=c.group, group="") for c in curves] for curves in several]
        _contrast(found, named)


def _contrast(found: Summary, several: Iterable[list[Curve]]) -> None:
    """Add what `contrasts` gives."""
    for place, curves in zip((found.contrasts, found.quantiles, found.shifts), several):
        place.extend(curves)


def _conditions(frame: pandas.DataFrame) -> list[str]:
    """What prompts can be grouped by: columns that are the same at every layer."""
    own = {*COLUMNS} - {"id", "prompt", "answer"}
    return [c for c in map(str, frame.columns) if c not in own and not c.startswith("set_")]


def _groups(rows: pandas.DataFrame, by: str) -> dict[str, pandas.DataFrame]:
    """Rows by the values of a condition, those without one among them."""
    missing = rows[by].isna()
    groups = {_named(value): group for value, group in rows.loc[~missing].groupby(by)}
    if len(without := rows.loc[missing]):
        name = f"no {by}"
        groups[name if name not in groups else f"{name} given"] = without
    return groups


def _named(value: Any) -> str:
    """A value of a condition as it was given: whole numbers beside others are no fractions."""
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 1e16
    return str(int(value)) if whole else str(value)


def _require_pairs(frames: dict[str, pandas.DataFrame], contrast: tuple[str, str]) -> None:
    """Raise FormatError where prompts of two surveys are paired by nothing but their number in files
    that differ."""
    prompts = []
    for name in contrast:
        if name not in frames:
            raise SettingError(f"no survey {name!r}: expected two of {', '.join(frames)}")
        mine = frames[name].drop_duplicates("prompt_index")
        own = mine["prompt_index"].astype(str)
        numbered = mine.loc[(mine["id"] == own) | (mine["id"] == own + WITHOUT)]
        prompts.append(dict(zip(numbered["id"], numbered["prompt"])))
    for i in prompts[0].keys() & prompts[1].keys():
        if prompts[0][i] != prompts[1][i]:
            raise FormatError(
                f"prompt {i} of {contrast[0]} and of {contrast[1]} are different: give paired prompts the "
                "same id"
            )


def _kept(key: tuple[str, str, str], rows: pandas.DataFrame, most: int) -> Kept:
    """Prompts evenly spaced over those of a group."""
    every = np.unique(rows["prompt_index"].to_numpy())
    some = every[np.linspace(0, len(every) - 1, min(most, len(every))).astype(int)]
    prompts = []
    for index in some.tolist():
        mine = rows.loc[rows["prompt_index"] == index].sort_values(["block"])
        columns = {name: mine[name].tolist() for name in SHOWN}
        cells = [dict(zip(columns, values)) for values in zip(*columns.values())]
        prompt, answer, own = (mine[name].tolist()[0] for name in ("prompt", "answer", "id"))
        found = {"prompt_index": index, "id": own, "prompt": str(prompt)}
        answer = answer if isinstance(answer, str) else ""  # pandas has nan
        prompts.append(KeptPrompt(str(prompt), answer, cells, found))
    return Kept(*key, len(every), prompts)
