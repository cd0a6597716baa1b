"""The local engine: this process, or several on this machine that each hold the model.

A worker that dies (killed, out of memory) is replaced, and its shard is tried again.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from logitlens.errors import SurveyError
from logitlens.survey.engines import Records, refused

TRIES = 3  # of a shard whose worker dies


def run_here(worker: Any, shards: Sequence[int]) -> Records:
    """One after another by a worker of this process."""
    for shard in shards:
        yield worker.try_shard(shard)


def run(folder: str, shards: Sequence[int], jobs: int, *, together: bool = False) -> Records:
    """By `jobs` processes. Yields records as shards end.

    together   the shards need each other: all at once, by as many processes, and one whose worker dies is
               not tried again

    Raises SurveyError where no worker starts, and ModelNotAvailable where the model is not there for them.
    """
    most = 1 if together else TRIES
    jobs = len(shards) if together else jobs
    waiting, tries, unready = deque(shards), dict.fromkeys(shards, 0), 0
    with selectors.DefaultSelector() as selector:
        workers: set[_Worker] = set()
        try:
            for n in range(min(jobs, len(shards))):  # Ctrl-C while one starts ends those before it
                workers.add(_Worker(folder, n, selector))
            while workers:
                for key, _ in selector.select():
                    worker: _Worker = key.data
                    answer = worker.answer()
                    if answer is not None:
                        if "refused" in answer:
                            raise refused(answer)
                        if "shard" in answer:
                            yield answer
                        worker.ready, worker.shard = True, None
                        if waiting:
                            worker.ask(waiting.popleft())
                        else:
                            workers.discard(worker)
                            worker.close()
                        continue
                    workers.discard(worker)  # it is dead
                    worker.close()
                    unready += not worker.ready
                    if unready >= TRIES:
                        raise SurveyError(
                            f"{TRIES} workers ended before they were ready ({worker.ending}): see above, "
                            "or try with fewer jobs"
                        )
                    if worker.shard is not None:
                        yield from again(worker.shard, worker.ending, tries, waiting, most)
                    if waiting:
                        workers.add(_Worker(folder, worker.number, selector))
        finally:
            for worker in workers:
                worker.process.kill()
                worker.close()


def again(
    shard: int, ending: str, tries: dict[int, int], waiting: deque[int], most: int
) -> Iterator[dict[str, Any]]:
    """Let a shard whose worker died wait again; after the last of `most` tries, yield that it failed."""
    tries[shard] += 1
    if tries[shard] < most:
        waiting.appendleft(shard)
    else:
        often = f" {most} times" if most > 1 else ""
        yield {"shard": shard, "error": f"its worker died{often} ({ending})"}


class _Worker:
    """One process. shard: what it is working on."""

    def __init__(self, folder: str, number: int, selector: selectors.BaseSelector):
        self.number, self.selector = number, selector
        self.ready, self.shard = False, None
        self.ending = "still running"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "logitlens.survey.worker", folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_environment(number),
            process_group=0,  # Ctrl-C ends whoever asks, who then closes stdin
        )
        selector.register(self.process.stdout, selectors.EVENT_READ, self)  # type: ignore[arg-type]

    def ask(self, shard: int) -> None:
        assert self.process.stdin is not None
        self.shard = shard
        try:
            self.process.stdin.write(f"{shard}\n".encode())
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it is dead, which its stdout will say

    def answer(self) -> dict[str, Any] | None:
        """A line of JSON; None where the process is gone."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line.endswith(b"\n") else None

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.selector.unregister(self.process.stdout)
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass
        code = self.process.wait()
        self.process.stdout.close()
        self.ending = f"signal {-code}" if code < 0 else f"exit code {code}"


def _environment(number: int) -> dict[str, str]:
    """A device for each worker, where there are several GPUs and the user has not chosen."""
    import torch

    environment = dict(os.environ)
    # The package may be imported from a checkout that the interpreter would not find.
    here = str(Path(__file__).resolve().parents[3])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [here, environment.get("PYTHONPATH")]))
    if torch.cuda.is_available() and (count := torch.cuda.device_count()) > 1:
        visible = environment.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(
            ","
        )
        environment["CUDA_VISIBLE_DEVICES"] = visible[number % len(visible)]
    return environment
