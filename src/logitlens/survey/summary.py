"""The numbers of a report: means and quantiles per lens, condition and layer, each with a 95 % interval.

Intervals are percentiles of a bootstrap over prompts (Efron 1979), seeded. Prompts that share an `id`
are one unit: they are drawn together, and a contrast of two conditions is the mean of their paired
differences.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from logitlens.errors import FormatError, MissingExtra, PromptError
from logitlens.survey.bootstrap import interval, quantiles
from logitlens.survey.commit import Folder
from logitlens.survey.measure import COLUMNS

if TYPE_CHECKING:
    import pandas

RANKS = (1, 5, 10)
DRAWS = 1000
QUANTILES = (0.1, 0.5, 0.9)
QUANTILED = ("logprob", "first_logprob", "rank", "margin", "kl", "entropy")
SHOWN = ("layer", "top", "logprob", "rank", "margin", "kl", "entropy")
SAMPLE = 12  # prompts kept behind the points of a page
MEASURES = {  # name: (what it is, its unit or "")
    "logprob": ("log-probability of the answer", "nats"),
    "first_logprob": ("log-probability of the answer's first token", "nats"),
    "rank": ("best rank of an answer's first token", ""),
    "margin": ("right − wrong", "nats"),
    "correct": ("prompts answered correctly", ""),
    **{f"top{k}": (f"answer's first token at rank ≤ {k}" if k > 1 else "answer's first token is on top", "")
       for k in RANKS},
    "kl": ("KL(final ‖ layer)", "nats"),
    "entropy": ("entropy", "nats"),
    "agree": ("same top token as the final layer", ""),
}  # fmt: skip


@dataclass(frozen=True)
class Curve:
    """One measure of one group of prompts over layers: mean, low, high, each (L,); n prompts that have it.

    share   of the prompts that are no higher, where it is a quantile that `mean` holds; else None
    """

    survey: str
    lens: str
    group: str
    measure: str
    layers: list[str]
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n: int
    share: float | None = None


@dataclass(frozen=True)
class Histogram:
    """Where something first happens: counts for each layer and, last, for never.

    spread   "mean" and quantiles of the layer's number (embed −1), of the prompts to which it happens:
             value, low, high
    """

    survey: str
    lens: str
    group: str
    what: str
    layers: list[str]
    counts: np.ndarray
    spread: dict[str, tuple[float, float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class KeptPrompt:
    """A prompt and the numbers of its last position, a mapping for each layer.

    where   the condition by which `survey find` finds it    again   the command that reads it again, for a page
    """

    prompt: str
    answer: str
    rows: list[dict[str, Any]]
    where: str
    again: str = ""


@dataclass(frozen=True)
class Kept:
    """A sample of the prompts of one survey, lens and group, `of` how many."""

    survey: str
    lens: str
    group: str
    of: int
    prompts: list[KeptPrompt]


@dataclass(frozen=True)
class Summary:
    """What a report shows.

    curves      a measure for each lens and group          contrasts   paired differences of two groups
    quantiles   of the same, QUANTILES of each
    histograms  of the settled layer, and of the first layer with rank 1, ≤ 5 and ≤ 10
    shifts      contrasts of these layers; a curve's `layers` are their names
    exits       of a corpus: what an early exit gives, over thresholds
    kept        prompts behind the curves of each lens and group, for a page
    by          the condition that groups the prompts, or ""          unit   what is counted
    """

    by: str
    curves: list[Curve] = field(default_factory=list)
    quantiles: list[Curve] = field(default_factory=list)
    contrasts: list[Curve] = field(default_factory=list)
    histograms: list[Histogram] = field(default_factory=list)
    shifts: list[Curve] = field(default_factory=list)
    exits: list[Curve] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    unit: str = "prompts"
    meta: dict[str, Any] = field(default_factory=dict)


def table(folder: str | os.PathLike[str]) -> pandas.DataFrame:
    """The committed rows of a survey. Raises ModelNotAvailable, SurveyError, MissingExtra, FormatError."""
    try:
        import pandas
    except ImportError:
        raise MissingExtra("pandas and pyarrow", "survey", "a report") from None
    from logitlens.survey import plan as planning

    plan, files = planning.load(folder), Folder(folder)
    shards = [s for s in range(len(plan.shards)) if files.committed(s) is not None]
    if not shards:
        raise PromptError(f"nothing is committed in {folder} yet: run the survey first")
    frame = pandas.concat([files.read(s).to_pandas() for s in shards])
    return frame.reset_index(drop=True)


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

    Raises FormatError for a condition or a value that is not there.
    """
    about = f"Means and quantiles over prompts with 95 % intervals of a bootstrap ({draws} draws, seed {seed})."
    found = Summary(by or "", meta={"seed": seed, "draws": draws, "about": about})
    surveys: dict[str, dict[str, _Cube]] = {}  # lens → survey → all of its prompts
    for survey, frame in frames.items():
        if by is not None and by not in (known := _conditions(frame)):
            raise FormatError(f"{survey} has no condition {by!r}: it has {', '.join(known)}")
        for lens in dict.fromkeys(frame["lens"]):
            mine = frame.loc[frame["lens"] == lens]
            groups = {"": mine} if by is None else _groups(mine, by)
            cubes = {group: _cube(rows) for group, rows in groups.items()}
            for group, cube in cubes.items():
                key = (survey, lens, group)
                found.kept.append(_kept(key, groups[group]))
                for measure, values_NL in cube.values.items():
                    found.curves.append(
                        Curve(*key, measure, cube.layers, *interval(values_NL, cube.units, seed, draws),
                              _having(values_NL))
                    )  # fmt: skip
                for measure in QUANTILED:
                    if (values_NL := cube.of(measure)) is not None:
                        several = quantiles(values_NL, cube.units, QUANTILES, seed, draws)
                        for share, (mean, low, high) in zip(QUANTILES, several):
                            found.quantiles.append(
                                Curve(
                                    *key,
                                    measure,
                                    cube.layers,
                                    mean,
                                    low,
                                    high,
                                    _having(values_NL),
                                    share,
                                )
                            )
                found.histograms.extend(_histograms(key, cube, seed, draws))
            if by is None:
                surveys.setdefault(lens, {})[survey] = cubes[""]
            elif contrast is not None:
                differences, shifts = _contrasts(survey, lens, cubes, contrast, seed, draws)
                found.contrasts.extend(differences)
                found.shifts.extend(shifts)
    if contrast is not None and by is None:
        _require_pairs(frames, contrast)
        for lens, cubes in surveys.items():
            differences, shifts = _contrasts("", lens, cubes, contrast, seed, draws)
            found.contrasts.extend(replace(c, survey=c.group, group="") for c in differences)
            found.shifts.extend(replace(c, survey=c.group, group="") for c in shifts)
    return found


