"""The plots of the benchmarks: contenders as bars, the readout alone as it scales."""

from __future__ import annotations

from pathlib import Path

TITLES = {"gpt2": "GPT-2's shape, float32", "128k": "128k vocabulary, 16 blocks of 2,048, bfloat16"}
AXES = {"T": "positions", "L": "layers", "V": "vocabulary", "k": "top k"}
READ = ("product", "torch", "numba", "naive", "naive, all sorted")  # by the sweeps
OURS, FLOOR, OTHERS = "#0f6bd7", "#8a8f98", "#e0a458"
LEAST = 6  # contenders a case must have to be drawn


def longest(rows: list[dict]) -> list[list[dict]]:
    """For each shape the longest prompt, every position, with most threads, that most contenders
    read; in the order of the rows."""
    cases: dict[tuple, list[dict]] = {}
    for row in rows:
        if row["kind"] == "read" and row["shape"] in TITLES and not row["last"] and "p50" in row:
            cases.setdefault((row["shape"], row["threads"], row["tokens"]), []).append(row)
    best = {}
    for key in sorted(key for key, found in cases.items() if len(found) >= LEAST):
        best[key[0]] = cases[key]
    return [best[shape] for shape in TITLES if shape in best]


def contenders(rows: list[dict], path: Path) -> None:
    """Bars, one row of panels for each shape: seconds, and peak memory."""
    cases = longest(rows)
    if not cases:
        return
    pyplot = _pyplot()
    height = sum(len(case) * 0.27 + 0.9 for case in cases)
    figure, panels = pyplot.subplots(
        len(cases), 2, figsize=(11, height), layout="constrained", squeeze=False,
        gridspec_kw={"height_ratios": [len(case) for case in cases]},
    )  # fmt: skip
    for (left, right), case in zip(panels, cases):
        names = [_label(row["contender"]) for row in case]
        colours = [_colour(row["contender"]) for row in case]
        _bars(left, names, [row["p50"] for row in case], colours, _seconds)
        _bars(right, names, [row["peak_mb"] or 0 for row in case], colours, _megabytes)
        right.tick_params(labelleft=False)
        one = case[0]
        threads = f"{one['threads']} thread{'s' if one['threads'] > 1 else ''}"
        left.set_title(
            f"{TITLES[one['shape']]}: {one['tokens']:,} tokens, {threads}", loc="left", fontsize=10
        )
        left.set_xlabel("seconds, median")
        right.set_xlabel("MB at most beyond the loaded model")
    _save(figure, path)


def _bars(panel, names: list[str], values: list[float], colours: list[str], words) -> None:
    panel.barh(names, values, color=colours, height=0.72)
    for place, value in enumerate(values):
        panel.text(value + max(values) / 100, place, words(value), va="center", fontsize=8)
    panel.xaxis.set_major_formatter("{x:,.16g}")
    panel.set_xlim(0, max(values) * 1.12)
    panel.invert_yaxis()
    panel.grid(axis="x", alpha=0.25)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=9)


def _label(name: str) -> str:
    return "floor: product + forward pass" if name == "floor" else name


def _colour(name: str) -> str:
    if name == "floor":
        return FLOOR
    return OURS if name in ("logitlens", "logitlens (numba)") else OTHERS


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value < 1 else f"{value:.1f} s"


def _megabytes(value: float) -> str:
    return f"{value:.0f} MB" if value < 1000 else f"{value / 1000:.1f} GB"


def kernel_rows(rows: list[dict]) -> list[dict]:
    """Rows of the sweeps and of what they read today, of the most threads they were measured with."""
    found = [r for r in rows if r["kind"] == "kernel" and "p50" in r and r["contender"] in READ]
    most = max((r["threads"] for r in found), default=0)
    return [r for r in found if r["threads"] == most]


def scaling(rows: list[dict], path: Path) -> None:
    """Four panels: seconds over T, L, V and k."""
    found = kernel_rows(rows)
    if not found:
        return
    pyplot = _pyplot()
    figure, panels = pyplot.subplots(1, 4, figsize=(13, 3.6), layout="constrained", sharey=True)
    names = list(dict.fromkeys(r["contender"] for r in found))
    for panel, axis in zip(panels, AXES):
        for name in names:
            line = sorted(
                (r[axis], r["p50"]) for r in found if r["axis"] == axis and r["contender"] == name
            )
            if line:
                style = {"linestyle": "--", "color": FLOOR} if name == "product" else {}
                panel.plot(*zip(*line), marker="o", markersize=4, label=name, **style)
        panel.set(xscale="log", yscale="log", xlabel=AXES[axis])
        ticks = sorted({r[axis] for r in found if r["axis"] == axis})
        panel.set_xticks(ticks, [f"{t / 1000:.0f}k" if t > 1000 else str(t) for t in ticks])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("seconds")
    handles, labels = panels[0].get_legend_handles_labels()
    words = {"product": "floor: product"} | {name: name for name in READ[3:]}
    labels = [words.get(label, f"logitlens ({label})") for label in labels]
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    _save(figure, path)


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "logitlens"
    from matplotlib import pyplot

    return pyplot


def _save(figure, path: Path) -> None:
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
