"""The page in a real browser, opened from file:// with the network off."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest

from logitlens import Reading, statistics
from logitlens.statistics import Statistic
from logitlens.view import page
from logitlens.view.page import data
from tests.browser.steps import cell_at, copied, eiffel, settle, violations
from tests.view import page_synthetic as synthetic

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def card_rows(tab):
    """The card's top k: (rank, token, probability, id and log-probability)."""
    return tab.locator(".card .top tr").evaluate_all(
        "rows => rows.map(r => [...r.children].slice(0, 3).map(c => c.textContent)"
        ".concat(r.children[2].title))"
    )


def test_hover_shows_the_numbers_of_the_reading(open_page):
    reading = eiffel()
    tab = open_page([reading])
    for row, column in [(0, 0), (5, 3), (12, 7)]:
        tab.mouse.move(*cell_at(tab, row, column))
        settle(tab)
        shown = card_rows(tab)
        assert len(shown) == 10
        for slot, (rank, token, percent, logprob) in enumerate(shown):
            assert int(rank) == slot + 1
            assert token.replace("␣", " ") == reading.piece(int(reading.top_ids[row, column, slot]))
            want = float(reading.top_logprobs[row, column, slot])
            said = logprob.partition("· ")[2].replace("−", "-").split()[0]
            assert float(said) == pytest.approx(want, rel=0.006)
            assert float(percent.rstrip("%")) == pytest.approx(100 * np.exp(want), rel=0.01)
        text = tab.inner_text(".card")
        assert f"{reading.entropy[row, column]:.3g}"[:3] in text
        assert ("none follows" in text) == (column == 7)


def test_every_cell_of_the_table_is_the_readings(open_page):
    reading = synthetic.random(4, 9, 3, 2, seed=7)
    tab = open_page([reading])
    tab.click(".tools summary:has-text('Save')")
    with tab.expect_download() as download:
        tab.click("text=CSV, all of it")
    rows = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text("utf-8"))))
    by_cell = {(r["layer"], int(r["position"]), int(r["id"])): r for r in rows}
    assert len(by_cell) == int((reading.top_ids >= 0).sum())
    for l, layer in enumerate(reading.layers):
        for t in range(9):
            for k in range(3):
                token = int(reading.top_ids[l, t, k])
                if token < 0:
                    continue
                row = by_cell[layer, t, token]
                half = np.float32(np.float16(reading.top_logprobs[l, t, k]))
                assert float(row["logprob"]) == pytest.approx(half, rel=1e-4)
                for name in ("entropy", "kl"):
                    value = np.float16(getattr(reading, name)[l, t])
                    if np.isfinite(value):
                        assert float(row[name]) == pytest.approx(float(value), rel=1e-4)
                    else:
                        assert row[name] == ""
                want = int(reading.next_ranks[l, t])
                assert row["next_rank"] == ("" if want == 0 else str(want))
                greater = int((reading.top_logprobs[l, t] > reading.top_logprobs[l, t, k]).sum())
                assert int(row["rank"]) == 1 + greater


def test_keys_reach_everything(open_page):
    tab = open_page([eiffel()])
    grid = tab.locator("[role=grid]")
    grid.focus()
    live = tab.locator("[aria-live=polite]")
    for keys, layer, position in [
        ("Control+Home ArrowDown ArrowDown ArrowRight", "1", 1),
        ("End", "1", 7),
        ("Control+End", "11", 7),
        ("Control+Home", "embed", 0),
        ("PageDown", None, 0),
    ]:
        for key in keys.split():
            tab.keyboard.press(key)
        text = live.inner_text()
        assert f"position {position}," in text
        if layer:
            assert f"layer {layer}," in text
    active = grid.get_attribute("aria-activedescendant")
    assert "position 0" in tab.locator(f"#{active}").inner_text()
    tab.keyboard.press("p")
    settle(tab)
    assert tab.locator(".chips .lab").first.inner_text() == "Pinned"
    tab.keyboard.press("Shift+P")
    settle(tab)
    assert "Positions" in tab.locator(".chips").inner_text()
    tab.keyboard.press("m")
    settle(tab)
    assert tab.locator("select[aria-label=Colour]").input_value() == "entropy"
    tab.keyboard.press("Enter")
    settle(tab)
    focused = "document.activeElement.getAttribute('aria-label')"
    assert tab.evaluate(focused).startswith("Pin "), "Enter leads into the inspector"
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("Enter")
    settle(tab)
    assert tab.locator(".chips .chip").count() >= 3
    assert tab.evaluate(focused).startswith("Pin "), "the button keeps the focus"
    tab.keyboard.press("Escape")
    assert tab.evaluate("document.activeElement.getAttribute('role')") == "grid"
    tab.keyboard.press("?")
    assert tab.locator("dialog[open]").inner_text().count("What am I looking at?") == 1
    tab.keyboard.press("Escape")
    tab.keyboard.press("t")
    assert tab.locator("dialog[open] table.real").count() == 1
    tab.keyboard.press("Escape")
    tab.keyboard.press("/")
    assert tab.evaluate("document.activeElement.type") == "search"
    tab.keyboard.type("the")
    tab.locator(".results button").first.wait_for()
    tab.keyboard.press("Escape")
    assert tab.locator(".results").is_hidden()
    assert tab.evaluate("document.activeElement.getAttribute('role')") == "grid"
    tab.keyboard.press("/")
    assert tab.locator("input[type=search]").input_value() == "", "and / is a key again"
    # from the top of the page, the first Tab is the grid
    tab.evaluate("document.activeElement.blur()")
    tab.mouse.click(5, 5)
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.getAttribute('role')") == "grid"


