"""Selections of depths and positions."""

import pytest

from logitlens import PromptError
from logitlens.select import select


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (None, [0, 1, 2, 3, 4]),
        ("0:12:2", [0, 2, 4]),
        ("-2:", [3, 4]),
        ("::-1", [0, 1, 2, 3, 4]),
        ("0,-1,0", [0, 4]),
        ("3", [3]),
        (slice(1, 3), [1, 2]),
        (-1, [4]),
        ([2, 1], [1, 2]),
    ],
)
def test_selections(selection, expected):
    assert select(selection, 5, "depths") == expected


@pytest.mark.parametrize("selection", ["9:", "7", "a:b", "1:2:3:4", "::0", "", [5], [-6], []])
def test_bad_selections_are_one_line(selection):
    with pytest.raises(PromptError, match="depths") as caught:
        select(selection, 5, "depths")
    assert "\n" not in str(caught.value)
