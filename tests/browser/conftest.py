"""A real Chromium, without a network: a page that asks for anything fails its test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"


@pytest.fixture(scope="session")
def chromium():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not Path(CHROMIUM).exists():
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--force-color-profile=srgb"]
        )
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def demo_model():
    """The bundled model."""
    import logitlens

    return logitlens.load()


class Problems(list):
    """What a page asked for or complained of; empty at the end of a good test."""

    def watch(self, tab):
        tab.on("request", lambda r: self._request(r.url))
        tab.on("pageerror", lambda e: self.append(f"error: {e}"))
        tab.on("console", lambda m: self.append(m.text) if m.type in ("error", "warning") else None)

    def _request(self, url: str) -> None:
        if not url.startswith(("file:", "data:", "blob:", "about:")):
            self.append(f"request: {url}")


@pytest.fixture
def open_page(chromium, tmp_path):
    """open_page(readings, fragment="", width=…, …) → a tab that shows their page from a file."""
    from logitlens.view import page

    contexts, problems = [], Problems()

    def show(readings, fragment="", *, width=1280, height=900, options=None, **context_options):
        path = tmp_path / f"page{len(contexts)}.html"
        path.write_text(page.html(readings, **(options or {})), encoding="utf-8")
        context = chromium.new_context(
            viewport={"width": width, "height": height},
            offline=True,
            accept_downloads=True,
            **context_options,
        )
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(8_000)
        problems.watch(tab)
        tab.goto(path.as_uri() + (f"#{fragment}" if fragment else ""))
        tab.wait_for_selector(".sc")
        tab.evaluate(
            "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )
        return tab

    yield show
    for context in contexts:
        context.close()
    assert not problems, problems