def test_pins_give_exact_trajectories_of_tracked_tokens(open_page):
    reading = eiffel()
    paris = int(reading.track_ids[0])
    tab = open_page([reading], f"pins=[[0,{paris}]]&cell=[3,7]")
    rank_chart = tab.locator(".chart").nth(1)
    ys = rank_chart.locator("circle").evaluate_all("es => es.map(e => +e.getAttribute('cy'))")
    ranks = reading.track_ranks[1:, 7, 0]
    assert len(ys) == len(ranks), "a tracked token has a value at every layer but embed"
    deep = np.ceil(np.log10(ranks.max()))
    want = 26 + np.log10(ranks) / deep * 150
    assert np.allclose(ys, want, atol=0.06)
    assert "Paris" in rank_chart.text_content()


def test_a_chart_of_probabilities_has_the_log_probability_of_every_layer_and_position(open_page):
    reading = eiffel()
    paris = int(reading.track_ids[0])
    tab = open_page([reading], f"pins=[[0,{paris}]]&cell=[3,7]")
    for chart, values in [
        (0, reading.track_logprobs[1:, 7, 0]),
        (2, reading.track_logprobs[3, :, 0]),
    ]:
        circles = tab.locator(".chart").nth(chart).locator("circle")
        ys = circles.evaluate_all("es => es.map(e => +e.getAttribute('cy'))")
        decades = -values / np.log(10)
        want = 26 + decades / max(2, np.ceil(decades.max())) * 150
        assert len(ys) == len(want)
        assert np.allclose(ys, want, atol=0.15)


def test_groups_add_probabilities(open_page):
    reading = eiffel()
    a, b = (int(i) for i in reading.top_ids[12, 7, :2])
    tab = open_page([reading], f"pins=[[0,{a},{b}]]&cell=[12,7]")
    tab.mouse.move(*cell_at(tab, 12, 7))
    settle(tab)
    row = tab.locator(".card .stats tr", has_text="pinned").inner_text()
    want = 100 * float(np.exp(reading.top_logprobs[12, 7, :2]).sum())
    assert float(re.search(r"([\d.]+)%", row)[1]) == pytest.approx(want, rel=0.01)
    assert "#1" in row


def test_a_group_is_made_and_undone_from_the_keyboard(open_page):
    reading = eiffel()
    first, second = (reading.piece(int(i)).replace(" ", "␣") for i in reading.top_ids[12, 7, :2])
    tab = open_page([reading], "cell=[12,7]&pins=[]")
    tab.locator("[role=grid]").focus()
    for key in ("Enter", "Enter", "ArrowDown", "Shift+Enter", "Escape"):
        tab.keyboard.press(key)
        settle(tab)
    chips = tab.locator(".chip bdi")
    assert chips.all_inner_texts()[0] == f"{first} + {second}"
    for label in (f"Remove {first} + {second}", f"Pin {first}"):
        tab.locator(f'.chip button[aria-label="{label}"]').press("Enter")
        settle(tab)
    assert chips.all_inner_texts()[0] == first
    assert len(chips.all_inner_texts()) > 1, "suggestions stay beside the pins"