def _conditions(frame: pandas.DataFrame) -> list[str]:
    """What prompts can be grouped by: columns that are the same at every layer."""
    own = {*COLUMNS} - {"id", "prompt", "answer"}
    return [c for c in map(str, frame.columns) if c not in own and not c.startswith("set_")]


def _groups(rows: pandas.DataFrame, by: str) -> dict[str, pandas.DataFrame]:
    """Rows by the values of a condition, those without one among them."""
    missing = rows[by].isna()
    groups = {str(value): group for value, group in rows.loc[~missing].groupby(by)}
    if len(without := rows.loc[missing]):
        name = f"no {by}"
        groups[name if name not in groups else f"{name} given"] = without
    return groups


def _require_pairs(frames: dict[str, pandas.DataFrame], contrast: tuple[str, str]) -> None:
    """Raise FormatError where prompts of two surveys are paired by nothing but their number in files
    that differ."""
    prompts = []
    for name in contrast:
        if name not in frames:
            raise FormatError(f"no survey {name!r}: expected two of {', '.join(frames)}")
        mine = frames[name].drop_duplicates("prompt_index")
        numbered = mine.loc[mine["id"] == mine["prompt_index"].astype(str)]
        prompts.append(dict(zip(numbered["id"], numbered["prompt"])))
    for i in prompts[0].keys() & prompts[1].keys():
        if prompts[0][i] != prompts[1][i]:
            raise FormatError(
                f"prompt {i} of {contrast[0]} and of {contrast[1]} are different: give paired prompts the "
                "same id"
            )


