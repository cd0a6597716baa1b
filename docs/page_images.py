"""Make the pictures of the page for README and docs, in a real Chromium.

    python docs/page_images.py                   # the bundled model → docs/images/page-*.png
    python docs/page_images.py MODEL FOLDER

Needs playwright and Chromium. Writes page-light.png, page-dark.png, page-difference.png, server.png
and, where the model has a tuned lens, page-lenses.png.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import logitlens
from logitlens.view import page

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = ("The Eiffel Tower is in the city of", "The Colosseum is in the city of")
TRACK = [" Paris", " Rome"]
SIZE = {"width": 1280, "height": 830}


def main() -> None:
    from playwright.sync_api import sync_playwright

    source = sys.argv[1] if len(sys.argv) > 1 else None
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT / "docs" / "images"
    folder.mkdir(parents=True, exist_ok=True)
    model = logitlens.load(source)
    readings = [model.read(prompt, track=TRACK) for prompt in PROMPTS]
    try:
        lenses = [readings[0], model.read(PROMPTS[0], track=TRACK, lens="tuned")]
    except logitlens.LensNotAvailable:
        lenses = []
    last = [len(readings[0].layers) - 2, len(readings[0].ids) - 1]
    pins = ",".join(f"[0,{int(i)}]" for i in readings[0].track_ids)
    state = f"cell=[{last[0]},{last[1]}]&pins=[{pins}]"
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as work:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        for name, shown, scheme, more in (
            ("page-light", readings[:1], "light", ""),
            ("page-dark", readings[:1], "dark", "&color=entropy"),
            ("page-difference", readings, "light", "&view=diff&color=entropy"),
            ("page-lenses", lenses, "light", ""),
        ):
            if not shown:
                continue
            path = page.save(shown, Path(work) / f"{name}.html")
            tab = browser.new_page(viewport=SIZE, device_scale_factor=2, color_scheme=scheme)
            tab.goto(f"{path.as_uri()}#{state}{more}")
            tab.locator(".sc").first.wait_for()
            tab.wait_for_timeout(500)
            tab.screenshot(path=folder / f"{name}.png")
            print(folder / f"{name}.png")
        picture_of_the_server(browser, source, folder / "server.png")
        browser.close()


def picture_of_the_server(browser, source: str | None, path: Path) -> None:
    """`logitlens serve` after the model has written, with who wrote the answer."""
    command = [sys.executable, "-m", "logitlens", "serve", "--port", "0", "--no-open"]
    with subprocess.Popen(
        [*command, "-m", source or "demo"], stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            tab = browser.new_page(viewport=SIZE, device_scale_factor=2, color_scheme="light")
            tab.goto(server.stdout.readline().strip())
            tab.locator(".sc").first.wait_for()
            tab.get_by_role("button", name="Write", exact=True).click()
            tab.locator(".made li", has_text="tokens written").wait_for()
            tab.locator("[role=columnheader][aria-colindex='11']").click()
            tab.get_by_role("button", name="Who wrote").first.click()
            tab.locator(".who table").wait_for()
            tab.evaluate("document.activeElement.blur()")
            tab.wait_for_timeout(500)
            tab.screenshot(path=path)
        finally:
            server.terminate()
    print(path)


if __name__ == "__main__":
    main()
