import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.color import Color

from logitlens import statistics
from logitlens.errors import FormatError
from logitlens.view import color

channel = st.integers(0, 255)

RECIPE = Path(__file__).parents[2] / "recipes" / "palette.py"
_spec = importlib.util.spec_from_file_location("palette", RECIPE)
palette = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(palette)


@given(st.tuples(channel, channel, channel))
def test_ink_is_legible_on_every_colour(rgb):
    assert color.contrast(color.ink(rgb), rgb) >= color.LEGIBLE


@pytest.mark.parametrize("number", range(16, 256))
def test_ink_is_legible_among_256_colours(number):
    background = color.xterm_rgb(number)
    assert background == tuple(Color.from_ansi(number).get_truecolor())  # the palette rich knows
    ink = color.ink_256(background)
    assert ink >= 16  # 0 … 15 are whatever the user made them
    assert color.contrast(color.xterm_rgb(ink), background) >= color.LEGIBLE


def test_the_stops_are_what_the_recipe_prints():
    done = subprocess.run([sys.executable, RECIPE], capture_output=True, text=True, check=True)
    printed = dict(line.split() for line in done.stdout.splitlines())
    assert printed == {name: color._STOPS[name] for name in ("night", "day")}


@pytest.mark.parametrize("name", ["night", "day"])
def test_steps_among_256_colours_follow_the_map(name):
    shown = [color.step_256(t, name)[1] for t in np.linspace(0, 1, 200)]
    lab = palette.to_oklab(np.array(shown) / 255)
    rising = np.diff(lab[:, 0]) * (1 if name == "night" else -1)
    assert (rising >= 0).all()
    assert 8 <= (rising > 0).sum() + 1
    wanted = palette.to_oklab(color.table(name, 200) / 255)
    assert np.abs(lab[:, 0] - wanted[:, 0]).max() < 0.15


@pytest.mark.parametrize("name", ["night", "day"])
def test_house_maps_are_perceptually_uniform(name):
    # 24 stops: finer ones would measure the rounding to 8 bits instead.
    lab = palette.to_oklab(color.table(name, 24) / 255)
    steps = np.linalg.norm(np.diff(lab, axis=0), axis=1)
    assert steps.std() / steps.mean() < 0.05
    lightness = np.diff(lab[:, 0]) * (1 if name == "night" else -1)
    assert (lightness > 0.01).all()  # readable in grey and by any eye


def test_seed_map_is_seaborns():
    seaborn = pytest.importorskip("seaborn")
    theirs = seaborn.diverging_palette(255, 0, as_cmap=True)(np.arange(256))[:, :3] * 255
    assert np.abs(color.table("seed") - theirs).max() < 2


def test_unknown_names_are_refused(eiffel):
    with pytest.raises(FormatError, match="no colour map 'jet'.*night, day, seed"):
        color.table("jet")
    with pytest.raises(FormatError, match="cannot colour by .loss.*prob, entropy, kl.*agree"):
        color.scale(eiffel, "loss")


@pytest.mark.parametrize("name", statistics.colors())
def test_scales_run_from_0_to_the_confident_end(eiffel, name):
    scale = color.scale(eiffel, name)
    missing = np.isnan(scale.values)
    missing[0] = True  # embed is not painted
    assert (np.isnan(scale.unit) == missing).all()
    assert ((scale.unit[~missing] >= 0) & (scale.unit[~missing] <= 1)).all()
    assert [place for _, place in scale.ticks] == sorted(place for _, place in scale.ticks)
    order = np.argsort(scale.values[~missing])
    unit = scale.unit[~missing][order]
    rising = name in ("prob", "next", "agree")
    assert (np.diff(unit if rising else -unit) >= 0).all()


def test_the_token_after_the_last_position_is_missing_not_zero(eiffel):
    for name in ("rank", "next"):
        assert np.isnan(color.scale(eiffel, name).unit[:, -1]).all()
        assert np.isfinite(color.scale(eiffel, name).unit[1:, :-1]).all()


def test_embed_neither_sets_the_range_of_a_scale_nor_is_painted(eiffel):
    """It repeats the input: of 50 nats of KL, all other rows would be one colour."""
    kl = eiffel.kl.copy()
    kl[0] = 50.0
    far = eiffel.replace(kl=kl)
    assert color.scale(far, "kl").ticks == color.scale(eiffel, "kl").ticks
    assert np.isnan(color.scale(far, "kl").unit[0]).all()
    alone = color.scale(eiffel.replace(**{n: v[:1] for n, v in vars_of(eiffel).items()}), "kl")
    assert np.isfinite(alone.unit).all()  # unless there is nothing else


def vars_of(reading):
    """Every array that has layers, and their labels."""
    names = [s.name for s in statistics.stored() if s.per_cell]
    return {"layers": reading.layers, **{name: getattr(reading, name) for name in names}}


def test_the_end_of_a_scale_says_that_there_is_more(eiffel):
    entropy = np.full_like(eiffel.entropy, 2.0)
    assert color.scale(eiffel.replace(entropy=entropy), "entropy").ticks[0][0] == "2"
    entropy[1, 0] = 7.0
    assert color.scale(eiffel.replace(entropy=entropy), "entropy").ticks[0][0] == "≥2"


def test_kl_is_logarithmic(eiffel):
    kl = np.full_like(eiffel.kl, 10.0)
    kl[2], kl[3], kl[4] = 1.0, 0.1, 0.01
    unit = color.scale(eiffel.replace(kl=kl), "kl").unit
    np.testing.assert_allclose(unit[1:5, 0], [0, 1 / 3, 2 / 3, 1], atol=1e-6)


def test_kl_of_the_final_depth_is_the_confident_end(eiffel):
    assert (color.scale(eiffel, "kl").unit[-1] == 1).all()


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("probability", 1.0, "100%"), ("probability", 0.9996, "100%"), ("probability", 0.9994, ">99%"),
        ("probability", 0.996, ">99%"), ("probability", 0.994, "99%"), ("probability", 0.1, "10%"),
        ("probability", 0.0995, "10%"),
        ("probability", 0.0994, "9.9%"), ("probability", 0.0005, "0.1%"),
        ("probability", 0.0004, "10⁻³"), ("probability", 3.2e-9, "10⁻⁸"), ("probability", 0.0, "0"),
        ("probability", float("nan"), "–"), ("linear", float("inf"), "∞"), ("linear", 0.0, "0.0"),
        ("linear", 10.83, "10.8"),
        ("linear", 123.4, "123"), ("rank", 1, "1"), ("rank", 9999, "9999"), ("rank", 10000, "10k"),
        ("rank", 256000, "256k"), ("rank", 1.2e6, "1.2M"),
    ],
)  # fmt: skip
def test_values_take_four_characters(name, value, text):
    assert color.format_value(name, value) == text
    assert len(text) <= 4