def test_what_is_read_aloud_is_the_cell(open_page):
    reading = eiffel()
    tab = open_page([reading], "color=entropy")
    tab.locator("[role=grid]").focus()
    tab.keyboard.press("Control+End")
    token = reading.words[12][7].replace(" ", "␣")
    percent = f"{100 * np.exp(np.float16(reading.top_logprobs[12, 7, 0]).astype(float)):.3g}"
    entropy = f"{np.float16(reading.entropy[12, 7]):#.3g}"
    assert tab.locator("[aria-live=polite]").inner_text() == (
        f"layer 11, position 7, after ␣of: {token}, {percent}%; entropy {entropy} nats"
    )


def test_every_token_keeps_its_own_direction(open_page):
    tab = open_page([synthetic.hostile()], "w=90&cell=[1,5]")
    tab.locator("[role=grid]").focus()
    tab.keyboard.press("Enter")
    tab.keyboard.press("Escape")
    tab.keyboard.press("t")
    hebrew = "[...document.querySelectorAll('*')].filter(e => !e.children.length"
    hebrew += (
        " && /[\\u0590-\\u06ff]/.test(e.textContent) && !e.closest('script,title,pre,svg,.sr'))"
    )
    alone = f"{hebrew}.filter(e => !e.closest('bdi')).map(e => e.outerHTML.slice(0, 120))"
    assert tab.evaluate(f"{hebrew}.length") > 10
    assert tab.evaluate(alone) == []


def test_a_page_opens_on_the_answer_with_tracked_tokens_pinned_and_embed_muted(
    open_page, demo_model
):
    reading = demo_model.read("The Eiffel Tower is in the city of", track=[" Rome"])
    tab = open_page([reading])
    assert "position 9, after ␣of" in tab.locator("[role=gridcell]").inner_text()
    chips = tab.locator(".chip bdi").all_inner_texts()
    assert chips[:2] == ["␣Rome", "␣Paris"], "the pin, then the answer"
    assert len(chips) == 6, "and the other candidates"
    circles = tab.locator(".chart").first.locator("circle")
    assert circles.count() == 2 * 8, "both are known at every layer"
    assert "not recorded" not in tab.inner_text(".inspector") + tab.inner_text(".panel")
    titles = tab.locator(".chart .t")
    assert "after “␣of” (9)" in titles.first.text_content()
    tab.mouse.move(*cell_at(tab, 5, 6))
    settle(tab)
    assert "after “␣in” (6)" in titles.first.text_content(), "the charts follow the pointer"
    early = tab.locator(".prompt .tk").nth(4)  # Tower: settled from layer 0 on
    assert "settled from layer 0" in early.get_attribute("title")
    assert "color-mix" in early.get_attribute("style")


def test_the_card_says_who_wrote_a_token_where_that_was_recorded(open_page, demo_model):
    prompt = "The Eiffel Tower is in the city of"
    found = demo_model.attribute(prompt, " Paris")
    tab = open_page([found.added_to(demo_model.read(prompt))])
    assert tab.locator("button[aria-label^='Who wrote']").count() == 1, "one token was recorded"
    tab.locator("button[aria-label='Who wrote ␣Paris?']").click()
    rows = tab.locator(".who tr").all_inner_texts()
    name, part = found.largest(1)[0]
    assert rows[0].split("\t")[0] == name
    assert float(rows[0].split("\t")[-1]) == pytest.approx(part, rel=0.01)
    assert rows[-2].startswith(f"{len(found.components) - 12} more")
    assert float(rows[-1].split("\t")[-1]) == pytest.approx(found.sum, rel=1e-3)
    assert violations(tab) == []
    tab.mouse.move(*cell_at(tab, 5, 3))
    settle(tab)
    assert tab.locator("button[aria-label^='Who wrote']").count() == 0


def test_candidates_are_the_tokens_that_were_top_at_any_layer(open_page):
    reading = eiffel()
    tab = open_page([reading], "cell=[12,4]&pins=[]")
    shown = [t.replace("␣", " ") for t in tab.locator(".chip bdi").all_inner_texts()]
    tops = {reading.piece(int(i)) for i in reading.top_ids[:, 4, 0]}
    assert set(shown) <= tops
    assert shown[0] == reading.piece(int(reading.top_ids[-1, 4, 0]))
    assert len(shown) == min(6, len(tops))


