"""Make the pictures of before-and-after.md: two states of the repository, each by its own commands.

    git worktree add --detach BEFORE 9f6f49e
    python docs/before_and_after.py BEFORE          # → docs/images/before-*.png, after-*.png

In each state `docs/images.py` and `docs/page_images.py` draw the terminal, the figure and the page
with the bundled model; a notebook is what three cells with a reading each put into an HTML document.
Needs playwright, Chromium and Pillow.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
# and how wide they are, in pixels
PICTURES = {
    "terminal-dark": 760, "figure": 760, "page-light": 900, "page-difference": 900, "notebook": 900,
}  # fmt: skip
COLOURS = 64
NOTEBOOK = """
import logitlens
model = logitlens.load()
prompts = ["The Eiffel Tower is in the city of", "The Colosseum is in the city of", "Big Ben is in the city of"]
print("<body style='margin:16px 24px;font:13px monospace;background:white'>")
for n, prompt in enumerate(prompts, 1):
    print(f"<p style='color:#555'>[{n}]: model.read({prompt!r})</p>")
    print(model.read(prompt)._repr_mimebundle_()["text/html"])
"""


def main() -> None:
    for state, checkout in (("before", Path(sys.argv[1]).resolve()), ("after", ROOT)):
        with tempfile.TemporaryDirectory() as work:
            made = Path(work)
            python = [sys.executable]
            place = {"cwd": checkout, "env": os.environ | {"PYTHONPATH": str(checkout / "src")}}
            for script in ("images.py", "page_images.py"):
                subprocess.run([*python, f"docs/{script}", "demo", work], check=True, **place)
            with (made / "notebook.html").open("w", encoding="utf-8") as file:
                subprocess.run([*python, "-c", NOTEBOOK], check=True, stdout=file, **place)
            photograph(made / "notebook.html", made / "notebook.png")
            for name, width in PICTURES.items():
                shrink(made / f"{name}.png", IMAGES / f"{state}-{name}.png", width)


def photograph(document: Path, target: Path) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        tab = browser.new_page(viewport={"width": 1280, "height": 1000})
        tab.goto(document.as_uri())
        for frame in tab.frames[1:]:
            frame.locator(".sc").first.wait_for()
        tab.wait_for_timeout(500)
        tab.screenshot(path=target)
        browser.close()


def shrink(source: Path, target: Path, width: int) -> None:
    """Half as large or less, in few colours: a picture to look at, not to measure."""
    from PIL import Image

    with Image.open(source) as image:
        flat = Image.new("RGB", image.size, "white")
        flat.paste(image, mask=image.getchannel("A") if image.mode == "RGBA" else None)
    flat = flat.resize((width, round(width * flat.height / flat.width)), Image.Resampling.LANCZOS)
    flat.quantize(COLOURS, dither=Image.Dither.NONE).save(target, optimize=True)
    print(target)


if __name__ == "__main__":
    main()
