"""`logitlens serve` from end to end: the bundled model, a typed prompt, a grid in the browser."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import logitlens
from logitlens.cli.serve import redirecting
from logitlens.view import page
from tests.browser.conftest import Problems
from tests.browser.steps import violations
from tests.server.held import served

pytestmark = [pytest.mark.browser, pytest.mark.slow]
pytest.importorskip("uvicorn")

DEMO = Path(logitlens.__file__).parent / "demo/model/model.safetensors"
EIFFEL, COLOSSEUM = "The Eiffel Tower is in the city of", "The Colosseum is in the city of"


@pytest.fixture
def hold(tmp_path_factory):
    return tmp_path_factory.mktemp("hold")


@pytest.fixture
def address(hold):
    if not DEMO.exists():
        pytest.skip("the bundled model is not in this checkout")
    with served(hold, "-m", "demo", "-m", str(hold), "--max-tokens", "64") as (_, address):
        yield address


@pytest.fixture
def open_tab(chromium, address):
    """open_tab() → a tab that shows the page; requests elsewhere and complaints fail the test."""
    problems, contexts = Problems(), []

    def show(fragment="", *, width=1280, height=1000, **options):
        context = chromium.new_context(
            viewport={"width": width, "height": height}, accept_downloads=True, **options
        )
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(180_000)  # it loads torch and a model first, on a busy machine too
        tab.on("pageerror", lambda e: problems.append(f"error: {e}"))
        tab.on("console", lambda m: problems.append(m.text) if _complaint(m.text, m.type) else None)
        ours = (address, "data:", "blob:")
        tab.on("request", lambda r: None if r.url.startswith(ours) else problems.append(r.url))
        tab.goto(address + fragment)
        return tab

    yield show
    for context in contexts:
        context.close()
    assert not problems, problems


def _complaint(text: str, kind: str) -> bool:
    # a refusal in words is an answer of status 400, which Chromium writes down as an error
    return kind in ("error", "warning") and "status of 400" not in text


def ask(tab, prompt):
    tab.fill("textarea", prompt)
    tab.keyboard.press("Enter")


def status(tab, words):
    """Wait until the status says so."""
    tab.locator(".status", has_text=words).wait_for()
    return tab.locator(".status").inner_text()


def drawn(tab, grids):
    """Wait until so many grids are there and have their columns."""
    tab.locator("[role=grid]").nth(grids - 1).wait_for()
    for grid in tab.locator("[role=grid]").all():
        grid.locator("[role=columnheader]").first.wait_for()


def wide(tab):
    """How many pixels the document is wider than the window."""
    return tab.evaluate("document.documentElement.scrollWidth - innerWidth")


NONE = "?show="  # a tab that asks for no example


def lenses(tab, *names):
    for box in tab.locator(".lenses input").all():
        box.set_checked(box.get_attribute("value") in names)


def dots(tab, chart):
    """How many values a chart draws."""
    return tab.locator(".chart").nth(chart).locator("circle").count()


def test_an_example_is_there_and_every_kind_of_order_starts_from_it(open_tab):
    tab = open_tab()
    tab.wait_for_selector(".sc")
    assert re.fullmatch(r"Done in [\d.]+ s", status(tab, "Done in"))
    assert tab.input_value("textarea") == EIFFEL
    assert tab.locator("h1").nth(1).inner_text() == EIFFEL
    assert "✓ last row" in tab.inner_text(".about")
    other = open_tab()  # has the same readings
    drawn(other, 1)
    assert other.locator(".made li").count() == 1
    a_pin_is_followed(tab)
    a_token_is_explained(tab)
    a_token_is_appended(tab)
    the_model_writes(tab)
    a_reading_is_named_and_deleted(tab, other)
    an_edit_is_seen_beside_what_was_before(tab)
    a_chat_is_read_and_its_template_left_out(tab)
    a_choice_from_the_list_fills_the_form(tab)
    two_prompts_are_patched(tab)


def a_pin_is_followed(tab):
    """Exactly, by itself, in the place of the reading."""
    tab.locator("[role=grid]").focus()
    tab.keyboard.press("Control+End")
    tab.locator(".chip").first.wait_for()  # the tile has come
    tab.keyboard.press("p")
    for _ in range(200):
        if dots(tab, 2) == 10:
            break
        tab.wait_for_timeout(100)
    assert dots(tab, 2) == 10, "a value at every position"
    assert tab.locator(".made li").count() == 1


def a_token_is_explained(tab):
    tab.locator("button[aria-label='Who wrote ␣Paris?']").click()
    tab.locator(".who table").wait_for()
    assert "mlp" in tab.inner_text(".who")
    assert "The model’s own logit is" in tab.inner_text(".who")
    assert violations(tab) == []


def a_token_is_appended(tab):
    tab.locator("button[aria-label^='Append ␣Paris']").click()
    tab.locator(".made li").nth(1).wait_for()
    tab.locator("[role=columnheader]", has_text="Paris").wait_for()
    assert tab.input_value("textarea") == EIFFEL + " Paris"
    # the cursor is at the new end
    tab.locator("[role=gridcell]", has_text="position 10,").wait_for(state="attached")


def the_model_writes(tab):
    """Columns come as it does, and a slider takes them away again."""
    tab.get_by_role("button", name="Write", exact=True).click()
    tab.locator(".time").wait_for()
    tab.locator(".made li", has_text="tokens written").wait_for()
    tab.wait_for_url(re.compile("show=r3"))
    tab.locator(".tk.written").first.wait_for()
    status(tab, "Done in")
    slider = tab.locator("input[type=range]")
    columns = int(slider.get_attribute("max") or 0)
    last = tab.locator(f"[role=columnheader][aria-colindex='{columns + 1}']")
    last.wait_for()
    for _ in range(200):  # the pin is followed meanwhile, which draws the page anew
        slider.press("Home")
        if "upto=" in tab.url:
            break
        tab.wait_for_timeout(100)
    tab.wait_for_url(re.compile("upto="))
    last.wait_for(state="detached")  # later columns are hidden
    assert violations(tab) == []


def a_reading_is_named_and_deleted(tab, other):
    """Named here and seen there; deleted there and gone here."""
    tab.locator("button[aria-label^=Rename]").first.click()
    tab.keyboard.type("the long one")
    tab.keyboard.press("Enter")
    other.locator(".made li", has_text="the long one").wait_for()
    other.locator("button[aria-label='Delete the long one']").click()
    tab.locator(".made li", has_text="the long one").wait_for(state="detached")


def an_edit_is_seen_beside_what_was_before(tab):
    edits = tab.locator("input[aria-label^=Edits]")
    edits.fill("ablate:block=3,stream=mlp")
    tab.get_by_role("button", name="Read", exact=True).click()
    tab.locator("figcaption", has_text="3.mlp set to zero").wait_for()
    tab.locator("figcaption", has_text="not edited").wait_for()
    tab.locator(".about p", has_text="edited: 3.mlp set to zero").wait_for()
    edits.fill("")


def a_chat_is_read_and_its_template_left_out(tab):
    tab.select_option("select[aria-label='Kind of prompt']", "chat")
    tab.locator(".turns textarea").fill("Where is it?")
    tab.get_by_role("button", name="Add a turn").click()
    tab.keyboard.type("In the city of")
    tab.get_by_role("button", name="Read", exact=True).click()
    tab.locator(".role").nth(1).wait_for()
    roles = tab.locator(".role").all_text_contents()  # a list drawn again has no style for a moment
    assert roles == ["user", "assistant"]
    tab.locator(".prompt .tk", has_text="⏎").first.wait_for()
    tab.locator("summary", has_text="Show").click()
    tab.get_by_label("template").uncheck()
    tab.locator(".prompt .tk", has_text="⏎").first.wait_for(state="detached")
    tab.wait_for_url(re.compile("hide=template"))
    tab.keyboard.press("Escape")
    tab.select_option("select[aria-label='Kind of prompt']", "text")


def a_choice_from_the_list_fills_the_form(tab):
    tab.locator(".made li", has_text=EIFFEL).last.locator("button").first.click()
    tab.locator(".role").first.wait_for(state="detached")
    assert tab.input_value("textarea") == EIFFEL


def two_prompts_are_patched(tab):
    """Which cells of one bring its answer back in the other."""
    tab.select_option("select[aria-label='Kind of prompt']", "patch")
    assert not tab.locator(".lenses").is_visible(), "a grid of patches is read through no lens"
    tab.fill("textarea[aria-label='Corrupted prompt']", COLOSSEUM)
    tab.fill("input[aria-label='Answer of the clean prompt']", " Paris")
    tab.fill("input[aria-label='Answer of the corrupted prompt']", " Rome")
    tab.get_by_role("button", name="Patch", exact=True).click()
    tab.locator(".patches td").first.wait_for()
    assert "100" in tab.locator(".patches tbody tr").first.inner_text().split()


def test_a_run_is_followed_and_cancelled_and_the_next_prompt_is_read(open_tab, hold):
    (hold / "load").touch()
    (hold / "run").touch()
    tab = open_tab(NONE)
    bar = tab.get_by_role("progressbar", name="Progress")
    assert not bar.is_visible()
    ask(tab, EIFFEL)
    assert status(tab, "Loading") == "Loading demo …"
    assert bar.get_attribute("value") is None, "nobody knows how far it is"
    (hold / "load").unlink()
    assert status(tab, "Running") == "Running 10 tokens through 8 blocks …"
    tab.locator(".way", has_text=re.compile("block [12] of 8")).wait_for()
    assert re.fullmatch("block [12] of 8", bar.get_attribute("aria-valuetext"))
    assert bar.get_attribute("max") == "8"
    assert violations(tab) == []
    tab.get_by_role("button", name="Cancel").focus()
    tab.keyboard.press("Enter")
    status(tab, "Cancelling …")
    assert tab.evaluate("document.activeElement.tagName") == "TEXTAREA"
    (hold / "run").unlink()
    assert status(tab, "Cancelled") == "Cancelled at block 3 of 8"
    bar.wait_for(state="hidden")
    assert tab.locator(".made li").count() == 0
    ask(tab, COLOSSEUM)
    assert "Loading" not in status(tab, "Done in")
    tab.locator(".made li").first.wait_for()
    assert tab.locator(".made li").count() == 1


def test_a_text_is_stopped_written_on_and_another_prompt_is_written_after(
    open_tab, hold, demo_model, tmp_path
):
    tab = open_tab(NONE)
    tab.fill("textarea", "Once upon a time")
    write = tab.get_by_role("button", name="Write", exact=True)

    def settings(**values):
        box = tab.locator("details.settings")  # left open: it covers no button
        if box.get_attribute("open") is None:
            tab.locator("summary", has_text="Writing").click()
        for name, value in values.items():
            tab.fill(f"input[name={name}]", str(value))

    def made(number):
        """All ids of the reading that came as the n-th, from its exported file."""
        tab.wait_for_url(re.compile(f"show=r{number}(?![0-9])"))
        status(tab, "Done in")
        tab.wait_for_timeout(300)  # the page writes its state into the address a moment later
        with tab.expect_download() as download:
            tab.click("text=Export file")
        download.value.save_as(tmp_path / "made.html")
        (reading,) = page.load(tmp_path / "made.html")
        return [*reading.ids.tolist(), int(reading.next_ids[-1])]

    def theirs(prompt, **options):
        reading = demo_model.generate(prompt, **options)
        return [*reading.ids.tolist(), int(reading.next_ids[-1])]

    settings(max_new_tokens=200, temperature=1, seed=1)
    write.click()
    tab.locator(".tk.written").first.wait_for()
    (hold / "run").touch()  # it waits in the middle of a token
    tab.get_by_role("button", name="Stop", exact=True).click()
    status(tab, "Stopping …")
    (hold / "run").unlink()
    kept = made(1)
    whole = theirs("Once upon a time", max_new_tokens=200, temperature=1.0, seed=1)
    assert 5 < len(kept) < len(whole)
    assert kept == whole[: len(kept)]
    settings(max_new_tokens=5, temperature=0, seed="")
    tab.get_by_role("button", name="Write on").click()
    assert made(2) == theirs(kept, max_new_tokens=5)
    tab.fill("textarea", "Paris is")
    write.click()
    assert made(3) == theirs("Paris is", max_new_tokens=5)


def test_two_tabs_wait_for_each_other_and_a_closed_one_makes_way(open_tab, hold):
    (hold / "run").touch()
    first, second, third = open_tab(NONE), open_tab(NONE), open_tab(NONE)
    ask(first, EIFFEL)
    status(first, "Running")
    ask(second, COLOSSEUM)
    assert status(second, "Waiting") == "Waiting: 1 prompt ahead of yours"
    ask(third, "Rome is the capital of")
    assert status(third, "Waiting") == "Waiting: 2 prompts ahead of yours"
    first.close()  # before the second: once the third hears of that one, the server knows of both
    second.close()
    status(third, "Waiting: 1 prompt ahead of yours")
    (hold / "run").unlink()
    status(third, "Done in")
    third.locator(".made li").first.wait_for()
    assert third.locator(".made li").count() == 1
    third.reload()
    third.wait_for_selector(".sc")
    third.locator(".made li").first.wait_for()
    assert third.locator(".made li").count() == 1, "nobody read for those who had gone"


def test_readings_are_compared_and_any_view_is_exported_as_it_is_seen(open_tab, tmp_path):
    tab = open_tab(NONE)
    ask(tab, COLOSSEUM)
    tab.locator(".made li").first.wait_for()
    status(tab, "Done in")
    lenses(tab, "logit", "tuned")
    ask(tab, EIFFEL)  # both from one run
    tab.locator(".made li").nth(2).wait_for()
    tab.locator("[role=grid]").nth(1).wait_for()

    def export(name):
        tab.wait_for_timeout(300)  # the page writes its state into the address a moment later
        with tab.expect_download() as download:
            tab.click("text=Export file")
        download.value.save_as(tmp_path / name)
        return tmp_path / name, page.load(tmp_path / name)

    tab.select_option("select[aria-label=Colour]", "entropy")
    path, readings = export("grid.html")
    assert [(r.prompt, r.lens_name) for r in readings] == [(EIFFEL, "logit"), (EIFFEL, "tuned")]
    assert shown(tab, path) == (2, "entropy")
    for box in tab.locator(".made input").all():
        box.check()
    tab.click("text=Compare 3")
    tab.locator("[role=grid]").nth(2).wait_for()
    assert "?show=r1,r2,r3" in tab.url.replace("%2C", ",").replace("r3,r2,r1", "r1,r2,r3")
    path, readings = export("three.html")
    assert len(readings) == 3
    assert shown(tab, path) == (3, "entropy")
    tab.locator("[role=grid]").first.focus()
    tab.keyboard.press("v")
    tab.locator("[role=grid]").nth(1).wait_for(state="detached")
    path, _ = export("difference.html")
    assert shown(tab, path) == (1, "entropy")
    assert "view=diff" in path.read_text("utf-8")
    tab.reload()
    tab.wait_for_selector(".sc")
    tab.locator(".made [aria-current]").nth(2).wait_for()  # the address says what is shown
    assert "view=diff" in tab.url


def shown(tab, path):
    """(grids, colour) of an exported file, opened without a network."""
    context = tab.context.browser.new_context(offline=True)
    offline = context.new_page()
    offline.goto(path.as_uri())
    offline.wait_for_selector(".sc")
    found = offline.locator("[role=grid]").count(), offline.input_value("select[aria-label=Colour]")
    context.close()
    return found


def test_what_cannot_be_read_is_told_and_the_next_prompt_is_read(open_tab, hold):
    tab = open_tab(NONE)
    ask(tab, "")
    assert status(tab, "empty") == "the prompt is empty: type some text"
    ask(tab, "one two three " * 40)
    assert re.search("has 1?[0-9]+ tokens, at most 64 are read here", status(tab, "tokens, at"))
    ask(tab, "x" * 20_001)
    assert (
        status(tab, "characters")
        == "The prompt has 20,001 characters, at most 20,000 are read here"
    )
    ask(tab, "x" * 400_000)
    assert "The prompt has 400,000 characters" in status(tab, "400,000")
    tab.fill("textarea", EIFFEL)
    tab.fill("input[aria-label^='Tokens to track']", "antidisestablishmentarianism")
    tab.click("button.go")
    assert "tokens (" in status(tab, "tokens (")
    assert tab.locator(".status.problem").count() == 1
    tab.fill("input[aria-label^='Tokens to track']", "")
    tab.select_option("select[aria-label=Model]", str(hold))
    tab.click("button.go")
    assert "config.json" in status(tab, "config.json"), "a directory that is no model"
    tab.select_option("select[aria-label=Model]", "demo")
    tab.click("button.go")
    status(tab, "Done in")


def test_everybody_can_use_it(open_tab):
    for scheme, width in (("light", 1280), ("dark", 1280), ("light", 400), ("dark", 400)):
        tab = open_tab(NONE, color_scheme=scheme, width=width)
        if (scheme, width) != ("light", 1280):  # the first finds no reading there
            drawn(tab, 1)
        assert violations(tab) == []
        # by keyboard alone: from the prompt through the tools to the page
        tab.keyboard.press("Control+a")
        tab.keyboard.type(COLOSSEUM)
        form = ("Kind of prompt", "Model", "logit lens", "tuned lens", "jacobian lens")
        form += ("Tokens kept in each cell", "Tokens to track", "Edits", None, None)
        for label in form:
            tab.keyboard.press("Tab")
            focused = tab.evaluate("document.activeElement.getAttribute('aria-label')")
            assert focused is None if label is None else focused.startswith(label)
        assert tab.evaluate("document.activeElement.textContent") == "Read"
        tab.keyboard.press("Enter")
        status(tab, "Done in")
        assert tab.evaluate("document.activeElement.textContent") == "Read", "the focus stays"
        ask(tab, EIFFEL)
        tab.locator(".made [aria-current]", has_text=EIFFEL).wait_for()
        for box in tab.locator(".made input").all()[:2]:
            box.check()
        tab.click("text=Compare 2")
        drawn(tab, 2)
        assert violations(tab) == []
        assert wide(tab) <= 0
        box = tab.locator(".made li").first.bounding_box()
        assert box["width"] > 150, "a name can be read"


def test_the_file_that_the_browser_is_started_with_opens_the_page(chromium, address):
    with redirecting(address) as file:
        tab = chromium.new_page()
        tab.goto(file.as_uri())
        tab.wait_for_url(re.compile(re.escape(address)))
        tab.locator("textarea").first.wait_for()
        tab.close()


def test_the_printed_address_is_needed(address):
    root = re.match(r"http://[^/]+/", address)[0]
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(root)
    assert refused.value.code == 403
    refused.value.close()
