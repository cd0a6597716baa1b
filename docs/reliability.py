"""Run the fuzzers and write their table into docs/reliability.md.

python docs/reliability.py
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reliability.md"
sys.path.insert(0, str(ROOT))

from tests.test_fuzzing import COUNTS, SEED, ends  # noqa: E402

NAMES = {
    "reading_json": "reading, .json", "reading_parquet": "reading, .parquet", "page_html": "page, .html",
    "corpus": "corpus, .txt .jsonl .parquet .gz",
    "facts": "facts, .json .jsonl", "checkpoint": "checkpoint of a fit",
}  # fmt: skip


def main() -> None:
    lines = [
        "| format | tried | read | refused in one line | unclean | above 256 MB | seed |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    totals = [0] * 5
    for name, count in COUNTS.items():
        found = ends(name, count, SEED)
        row = [found.get(key, 0) for key in ("tried", "read", "refused", "unclean", "memory")]
        totals = [a + b for a, b in zip(totals, row)]
        lines.append(f"| {NAMES.get(name, name)} | {' | '.join(f'{n:,}' for n in row)} | {SEED} |")
        print(found, flush=True)
    lines.append(f"| all | {' | '.join(f'{n:,}' for n in totals)} | |")
    table = "\n".join(lines)
    text = PAGE.read_text(encoding="utf-8")
    pattern = r"(<!-- fuzzing -->\n).*?(<!-- /fuzzing -->)"
    PAGE.write_text(re.sub(pattern, rf"\g<1>{table}\n\2", text, flags=re.S), encoding="utf-8")


if __name__ == "__main__":
    main()
