"""Speed and memory of reading a prompt, beside the alternatives; rows, a table and plots.

    python benchmarks/run.py                      # everything (three quarters of an hour on two cores)
    python benchmarks/run.py --threads 1          # the same on one thread
    python benchmarks/run.py --only small         # a minute: does it all run?
    python benchmarks/run.py --report             # render the tables from the rows again

Every contender runs in its own process and environment (benchmarks/environments, installed once
under .bench/) on the same weights and token ids; repeats are interleaved (one round reads with each
contender once), so that a slow minute of the machine hits all alike. Rows go to
benchmarks/rows.jsonl: commit, machine and its instruction sets, versions of the contender's
environment, shape, dtype, tokens, threads, the 20/50/80 percentiles of the seconds, the peak memory
beyond the loaded model and the time from process start to the first result. A run that is interrupted
(Ctrl-C, or `timeout 180 python benchmarks/run.py …`) keeps what it has measured; a row says how many
rounds it is of.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.readout import (  # noqa: E402
    compare,
    gpu,
    kernels,
    long,
    machine,
    memory,
    report,
    single,
    start,
    variants,
)
from benchmarks.readout.compare import Case  # noqa: E402
from benchmarks.readout.contenders import CONTENDERS  # noqa: E402
from benchmarks.readout.shapes import write  # noqa: E402

ROWS = ROOT / "benchmarks" / "rows.jsonl"
SLOW = ("naive, all statistics", "layer by layer, all statistics")
HELD = ("nnterp", "tuned-lens", "TransformerLens recipe", "logitlenskit arithmetic", "naive")
CASES = {
    "small": [Case(8, False, 3, 0), Case(64, False, 3, 0), Case(64, True, 3, 0)],
    "gpt2": [
        Case(8, False, 9, 60),
        Case(8, True, 9, 40),
        Case(128, False, 7, 120),
        Case(1024, False, 3, 0, SLOW[1:]),
    ],
    "128k": [
        Case(8, False, 5, 60),
        Case(8, True, 7, 60),
        Case(128, False, 3, 0, SLOW[1:]),
        Case(1024, False, 3, 0, SLOW + HELD + ("TransformerLens logit_lens",)),
    ],
}
PARTS = ("gpt2", "128k", "single", "variants", "first", "kernels", "memory", "long", "start", "gpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=["small", *PARTS], default=PARTS)
    parser.add_argument("--threads", type=int, default=machine.cores())
    parser.add_argument("--tokens", type=int, nargs="*", help="only prompts of these lengths")
    parser.add_argument("--contenders", nargs="*", choices=list(CONTENDERS), metavar="NAME")
    parser.add_argument("--weights", type=Path, help="where the random models are kept")
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--report", action="store_true", help="only render the tables")
    options = parser.parse_args()
    if options.weights and not options.weights.is_dir():
        raise SystemExit(
            f"--weights {options.weights}: no such folder; make it, or leave --weights out"
        )
    if not options.report:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with tempfile.TemporaryDirectory() as folder:
            for row in measure(options, (options.weights or Path(folder)).resolve()):
                keep(row, options.rows)
    if options.rows == ROWS:
        report.write(ROWS, ROOT)


def measure(options: argparse.Namespace, folder: Path) -> Iterator[dict]:
    """The rows of the parts asked for."""
    threads, wanted = options.threads, options.contenders

    def weights(shape: str) -> Path:
        return write(shape, folder)

    for part in options.only:
        if part in CASES:
            cases = [c for c in CASES[part] if not options.tokens or c.tokens in options.tokens]
            yield from compare.rows(part, weights(part), cases, threads, wanted)
        elif part == "single":
            for shape in ("gpt2", "128k"):
                yield from single.rows(shape, weights(shape), threads)
        elif part == "variants":
            yield from variants.rows(weights(variants.SHAPE), threads)
        elif part == "first":
            yield from compare.first_rows("gpt2", weights("gpt2"), threads, wanted)
        elif part == "long":
            yield from long.rows(weights("long"), threads, options.tokens)
        else:
            yield from {"kernels": kernels, "memory": memory, "start": start, "gpu": gpu}[
                part
            ].rows(threads)


def keep(row: dict, path: Path) -> None:
    """Add a row; versions are those of its own environment where it names them."""
    with path.open("a") as file:
        file.write(json.dumps(machine.facts() | row) + "\n")
    print({k: v for k, v in row.items() if k != "versions"}, file=sys.stderr)


if __name__ == "__main__":
    main()