def _kept(key: tuple[str, str, str], rows: pandas.DataFrame) -> Kept:
    """Prompts evenly spaced over those of a group."""
    every = np.unique(rows["prompt_index"].to_numpy())
    some = every[np.linspace(0, len(every) - 1, min(SAMPLE, len(every))).astype(int)]
    prompts = []
    for index in some.tolist():
        mine = rows.loc[rows["prompt_index"] == index].sort_values(["block"])
        columns = {name: mine[name].tolist() for name in SHOWN}
        cells = [dict(zip(columns, values)) for values in zip(*columns.values())]
        prompt, answer = (mine[name].tolist()[0] for name in ("prompt", "answer"))
        where = f"prompt_index = {index}"
        answer = answer if isinstance(answer, str) else ""  # pandas has nan
        prompts.append(KeptPrompt(str(prompt), answer, cells, where))
    return Kept(*key, len(every), prompts)


@dataclass(frozen=True)
class _Cube:
    """values: measure → (N, L), nan where it is missing; units (N,): prompts that belong together."""

    layers: list[str]
    values: dict[str, np.ndarray]
    rank_NL: np.ndarray
    units: np.ndarray
    ids: list[str]

    def of(self, measure: str) -> np.ndarray | None:
        """(N, L), where there are such numbers."""
        rank_NL = None if np.isnan(self.rank_NL).all() else self.rank_NL
        return rank_NL if measure == "rank" else self.values.get(measure)

    def moments(self) -> dict[str, np.ndarray]:
        """What happens at some layer → the row of that layer for each prompt (N,): L where it never does,
        −1 where it cannot, as there is no answer."""
        L = len(self.layers)
        run_N = np.cumprod(self.values["agree"][:, ::-1] == 1, axis=1).sum(1).astype(int)
        out = {"settled layer": np.where(run_N > 0, L - run_N, L)}
        for k in RANKS if "top1" in self.values else ():
            hits_NL = self.values[f"top{k}"] == 1
            row_N = np.where(hits_NL.any(1), hits_NL.argmax(1), L)
            absent_N = np.isnan(self.values[f"top{k}"]).all(1)
            place = f"at rank ≤ {k}" if k > 1 else "on top"
            out[f"first layer with the answer {place}"] = np.where(absent_N, -1, row_N)
        return out

    def numbers(self) -> np.ndarray:
        """(N, M) for each of `moments` the layer's number, embed being −1; nan where there is none."""
        number_L = [-1.0 if layer == "embed" else float(layer) for layer in self.layers]
        number_R = np.array([*number_L, np.nan, np.nan])  # never, and what cannot
        return np.stack([number_R[row_N] for row_N in self.moments().values()], 1)


def _having(values_NL: np.ndarray) -> int:
    """How many prompts have a value at any layer."""
    return int((~np.isnan(values_NL)).any(1).sum())


def _histograms(key: tuple[str, str, str], cube: _Cube, seed: int, draws: int) -> list[Histogram]:
    numbers_NM, L = cube.numbers(), len(cube.layers)
    mean_3M = np.stack(interval(numbers_NM, cube.units, seed, draws))
    several_S3M = quantiles(numbers_NM, cube.units, QUANTILES, seed, draws)
    out = []
    for m, (what, row_N) in enumerate(cube.moments().items()):
        spread = {"mean": tuple(mean_3M[:, m].tolist())}
        spread |= {f"{s:.0%}": tuple(x[:, m].tolist()) for s, x in zip(QUANTILES, several_S3M)}
        counts = np.bincount(row_N[row_N >= 0], minlength=L + 1)
        out.append(Histogram(*key, what, cube.layers, counts, spread))
    return out


