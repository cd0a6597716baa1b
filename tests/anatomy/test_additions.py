"""Every way of adding to a stream that is followed, and those that are not additions."""

from __future__ import annotations

import pytest
import torch

from logitlens.anatomy import additions


@pytest.mark.parametrize(
    ("add", "expected"),
    [
        (lambda h, a, b: h + a, ["a"]),
        (lambda h, a, b: a + h + b, ["a", "b"]),
        (lambda h, a, b: torch.add(h, a, alpha=0.5), ["a / 2"]),
        (lambda h, a, b: a.clone().add_(h).add_(b), ["a", "b"]),
        (lambda h, a, b: (a.view(6, 4) + h.view(6, 4)).view(2, 3, 4), ["a"]),
        (lambda h, a, b: h + (a + b), ["a + b"]),
        (lambda h, a, b: (h + a) * 1.0, ["a"]),
        (lambda h, a, b: (h + a) * 2.0, None),
        (lambda h, a, b: (h + a).mul_(2.0), None),
        (lambda h, a, b: h + h, None),
        (lambda h, a, b: a + b, None),
        (lambda h, a, b: h, []),
    ],
)
def test_ways_of_adding(add, expected):
    h, a, b = torch.randn(3, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    values = {"a": a, "b": b, "a / 2": a / 2, "a + b": a + b}
    with additions.Additions() as mode:
        mode.begin(0, h)
        path = mode.end(add(h, a, b))
    if expected is None:
        assert path is None
    else:
        assert path is not None
        assert len(path) == len(expected)
        for (_, value), name in zip(path, expected):
            torch.testing.assert_close(value.tensor.view(2, 3, 4), values[name])
