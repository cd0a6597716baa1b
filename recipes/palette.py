"""Print the stops of the house colour maps, as `logitlens.view.color` holds them.

    python recipes/palette.py

`night` (for dark ground) and `day` (for light ground) run through OKLCH and are spaced so that equal
steps in value are equal steps in OKLab (Björn Ottosson, "A perceptual color space for image
processing", 2020).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

STOPS = 33

# Control points (lightness, chroma, hue in degrees), from 0 to 1.
_PATHS: dict[str, Sequence[tuple[float, float, float]]] = {
    "night": ((0.24, 0.020, 270), (0.38, 0.090, 272), (0.53, 0.115, 248), (0.70, 0.120, 200),
              (0.84, 0.150, 155), (0.945, 0.160, 108)),
    "day": ((0.985, 0.006, 110), (0.90, 0.060, 150), (0.75, 0.095, 195), (0.58, 0.115, 235),
            (0.43, 0.120, 265), (0.29, 0.110, 285)),
}  # fmt: skip


def _even_path(points: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """A smooth path through OKLCH points, n stops at equal distance in OKLab, as sRGB 0 … 1."""
    lightness, chroma, hue = points.T
    knots = np.linspace(0, 1, len(points))
    fine = np.linspace(0, 1, 4096)
    angle = np.deg2rad(_smooth(fine, knots, hue))
    c = _smooth(fine, knots, chroma)
    lab = np.stack([_smooth(fine, knots, lightness), c * np.cos(angle), c * np.sin(angle)], axis=1)
    # Out-of-gamut chroma is given up before the distance is measured, or steps would be uneven.
    lab = to_oklab(np.clip(_oklab_to_srgb(lab), 0, 1))
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(lab, axis=0), axis=1))])
    even = np.linspace(0, length[-1], n)
    return _oklab_to_srgb(np.stack([np.interp(even, length, lab[:, i]) for i in range(3)], axis=1))


def _smooth(x: NDArray, knots: NDArray, values: NDArray) -> NDArray:
    """Cubic Hermite interpolation with Catmull-Rom slopes on even knots."""
    step = knots[1] - knots[0]
    slopes = np.gradient(values, step)
    i = np.clip(((x - knots[0]) / step).astype(int), 0, len(knots) - 2)
    u = (x - knots[i]) / step
    return (
        (1 + 2 * u) * (1 - u) ** 2 * values[i] + u * (1 - u) ** 2 * step * slopes[i]
        + u**2 * (3 - 2 * u) * values[i + 1] + u**2 * (u - 1) * step * slopes[i + 1]
    )  # fmt: skip


def _oklab_to_srgb(lab: NDArray) -> NDArray:
    m = lab @ np.array(
        [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728],
         [1, -0.0894841775, -1.2914855480]]).T  # fmt: skip
    linear = m**3 @ np.array(
        [[4.0767416621, -3.3077115913, 0.2309699292], [-1.2684380046, 2.6097574011, -0.3413193965],
         [-0.0041960863, -0.7034186147, 1.7076147010]]).T  # fmt: skip
    linear = np.clip(linear, 0, None)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def to_oklab(srgb: NDArray) -> NDArray:
    """sRGB 0 … 1, (…, 3) → OKLab (…, 3): distances there are near to distances seen."""
    m = _linear(np.asarray(srgb, np.float64)) @ np.array(
        [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
         [0.0883024619, 0.2817188376, 0.6299787005]]).T  # fmt: skip
    return np.cbrt(m) @ np.array(
        [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
         [0.0259040371, 0.7827717662, -0.8086757660]]).T  # fmt: skip


def _linear(srgb: NDArray) -> NDArray:
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


if __name__ == "__main__":
    for name, points in _PATHS.items():
        stops = np.rint(_even_path(np.array(points, np.float64), STOPS) * 255).astype(int)
        print(name, "".join("{:02x}{:02x}{:02x}".format(*stop) for stop in stops))
