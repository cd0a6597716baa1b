"""Make the animation and the page of docs/generation.md: the layers of each token, then the token.

    python docs/generation_images.py        # the bundled model → docs/images/generation.gif and .html

Every frame of the animation is `Reading.figure` of one generation, with what is not there yet left white.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import Rectangle
from PIL import Image

import logitlens

PROMPT = "Can you tell me the capital of France?"
STEP, HOLD, END = 110, 700, 3000  # milliseconds of a layer, of a token, and of the last frame


def main(folder: Path) -> Path:
    reading = logitlens.load().generate(PROMPT, max_new_tokens=4, lens="tuned")
    reading.save(folder / "generation.html")
    written = reading.meta["generation"]["ids"]
    columns = len(written) + 1
    fig = reading.figure(
        positions=slice(-columns, None), layers="0:", figsize=(7, 3.8), caption=False
    )
    canvas, (grid, _) = FigureCanvasAgg(fig), fig.axes
    rows = round(max(grid.get_ylim()))
    title = fig.text(0.02, 0.95, "", fontsize=12, fontweight="bold", va="center")
    grid.set_xlabel("")
    names = grid.get_xticklabels()
    cover = [
        grid.add_patch(Rectangle((c, 0), 1, rows, fc="white", zorder=9)) for c in range(columns)
    ]
    frames, durations = [], []
    for column in range(columns):
        title.set_text(PROMPT + "".join(map(reading.piece, written[: max(0, column - 1)])))
        for row in range(1, rows + 1) if column else [rows]:
            for c, (patch, name) in enumerate(zip(cover, names)):
                shown = rows if c < column else row if c == column else 0
                patch.set_bounds(c, shown, 1, rows - shown)
                name.set_visible(c <= column)
            canvas.draw()
            frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
            durations.append(STEP if row < rows else HOLD)
    title.set_text(PROMPT + "".join(map(reading.piece, written)))
    canvas.draw()
    frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
    durations.append(END)
    palette = frames[-1].quantize(128, dither=Image.Dither.NONE)
    first, *rest = (f.quantize(palette=palette, dither=Image.Dither.NONE) for f in frames)
    path = folder / "generation.gif"
    first.save(path, save_all=True, append_images=rest, duration=durations, loop=0, optimize=True)
    return path


if __name__ == "__main__":
    default = Path(__file__).resolve().parent / "images"
    print(main(Path(sys.argv[1]) if len(sys.argv) > 1 else default))
