"""The numbers of a corpus's report: means per lens, layer and band of positions, with 95 % intervals.

An interval is the mean ± t standard errors over documents (`sketch.mean_and_error`), with Student's t, as far
as such a mean is possible; those of shares and of medians are `sketch.share_ends` and `sketch.quantile_ends`.
"""

from __future__ import annotations

import io
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from logitlens.errors import InputError
from logitlens.survey import bands, sketch
from logitlens.survey import plan as plans
from logitlens.survey.bootstrap import student
from logitlens.survey.commit import Folder
from logitlens.survey.curves import SETTLED, Curve, Histogram, Kept, KeptPrompt, Summary
from logitlens.survey.sketch import LEAST
from logitlens.survey.summary import SAMPLE

if TYPE_CHECKING:
    import pandas

OFTEN = (
    0.9  # a threshold at which few positions exit early, unless a lens repeats the token it is at
)
SHARES = ("right", "agree", "exit_agree", "exit_right")
CONTEXT = 24  # tokens shown up to an example's position
MEASURES = {  # name: (what it is, its unit or "")
    "loss": ("loss of the token that follows", "nats"),
    "rank_p50": ("median rank of the token that follows", "within 2 %"),
    "right": ("the token that follows is on top", ""),
    "kl": ("KL(final ‖ layer)", "nats"),
    "entropy": ("entropy", "nats"),
    "agree": ("same top token as the final layer", ""),
    "exit_layer": ("layer of exit, at a threshold of the top probability", "mean"),
    "exit_agree": ("exits with the final layer's top token", ""),
    "exit_right": ("exits with the token that follows on top", ""),
}


def table(folder: str | os.PathLike[str]) -> pandas.DataFrame:
    """The committed shards of a corpus's survey, added up. Raises InputError where there are none."""
    plan, files = plans.load(folder), Folder(folder)
    shards = [s for s in range(len(plan.shards)) if files.committed(s) is not None]
    if not shards:
        raise InputError(f"nothing is committed in {folder} yet: run the survey first")
    return bands.merged(files.read(s) for s in shards).to_pandas()


def summarise(frames: dict[str, pandas.DataFrame]) -> Summary:
    """Tables of surveys by name → what a report shows; a group is a band of positions."""
    found = Summary(
        "position", unit="tokens",
        meta={"about": (
            "Means over tokens with 95 % intervals over documents: ± t standard errors, as far as a mean is "
            "possible; those of shares are Wilson's. "
            "Median ranks are within 2 %, and their intervals hold the ranks up to which that of the share of "
            f"tokens holds a half. Fewer than {LEAST} documents have none."
        )},
    )  # fmt: skip
    for survey, frame in frames.items():
        found.meta["about"] += _remarks(survey if len(frames) > 1 else "the survey", frame)
        for lens, band in dict.fromkeys(zip(frame["lens"].tolist(), frame["band"].tolist())):
            rows = frame.loc[(frame["lens"] == lens) & (frame["band"] == band)]
            group = _group(band)
            key, layers = (survey, str(lens), group), rows["layer"].tolist()
            n, followed = (int(rows[name].iloc[-1]) for name in ("tokens", "next"))
            if not n and band != "all":  # no window is that long
                continue
            for measure in ("loss", "rank_p50", "right", "kl", "entropy", "agree"):
                mean = rows[measure].to_numpy(np.float64)
                if measure == "rank_p50":  # of a rank the sketch gives the middle of its bin
                    low, high = (
                        rows[f"{measure}_{end}"].to_numpy(np.float64) for end in ("low", "high")
                    )
                    mean, low, high = np.rint(mean), np.floor(low) + 1, np.floor(high)
                else:
                    error = rows[f"{measure}_error"].to_numpy(np.float64)
                    units = rows[bands.units_of(measure)].to_numpy()
                    low, high = _ends(measure, mean, error, units, (0.0, np.inf))
                if measure == "agree":  # the final layer agrees with itself, whatever the documents
                    low[-1] = high[-1]
                its = followed if measure.removesuffix("_p50") in bands.OF_NEXT else n
                found.curves.append(Curve(*key, measure, layers, mean, low, high, its))
            found.histograms.append(_settled(key, rows))
            found.exits.extend(_exits(key, rows))
    whole = {
        place: [one for one in getattr(found, place) if one.group == _group("all")]
        for place in ("curves", "exits", "histograms")
    }
    return replace(found, together=replace(found, **whole))


def _remarks(survey: str, frame: pandas.DataFrame) -> str:
    """Whether its documents are too few for an interval, and through which lenses most positions exit at embed
    with another top token than the final layer's."""
    whole = frame.loc[frame["band"] == "all"]
    out, documents = "", int(whole["documents"].max())
    if documents < LEAST:
        several = f"{documents} documents" if documents > 1 else "1 document"
        out += f" Of {survey} are {several}: too few for an interval."
    e = bands.THRESHOLDS.index(OFTEN)
    for lens in dict.fromkeys(whole["lens"].tolist()):
        rows = whole.loc[whole["lens"] == lens]
        left_L, agree_L = (
            np.array([counts[e] for counts in rows[name].tolist()])
            for name in ("exits", "exits_agree")
        )
        embed_L = np.array(rows["block"].tolist()) < 0
        left, agree = left_L[embed_L].sum(), agree_L[embed_L].sum()
        if left > left_L.sum() / 2 and agree < left / 2:
            share = f"{left / left_L.sum():.0%}".replace("%", " %")
            out += (
                f" Of the exits of {survey} through the {lens} lens, {share} at a threshold of {OFTEN} are at "
                "embed, before any block, where this lens shows the token itself: --layers 0: leaves embed "
                "out, and a tuned lens shows there what follows."
            )
    return out


