import re
from io import StringIO

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.segment import Segment

from logitlens import statistics
from logitlens.errors import FormatError, PromptError
from logitlens.view import color, terminal
from logitlens.view import text as text_of
from tests.view.goldens import assert_golden

SGR = re.compile(r"\x1b\[[0-9;]*m")
COLORS = statistics.colors()


def console(system="truecolor", width=80, height=60, **options):
    return Console(
        file=StringIO(), force_terminal=True, color_system=system, width=width, height=height,
        legacy_windows=False, _environ={}, **options,
    )  # fmt: skip


def ansi(reading, system="truecolor", width=80, height=60, **options):
    out = console(system, width, height)
    out.print(terminal.render(reading, **options))
    return out.file.getvalue()


def painted(reading, system, width=120, **options) -> list[Segment]:
    out = console(system, width)
    segments = out.render(terminal.render(reading, **options))
    return [s for s in segments if s.style and s.style.bgcolor and s.text.strip()]


def labels_of(text):
    """The layer labels of the grid's rows."""
    lines = SGR.sub("", text).split("\n")
    start = next(i for i, line in enumerate(lines) if line.startswith("  layer "))
    *rows, settled = lines[start + 1 : lines.index("", start)]
    assert settled.startswith("settled ")
    return [line.split()[0] for line in rows]


def test_golden_eiffel(eiffel):
    assert_golden("eiffel-140.txt", terminal.text(eiffel, width=140))
    assert_golden("eiffel-80.txt", terminal.text(eiffel, width=80))
    assert_golden("eiffel-80-kl.txt", terminal.text(eiffel, width=80, color="kl"))
    assert_golden("eiffel-80-color.ansi", ansi(eiffel))
    assert_golden("eiffel-80-color-light.ansi", ansi(eiffel, theme="light", color="rank"))


def test_golden_hostile(hostile):
    assert_golden("hostile-700.txt", terminal.text(hostile, width=700))
    assert_golden("hostile-100.txt", terminal.text(hostile, width=100))
    assert_golden("hostile-100-256.ansi", ansi(hostile, "256", 100))


@pytest.mark.parametrize("name", COLORS)
@pytest.mark.parametrize("width", [20, 33, 80, 100, 140, 400])
def test_no_line_is_wider_than_asked_and_nothing_active_gets_out(hostile, name, width):
    plain = terminal.text(hostile, width=width, color=name)
    coloured = SGR.sub("", ansi(hostile, width=width, color=name))
    for text in (plain, coloured):
        assert "\x1b" not in text
        for line in text.split("\n"):
            assert cell_len(line) <= width
            assert all(c.isprintable() or c in "\u2068\u2069" for c in line), ascii(line)
            assert line.count("\u2068") == line.count("\u2069")


@pytest.mark.parametrize("theme", ["dark", "light"])
@pytest.mark.parametrize("name", COLORS)
def test_ink_is_legible_on_every_painted_cell(eiffel, name, theme):
    cells = painted(eiffel, "truecolor", color=name, theme=theme)
    assert len(cells) > 50
    for segment in cells:
        if segment.text != "␣":  # the leading space recedes on purpose
            ink, ground = (tuple(c.triplet) for c in (segment.style.color, segment.style.bgcolor))
            assert color.contrast(ink, ground) >= color.LEGIBLE, segment


@pytest.mark.parametrize("name", COLORS)
def test_256_colours_avoid_the_users_own_sixteen_and_stay_legible(hostile, name):
    cells = painted(hostile, "256", color=name)
    assert len(cells) > 20
    for segment in cells:
        ink, ground = segment.style.color, segment.style.bgcolor
        assert ink.number >= 16
        assert ground.number >= 16
        assert (
            color.contrast(tuple(ink.get_truecolor()), tuple(ground.get_truecolor()))
            >= color.LEGIBLE
        )


def test_truecolor_paints_the_value(eiffel):
    """The background of every cell is the map's colour of that cell's probability."""
    grounds = [tuple(s.style.bgcolor.triplet) for s in painted(eiffel, "truecolor", theme="dark")]
    wanted = {
        tuple(int(c) for c in rgb)
        for rgb in color.colors(eiffel.probs[1:, :, 0], "night").reshape(-1, 3)
    }
    assert wanted <= set(grounds)  # embed is not painted


@pytest.mark.parametrize("system", ["standard", None])
def test_few_colours_write_the_values_instead(eiffel, system):
    assert not painted(eiffel, system)
    text = SGR.sub("", ansi(eiffel, system, 140))
    assert f"{100 * eiffel.probs[-1, -1, 0]:.0f}" in text
    assert "top token, its probability, %" in text