def test_every_colour_mode_draws_and_says_what_it_is(open_page):
    tab = open_page([eiffel()], "pins=[[0,20]]")
    seen = set()
    modes = tab.locator("select[aria-label=Colour] option").evaluate_all("o => o.map(x => x.value)")
    assert modes == [s["name"] for s in data.records()] + ["pin0", "pinrank0"]
    for mode in modes:
        tab.select_option("select[aria-label=Colour]", mode)
        settle(tab)
        seen.add(tab.locator(".sc canvas >> nth=0").evaluate("c => c.toDataURL()"))
        assert tab.locator(".legend").inner_text().strip()
        assert "NaN" not in tab.inner_text("body")
    assert len(seen) == len(modes), "each has its own picture"


def test_a_saved_page_opens_on_the_colour_it_was_saved_with(chromium, tmp_path):
    reading = eiffel()
    legends = {
        "probability": "0%",
        "linear": "0",
        "log": "≤0.01",
        "rank": "1",
        "yes or no": "no",
    }
    tab = chromium.new_page()
    for statistic in data.records():
        path = reading.save(tmp_path / "page.html", color=statistic["name"])
        tab.goto(path.as_uri())
        tab.locator(".sc").wait_for()
        settle(tab)
        colour = tab.locator("select[aria-label=Colour]")
        assert colour.input_value() == statistic["name"]
        chosen = colour.locator("option:checked").inner_text()
        assert chosen.lower() == statistic["label"].lower()
        ticks = tab.locator(".legend span span").all_inner_texts()
        assert legends[statistic["scale"]] in ticks, (statistic, ticks)
    tab.close()


def test_a_statistic_nobody_has_heard_of_is_in_the_menu_the_card_the_charts_and_the_table(
    open_page, monkeypatch
):
    norm_LT = np.linspace(70_000, 90_000, 13 * 8).reshape(13, 8)  # more than half precision holds
    made_up = Statistic(
        "norm", "LT", "float32", "units", "norm of the stream", color="norm", scale="linear"
    )
    fields = eiffel().fields()
    monkeypatch.setattr(statistics, "TABLE", (*statistics.TABLE, made_up))
    reading = Reading(**fields, norm=norm_LT)
    (again,) = page.readings(page.html([reading]))
    assert np.array_equal(again.norm, reading.norm)
    tab = open_page([reading], "color=norm&cell=[6,3]")
    assert tab.locator("select[aria-label=Colour] option:checked").inner_text() == (
        "Norm of the stream"
    )
    value = norm_LT[6, 3]
    tab.mouse.move(*cell_at(tab, 6, 3))
    settle(tab)
    row = tab.locator(".card .stats tr", has_text="norm of the stream").inner_text()
    assert float(re.search(r"([\d.e+]+) units", row)[1]) == pytest.approx(value, rel=0.005)
    titles = tab.locator(".chart .t").all_text_contents()
    assert titles[2].startswith("Norm of the stream after")
    assert tab.locator(".chart").nth(2).locator("text", has_text="units").count() == 1
    assert tab.locator(".chart").nth(2).locator("circle").count() == 12, "embed is left out"
    assert "norm of the stream" in tab.locator("[role=gridcell]").inner_text()
    tab.click(".tools summary:has-text('Save')")
    with tab.expect_download() as download:
        tab.click("text=CSV, all of it")
    rows = csv.DictReader(io.StringIO(Path(download.value.path()).read_text("utf-8")))
    here = next(r for r in rows if (r["layer"], r["position"]) == ("5", "3"))
    assert float(here["norm"]) == pytest.approx(value, rel=1e-4)


def test_missing_is_hatched_not_zero(open_page):
    reading = eiffel()
    tab = open_page([reading], "color=next")
    x, y = cell_at(tab, 4, 7)  # nothing follows the last position
    box = tab.locator(".sc canvas >> nth=0").bounding_box()
    colours = tab.locator(".sc canvas >> nth=0").evaluate(
        """(c, [x, y]) => { const d = c.getContext('2d').getImageData(x - 8, y - 8, 16, 16).data, s = new Set();
        for (let i = 0; i < d.length; i += 4) s.add([d[i], d[i+1], d[i+2]].join()); return [...s] }""",
        [x - box["x"] + 40, y - box["y"]],
    )
    assert any(len(set(c.split(","))) == 1 for c in colours), "grey strokes"
    assert "255,255,255" in colours
    tab.mouse.move(x, y)
    settle(tab)
    assert "none follows" in tab.inner_text(".card")


