"""Every contender on every case of a shape, each in its own process and environment, interleaved.

One round reads with each contender once, so that a slow minute of the machine hits all alike.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.readout import environments, machine, shapes
from benchmarks.readout.contenders import CONTENDERS, named
from benchmarks.readout.measure import available

ROOT = Path(__file__).resolve().parents[2]
LEAST = 3  # rounds that are made whatever they take
FIRST_ROUNDS = 3
QUIET = {"WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True)
class Case:
    """tokens     of the prompt
    last       whether the last position alone is read
    rounds     at most; no more are begun after `budget` seconds, but never fewer than three are
    leave_out  contenders left out, because three rounds of them would take too long
    """

    tokens: int
    last: bool
    rounds: int
    budget: float
    leave_out: tuple[str, ...] = ()


class Worker:
    """A contender's process; answers one case at a time."""

    def __init__(self, shape: str, weights: Path, name: str, threads: int):
        self.shape, self.name, self.contender = shape, name, named(name)
        self.process = None
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed by `close`
        try:
            python = environments.python(self.contender.environment)
        except environments.Unavailable as reason:
            self.ready = {"failed": str(reason)}
            return
        command = [str(python), "-m", "benchmarks.readout.worker", shape, str(weights), name]
        command += [str(threads), str(time.time())]
        pipe, words = subprocess.PIPE, {"env": variables(threads), "text": True, "cwd": ROOT}
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=self.log, bufsize=1, **words
        )
        self.ready = self._answer()

    def ask(self, case: dict) -> dict:
        """What the process says of a case; what kept it from starting, if something did."""
        if "failed" in self.ready or self.process is None:
            return {"failed": self.ready["failed"]}
        lacking = self._lacking(case)
        if lacking:
            return {"failed": lacking}
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(case) + "\n")
        except BrokenPipeError:
            return {"failed": "the process ended"}
        return self._answer()

    def facts(self) -> dict:
        """What every row of this contender says."""
        ready = {k: v for k, v in self.ready.items() if k in ("first_s", "standing_mb", "versions")}
        rounded = {k: round(v, 3) if isinstance(v, float) else v for k, v in ready.items()}
        about = {"environment": self.contender.environment, "gives": self.contender.gives}
        return about | rounded

    def close(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                assert pipe is not None
                pipe.close()
        self.log.close()

    def _lacking(self, case: dict) -> str:
        """Whether what it holds at its peak fits into memory: a machine that swaps measures
        nothing, and one that kills the process takes the others along."""
        config = shapes.SHAPES[self.shape][0]
        rows = (1 if case["last"] else case["tokens"]) * (config.num_hidden_layers + 1)
        needed, free = self.contender.held * rows * config.vocab_size * 4, available()
        if free is None or needed < free:
            return ""
        return f"holds about {needed / 1e9:.0f} GB of logits; {free / 1e9:.0f} GB are free"

    def _answer(self) -> dict:
        assert self.process is not None
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        self.process.wait()
        self.log.seek(0)
        said = [t.strip() for t in self.log.read().splitlines() if t.strip()]
        return {"failed": f"the process ended: {said[-1]}"[:200] if said else "the process ended"}


def rows(
    shape: str, weights: Path, cases: list[Case], threads: int, names: list[str] | None = None
) -> Iterator[dict]:
    """A row for each case and contender; a stand-in joins where a library does not run. Of a case that
    is interrupted, rows of what has been measured."""
    workers: dict[str, Worker] = {}
    try:
        for name in names or CONTENDERS:
            _start(workers, shape, weights, name, threads)
        for case in cases:
            results: dict[str, list[dict]] = {n: [] for n in workers if n not in case.leave_out}
            ended = None
            try:
                _measure(workers, case, results)
            except KeyboardInterrupt as interrupt:
                ended = interrupt
            for name, said in results.items():
                if not said:
                    continue
                row = {"kind": "read", "shape": shape, "tokens": case.tokens, "last": case.last}
                row |= {"contender": name, "threads": threads, "dtype": shapes.dtype_name(shape)}
                yield row | machine.summary(said) | workers[name].facts()
            if ended:
                raise ended
    finally:
        for worker in workers.values():
            worker.close()


def _start(workers: dict, shape: str, weights: Path, name: str, threads: int) -> None:
    worker = workers[name] = Worker(shape, weights, name, threads)
    if "failed" in worker.ready:
        print(f"{name}: {worker.ready['failed']}", file=sys.stderr)
        worker.close()
        stand_in = worker.contender.stand_in
        if stand_in and stand_in not in workers:
            workers[stand_in] = Worker(shape, weights, stand_in, threads)


def _measure(workers: dict[str, Worker], case: Case, results: dict[str, list[dict]]) -> None:
    """Add what each says, round by round; the first turn warms up."""
    began, asked = time.perf_counter(), {"tokens": case.tokens, "last": case.last}
    for turn in range(case.rounds + 1):
        if turn > LEAST and time.perf_counter() - began > case.budget:
            break
        for name, said in results.items():
            if any("failed" in s for s in said):
                continue
            answer = workers[name].ask(asked | {"warm": not turn})
            if turn or "failed" in answer:
                said.append(answer)


def first_rows(shape: str, weights: Path, threads: int, names=None) -> Iterator[dict]:
    """From the start of a contender's process to its first result, in fresh processes."""
    said: dict[str, list[dict]] = {name: [] for name in names or CONTENDERS}
    about: dict[str, dict] = {}
    for _ in range(FIRST_ROUNDS):
        for name, results in said.items():
            worker = Worker(shape, weights, name, threads)
            ready = worker.ready
            results.append(ready if "failed" in ready else {"seconds": ready["first_s"]})
            about[name] = worker.facts()
            worker.close()
    for name, results in said.items():
        row = {"kind": "first", "shape": shape, "contender": name, "threads": threads}
        yield row | machine.summary(results) | about[name]


def variables(threads: int) -> dict[str, str]:
    """The environment variables of a process that is measured."""
    counts = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    found = {"PYTHONPATH": str(ROOT / "src")}
    return dict(os.environ) | QUIET | found | dict.fromkeys(counts, str(threads))