def _cube(rows: pandas.DataFrame) -> _Cube:
    blocks = sorted(set(rows["block"]))
    layers = ["embed" if b < 0 else str(b) for b in blocks]
    rows = rows.sort_values(["prompt_index", "block"], kind="stable")
    L = len(blocks)
    values: dict[str, np.ndarray] = {}
    for name in ("logprob", "first_logprob", "margin", "kl", "entropy", "correct", "agree"):
        values[name] = rows[name].astype("float64").to_numpy().reshape(-1, L)
    rank_NL = rows["rank"].astype("float64").to_numpy().reshape(-1, L)
    for k in RANKS:
        values[f"top{k}"] = np.where(np.isnan(rank_NL), np.nan, rank_NL <= k)
    for name in rows.columns:
        if str(name).startswith("set_") and not str(name).endswith("_rank"):
            values[f"P({str(name)[4:]})"] = np.exp(
                rows[name].astype("float64").to_numpy().reshape(-1, L)
            )
    ids = rows["id"].to_numpy()[::L].tolist()
    units = np.unique(np.array(ids, dtype=str), return_inverse=True)[1]
    if np.isnan(values["margin"]).all():
        del values["correct"]  # it is the same as top1
    if np.array_equal(values["first_logprob"], values["logprob"], equal_nan=True):
        del values["first_logprob"]  # all answers are one token
    kept = {m: v for m, v in values.items() if not np.isnan(v).all() or m == "agree"}
    return _Cube(layers, {m: kept[m] for m in _order(kept)}, rank_NL, units, ids)


def _order(measures: Sequence[str] | dict[str, Any]) -> list[str]:
    known = [m for m in MEASURES if m in measures]
    return [*known, *(m for m in measures if m not in MEASURES)]


def _contrasts(
    survey: str,
    lens: str,
    cubes: dict[str, _Cube],
    contrast: tuple[str, str],
    seed: int,
    draws: int,
) -> tuple[list[Curve], list[Curve]]:
    """b − a over the ids that both groups have: of every measure, and of the layers of `moments`."""
    for name in contrast:
        if name not in cubes:
            raise FormatError(f"no prompts of {name!r}: expected two of {', '.join(cubes)}")
    a, b = (cubes[name] for name in contrast)
    if a.layers != b.layers:
        raise FormatError(f"{contrast[0]} and {contrast[1]} were read at other layers")
    places_a, places_b = _places(a.ids), _places(b.ids)
    shared = [i for i in places_a if i in places_b]
    if not shared:
        raise FormatError(
            f"{contrast[0]} and {contrast[1]} share no id: give paired prompts the same id"
        )

    def paired(measure: str, names: list[str], of_a: np.ndarray, of_b: np.ndarray) -> Curve:
        values_NL = np.stack(
            [of_b[places_b[i]].mean(0) - of_a[places_a[i]].mean(0) for i in shared]
        )
        return Curve(survey, lens, f"{contrast[1]} − {contrast[0]}", measure, names,
                     *interval(values_NL, np.arange(len(shared)), seed, draws), _having(values_NL))  # fmt: skip

    both = _order({m: 0 for m in a.values if m in b.values})
    names = [name for name in a.moments() if name in b.moments()]
    M = len(names)  # of the answer, or of none
    return (
        [paired(m, a.layers, a.values[m], b.values[m]) for m in both],
        [paired("layer", names, a.numbers()[:, :M], b.numbers()[:, :M])],
    )


def _places(ids: list[str]) -> dict[str, list[int]]:
    """id → where it occurs."""
    out: dict[str, list[int]] = {}
    for n, name in enumerate(ids):
        out.setdefault(name, []).append(n)
    return out