def test_state_lives_in_the_address(open_page):
    tab = open_page([eiffel()])
    tab.select_option("select[aria-label=Colour]", "entropy")
    tab.mouse.click(*cell_at(tab, 2, 3))
    tab.wait_for_url(re.compile("cell="))
    fragment = tab.evaluate("location.hash")
    assert "color=entropy" in fragment
    assert "cell=[2,3]" in fragment
    again = open_page([eiffel()], fragment.lstrip("#"))
    assert again.locator("select[aria-label=Colour]").input_value() == "entropy"
    assert "position 3" in again.locator("[role=gridcell]").inner_text()


@pytest.mark.parametrize(
    "fragment",
    [
        "cell=[99,99]",
        "pins=[[9,1]]",
        "pins={}",
        "w=1e9&h=-4",
        "view=diff&a=7",
        "color=none&q=%",
        "step=[]&from=x",
        "cell=null",
    ],
)
def test_a_foreign_address_breaks_nothing(open_page, fragment):
    tab = open_page([eiffel()], fragment)
    tab.locator(".sc").hover()
    settle(tab)
    assert "position" in tab.inner_text(".card .at")


def test_layers_are_strided_and_the_last_row_stays(open_page):
    tab = open_page([eiffel()], "from=2&to=8&step=3")
    settle(tab)
    rows = tab.locator(".rows [role=rowheader]")
    assert sorted(rows.all_inner_texts(), key=int) == ["1", "4", "7", "11"]
    tab.click("summary:has-text('Show')")
    tab.select_option("select[aria-label=every]", "1")
    tab.select_option("select[aria-label='layers from']", "0")
    settle(tab)
    assert rows.count() == 10, "embed to 7, and the last"
    before = tab.locator(".sc canvas >> nth=0").evaluate("c => c.toDataURL()")
    tab.select_option("select[aria-label=scale]", "viridis")
    settle(tab)
    assert tab.locator(".sc canvas >> nth=0").evaluate("c => c.toDataURL()") != before


def test_a_part_of_a_prompt_keeps_its_numbers(open_page):
    base = eiffel()
    meta = base.meta | {"positions": list(range(100, 108))}
    tab = open_page([base.replace(meta=meta)])
    assert tab.locator("[role=columnheader] small").all_inner_texts()[0] == "100"
    tab.fill("input[type=search]", "104")
    tab.keyboard.press("Enter")
    assert "position 104, after ␣in" in tab.locator("[aria-live=polite]").inner_text()


def test_a_pin_is_found_by_its_text_in_another_vocabulary(open_page):
    a = eiffel()
    shift = {i: 1_000_000 + i for i in a.vocab}  # the same pieces under other ids
    moved = {
        name: np.vectorize(lambda i: shift.get(i, i), otypes=[np.int32])(getattr(a, name))
        for name in ("ids", "top_ids", "next_ids", "track_ids")
    }
    vocab = {shift[i]: piece for i, piece in a.vocab.items()} | {int(a.ids[0]): "another"}
    b = a.replace(**moved, vocab=vocab)
    paris = int(a.track_ids[0])
    tab = open_page([a, b], f"pins=[[0,{paris}]]&cell=[5,7]")
    expect = pytest.importorskip("playwright.sync_api").expect
    circles = tab.locator(".chart").nth(1).locator("circle")
    expect(circles).to_have_count(24)  # exact at 12 layers of both, once both are drawn
    ys = circles.evaluate_all("e => e.map(x => x.getAttribute('cy'))")
    assert ys[:12] == ys[12:]
    tab.select_option("select[aria-label=Colour]", "pin0")
    settle(tab)
    pictures = [
        c.evaluate("c => c.toDataURL()") for c in tab.locator(".sc canvas:first-child").all()
    ]
    assert pictures[0] == pictures[1]


