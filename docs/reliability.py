"""Make every kind of fault and write what came of it into docs/reliability.md.

python docs/reliability.py            all of it: a quarter of an hour
python docs/reliability.py files      one part: tails, chunks, cases or files
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reliability.md"
sys.path.insert(0, str(ROOT))

from tests.test_fuzzing import COUNTS, SEED, ends  # noqa: E402

FORMATS = {
    "reading_json": "reading, `.json`", "reading_parquet": "reading, `.parquet`",
    "page_html": "page, `.html`", "corpus": "corpus: `.txt`, `.jsonl`, `.parquet`, `.gz`",
    "facts": "facts: `.json`, `.jsonl`", "checkpoint": "checkpoint of a fit",
    "lens": "lens, `.safetensors`", "jacobian_pt": "published Jacobian lens, `.pt`",
    "tuned_directory": "published tuned lens, directory",
}  # fmt: skip
# Written cases: what they are about, and the tests that make them.
CASES = {
    "models changed after loading, or broken": ["tests/model/test_bad_models.py"],
    "known traps of other tools": ["tests/model/test_traps.py"],
    "readings from several threads": ["tests/model/test_threads.py"],
    "requests: positions, layers, tokens": ["tests/test_select.py", "tests/model/test_tokens.py"],
    "lens files, and what they are": ["tests/lenses/test_faults.py", "tests/lenses/test_interpretation.py"],
    "command lines": ["tests/cli/test_mistakes.py"],
    "signals, terminals, pipes": ["tests/cli/test_process.py"],
    "requests to the server": ["tests/server/test_app.py", "tests/server/test_connection.py"],
}  # fmt: skip


def table(columns: str, rows: list[list[str | int]]) -> str:
    names = [name.strip() for name in columns.split("|")]
    lines = [f"| {' | '.join(names)} |", f"| --- |{' ---: |' * (len(names) - 1)}"]
    for row in rows:
        cells = [f"{cell:,}" if isinstance(cell, int) else cell for cell in row]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def module(*arguments: str) -> dict:
    """What a module of the tests prints last: a line of JSON."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def tails() -> str:
    rows: list[list[str | int]] = []
    for what, c in module("tests.anatomy.rounding").items():
        right = what.startswith(("right", "loaded"))
        wrong, refused = (
            (0, c["tried"] - c["passed"]) if right else (c["passed"], c["tried"] - c["passed"])
        )
        rows.append([what, c["tried"], wrong, refused, f"{c['extreme']:.3g}"])
    return table("tail | tried | silently wrong | refused | largest (right) or least (wrong)", rows)


def chunks() -> str:
    found = module("tests.model.chunked")
    counts = [found.get(k, 0) for k in ("tried", "right", "wrong", "refused", "not read whole")]
    columns = "chunks of | tried | right | silently wrong | refused | not read whole either"
    return table(columns, [["5, 20 and 40 of 61 tokens", *counts]])


def cases() -> str:
    rows: list[list[str | int]] = []
    for what, files in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.xml"
            command = [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-m",
                "not hub",
                f"--junitxml={report}",
            ]
            subprocess.run([*command, *files], cwd=ROOT, capture_output=True, text=True)
            suite = ElementTree.parse(report).getroot()[0]
        tried, skipped = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
        failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        rows.append([what, tried - skipped, failed, ", ".join(f"`{file}`" for file in files)])
    return table("kind of fault | cases | wrong or unclean | made by", rows)


def files() -> str:
    rows: list[list[str | int]] = []
    for name, found in ends(COUNTS, SEED).items():
        row = [found.get(key, 0) for key in ("tried", "read", "refused", "unclean", "memory")]
        rows.append([FORMATS[name], *row])
    rows.append(["all", *(sum(int(row[i]) for row in rows) for i in range(1, 6))])
    return table("format | tried | read | refused in one line | unclean | above 256 MB", rows)


def main(chosen: list[str]) -> None:
    for part in (tails, chunks, cases, files):
        if chosen and part.__name__ not in chosen:
            continue
        found = part()
        print(f"{part.__name__}\n{found}\n", flush=True)
        text = PAGE.read_text(encoding="utf-8")
        pattern = rf"(<!-- {part.__name__} -->\n).*?(<!-- /{part.__name__} -->)"
        kept = found.replace("\\", r"\\")
        new, count = re.subn(pattern, rf"\g<1>{kept}\n\2", text, flags=re.S)
        assert count == 1, f"docs/reliability.md has no place for {part.__name__}"
        PAGE.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
