"""Lines over layers: what one reading follows, and what many readings have in common.

    reading.trajectories()                        the answer and its rivals, probability and rank
    reading.trajectories([" Paris", " Rome"], by="rank", ax=ax)
    logitlens.curves(readings, "kl")              mean over positions, a band over readings
    logitlens.curves(readings, "settled")         how many positions have settled at each layer
    logitlens.curves(readings, "exits")           how many could stop there

As in seaborn, a function draws into `ax` and returns it, or makes a Figure of its own. Colours, fonts
and line widths are those of matplotlib's rcParams.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from logitlens import statistics
from logitlens.errors import FormatError, PromptError
from logitlens.reading import Reading
from logitlens.select import EMBED, layer_number
from logitlens.statistics import Statistic
from logitlens.view import text as safe
from logitlens.view.columns import stride_rows
from logitlens.view.figure_grid import check_place, matplotlib, shown_figure
from logitlens.view.followed import followed
from logitlens.view.fonts import Fonts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

By = Literal["prob", "rank"]
_BY = get_args(By)
_SETTLED = "settled"
# Shares of positions, beside the colours of the views, and what their axis says.
_SHARES = {
    _SETTLED: "share settled from here on",
    "exits": "could stop here, p ≥ {threshold:g}",
    "reads_ahead": "names one of the next {ahead} tokens",
}
_Z = 1.96  # of a normal distribution: 95 %


def trajectories(
    reading: Reading,
    tokens: Sequence[int | str] | int | str | None = None,
    *,
    position: int = -1,
    by: By | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> Figure | Axes:
    """Draw the probability and the rank of tokens at one position, layer by layer.

    tokens     texts or ids, or one of them; default: the tracked tokens and the model's own five candidates
    position   of the prompt; -1 is the last
    by         "prob", "rank"; default: both, side by side ("prob" with `ax`)

    Lines have gaps where a token was not recorded. Raises PromptError, FormatError and MissingExtra.
    """
    if by is not None and by not in _BY:
        raise FormatError(f"by={by!r}: expected {' or '.join(_BY)}, or nothing for both")
    if isinstance(tokens, (str, int, np.integer)):  # a text alone is one token, not its letters
        tokens = [tokens]
    (column,) = reading.columns([position])
    lines: list[tuple[str, np.ndarray, np.ndarray]] = []
    if tokens is None:
        lines = [(f.name, f.probs, f.ranks) for f in followed(reading, column, 5)]
        if not lines:
            raise PromptError("no token is followed in this reading: give tokens, or read it again")
    for token in tokens or []:
        name = token if isinstance(token, str) else reading.piece(token)
        ranks = reading.rank(token)[:, column].astype(float)
        ranks[ranks < 1] = np.nan
        lines.append((safe.visible(name), reading.prob(token)[:, column], ranks))
    fonts = Fonts.covering("".join(name for name, _, _ in lines) + reading.pieces[column])
    kinds: Sequence[By] = [by] if by else ["prob"] if ax is not None else ["prob", "rank"]
    fig, axes = _axes(ax, len(kinds), figsize)
    for panel, kind in zip(axes, kinds):
        for name, probs, ranks in lines:
            ys = probs if kind == "prob" else ranks
            panel.plot(range(len(ys)), ys, marker="o", markersize=3, label=_raw(fonts.shown(name)))
        _over_layers(panel, reading.layers)
        after = _raw(fonts.shown(safe.quote(reading.pieces[column])))
        panel.set_ylabel(("probability" if kind == "prob" else "rank") + f" after {after}")
        _fonts(panel, fonts)
        if kind == "rank":
            _ranks(panel)
        else:
            panel.set_ylim(-0.02, 1.02)
    axes[0].legend(frameon=False, prop={"family": fonts.families}, fontsize="small")
    return axes[0] if fig is None else fig


def curves(
    readings: Iterable[Reading] | Reading,
    by: str = "kl",
    *,
    threshold: float = 0.5,
    ahead: int = 4,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> Figure | Axes:
    """Draw one statistic over layers: a line for each model and lens, a band over its readings.

    by   a colour of the views ("kl", "entropy", "prob", "final", …): the mean over the positions of a
         reading (of ranks the geometric one), then over readings, with a 95 % interval of that mean
         (± 1.96 standard errors); or a share of positions. "settled": whose answer is settled from
         each layer on; "exits": where a layer already has it, with a probability of at least
         `threshold` (`Reading.exits`); "reads_ahead": where a layer names a token that really occurs
         within the next `ahead` positions (`Reading.reads_ahead`), of those that have a next one

    `embed`, which repeats the input, is left out. Raises FormatError and MissingExtra.
    """
    readings = [readings] if isinstance(readings, Reading) else list(readings)
    if not readings:
        raise FormatError("curves need at least one reading, got none")
    known = [*statistics.colors(), *_SHARES]
    if by not in known:
        raise FormatError(f"by={by!r}: expected one of {', '.join(known)}")
    groups = _groups(readings)
    labels = layers_of(readings, embed=by == _SETTLED)
    fig, (panel,) = _axes(ax, 1, figsize)
    for number, (name, group) in enumerate(groups.items()):
        means_RL = np.array([_means(r, by, labels, threshold, ahead) for r in group])
        with np.errstate(invalid="ignore"):
            mean = _nan_mean(means_RL)
            error = (
                _Z * np.nanstd(means_RL, axis=0, ddof=1) / np.sqrt(len(group))
                if len(group) > 1
                else None
            )
        rank = by not in _SHARES and statistics.by_color(by).scale == "rank"
        low, high = (mean, mean) if error is None else (mean - error, mean + error)
        if rank:
            mean, low, high = 10**mean, 10**low, 10**high
        name = f"{name} (n = {len(group)})"
        if by == _SETTLED:
            wide = 0.8 / len(groups)
            at = np.arange(len(labels)) + (number - (len(groups) - 1) / 2) * wide
            panel.bar(at, mean, wide, label=name, yerr=error, error_kw={"elinewidth": 0.8})
            continue
        (line,) = panel.plot(range(len(labels)), mean, marker="o", markersize=3, label=name)
        if error is not None:
            panel.fill_between(
                range(len(labels)), low, high, color=line.get_color(), alpha=0.2, linewidth=0
            )
    _over_layers(panel, labels)
    if by in _SHARES:
        panel.set_ylim(bottom=0)
        panel.set_ylabel(_SHARES[by].format(threshold=threshold, ahead=ahead))
    else:
        _measured(panel, statistics.by_color(by))
    panel.legend(frameon=False, fontsize="small")
    return panel if fig is None else fig


def _measured(panel: Axes, statistic: Statistic) -> None:
    """The axis of a statistic."""
    nats = statistic.unit == "nats" and statistic.color in ("kl", "entropy")
    panel.set_ylabel(statistic.label + (" (nats)" if nats else ""))
    if statistic.scale == "rank":
        panel.set_yscale("log")
        panel.invert_yaxis()


def layers_of(readings: Iterable[Reading], embed: bool = False) -> list[str]:
    """The labels of all layers that any reading holds, in their order."""
    labels = {label for reading in readings for label in reading.layers if embed or label != EMBED}
    return sorted(labels, key=lambda x: -1 if (number := layer_number(x)) is None else number)


def _groups(readings: Sequence[Reading]) -> Mapping[str, list[Reading]]:
    """Readings by model and lens, each named by what tells it apart."""
    models = {str(r.meta.get("model", "model")) for r in readings}
    out: dict[str, list[Reading]] = {}
    for reading in readings:
        model = f"{reading.meta.get('model', 'model')} · " if len(models) > 1 else ""
        out.setdefault(f"{model}{reading.lens_name} lens", []).append(reading)
    return out


def _means(
    reading: Reading, by: str, labels: Sequence[str], threshold: float, ahead: int
) -> np.ndarray:
    """The mean over positions at each layer (of ranks, of their logarithm); nan for none."""
    if by == _SETTLED:
        since = [reading.layers[row] for row in reading._settled_rows()]
        return np.array([np.mean([s == label for s in since]) for label in labels])
    if by == "exits":
        means = reading.exits(threshold)
    elif by == "reads_ahead":
        means = reading.reads_ahead(ahead)[:, reading.next_ids >= 0].astype(float)
        means = _nan_mean(means.T)
    else:
        statistic = statistics.by_color(by)
        values = statistic.values(reading)
        means = _nan_mean((np.log10(values) if statistic.scale == "rank" else values).T)
    known = dict(zip(reading.layers, means))
    return np.array([known.get(label, np.nan) for label in labels])


def _nan_mean(values: np.ndarray) -> np.ndarray:
    """The mean along the first axis of what is not nan."""
    count = (~np.isnan(values)).sum(0)
    return np.where(count > 0, np.nansum(values, axis=0) / np.maximum(count, 1), np.nan)


def _axes(
    ax: Axes | None, panels: int, figsize: tuple[float, float] | None
) -> tuple[Figure | None, list[Axes]]:
    """The Axes given, or new ones in a Figure that a notebook shows."""
    matplotlib()
    check_place(ax, figsize)
    if ax is not None:
        return None, [ax]
    size = figsize or (3.6 * panels + 0.4, 2.8)
    fig = shown_figure()(figsize=size, layout="constrained")
    return fig, [fig.add_subplot(1, panels, n + 1) for n in range(panels)]


def _over_layers(ax: Axes, labels: Sequence[str]) -> None:
    width = ax.get_window_extent().width / 100 * 72  # points, at least about
    shown = stride_rows(len(labels), max(2, min(12, int(width / 22))))
    ax.set_xticks(shown, [labels[i] for i in shown])
    ax.set_xlabel("layer")


def _ranks(ax: Axes) -> None:
    """1 at the top, then 10, 100 …"""
    from matplotlib.ticker import FuncFormatter

    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.invert_yaxis()


def _fonts(ax: Axes, fonts: Fonts) -> None:
    ax.yaxis.label.set_fontfamily(fonts.families)


def _raw(text: str) -> str:
    """Text in which a dollar sign is one: matplotlib would read a formula."""
    return text.replace("$", r"\$")