def test_search_finds_tokens_and_positions(open_page):
    reading = eiffel()
    tab = open_page([reading])
    word = reading.words[6][5]
    tab.fill("input[type=search]", word)
    tab.locator(".results button").first.wait_for()
    assert "match" in tab.locator(".results").inner_text()
    tab.keyboard.press("Enter")
    live = tab.locator("[aria-live=polite]").inner_text()
    layer, position = re.search(r"layer (\w+), position (\d+)", live).groups()
    row = reading.layers.index(layer)
    found = {reading.piece(int(i)) for i in reading.top_ids[row, int(position)]} | {
        reading.pieces[int(position)]
    }
    assert any(word in piece for piece in found)
    assert tab.locator(".results").is_hidden(), "nothing lies over what was found"
    tab.fill("input[type=search]", word + " ")
    tab.fill("input[type=search]", word)
    tab.locator(".results button").first.click()
    settle(tab)
    assert tab.locator(".chips .lab").first.inner_text() == "Pinned"
    # a word of the prompt that is two tokens ("Eif" + "fel" elsewhere, "Tower is" here)
    tab.fill("input[type=search]", "wer is i")
    tab.keyboard.press("Enter")
    assert "position 2," in tab.locator("[aria-live=polite]").inner_text()
    settle(tab)
    assert tab.locator(".found").all_inner_texts() == [" Tower", " is", " in"]
    tab.fill("input[type=search]", "4")
    tab.keyboard.press("Enter")
    assert "position 4," in tab.locator("[aria-live=polite]").inner_text()
    tab.fill("input[type=search]", "no such token")
    tab.keyboard.press("Enter")
    assert "was not recorded" in tab.locator(".toast").inner_text()


def test_compare_links_scrolling_and_subtracts_what_is_aligned(open_page):
    a, b = eiffel(), synthetic.plausible(prompt="The Colosseum is in the old city of", seed=3)
    tab = open_page([a, b], "w=160", width=1000)
    assert tab.locator("[role=grid]").count() == 2
    tab.locator(".sc").first.evaluate("e => e.scrollLeft = 90")
    settle(tab)
    assert tab.locator(".sc").nth(1).evaluate("e => e.scrollLeft") == 90
    tab.locator(".sc").first.evaluate("e => e.scrollLeft = 0")
    settle(tab)
    tab.mouse.move(*cell_at(tab, 3, 0))
    settle(tab)
    assert tab.locator(".card .names .letter").all_inner_texts() == ["A", "B"]
    tab.mouse.move(2, 2)
    tab.select_option("select[aria-label=View]", "diff")
    tab.click("summary:has-text('Show')")
    tab.select_option("select[aria-label=cells]", "value")
    tab.select_option("select[aria-label=Colour]", "entropy")
    settle(tab)
    assert tab.locator("[role=grid]").count() == 1
    assert tab.locator(".grids .sc").count() == 1
    tab.click(".tools button:has-text('Table')")
    cells = tab.locator("dialog .real tbody tr").nth(5).locator("td").all_inner_texts()
    heads = tab.locator("dialog .real thead th").all_inner_texts()[1:]
    # "The … is in the · city of": columns of both prompts, by token
    for text, column_a, column_b in [(cells[0], 0, 0), (cells[3], 3, 2), (cells[-1], 7, 7)]:
        want = float(np.float16(b.entropy[5, column_b])) - float(np.float16(a.entropy[5, column_a]))
        assert float(text.split()[0].replace("−", "-")) == pytest.approx(
            want, abs=0.06 + 0.06 * abs(want)
        )
    assert len(heads) == len(cells) == 9
    assert sum(c.strip().startswith("–") for c in cells) == 2, (
        "no difference where one has no token"
    )


