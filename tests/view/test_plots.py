"""Lines over layers: trajectories of one reading, curves of many."""

import numpy as np
import pytest

import logitlens
from logitlens import FormatError, PromptError
from tests.view.conftest import EIFFEL, make

figures = pytest.importorskip("matplotlib.figure")


def axes(n=1):
    return figures.Figure(figsize=(4 * n, 3)).subplots(1, n)


def test_trajectories_draw_what_was_recorded(eiffel):
    fig = eiffel.trajectories([" Paris", " Rome"])
    prob, rank = fig.axes
    for ax, values in ((prob, eiffel.prob), (rank, eiffel.rank)):
        for line, token in zip(ax.lines, (" Paris", " Rome")):
            ys = np.asarray(values(token)[:, -1], float)
            ys[ys == 0] = np.nan  # not recorded: a gap, not zero
            np.testing.assert_array_equal(line.get_ydata(), ys)
    assert rank.get_yscale() == "log"
    assert rank.yaxis_inverted(), "the likeliest is at the top"
    assert [t.get_text() for t in prob.get_legend().get_texts()] == ["␣Paris", "␣Rome"]


def test_trajectories_follow_tracked_tokens_without_asking(eiffel):
    ax = axes()
    assert eiffel.trajectories(position=2, by="rank", ax=ax) is ax
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), eiffel.track_ranks[:, 2, 0])
    with pytest.raises(PromptError, match="no token is followed"):
        make([" a"], track=0).trajectories()
    with pytest.raises(PromptError, match="no token of this reading"):
        eiffel.trajectories(["nowhere"])


@pytest.mark.parametrize("kind", [str, int, np.int64])
def test_one_token_is_one_line(eiffel, kind):
    (paris,) = eiffel._ids_of(" Paris")
    ax = eiffel.trajectories(" Paris" if kind is str else kind(paris), ax=axes())
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["␣Paris"]


def test_curves_are_means_over_positions_then_over_readings():
    readings = [make(EIFFEL, seed=seed) for seed in range(3)]
    ax = logitlens.curves(readings, "kl", ax=axes())
    (line,) = ax.lines
    means = np.array([r.kl[1:].mean(axis=1) for r in readings])
    np.testing.assert_allclose(line.get_ydata(), means.mean(0), rtol=1e-6)
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    half = 1.96 * means.std(0, ddof=1) / np.sqrt(3)
    np.testing.assert_allclose(band.max(), (means.mean(0) + half).max(), rtol=1e-6)
    assert ax.get_ylabel() == "KL to the final layer (nats)"


def test_curves_have_a_line_for_each_lens_and_ranks_a_geometric_mean(eiffel):
    tuned = eiffel.replace(meta={**eiffel.meta, "lens": {"name": "tuned"}})
    ax = logitlens.curves([eiffel, tuned, tuned], "rank", ax=axes())
    assert [t.get_text() for t in ax.get_legend().get_texts()] == [
        "logit lens (n = 1)", "tuned lens (n = 2)",
    ]  # fmt: skip
    ranks = eiffel.next_ranks[1:, :-1]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), np.exp(np.log(ranks).mean(1)), rtol=1e-6)


def test_shares_of_settled_positions_add_up_to_one(eiffel):
    ax = logitlens.curves(eiffel, "settled", ax=axes())
    assert sum(bar.get_height() for bar in ax.patches) == pytest.approx(1)
    assert ax.patches[-1].get_height() == np.mean(eiffel.settled() == 5)


def test_exits_and_reading_ahead_are_shares_of_positions(eiffel):
    tuned = eiffel.replace(meta={**eiffel.meta, "lens": {"name": "tuned"}})
    ax = logitlens.curves([eiffel, tuned], "exits", threshold=0.3, ax=axes())
    for line in ax.lines:
        np.testing.assert_allclose(line.get_ydata(), eiffel.exits(0.3)[1:], rtol=1e-6)
    assert ax.get_ylabel() == "could stop here, p ≥ 0.3"
    ax = logitlens.curves(eiffel, "reads_ahead", ahead=2, ax=axes())
    followed = eiffel.reads_ahead(2)[1:, eiffel.next_ids >= 0]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), followed.mean(axis=1), rtol=1e-6)


def test_a_figure_is_made_where_none_is_given_and_wrong_names_are_refused(eiffel):
    assert logitlens.curves([eiffel]).axes
    with pytest.raises(
        FormatError, match="by='loss': expected one of prob, .*kl.*, settled, exits, reads"
    ):
        logitlens.curves([eiffel], "loss")
    with pytest.raises(FormatError, match="by='loss': expected prob or rank"):
        eiffel.trajectories(by="loss")
    with pytest.raises(FormatError, match="at least one reading"):
        logitlens.curves([])
