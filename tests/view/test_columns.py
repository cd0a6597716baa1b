from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from logitlens.view.columns import Columns, bands_of, fit_columns, stride_rows, whole_bands


@given(
    st.lists(st.integers(3, 40), min_size=1, max_size=40),
    st.integers(2, 250),
    st.sampled_from([0, 4]),
)
def test_columns_fit_the_room(natural, room, extra):
    fitted = fit_columns(natural, room, extra)
    assert fitted.widths
    assert fitted.first + len(fitted.widths) == len(natural)
    assert sum(fitted.widths) + len(fitted.widths) <= room
    assert all(1 <= w <= n for w, n in zip(fitted.widths, natural[fitted.first :]))


def test_columns_are_cut_before_they_are_dropped_and_get_back_what_is_left():
    assert fit_columns([8] * 10, 90) == Columns(0, [8] * 10)
    assert fit_columns([8] * 10, 74) == Columns(0, [7, 7, 7, 7, 6, 6, 6, 6, 6, 6])
    assert fit_columns([8] * 10, 69) == Columns(3, [8] * 7)


@given(st.integers(1, 200), st.integers(1, 60))
def test_stride_ends_with_the_last_row_and_fits(rows, room):
    kept = stride_rows(rows, room)
    assert kept[-1] == rows - 1
    assert len(kept) <= room
    assert len({b - a for a, b in pairwise(kept)}) <= 1


def test_bands_of_a_file_hold_every_column_at_its_natural_width():
    bands = whole_bands([3, 20, 5, 90, 4], 40)
    assert [(band.first, band.widths) for band in bands] == [(0, [3, 20, 5]), (3, [39]), (4, [4])]
    assert all(sum(band.widths) + len(band.widths) <= 40 for band in bands)


def test_where_bands_are_left_out_the_last_are_as_wide_as_the_room():
    def counts(most):
        return [len(band.widths) for band in bands_of([8] * 10, 27, most=most)]

    assert counts(None) == counts(4) == [3, 3, 3, 1]
    assert [counts(most) for most in (1, 2, 3)] == [[3], [3, 3], [3, 3, 3]]
    assert [band.first for band in bands_of([8] * 10, 27, most=2)] == [4, 7]