def test_save_png_and_svg_copy_text_and_python(open_page):
    reading = eiffel()
    tab = open_page([reading], "cell=[12,7]")
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    for kind, magic in [("PNG", b"\x89PNG"), ("SVG", b"<svg")]:
        tab.click(".tools summary:has-text('Save')")
        with tab.expect_download() as download:
            tab.click(f".tools summary:has-text('Save') + div >> text={kind}")
        data = Path(download.value.path()).read_bytes()
        assert data.startswith(magic)
        assert (
            download.value.suggested_filename
            == f"The-Eiffel-Tower-is-in-the-city-of.{kind.lower()}"
        )
        if kind == "SVG":
            text = data.decode()
            assert "Eiffel" in text
            assert reading.check_text()[1] in text
            assert text.count("<rect") > 13 * 8
        else:
            from PIL import Image

            image = Image.open(io.BytesIO(data))
            assert image.width > 800
            assert len(image.convert("RGB").getcolors(1 << 20)) > 30
    # each chart by itself
    rank = tab.locator(".plot").nth(1)
    ranks = reading.track_ranks[1:, 7, 0]
    for what in ("SVG", "PNG", "CSV"):
        rank.locator("summary").click()
        with tab.expect_download() as download:
            rank.locator(f"text=Save {what}").click()
        data = Path(download.value.path()).read_bytes()
        assert download.value.suggested_filename == f"Rank-after-of-7-.{what.lower()}"
        if what == "SVG":
            assert b"rank (log)" in data
            assert b'class="t"' not in data, "it needs no style sheet"
        elif what == "PNG":
            assert data.startswith(b"\x89PNG")
        else:
            saved = list(csv.reader(io.StringIO(data.decode())))
            column = saved[0].index("rank (log) of ␣Paris")
            assert [int(line[column]) for line in saved[1:]] == ranks.tolist()
            assert [line[0] for line in saved[1:]] == reading.layers[1:]
    rank.locator("summary").click()
    rank.locator("text=Copy as CSV").click()
    assert copied(tab, "rank (log)") == data.decode()
    for what, words in [
        ("Cell as text", ["entropy", json.dumps(reading.words[12][7])]),
        ("Cell as Python", ["import logitlens", "reading.top_ids[12, 7]"]),
        ("Cells in view as CSV", ["reading,layer,position"]),
    ]:
        tab.click(".tools summary:has-text('Copy')")
        tab.click(f"text={what}")
        text = copied(tab, words[0])
        assert all(word in text for word in words), text
        if "Python" in what:
            compile(text, "copied", "exec")


