"""Sizes and frame times of the page: one row for each shape, printed and written to page.jsonl.

    python benchmarks/page.py            # 13×10, 48×2,000 and 126×8,000 layers × positions, top 5

The readings are synthetic (tests/view/page_synthetic.py): noisier than a model's, so the sizes are on
the high side. Frames are measured in a real Chromium with software rendering, without a limit to the
frame rate, while the grid is scrolled a step in every frame: 40 pixels sideways and 24 up or down.
"""

from __future__ import annotations

import gzip
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from logitlens.view import page  # noqa: E402
from logitlens.view.page import notebook  # noqa: E402
from tests.view import page_synthetic as synthetic  # noqa: E402

SHAPES = ((13, 10, 5), (48, 2000, 5), (126, 8000, 5))
FRAMES = 240
OUTPUT = Path(__file__).with_suffix(".jsonl")

_SCROLL = """([dx, dy, n]) => new Promise(done => {
  const sc = document.querySelector('.sc'), at = []
  const step = () => {
    at.push(performance.now())
    sc.scrollLeft += dx
    sc.scrollTop += at.length % 40 < 20 ? dy : -dy
    at.length < n ? requestAnimationFrame(step) : done(at.slice(1).map((t, i) => t - at[i]))
  }
  requestAnimationFrame(step)
})"""


def main() -> None:
    from playwright.sync_api import sync_playwright

    rows: list[dict[str, Any]] = [script_row()]
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--no-sandbox", "--disable-frame-rate-limit", "--disable-gpu-vsync"],
        )
        for shape in SHAPES:
            rows.append(shape_row(browser, Path(folder), *shape))
        browser.close()
    for row in rows:
        print(json.dumps(row))
    OUTPUT.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def script_row() -> dict[str, Any]:
    """Bytes of the page's script."""
    text = page.script().encode()
    return common("script") | {
        "minified_bytes": len(text),
        "gzip_bytes": len(gzip.compress(text, 9)),
        "notebook_bytes": notebook.script_bytes(),
    }


def shape_row(browser: Any, folder: Path, L: int, T: int, K: int) -> dict[str, Any]:
    """Bytes, seconds to write and to open, and milliseconds between frames for one shape."""
    reading = synthetic.plausible(L=L, T=T, K=K, M=0)
    began = time.perf_counter()
    _, blocks = page.encode(reading)
    encoded = time.perf_counter() - began
    path = page.save([reading], folder / "page.html")
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    began = time.perf_counter()
    tab.goto(path.as_uri())
    tab.locator(".sc").wait_for()
    opened = time.perf_counter() - began
    tab.wait_for_timeout(200 + T / 2)  # let the tiles that are out of view be inflated
    row = common(f"page {L}×{T:,}×{K}") | {
        "block_bytes": sum(map(len, blocks.values())),
        "file_bytes": path.stat().st_size,
        "encode_seconds": round(encoded, 3),
        "open_seconds": round(opened, 3),
    }
    for zoom, keys in (("words", 0), ("small", 9)):
        tab.locator("[role=grid]").focus()
        for _ in range(keys):
            tab.keyboard.press("-")
        tab.locator(".sc").evaluate("e => { e.scrollLeft = 0; e.scrollTop = 0 }")
        tab.wait_for_timeout(300)
        times = sorted(tab.evaluate(_SCROLL, [40, 24, FRAMES]))
        for name, share in (("p20", 0.2), ("p50", 0.5), ("p80", 0.8)):
            row[f"{zoom}_{name}_ms"] = round(times[int(share * len(times))], 1)
        row[f"{zoom}_max_ms"] = round(times[-1], 1)
    tab.close()
    return row


def common(name: str) -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    device = f"{platform.machine()}, {os.cpu_count()} cores, software rendering"
    load = round(os.getloadavg()[0], 1)
    return {"name": name, "commit": commit, "device": device, "load": load}


if __name__ == "__main__":
    main()
