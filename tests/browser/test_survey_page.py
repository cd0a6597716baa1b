"""A survey's report in a real browser: a point opens its prompts, a prompt its reading."""

from __future__ import annotations

import json
import re

from logitlens.survey.plan import Settings
from logitlens.survey.report import report
from logitlens.survey.run import run
from tests.browser.conftest import Problems

CAPITALS = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid"}


def test_a_click_on_a_point_opens_its_prompts_and_a_click_on_one_its_reading(
    chromium, demo_model, tmp_path
):
    with open(tmp_path / "prompts.jsonl", "w") as file:
        for country, city in CAPITALS.items():
            line = {"prompt": f"The capital of {country} is", "answer": f" {city}"}
            print(json.dumps(line), file=file)
    settings = Settings(shard_size=8)
    run(tmp_path / "prompts.jsonl", tmp_path / "s", demo_model, source="demo", loading={},
        lenses=["logit", "tuned"], settings=settings)  # fmt: skip
    report([tmp_path / "s"], tmp_path / "r.html", readings=True)
    problems = Problems()
    tab = chromium.new_page(viewport={"width": 1300, "height": 1000})
    problems.watch(tab)
    tab.goto((tmp_path / "r.html").as_uri())
    for link in tab.locator("svg a").all()[::7]:  # of both lenses, of several panels
        name = link.get_attribute("xlink:href")
        link.scroll_into_view_if_needed()
        box = link.bounding_box()
        tab.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        # Where two points are at one place, the upper one is clicked: of the same layer.
        layer = name.rpartition("-")[2]
        tab.wait_for_url(re.compile(rf"#point-\d+-{layer}$"), timeout=10_000)
        assert tab.locator(".behind:target tr").count() == 1 + len(CAPITALS)
    assert tab.locator(".behind:visible").count() == 1
    tab.locator(".behind:target a", has_text="Italy").click()
    grid = tab.locator(".behind:target table.grid")
    assert grid.locator("tr").count() == 1 + 9
    last = grid.locator("tr").last.locator("td").last
    assert last.inner_text() == "␣Rome"
    assert last.get_attribute("title").endswith("%")
    shades = {last.evaluate("e => getComputedStyle(e).backgroundColor")}
    shades.add(grid.locator("td").first.evaluate("e => getComputedStyle(e).backgroundColor"))
    assert len(shades) == 2  # of a likely token, and of none
    tab.locator(".behind:target a", has_text="close").click()
    assert tab.locator(".behind:visible").count() == 0
    tab.close()
    assert not problems
