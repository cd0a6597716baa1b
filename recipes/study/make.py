"""A study of the bundled model: at which layer do its 3,109 facts settle, by relation and lens?

`make study` runs the survey (a few minutes on two cores; it goes on where it was left) and writes
docs/study.md, docs/images/study.png, docs/images/study.html and docs/images/study_relations.html.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from logitlens.files import replacing, write_text
from logitlens.survey.curves import Curve
from logitlens.survey.report import report
from logitlens.survey.summary import summarise, table

ROOT = Path(__file__).resolve().parents[2]
FACTS = ROOT / "recipes" / "demo_model" / "heldout_facts.jsonl"
LENSES = ("logit", "tuned", "jacobian")
NAMES = {"logit": "logit", "tuned": "tuned", "jacobian": "Jacobian"}
COLORS = {"logit": "#0072b2", "tuned": "#d55e00", "jacobian": "#009e73"}

TITLE = "Where facts settle: the bundled model's {total:,} facts"
TEXT = """# {title}

Written by `make study` ([recipes/study/make.py](../recipes/study/make.py)), with the survey of
[surveys.md](surveys.md).

Each prompt states a fact in a wording that the bundled model was not trained on, up to the answer; the last layer
gives the answer's first token rank 1 for {right:.0%} of them. The table says from which layer on the model's final
top token stays the top token, as a mean over prompts (the last layer is 7; embed counts as −1), through three
lenses. Intervals are 95 %, from a bootstrap over prompts; those of the figure's shares are Wilson's.

![A panel for each relation: the share of facts whose answer is on top, over layers, through the logit, tuned and Jacobian lens](images/study.png)

{table}

{findings}

The survey's own reports are pages that need no network (save them and open them in a browser): of all facts together,
with prompts and their readings behind its points, [images/study.html](images/study.html); and by relation, with prompts
behind the cells of its heatmaps, [images/study_relations.html](images/study_relations.html).

The lenses disagree about when an answer is there, and none of them is the model: a tuned lens is trained to predict
the final output from a layer, so it may say an answer that later layers have yet to compute from what is there. Read
the differences between relations through one lens; between lenses, read them as what each can decode.
"""


def main(folder: Path, facts: Path = FACTS, docs: Path = ROOT / "docs") -> None:
    """Run the survey of `facts` into `folder`, or go on with it, and write the study into `docs`."""
    lenses = [word for lens in LENSES for word in ("--lens", lens)]
    subprocess.run(
        [sys.executable, "-m", "logitlens", "survey", "run", str(facts), "-o", str(folder),
         *lenses, "--jobs", "2", "--threads", "1"],
        check=True,
    )  # fmt: skip
    frame = table(folder)
    found, whole = summarise({"facts": frame}, by="relation"), summarise({"facts": frame})
    curves = [c for c in found.curves if c.measure == "top1"]
    relations = sorted(
        dict.fromkeys(c.group for c in curves), key=lambda r: -_of(curves, r, "logit").n
    )
    images = docs / "images"
    images.mkdir(parents=True, exist_ok=True)
    with replacing(images / "study.png") as temporary:
        figure(curves, relations).savefig(temporary, format="png", dpi=110)
    settled = {
        (each.group or None, each.lens): each.spread["mean"]
        for each in (*found.histograms, *whole.histograms)
        if each.what == "settled layer"
    }
    write_text(docs / "study.md", text(curves, relations, settled))
    title = TITLE.format(total=sum(_of(curves, r, "logit").n for r in relations))
    report([folder], images / "study.html", title=title, readings=True)
    report([folder], images / "study_relations.html", title=f"{title}, by relation", by="relation")


def _of(curves: Sequence[Curve], relation: str, lens: str) -> Curve:
    return next(c for c in curves if (c.group, c.lens) == (relation, lens))


def text(
    curves: Sequence[Curve],
    relations: Sequence[str],
    settled: dict[tuple[str | None, str], tuple[float, float, float]],
) -> str:
    """docs/study.md. settled: relation (None: all) and lens → mean, low, high."""
    rows = [
        "| relation | facts | right at the last layer | "
        + " | ".join(f"settled, {NAMES[x]} lens" for x in LENSES)
        + " |",
        "| --- | --- | --- | " + " | ".join("---" for _ in LENSES) + " |",
    ]
    total = sum(_of(curves, r, "logit").n for r in relations)
    right = (
        sum(_of(curves, r, "logit").n * _of(curves, r, "logit").mean[-1] for r in relations) / total
    )
    for relation in (*relations, None):
        around = (settled[relation, lens] for lens in LENSES)
        cells = [f"{mean:.2f} [{low:.2f}, {high:.2f}]" for mean, low, high in around]
        curve = _of(curves, relation, "logit") if relation else None
        name = relation.replace("_", " ") if relation else "**all**"
        share, n = (curve.mean[-1], curve.n) if curve else (right, total)
        rows.append(f"| {name} | {n:,} | {share:.0%} | " + " | ".join(cells) + " |")
    order = {lens: sorted(relations, key=lambda r: settled[r, lens][0]) for lens in LENSES}
    said = []
    for lens in LENSES:
        first, last = order[lens][0], order[lens][-1]
        said.append(
            f"- Through the {NAMES[lens]} lens, facts settle at layer "
            f"{settled[None, lens][0]:.2f} on average: first *{first.replace('_', ' ')}* "
            f"({settled[first, lens][0]:.2f}), last *{last.replace('_', ' ')}* ({settled[last, lens][0]:.2f})."
        )
    return TEXT.format(
        title=TITLE.format(total=total),
        right=right,
        table="\n".join(rows),
        findings="\n".join(said),
    )


def figure(curves: Sequence[Curve], relations: Sequence[str]) -> Figure:
    """A panel for each relation, a line with its band for each lens."""
    wide = 4
    tall = -(-len(relations) // wide)
    drawing = Figure(figsize=(2.9 * wide, 2.1 * tall + 0.4), layout="constrained")
    axes_RC = drawing.subplots(tall, wide, sharex=True, sharey=True, squeeze=False)
    for n, axes in enumerate(axes_RC.flat):
        if n >= len(relations):
            axes.set_visible(False)
            continue
        for lens in LENSES:
            curve = _of(curves, relations[n], lens)
            x = np.arange(len(curve.layers))
            axes.plot(x, curve.mean, color=COLORS[lens], lw=1.4, label=lens)
            axes.fill_between(x, curve.low, curve.high, color=COLORS[lens], alpha=0.2, linewidth=0)
        axes.set_title(f"{relations[n].replace('_', ' ')} ({curve.n})", fontsize=9)
        axes.set_xticks(x[::2], curve.layers[::2], fontsize=8)
        axes.tick_params(axis="y", labelsize=8)
    drawing.supxlabel("layer", fontsize=9)
    drawing.supylabel("share with the answer on top", fontsize=9)
    drawing.legend(*axes_RC[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3,
                   fontsize=9, frameon=False)  # fmt: skip
    return drawing


if __name__ == "__main__":
    main(ROOT / "build" / "study")