def _settled(key: tuple[str, str, str], rows: pandas.DataFrame) -> Histogram:
    """Where positions settle; never is impossible."""
    counts = rows["settled"].to_numpy(np.int64)
    share, error = counts / max(1, counts.sum()), rows["settled_error"].to_numpy(np.float64)
    ends = sketch.share_ends(share, error, rows["whole_documents"].to_numpy())
    low, high = (np.append(each, np.nan) for each in ends)
    mean, least, most = (float(each[0]) for each in _around("settled_layer", rows))
    spread = {"mean": (mean, least, most)}
    return Histogram(*key, SETTLED, rows["layer"].tolist(), np.append(counts, 0), low, high, spread)


def _exits(key: tuple[str, str, str], rows: pandas.DataFrame) -> list[Curve]:
    """Over thresholds: the mean layer of exit, and how many exits agree and are right."""
    labels = [f"{t:g}" for t in bands.THRESHOLDS]
    counted = {"exit_layer": "whole", "exit_agree": "whole", "exit_right": "whole_next"}
    return [
        Curve(*key, name, labels, *_around(name, rows), int(rows[of].iloc[0]))
        for name, of in counted.items()
    ]


def _around(name: str, rows: pandas.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means of `bands.LEFT`, which every row of a lens and band has, and the ends of their intervals."""
    row, number_L = rows.iloc[0], rows["block"].to_numpy()
    mean, error = (np.array(row[column], np.float64) for column in (name, f"{name}_error"))
    documents = np.full(len(mean), row[bands.units_of(name)])
    return mean, *_ends(name, mean, error, documents, (number_L.min(), number_L.max()))


def _ends(
    name: str,
    mean_L: np.ndarray,
    error_L: np.ndarray,
    documents_L: np.ndarray,
    possible: tuple[float, float],
) -> tuple[np.ndarray, np.ndarray]:
    """(L,) each: where the interval of a mean ends, which lies between two values if it is no share."""
    if name in SHARES:
        return sketch.share_ends(mean_L, error_L, documents_L)
    t_L = np.array([student(n - 1) if n >= LEAST else np.nan for n in documents_L.tolist()])
    return (mean_L - t_L * error_L).clip(*possible), (mean_L + t_L * error_L).clip(*possible)


def _group(band: str) -> str:
    return "all positions" if band == "all" else f"position {band}"


def examples(folder: str | os.PathLike[str], survey: str, frame: pandas.DataFrame) -> list[Kept]:
    """Positions behind the curves of a corpus's table: of its first shard; none without its cells."""
    import pyarrow.parquet as pq

    plan, files = plans.load(folder), Folder(folder)
    shard = next(s for s in range(len(plan.shards)) if files.committed(s) is not None)
    if not plan.settings.cells:
        return []
    columns = ["document", "position", "seen", "text", "lens", "layer", "block", "top", "loss", "rank",
               "kl", "entropy"]  # fmt: skip
    cells = pq.ParquetFile(io.BytesIO(files.checked(shard, cells=True)))
    if not set(columns) <= set(cells.schema_arrow.names):  # of a survey by an earlier version
        return []
    known = cells.read(columns=columns).to_pandas()
    known["logprob"] = -known["loss"]
    out = []
    for lens, mine in known.groupby("lens", sort=False):
        places = mine[mine["block"] == mine["block"].max()]
        text = dict(zip(zip(places["document"], places["position"]), places["text"]))
        final = (frame["lens"] == lens) & (frame["block"] == frame["block"].max())
        groups = frame.loc[final, ["band", "first", "last", "tokens"]].to_numpy().tolist()
        for band, first, last, n in groups:
            inside = places.loc[places["seen"].between(first, last), ["document", "position"]]
            some = inside.iloc[:: max(1, len(inside) // SAMPLE)].head(SAMPLE).to_numpy().tolist()
            if kept := [_example(mine, text, *place) for place in some]:
                out.append(Kept(survey, str(lens), _group(band), int(n), kept))
    return out


def _example(
    cells: pandas.DataFrame, text: dict[tuple[int, int], str], document: int, position: int
) -> KeptPrompt:
    """A position: the text up to it, the token that follows, and its numbers at every layer."""
    rows = cells.loc[(cells["document"] == document) & (cells["position"] == position)]
    names = ["layer", "top", "logprob", "rank", "kl", "entropy"]
    before = [text.get((document, p), "") for p in range(position - CONTEXT + 1, position + 1)]
    after = text.get((document, position + 1), "")
    numbers = rows.sort_values(["block"]).loc[:, names].to_dict("records")
    found = {"document": document, "position": position}
    return KeptPrompt("".join(before), after, numbers, found)
