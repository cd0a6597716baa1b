"""Write web/test/fixture.json: a small page and what its cells must say, for the reader's tests.

    python tests/view/page_fixture.py

tests/view/test_page.py checks that the committed file is what this writes.
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from logitlens.view import page  # noqa: E402
from logitlens.view.page import data  # noqa: E402
from tests.view import page_synthetic as synthetic  # noqa: E402

TARGET = ROOT / "web/test/fixture.json"


def fixture() -> str:
    """The fixture as JSON text: manifest, blocks, and per reading the values of every cell."""
    kept = data.TILE_ABOVE, data.TILE
    data.TILE_ABOVE, data.TILE = 1000, 4  # several tiles in a small file
    try:
        readings = [synthetic.random(3, 10, 4, 2, seed=1), synthetic.hostile()]
        manifest, blocks = page.manifest(readings, title="fixture")
    finally:
        data.TILE_ABOVE, data.TILE = kept
    expected = []
    for reading in readings:
        expected.append(
            {
                "top_ids": reading.top_ids.tolist(),
                "top_logprobs": _half(reading.top_logprobs),
                "top_ranks": data.tied_ranks(reading.top_logprobs).tolist(),
                "entropy": _half(reading.entropy),
                "kl": _half(reading.kl),
                "next_logprobs": _half(reading.next_logprobs),
                "next_ranks": reading.next_ranks.tolist(),
                "candidate_logprobs": _half(reading.candidate_logprobs),
                "candidate_ranks": reading.candidate_ranks.tolist(),
                "track_logprobs": _half(reading.track_logprobs),
                "track_ranks": reading.track_ranks.tolist(),
                "pieces": [p if p.isprintable() else None for p in reading.pieces],
            }
        )
    packed = {name: base64.b64encode(block).decode() for name, block in blocks.items()}
    text = data.json_text({"manifest": manifest, "blocks": packed, "expected": expected})
    return json.dumps(json.loads(text), ensure_ascii=True, indent=1) + "\n"


def _half(array: np.ndarray) -> object:
    """Nested lists of float16 values; what is not a number as a word."""
    flat = [
        float(v) if np.isfinite(v) else str(float(v))
        for v in array.astype(np.float16).reshape(-1).astype(np.float64)
    ]
    return np.array(flat, dtype=object).reshape(array.shape).tolist()


if __name__ == "__main__":
    TARGET.write_text(fixture(), "utf-8")