def test_paper_gets_tables_and_vector_charts(open_page, tmp_path):
    reading = synthetic.plausible(T=20)
    tab = open_page([reading])
    tab.pdf(path=tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    tab.emulate_media(media="print")
    assert tab.locator(".print .real").count() == 3, "eight positions to a table"
    assert tab.locator(".print svg").count() == 4
    assert tab.locator(".sc").is_hidden()
    assert "no fitted map" in tab.locator(".print").inner_text()


def test_light_and_dark_follow_the_host(open_page):
    tab = open_page([eiffel()], color_scheme="dark")
    ground = "getComputedStyle(document.querySelector('.ll')).backgroundColor"
    assert tab.evaluate(ground) == "rgb(20, 23, 27)"
    tab.emulate_media(color_scheme="light")
    settle(tab)
    assert tab.evaluate(ground) == "rgb(255, 255, 255)"
    fixed = open_page([eiffel()], options={"theme": "light"}, color_scheme="dark")
    assert fixed.evaluate(ground) == "rgb(255, 255, 255)"


def test_a_hostile_vocabulary_is_shown_and_harmless(open_page):
    reading = synthetic.hostile()
    tab = open_page([reading], "w=90&cell=[0,0]")
    assert "owned" not in tab.title() or "</script>" in tab.title()
    heads = tab.locator("[role=columnheader] bdi").all_inner_texts()
    assert heads[2] == "⏎"
    assert heads[4] == "⟨⟩"
    assert heads[8].startswith("◌")
    grid = tab.locator("[role=grid]")
    grid.focus()
    for _ in range(len(reading.pieces) - 1):
        tab.keyboard.press("ArrowRight")
    assert "position 22," in tab.locator("[aria-live=polite]").inner_text()
    tab.keyboard.press("t")
    assert "xxxxx" in tab.locator("dialog[open]").inner_text()
    assert len(tab.locator("dialog[open]").inner_text()) < 20_000
    assert tab.locator("script").count() == 4, "no script but the page's own"


def test_a_split_character_is_repaired_where_its_last_byte_would_complete_it(open_page):
    reading = synthetic.hostile()
    split = reading.pieces.index("😀⟨2/3⟩")
    tab = open_page([reading], f"cell=[0,{split}]&w=90")
    settle(tab)
    tab.locator("[role=grid]").focus()
    tab.keyboard.press("Enter")
    settle(tab)
    assert "→ 😀" in tab.locator(".card .top").inner_text()


@pytest.mark.parametrize("theme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_axe_finds_no_violation(open_page, theme):
    tab = open_page([eiffel(), eiffel(seed=4)], "cell=[3,2]&pins=[[0,20]]", color_scheme=theme)

    assert violations(tab) == []
    tab.locator("[role=grid]").first.focus()
    tab.keyboard.press("Enter")
    assert violations(tab) == []
    tab.keyboard.press("Escape")
    tab.keyboard.press("?")
    assert violations(tab) == []
    tab.keyboard.press("Escape")
    tab.keyboard.press("t")
    assert violations(tab) == []
    tab.keyboard.press("Escape")
    tab.locator(".plot summary").first.click()
    tab.set_viewport_size({"width": 400, "height": 800})
    settle(tab)
    assert violations(tab) == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= 400
    grid, inspector = (tab.locator(q).first.bounding_box() for q in (".grids", ".inspector"))
    assert inspector["y"] > grid["y"], "on a phone the inspector is below"


def test_damaged_data_are_reported_in_words(chromium, tmp_path):
    from logitlens.view import page

    text = page.html([eiffel()])
    (tmp_path / "a.html").write_text(text.replace('data-ll="0.head"', 'data-ll="gone"'), "utf-8")
    (tmp_path / "b.html").write_text(text.replace('"version":3', '"version":9'), "utf-8")
    tab = chromium.new_page()
    for name, words in [("a", "lacks its part 0.head"), ("b", "data are logitlens-page 9")]:
        tab.goto((tmp_path / f"{name}.html").as_uri())
        assert words in tab.locator("[role=alert]").inner_text()
    tab.close()


def test_a_file_whose_line_ends_were_changed_still_opens(chromium, tmp_path):
    from logitlens.view import page

    reading = eiffel()
    text = page.html([reading]).encode()
    (tmp_path / "crlf.html").write_bytes(text.replace(b"\n", b"\r\n"))
    tab = chromium.new_page()
    tab.goto((tmp_path / "crlf.html").as_uri() + "#cell=[12,7]")
    tab.locator(".sc").wait_for()
    cell = tab.locator("[role=gridcell]", has_text=reading.words[12][7].strip())
    cell.wait_for(state="attached")  # the cell of the address is named once its numbers are there
    tab.close()


def test_a_notebook_cell_shows_the_page_in_a_frame_that_reaches_nothing(chromium, tmp_path):
    from logitlens.view.page import notebook

    themed = synthetic.plausible(prompt="THEME %s park")
    cells = "".join(f"<div>{notebook.cell([r])}</div>" for r in (themed, synthetic.hostile()))
    path = tmp_path / "notebook.html"
    path.write_text(
        f'<!doctype html><meta charset="utf-8"><body data-jp-theme-light="false">{cells}', "utf-8"
    )
    context = chromium.new_context(offline=True)
    tab = context.new_page()
    asked = []
    tab.on("request", lambda r: asked.append(r.url))
    tab.goto(path.as_uri())
    for n in range(2):
        frame = tab.frame_locator("iframe").nth(n)
        frame.locator(".sc").wait_for(timeout=15_000)
        assert frame.locator(".ll").get_attribute("data-theme") == "dark"
    tab.evaluate("document.body.dataset.jpThemeLight = 'true'")
    frame.locator(".ll[data-theme=light]").wait_for()
    frame.locator("[role=grid]").focus()
    said = frame.locator("[aria-live=polite]")
    for _ in range(50):  # a frame of another process has the focus a moment after it was given
        tab.keyboard.press("Control+Home")
        if "embed, position 0" in said.inner_text():
            break
        tab.wait_for_timeout(100)
    tab.keyboard.press("ArrowDown")
    assert "layer 0, position 0" in said.inner_text()
    assert tab.locator("iframe").first.get_attribute("sandbox") == (
        "allow-scripts allow-downloads allow-modals"
    )
    assert [url for url in asked if not url.startswith(("file:", "about:", "data:"))] == []
    assert tab.locator("table").count() == 0, "the static table has given way"
    for width in (700, 1000):  # the check is read whole, beside the grid or the inspector
        tab.set_viewport_size({"width": width, "height": 900})
        check = tab.frame_locator("iframe").first.locator(".ok, .not")
        assert check.evaluate("e => e.scrollWidth <= e.clientWidth")
        assert check.evaluate("e => e.getBoundingClientRect().right <= innerWidth")
    context.close()
    untrusted = chromium.new_context(java_script_enabled=False)
    tab = untrusted.new_page()
    tab.goto(path.as_uri())
    assert tab.locator("table").count() == 2
    untrusted.close()