def test_no_color_is_honoured(eiffel, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLORTERM", "truecolor")
    out = Console(file=StringIO(), force_terminal=True, width=140, legacy_windows=False)
    out.print(terminal.render(eiffel))
    assert not re.search(r"\x1b\[[0-9;]*(3|4|9|10)\d", out.file.getvalue())
    assert "its probability, %" in out.file.getvalue()


def test_layers_go_down_and_the_final_one_is_at_the_bottom(eiffel):
    text = terminal.text(eiffel, width=140)
    assert labels_of(text) == eiffel.layers
    head = next(line for line in text.split("\n") if line.startswith("  layer"))
    assert head.split() == ["layer", *(text_of.visible(piece) for piece in eiffel.pieces)]


def test_long_grids_wrap_into_bands_and_lose_nothing(reading_of):
    long = reading_of([f" w{i}" for i in range(300)])
    text = terminal.text(long, width=100)
    heads = [line.split()[1:] for line in text.split("\n") if line.startswith("  layer")]
    assert [t for head in heads for t in head] == [f"␣w{i}" for i in range(300)]
    assert max(map(len, heads)) - min(map(len, heads)) < 10, "bands are about as wide"
    assert "shown:" not in text


def test_a_terminal_shows_the_last_bands_and_says_so(reading_of):
    long = reading_of([f" w{i}" for i in range(300)])
    text = SGR.sub("", ansi(long, width=100, height=40))
    shown = int(re.search(r"the last (\d+) of 300 positions \(--positions\)", text)[1])
    heads = [line.split()[1:] for line in text.split("\n") if line.startswith("  layer")]
    assert [t for head in heads for t in head] == [f"␣w{i}" for i in range(300 - shown, 300)]


def test_a_stride_is_said_and_keeps_the_final_layer(reading_of):
    deep = reading_of([" a", " b"], layers=81, track=0)
    text = ansi(deep, height=40)
    labels = labels_of(text)
    assert labels[-1] == "79"
    assert len(labels) <= 40
    assert f"{len(labels)} of 81 layers, every 3rd (--layers)" in SGR.sub("", text)
    assert len(labels_of(ansi(deep, height=40, layers="embed,:"))) == 81
    assert "shown:" not in terminal.text(deep)  # a file has no height


def test_choices_are_rows_and_columns_of_the_reading(eiffel):
    text = terminal.text(eiffel, width=140, layers=["embed", "5"], positions="-2:")
    assert labels_of(text) == ["embed", "5"]
    assert "␣city" in text
    assert "␣Tower" not in text
    with pytest.raises(PromptError, match="no position 12"):
        terminal.text(eiffel, positions=12)
    with pytest.raises(FormatError, match="cannot colour by 'loss'"):
        terminal.text(eiffel, color="loss")


def test_the_lowest_layer_read_is_a_bound_where_there_are_layers_below(eiffel):
    def settled(labels, stream="resid"):
        top_ids = np.broadcast_to(eiffel.top_ids[-1:], eiffel.top_ids.shape).copy()
        top_ids[-2, 1, :2] = top_ids[-1, 1, 1::-1]
        of = eiffel.replace(layers=labels, top_ids=top_ids, meta=eiffel.meta | {"stream": stream})
        lines = terminal.text(of, width=200).split("\n")
        return next(line for line in lines if line.startswith("settled")).split()[1:3]

    assert settled(["embed", "0", "1", "2", "3", "4", "5"]) == ["embed", "5"]
    assert settled(["3", "4", "5", "6", "7", "8", "9"]) == ["≤3", "9"]
    assert settled(["0", "1", "2", "3", "4", "5", "6"]) == ["≤0", "6"]  # embed was not read
    sublayers = [f"{n}.attn" for n in range(6)]
    assert settled([*sublayers, "5"], "attn") == ["0.attn", "5"]
    assert settled([*(f"{n}.attn" for n in range(1, 7)), "6"], "attn") == ["≤1.attn", "6"]


def test_tracked_tokens_show_probability_and_rank_at_each_layer(eiffel, reading_of):
    text = terminal.text(eiffel, width=140)
    assert "after “␣of”" in text
    prob, rank = (
        next(x for x in text.split("\n") if f" {name} " in x).split(name)[1].split()
        for name in ("prob", "rank")
    )
    assert rank == [str(r) for r in eiffel.track_ranks[:, -1, 0]]
    assert prob == [
        color.format_value("probability", float(p)) for p in np.exp(eiffel.track_logprobs[:, -1, 0])
    ]
    deep = terminal.text(reading_of([" a"], layers=81), width=80)
    numbers = [
        n for line in deep.split("\n") if " rank " in line for n in line.split("rank")[1].split()
    ]
    assert len(numbers) == 81  # wrapped, not cut


def with_candidates(reading, ids, lens="logit"):
    """Candidates (T, C) whose probability doubles with every layer, by a lens."""
    L, T, _ = reading.shape
    logprobs = np.log(np.full((L, T, len(ids)), 0.5) ** np.arange(L, 0, -1)[:, None, None])
    return reading.replace(
        candidate_ids=np.tile(ids, (T, 1)), candidate_logprobs=logprobs,
        candidate_ranks=np.ones((L, T, len(ids))), meta={**reading.meta, "lens": {"name": lens}},
    )  # fmt: skip


def test_the_answer_is_followed_without_asking_for_it(reading_of):
    reading = with_candidates(reading_of([" a", " b"], layers=4, track=0), [3, 4])
    text = terminal.text(reading, width=100)
    first, second = (text_of.visible(reading.piece(i)) for i in (3, 4))
    assert re.search(rf"^{re.escape(first)} +prob +6.2% +12% +25% +50%$", text, re.M)
    assert re.search(r"^ +rank +1 +1 +1 +1$", text, re.M)
    assert re.search(rf"^{re.escape(second)} +prob", text, re.M)
    assert second not in terminal.text(reading, width=100, top=1).split("after")[1]
    assert "after" not in terminal.text(reading, width=100, top=0)


def test_several_lenses_share_one_table_legend_and_check(reading_of):
    both = [
        with_candidates(reading_of([" a", " b"], layers=4, track=0), [3, 4], lens)
        for lens in ("logit", "tuned")
    ]
    out = console(None, 100)
    out.print(terminal.render_lenses(both))
    text = out.file.getvalue()
    assert text.count("  layer ") == 2
    for once in ("cells: top token", "after “", "✓"):
        assert text.count(once) == 1
    assert re.search(r" prob logit .*\n +tuned .*\n +rank logit .*\n +tuned ", text)


@pytest.mark.parametrize(
    ("check", "line"),
    [
        (
            {"ok": True, "max_abs_diff": 1.2e-6, "tolerance": 1e-4, "positions": 1},
            "✓ last row checked against the model's own logits: within 1.2e-06 nats",
        ),
        (
            {"ok": False, "max_abs_diff": 0.5, "tolerance": 1e-4, "positions": 9},
            "✗ last row DIFFERS from the model's own logits by 5.0e-01 nats at 9 positions (bound 1.0e-04); "
            "do not trust this reading",
        ),
        (None, "– last row not checked against the model's own logits"),
    ],
)
def test_the_proof_is_shown(reading_of, check, line):
    meta = {"model": "m"} | ({"check": check} if check else {})
    assert line in terminal.text(reading_of([" a", " b"], meta=meta), width=200).split("\n")


def test_model_and_lens_are_named(reading_of):
    assert "demo · logit lens: no fitted map · float32 on cpu" in terminal.text(reading_of([" a"]))
    meta = {
        "model": "x\x1b[31m\n",
        "lens": {"name": "tuned", "source": "/lenses/gpt2", "hash": "0123456789abcdef"},
    }
    assert "x␛[31m⏎ · tuned lens: fitted, /lenses/gpt2, #01234567" in terminal.text(
        reading_of([" a"], meta=meta)
    )


def test_a_cut_prompt_is_said_in_the_first_line(reading_of):
    assert "cut" not in terminal.text(reading_of([" a"], meta={"model": "m", "truncated": 0}))
    cut = terminal.text(reading_of([" a"], meta={"model": "m", "truncated": 689}))
    assert "cut: the first 689 tokens were not read" in cut.splitlines()[0]


def test_cells_without_a_number_are_shown_as_such(reading_of):
    reading = reading_of([" a", " b"], layers=4)
    ids, logprobs = reading.top_ids.copy(), reading.top_logprobs.copy()
    ids[1, 0], logprobs[1, 0] = -1, np.nan

    broken = reading.replace(top_ids=ids, top_logprobs=logprobs)
    assert re.search(r"^ *0 +∅ +– ", terminal.text(broken), re.MULTILINE)
    row = SGR.sub("", ansi(broken)).split("\n")
    assert any("∅" in line for line in row)


def test_saving_text_keeps_every_position(tmp_path, reading_of):
    long = reading_of([f" w{i}" for i in range(300)])
    path = long.save(tmp_path / "x.txt", color="kl")
    text = path.read_text(encoding="utf-8")
    assert "␣w0 " in text
    assert "␣w299" in text
    assert "\x1b" not in text
    assert list(tmp_path.iterdir()) == [path]


def test_print_shows_the_grid(eiffel, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    assert str(eiffel) == terminal.text(eiffel, width=140)
